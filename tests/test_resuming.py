"""Resuming: the same command continues a killed training, with the same result as an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import mlflow
import pytest
from helpers.project import Command, child_of, runs, start, wait_until

pytestmark = pytest.mark.slow

LONG = (
    "framework=reference",
    "training.epochs=400",
    "training.evaluate_every_epochs=50",
    "training.checkpoint_every_s=0.1",
)


def checkpoint_folders(home: Path) -> list[Path]:
    return sorted((home / "checkpoints").glob("*"))


def wait_for_checkpoint(home: Path, driver: subprocess.Popen[str]) -> None:
    wait_until(lambda: any(home.glob("checkpoints/*/step-*")), "a checkpoint is written", driver, timeout_s=240)


@pytest.fixture
def home(cache_folders: None, tmp_path: Path) -> Path:
    """An empty cache directory."""
    return tmp_path / "home"


@pytest.mark.parametrize("victims", ["driver", "worker", "both"])
def test_the_same_command_resumes_a_killed_training(gtdl: Command, store: str, home: Path, victims: str) -> None:
    assert gtdl(*LONG, "training.checkpoint_every_s=0").returncode == 0
    assert checkpoint_folders(home) == []
    driver = start(*LONG)
    wait_for_checkpoint(home, driver)
    worker = child_of(driver.pid)
    if victims != "worker":
        driver.kill()
    if victims != "driver":
        os.kill(worker, signal.SIGKILL)
    driver.communicate(timeout=60)
    # Without its driver, the worker ends when it sends its next event.
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the worker ends")
    done = gtdl(*LONG)
    assert done.returncode == 0, done.stderr
    resumed, killed, whole = runs(store)
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
    # The learning curve is complete too, and its time increases.
    history = mlflow.MlflowClient().get_metric_history
    curves = [history(run.info.run_id, "eval/accuracy_percent") for run in (whole, resumed)]
    expected, resumed_curve = ([(point.step, point.value) for point in curve] for curve in curves)
    assert resumed_curve == expected
    elapsed = [point.value for point in history(resumed.info.run_id, "train/elapsed_s")]
    assert sorted(elapsed) == elapsed
    assert elapsed[-1] == resumed.data.metrics["training_time_s"]
    assert checkpoint_folders(home) == []


def test_two_runs_at_once_do_not_share_checkpoints(
    gtdl: Command, store: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = start(*LONG, "training.epochs=4000")
    try:
        wait_for_checkpoint(home, driver)
        monkeypatch.setenv(
            "GTDL_LOCKS", str(tmp_path / "locks")
        )  # as in another container that shares the cache directory
        done = gtdl(*LONG, "training.epochs=4000", "limits.run_timeout_s=5")
        message, failure = done.stderr.splitlines()
        assert message == "gtdl: another process trains the same configuration: this run writes no checkpoints"
        assert "killed after limits.run_timeout_s=5" in failure  # so the second run has trained
        assert "gtdl.resumed" not in runs(store)[0].data.tags
    finally:
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=60)
    assert driver.returncode == 130
