"""A training that is killed goes on with the same command, and ends as one that was not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from helpers.project import Command, child_of, start

LONG = (
    "framework=reference",
    "training.epochs=400",
    "training.evaluate_every_epochs=50",
    "training.checkpoint_every_s=0.1",
)


def runs() -> Any:
    return mlflow.search_runs(experiment_names=["gtdl"], order_by=["attributes.start_time ASC"], output_format="list")


def kept(home: Path) -> list[Path]:
    return sorted((home / "checkpoints").glob("*"))


def wait_for_checkpoint(home: Path) -> None:
    deadline = time.monotonic() + 240
    while not any(home.glob("checkpoints/*/step-*")):
        assert time.monotonic() < deadline, "no checkpoint in four minutes"
        time.sleep(0.01)


@pytest.fixture
def home(places: None, tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.parametrize("victims", ["driver", "worker", "both"])
def test_the_same_command_goes_on_after_a_kill(gtdl: Command, store: str, home: Path, victims: str) -> None:
    assert gtdl(*LONG, "training.checkpoint_every_s=0").returncode == 0
    assert kept(home) == []
    driver = start(*LONG)
    wait_for_checkpoint(home)
    worker = child_of(driver.pid)
    if victims != "worker":
        driver.kill()
    if victims != "driver":
        os.kill(worker, signal.SIGKILL)
    driver.communicate(timeout=60)
    while Path(f"/proc/{worker}").exists():  # without its driver it ends at its next word
        time.sleep(0.01)
    done = gtdl(*LONG)
    assert done.returncode == 0, done.stderr
    whole, killed, resumed = runs()
    assert killed.info.status == ("FAILED" if victims == "worker" else "KILLED")
    if victims != "worker":
        assert resumed.info.run_id in killed.data.tags["gtdl.failure"]
    assert resumed.info.status == "FINISHED"
    assert resumed.data.tags["gtdl.resumed"].startswith("after iteration ")
    assert resumed.data.tags["gtdl.resumed"].endswith(f" of run {killed.info.run_id}")
    assert "gtdl.resumed" not in whole.data.tags
    for name in ("gtdl.weights_sha256", "gtdl.config_hash"):
        assert resumed.data.tags[name] == whole.data.tags[name]
    assert resumed.data.metrics["accuracy_percent"] == whole.data.metrics["accuracy_percent"]
    # The curve is whole, too, and its time goes up.
    history = mlflow.MlflowClient().get_metric_history
    curves = [history(run.info.run_id, "eval/accuracy_percent") for run in (whole, resumed)]
    assert [[(point.step, point.value) for point in curve] for curve in curves[:1]] == [
        [(point.step, point.value) for point in curve] for curve in curves[1:]
    ]
    elapsed = [point.value for point in history(resumed.info.run_id, "train/elapsed_s")]
    assert sorted(elapsed) == elapsed
    assert elapsed[-1] == resumed.data.metrics["training_time_s"]
    assert kept(home) == []


def test_two_at_once_do_not_share_checkpoints(
    gtdl: Command, store: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = start(*LONG, "training.epochs=4000")
    try:
        wait_for_checkpoint(home)
        monkeypatch.setenv("GTDL_LOCKS", str(tmp_path / "locks"))  # as in another container, which shares the home
        done = gtdl(*LONG, "training.epochs=4000", "limits.run_timeout_s=5")
        said, failure = done.stderr.splitlines()
        assert said == "gtdl: another process is training this very configuration: this run keeps no checkpoints"
        assert "killed after limits.run_timeout_s=5" in failure  # it did train
        assert "gtdl.resumed" not in runs()[-1].data.tags
    finally:
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=60)
    assert driver.returncode == 130
