"""Result files and the site: what a store has, a file has, and the pages and checks made of it are the same."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import mlflow
import pytest
from helpers.planted_runs import make_finished_run, make_run, plant

from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.reporting.result_file import HEADER, ResultFiles, write
from gtdl_mlflow.reporting.runs import connect, learning_curve, load

FAILURE = 'it, "crashed"\nin /home/user/a run/worker.log, at http://host:1/x'
ANONYMOUS = 'it, "crashed"\nin .../a run/worker.log, at ...'

CURVE = {"eval/accuracy_percent": 90.0, "train/elapsed_s": 1.0}


def plant_all() -> None:
    """Plant a sweep of five seeds, one of which has a learning curve, and a failed run."""
    sweep = mlflow.MlflowClient().create_run(mlflow.create_experiment("gtdl"), tags={"gtdl.sweep": "paired"})
    mlflow.log_metric("paired/cpu/training/PyTorch-2.13.0/ratio", 1.5, run_id=sweep.info.run_id)
    for restart, ratio in enumerate((1.4, 1.6)):
        name = "paired/cpu/training/PyTorch-2.13.0/restart_ratio"
        mlflow.log_metric(name, ratio, restart, run_id=sweep.info.run_id)
    for seed in range(5):
        run = make_finished_run("framework=torch", seed=seed, training_s=10 + seed, metrics=CURVE if seed == 0 else {})
        run_id = plant(run)
        mlflow.MlflowClient().set_tag(run_id, "mlflow.parentRunId", sweep.info.run_id)
        if seed == 0:
            for step in (10, 20):
                mlflow.log_metric("eval/accuracy_percent", 80 + step / 10, step, run_id=run_id)
                mlflow.log_metric("train/elapsed_s", step / 10, step, run_id=run_id)
    plant(
        make_run(
            "framework=mxnet", **{"gtdl.failure": FAILURE, "gtdl.process": "a-host 1 2", "mlflow.user": "somebody"}
        )
    )


@pytest.fixture
def exported(store: str, tmp_path: Path) -> Path:
    plant_all()
    path = tmp_path / "results.csv"
    assert cli.main(["export", "--output", str(path)]) == 0
    return path


def test_file_has_what_the_store_has(exported: Path, store: str) -> None:
    files, stored = ResultFiles([exported]), load(store, ["gtdl"])
    assert len(files.loaded.runs) == len(stored.runs)
    for found, run in zip(files.loaded.runs, stored.runs, strict=True):
        own = {name: value.replace(FAILURE, ANONYMOUS) for name, value in run.tags.items() if name in found.tags}
        run = dataclasses.replace(run, reason=run.reason.replace(FAILURE, ANONYMOUS))
        assert found == dataclasses.replace(run, tags=own)
        assert {name for name in run.tags.keys() - own.keys() if not name.startswith("mlflow.")} <= {"gtdl.process"}
    assert len(stored.runs) == 6
    assert files.loaded.paired == stored.paired
    ((sweep_id, paired),) = stored.paired.items()
    name = "cpu/training/PyTorch-2.13.0"
    assert paired == {f"{name}/ratio": 1.5, f"{name}/restart_ratio": 1.6}
    restarts = files.get_metric_history(sweep_id, f"paired/{name}/restart_ratio")
    assert [(each.step, each.value) for each in restarts] == [(0, 1.4), (1, 1.6)]
    (run,) = [each for each in stored.runs if "train/elapsed_s" in each.metrics]
    curve = learning_curve(run, files)
    assert curve == learning_curve(run, connect(store))
    assert len(curve.iterations) > 2


def test_file_has_neither_users_nor_addresses(exported: Path, store: str) -> None:
    text = exported.read_text()
    for private in (
        "somebody",
        "a-host",
        "/home",
        "http:",
        "mlflow.user",
        "mlflow.source",
        "tracking.uri",
        store,
        str(exported.parent),
    ):
        assert private not in text


def test_reports_and_checks_read_files(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for arguments in (["check"], ["check", "--json"], ["reproduction"]):
        status = cli.main(arguments)
        expected = capsys.readouterr().out
        assert cli.main([*arguments, str(exported)]) == status
        assert capsys.readouterr().out == expected.replace("experiment gtdl", exported.name)
    assert cli.main(["report", str(exported), "--output", str(exported.with_suffix(".html"))]) == 0
    assert "PyTorch 2.13.0 trained" not in exported.with_suffix(".html").read_text()  # one framework has no ranking


def test_merge_adds_machines_and_refuses_what_check_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, merged = tmp_path / "one.csv", tmp_path / "other.csv", tmp_path / "merged.csv"
    for path in (one, other):
        path.write_text(
            as_file(*(make_finished_run("framework=torch", seed=n, **{"gtdl.machine": path.stem}) for n in range(5)))
        )
    capsys.readouterr()
    assert cli.main(["merge", str(one), str(other), str(one), "--output", str(merged)]) == 0
    assert capsys.readouterr().out == f"{merged}: 10 runs of 2 machines\n"
    assert merged.read_text() == one.read_text() + other.read_text().partition("\n")[2]
    before = merged.read_text()
    broken = [make_finished_run("framework=torch", seed=seed, **{"gtdl.quality": "chance"}) for seed in range(5)]
    (tmp_path / "broken.csv").write_text(as_file(*broken))
    capsys.readouterr()
    assert cli.main(["merge", str(other), str(tmp_path / "broken.csv"), "--output", str(merged)]) == 1
    assert "nothing is merged: the runs of " in capsys.readouterr().err
    assert merged.read_text() == before


def as_file(*runs: mlflow.entities.Run) -> str:
    """Return runs as the text of a result file."""
    return write((run, ResultFiles([])) for run in runs)


def test_site_has_a_page_for_each_machine(exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text(as_file(make_finished_run("framework=torch", **{"gtdl.machine": "A <b>GPU</b> (1/2)"})))
    folder = tmp_path / "site"
    assert cli.main(["publish", str(exported), str(other), "--output", str(folder)]) == 0
    index = (folder / "index.html").read_text()
    assert "A &lt;b&gt;GPU&lt;/b&gt; (1/2)" in index
    (own,) = (path.name for path in folder.glob("a-b-gpu-b-1-2-*.html"))
    for name in ("all.html", own, "results.csv", "other.csv"):
        assert f'href="{name}"' in index
        assert (folder / name).stat().st_size > 1000
    assert (folder / "results.csv").read_bytes() == exported.read_bytes()
    assert len(list(folder.iterdir())) == 6


def test_site_loses_no_machine_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machines = ("PC (1)", "PC 1", "all", "index")
    one, other = tmp_path / "one.csv", tmp_path / "folder" / "one.csv"
    other.parent.mkdir()
    one.write_text(as_file(*(make_finished_run("framework=torch", **{"gtdl.machine": name}) for name in machines)))
    other.write_text(one.read_text())
    folder = tmp_path / "site"
    assert cli.main(["publish", str(one), "--output", str(folder)]) == 0
    assert len(list(folder.glob("*.html"))) == 2 + len(machines)
    capsys.readouterr()
    assert cli.main(["publish", str(one), str(other), "--output", str(folder)]) == 2
    assert "two files of one name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "not a result file; `gtdl export` writes one"),
        (lambda text: text.replace("run,kind", "id,kind"), "not a result file; `gtdl export` writes one"),
        (lambda text: text + "x,tag\n", "expected run,kind,name,step,value"),
        (lambda text: text + "x,tag,a,,b\n", "run x has an invalid line"),
        (lambda text: text + "x,speed,a,,b\n", "run x has an invalid line"),
        (lambda text: text.replace("10.0\n", "fast\n"), "has an invalid line: could not convert"),
        (lambda text: text + '"', "not a CSV file in UTF-8"),
    ],
)
def test_wrong_file_is_one_line(
    change: object, message: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(change)
    exported.write_text(change(exported.read_text()))
    capsys.readouterr()
    for command in (["report"], ["check"], ["merge"], ["publish"]):
        assert cli.main([*command, str(exported)]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"gtdl: {exported}")
        assert message in err
        assert err.count("\n") == 1


def test_changed_copy_of_a_run_is_refused(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.reader(io.StringIO(exported.read_text())))
    assert rows[0] == HEADER
    changed = tmp_path / "changed.csv"
    changed.write_text(exported.read_text().replace("accuracy_percent,,98.0", "accuracy_percent,,99.9"))
    assert cli.main(["merge", str(exported), str(changed)]) == 1
    assert f"{changed}: the values of run" in capsys.readouterr().err


def test_experiment_without_runs_is_not_exported(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.create_experiment("gtdl")
    assert cli.main(["export", "--output", str(tmp_path / "results.csv")]) == 1
    assert capsys.readouterr().err == "gtdl: experiment gtdl: no run yet\n"
    assert not (tmp_path / "results.csv").exists()


def test_download_of_a_site_has_no_formula_of_somebody_elses_file(exported: Path, tmp_path: Path) -> None:
    text = exported.read_text()
    run_id = text.splitlines()[1].partition(",")[0]
    exported.write_text(f"{text}{run_id},tag,gtdl.remarks,,=1+1\n{run_id},tag,mlflow.user,,somebody\n")
    assert cli.main(["publish", str(exported), "--output", str(tmp_path / "site")]) == 0
    download = (tmp_path / "site" / exported.name).read_text()
    assert f"{run_id},tag,gtdl.remarks,,'=1+1\n" in download
    assert "somebody" not in download


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1+1", "-a", "@SUM(A1)", "\tx", "\rx", "'quoted", "''=1", "-1.5"]
)
def test_no_text_of_the_store_is_a_formula(tmp_path: Path, text: str) -> None:
    run = make_finished_run("framework=torch", **{"gtdl.machine": text})
    path = tmp_path / "results.csv"
    for _ in range(2):  # as exported, and as merged
        path.write_text(write([(run, None)]), newline="")  # type: ignore[arg-type]
        values = [cell for row in csv.reader(io.StringIO(path.read_bytes().decode(), newline="")) for cell in row]
        assert [cell for cell in values if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and cell != "-1.5"] == []
        (run,) = ResultFiles([path]).runs
        assert run.data.tags["gtdl.machine"] == text
