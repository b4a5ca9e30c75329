"""``gtdl reproduction``: published results beside measured ones; runs under different conditions are never combined."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
import pytest
from helpers.planted_runs import make_finished_run, plant
from helpers.project import Command
from mlflow.entities import Metric

from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.config import compose

Row = dict[str, str]


def tables(text: str) -> dict[str, list[Row]]:
    """Return the rows of each table by the line of text above it."""
    found: dict[str, list[Row]] = {}
    above, header = "", []
    for line in filter(None, text.splitlines()):
        if not line.startswith("|"):
            above, header = line, []
        elif not header:
            header = [cell.strip() for cell in line.split("|")[1:-1]]
        elif not set(line) <= set("|- "):
            row = [cell.strip() for cell in line.split("|")[1:-1]]
            found.setdefault(above, []).append(dict(zip(header, row, strict=True)))
    return found


def reproduction(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit status, output and errors of the command."""
    capsys.readouterr()  # output of MLflow while the runs were planted
    status = cli.main(["reproduction", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.slow
def test_published_results_are_beside_measured_ones(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = ("framework=caffe", "dataset=mnist")
    for seed, accuracy in enumerate((99.0, 99.1, 99.5)):
        tags = {"gtdl.resumed": "after iteration 7"} if seed == 1 else {}
        times = {"training_s": 256.09 + seed, "testing_s": 1.11}
        plant(make_finished_run(*own, seed=seed, accuracy=accuracy, **times, **tags))  # type: ignore[arg-type]
    plant(make_finished_run("framework=mxnet", "dataset=mnist"))
    status, text, err = reproduction(capsys)
    assert (status, err) == (0, "")
    caffe, mxnet = tables(text)["## mnist: each framework under its own default"]
    assert (caffe["framework"], caffe["n"], caffe["iterations"]) == ("Caffe 1.0.0", "3 (1 resumed)", "10,000")
    assert caffe["test accuracy, %"] == "99.20 (99.00 to 99.50)"
    assert caffe["published"] == "Caffe 1.0: 512.18 s, 3.33 s, 99.03 %"
    assert caffe["accuracy difference, points"] == "+0.17"
    assert caffe["training time ratio"] == "0.502"  # (256.09 + 1) / 512.18
    assert caffe["testing time ratio"] == "0.333"
    assert (mxnet["published"], mxnet["accuracy difference, points"]) == ("none", "")
    assert "Caffe's log interleaves test passes" in text
    assert "ICDCS 2018" in text
    assert "other frameworks' defaults" not in text  # no run has another framework's default


@pytest.mark.slow
def test_runs_under_different_conditions_are_not_combined(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = ("framework=caffe", "dataset=mnist")
    single_core = compose([]).threads == 1
    for run in (
        make_finished_run(*own, training_s=100),
        make_finished_run(*own, "budget=0.1", training_s=10),
        make_finished_run(*own, "mode=default", training_s=200),
        make_finished_run(*own, "hardware.threads=1", training_s=100 if single_core else 180),
        make_finished_run(*own, training_s=50, **{"gtdl.machine": "another one (12345678)"}),
        make_finished_run(*own, "training.iterations=60", training_s=1, accuracy=80),
    ):
        plant(run)
    _, text, _ = reproduction(capsys)
    rows = tables(text)["## mnist: each framework under its own default"]
    times = sorted(row["training time, s"] for row in rows if row["training time, s"] != "180.0")
    assert times == ["10.00", "100.0", "200.0", "50.00"]
    assert {row["n"] for row in rows} == ({"1", "2"} if single_core else {"1"})
    assert len({row["machine"] for row in rows}) == 2
    for row in rows:  # the published result is that of a full training
        assert row["published"].startswith("Caffe 1.0: ")
        compared = [row[title] for title in ("accuracy difference, points", "training time ratio")]
        assert all(compared) if row["budget"] == "1" else compared == ["", ""]
    assert re.search(r"caffe_mnist \(changed, \w{4}\)", text)
    assert "- B: another one (12345678)" in text or "- A: another one (12345678)" in text


@pytest.mark.slow
def test_transfer_matrix_is_framework_by_setting(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for row, framework in enumerate(("caffe", "mxnet")):
        for column, setting in enumerate(("caffe_mnist", "torch_mnist")):
            overrides = (f"framework={framework}", f"setting={setting}", "dataset=mnist", "budget=0.1")
            result = {"training_s": 100 * row + column + 1, "accuracy": 90 + row + column / 10}
            plant(make_finished_run(*overrides, **result))
    _, text, _ = reproduction(capsys)
    title = r"## mnist: every framework under other frameworks' defaults \(cpu, \d+ threads?, budget 0.1"
    assert re.search(title, text)
    found = tables(text)
    assert [list(row.values()) for row in found["Accuracy in percent:"]] == [
        ["Caffe 1.0.0", "90.00", "90.10"],
        ["MXNet 1.9.1", "91.00", "91.10"],
    ]
    assert [list(row.values())[1:] for row in found["Training time in seconds:"]] == [
        ["1.00", "2.00"],
        ["101.0", "102.0"],
    ]


@pytest.mark.slow
def test_accuracy_is_reported_by_iterations(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = ("framework=tensorflow", "dataset=cifar10", "budget=0.001")  # 1,000 iterations
    for seed, accuracy in enumerate((80.0, 82.0)):
        run_id = plant(make_finished_run(*own, seed=seed, training_s=60, accuracy=accuracy))
        evaluations = {200: accuracy - 40, 400: accuracy - 20, 800: accuracy - 1}
        history = [Metric("eval/accuracy_percent", value, 0, step) for step, value in evaluations.items()]
        history += [Metric("train/elapsed_s", 1.0, 0, step) for step in evaluations]
        mlflow.MlflowClient().log_batch(run_id, history)
    plant(make_finished_run("framework=caffe", "dataset=cifar10"))  # without evaluations before its end
    _, text, _ = reproduction(capsys)
    (row,) = next(rows for above, rows in tables(text).items() if "means over seeds:" in above)
    assert row["n"] == "2"
    assert (row["5%"], row["25%"]) == ("", "41.00 (250)")
    assert [row[f"{share}%"] for share in (50, 75, 100)] == ["61.00 (500)", "61.00 (750)", "81.00 (1,000)"]
    assert row["tutorial reports"] == "about 86 % after 60,000 to 100,000 iterations"


@pytest.mark.slow
def test_data_set_without_a_published_result_has_no_columns_for_it(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("framework=caffe", "dataset=att_faces", "setting=caffe_cifar10")
    run_id = plant(make_finished_run(*own, accuracy=90))
    history = [
        Metric(name, value, 0, 1000) for name, value in (("eval/accuracy_percent", 80.0), ("train/elapsed_s", 1.0))
    ]
    mlflow.MlflowClient().log_batch(run_id, history)
    plant(make_finished_run("framework=torch", "dataset=att_faces", "setting=caffe_cifar10"))
    _, text, _ = reproduction(capsys)
    (row,) = tables(text)["## att_faces: each framework under its own default"]
    assert row["test accuracy, %"] == "90.00"
    assert "published" not in row
    (curve,) = next(rows for above, rows in tables(text).items() if "means over seeds:" in above)
    assert curve["tutorial reports"] == ""  # that of the setting is about CIFAR-10
    assert "Differences in procedure" not in text
    assert "other frameworks' defaults" not in text  # a ranking under one setting, which the report has


@pytest.mark.slow
def test_real_runs_are_written_to_a_file(
    gtdl: Command, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gtdl("framework=reference", "training.epochs=1").returncode == 0
    assert gtdl("framework=reference", "seed=1").returncode == 0
    status, text, _ = reproduction(capsys, "--output", str(tmp_path / "here.md"))
    assert (status, text) == (0, "")
    written = (tmp_path / "here.md").read_text()
    assert "2 finished runs" in written
    assert "reference_mnist (changed" in written
    assert "| NumPy reference " in written


@pytest.mark.slow
def test_errors_are_one_line(store: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mlflow.MlflowClient().create_experiment("another")
    assert reproduction(capsys) == (1, "", "gtdl: experiment gtdl: not found in this tracking store\n")
    mlflow.MlflowClient().create_experiment("gtdl")
    assert reproduction(capsys) == (1, "", "gtdl: experiment gtdl: no finished run\n")
    plant(make_finished_run("framework=caffe", "dataset=mnist"))
    status, _, err = reproduction(capsys, "--output", str(tmp_path / "no" / "such" / "file.md"))
    assert status == 2
    assert err == f"gtdl: {tmp_path}/no/such/file.md: the folder {tmp_path}/no/such does not exist\n"
