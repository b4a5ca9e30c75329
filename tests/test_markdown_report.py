"""The report in Markdown has the sentences and tables of the page, and text of the store is no markup in it."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
import pytest
from helpers.planted_runs import make_finished_run, plant

from gtdl_mlflow.cli import __main__ as cli


@pytest.fixture
def markdown(store: str, tmp_path: Path) -> str:
    """The report of two frameworks, of which the second takes twice as long, in whole runs and in turns."""
    client = mlflow.MlflowClient()
    sweep = client.create_run(mlflow.create_experiment("gtdl"), tags={"gtdl.sweep": "paired"}).info.run_id
    for name, ratio, low, high, ms in (("PyTorch-2.13.0", 1, 1, 1, 4), ("TensorFlow-2.21.0", 2, 1.9, 2.1, 8)):
        prefix = f"paired/cpu/training/{name}"
        values = {"ratio": ratio, "ratio_low": low, "ratio_high": high, "time_ms": ms}
        for kind, value in values.items():
            client.log_metric(sweep, f"{prefix}/{kind}", value)
    for framework, training_s in (("torch", 10), ("tensorflow", 20)):
        for seed in range(5):
            run = make_finished_run(
                f"framework={framework}", "setting=caffe_mnist", "hardware.threads=1",
                seed=seed, training_s=training_s + seed / 10,
                **{"gtdl.machine": "<b>CPU|1</b>", "gtdl.mode": f"<i>{framework}|x</i>"},
            )  # fmt: skip
            client.set_tag(plant(run), "mlflow.parentRunId", sweep)
    assert cli.main(["report", "--output", "report.md"]) == 0
    return (tmp_path / "report.md").read_text()


def test_report_in_markdown(markdown: str) -> None:
    assert markdown.startswith("# gtdl\n\n## mnist_5k, all under caffe_mnist, cpu")
    assert "\n\nMachine: " in markdown
    assert (
        "- Paired measurement, CPU time of one thread: PyTorch 2.13.0 trained fastest. "
        "TensorFlow 2.21.0 took 2.00x \\[1.90, 2.10\\]" in markdown
    )
    assert "| framework | training step, CPU time |\n| --- | --- |\n| PyTorch 2.13.0 | best: 4.00 ms |" in markdown
    (whole,) = [line for line in markdown.splitlines() if line.startswith("| TensorFlow 2.21.0 | 20.20 ")]
    assert "1.98x" not in whole, "the paired measurement has compared them"
    assert "<br>0.00 points \\[0.00, 0.00\\] behind, the same |" in whole, "a cell keeps its lines"
    assert "&lt;b&gt;CPU\\|1&lt;/b&gt;" in markdown
    assert "&lt;i&gt;tensorflow\\|x&lt;/i&gt; (best) |" in whole
    assert not re.search("<(?!br>)", markdown)


def test_no_run_is_one_line(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mlflow.create_experiment("gtdl")
    assert cli.main(["report", "--output", "report.md"]) == 1
    assert "no run yet" in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()
