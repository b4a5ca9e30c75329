"""`gtdl reproduction`: the published figures beside ours, and never two unlike runs in one figure."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
import pytest
from helpers.planted_runs import finished
from helpers.project import Command
from mlflow.entities import Metric

from gtdl_mlflow import cli
from gtdl_mlflow.config import compose

Row = dict[str, str]


def tables(text: str) -> dict[str, list[Row]]:
    """The rows of each table, by the line of text that it stands under."""
    found: dict[str, list[Row]] = {}
    above, header = "", []
    for line in filter(None, text.splitlines()):
        if not line.startswith("|"):
            above, header = line, []
        elif not header:
            header = [word.strip() for word in line.split("|")[1:-1]]
        elif not set(line) <= set("|- "):
            words = [word.strip() for word in line.split("|")[1:-1]]
            found.setdefault(above, []).append(dict(zip(header, words, strict=True)))
    return found


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()  # what MLflow said when the store was made
    status = cli.main(["reproduction", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_published_figures_stand_beside_ours(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, accuracy in ((0, 99.0), (1, 99.1), (2, 99.5)):
        own = ["framework=caffe", "dataset=mnist", f"seed={seed}"]
        finished(own, 256.09 + seed, 1.11, accuracy, **({"gtdl.resumed": "after iteration 7"} if seed == 1 else {}))
    finished(["framework=mxnet", "dataset=mnist"], 60, 0.5, 98.8)
    status, text, err = told(capsys)
    assert (status, err) == (0, "")
    caffe, mxnet = tables(text)["## mnist: each framework under its own default"]
    assert (caffe["n"], caffe["iterations"], caffe["accuracy %"]) == (
        "3 (1 resumed)",
        "10,000",
        "99.10 (99.00 to 99.50)",
    )
    assert caffe["published"] == "Caffe 1.0: 512.18 s, 3.33 s, 99.03 %"
    assert caffe["accuracy, points"] == "+0.07"
    assert caffe["training time, ratio"] == "0.502"  # (256.09 + 1) / 512.18
    assert caffe["testing time, ratio"] == "0.333"
    assert (mxnet["published"], mxnet["accuracy, points"]) == ("none", "")
    assert "Caffe's log interleaves test passes" in text
    assert "ICDCS 2018" in text
    assert "others' defaults" not in text  # nobody ran one


def test_unlike_runs_are_never_one_figure(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["framework=caffe", "dataset=mnist"]
    finished(own, 100, 1, 99)
    finished([*own, "budget=0.1"], 10, 1, 98)
    finished([*own, "tuning=plain"], 200, 1, 99)
    alone = compose([]).threads == 1
    finished([*own, "hardware.threads=1"], 100 if alone else 180, 1, 99)
    finished(own, 50, 1, 99, **{"gtdl.machine": "another one (12345678)"})
    finished([*own, "training.iterations=60"], 1, 1, 80)
    _, text, _ = told(capsys)
    rows = tables(text)["## mnist: each framework under its own default"]
    assert sorted(row["training s"] for row in rows if row["training s"] != "180.0") == [
        "10.0",
        "100.0",
        "200.0",
        "50.0",
    ]
    assert {row["n"] for row in rows} == ({"1", "2"} if alone else {"1"})
    assert len({row["machine"] for row in rows}) == 2
    assert re.search(r"caffe_mnist \(changed, \w{4}\)", text)
    assert "- B: another one (12345678)" in text or "- A: another one (12345678)" in text


def test_the_transfer_matrix_is_framework_by_setting(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for place, framework in enumerate(("caffe", "mxnet")):
        for column, setting in enumerate(("caffe_mnist", "torch_mnist")):
            finished([f"framework={framework}", f"setting={setting}", "dataset=mnist", "budget=0.1"],
                     100 * place + column, 1, 90 + place + column / 10)  # fmt: skip
    _, text, _ = told(capsys)
    assert re.search(
        r"## mnist: every framework under others' defaults \(cpu, \d+ threads?, budget 0.1, tuning best", text
    )
    found = tables(text)
    assert [list(row.values())[1:] for row in found["Accuracy in percent:"]] == [["90.00", "90.10"], ["91.00", "91.10"]]
    assert [list(row.values())[1:] for row in found["Training time in seconds:"]] == [
        ["0.0", "1.0"],
        ["100.0", "101.0"],
    ]


def test_accuracy_stands_against_iterations(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, accuracy in ((0, 80.0), (1, 82.0)):
        own = ["framework=tensorflow", "dataset=cifar10", "budget=0.001", f"seed={seed}"]
        run = finished(own, 60, 1, accuracy)  # 1,000 iterations
        looks = {200: accuracy - 40, 400: accuracy - 20, 800: accuracy - 1}
        for name, values in (("eval/accuracy_percent", looks), ("train/elapsed_s", dict.fromkeys(looks, 1.0))):
            mlflow.MlflowClient().log_batch(run, [Metric(name, value, 0, step) for step, value in values.items()])
    finished(["framework=caffe", "dataset=cifar10"], 60, 1, 75)  # which nobody looked at before its end
    _, text, _ = told(capsys)
    (row,) = next(rows for above, rows in tables(text).items() if "medians over seeds:" in above)
    assert row["n"] == "2"
    assert (row["5% of them"], row["25% of them"]) == ("", "41.00 (250)")
    assert (row["50% of them"], row["75% of them"], row["100% of them"]) == (
        "61.00 (500)", "61.00 (750)", "81.00 (1,000)"
    )  # fmt: skip
    assert row["its tutorial reports"] == "about 86 % after 60,000 to 100,000"


def test_a_real_run_is_in_the_report_and_the_file(
    gtdl: Command, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gtdl("framework=reference", "training.epochs=1").returncode == 0
    assert gtdl("framework=reference", "seed=1").returncode == 0
    status, text, _ = told(capsys, "--output", str(tmp_path / "here.md"))
    assert (status, text) == (0, "")
    assert "2 finished runs" in (tmp_path / "here.md").read_text()
    assert "reference_mnist (changed" in (tmp_path / "here.md").read_text()


def test_nothing_to_report_is_one_line(store: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mlflow.MlflowClient().create_experiment("another")
    assert told(capsys) == (1, "", "gtdl: experiment gtdl: there is none in this tracking store\n")
    mlflow.MlflowClient().create_experiment("gtdl")
    assert told(capsys) == (1, "", "gtdl: experiment gtdl: it has no finished run\n")
    finished(["framework=caffe", "dataset=mnist"], 1, 1, 99)
    status, _, err = told(capsys, "--output", str(tmp_path / "no" / "such" / "file.md"))
    assert status == 1
    assert err == f"gtdl: {tmp_path}/no/such/file.md: No such file or directory\n"
