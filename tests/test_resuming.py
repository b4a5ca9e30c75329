"""Resuming: the same command continues a killed training, with the same result as an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import mlflow
import pytest
from helpers.project import Command, child_of, messages, runs, start, wait_until

from gtdl_mlflow.tracking.identity import Identity, InterruptedRun, checkpoint_folder, tracker_hash

slow = pytest.mark.slow

IDENTITY = Identity("config", "environment", "data", "code")

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


@slow
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


@slow
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
        message, failure = messages(done.stderr)
        assert message == "gtdl: another process trains the same configuration: this run writes no checkpoints"
        assert "killed after limits.run_timeout_s=5" in failure  # so the second run has trained
        assert "gtdl.resumed" not in runs(store)[0].data.tags
    finally:
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=60)
    assert driver.returncode == 130


def leave_checkpoints(run: str) -> Path:
    """Leave a checkpoint folder as an interrupted run does."""
    with pytest.raises(KeyboardInterrupt), checkpoint_folder(IDENTITY, "torch", run, "sqlite://") as (folder, _):
        assert folder is not None
        (folder / "step-3").mkdir()
        raise KeyboardInterrupt
    return folder


def test_next_run_of_the_identity_gets_the_checkpoints_and_their_owner(home: Path) -> None:
    assert leave_checkpoints("first").name == f"torch-{IDENTITY.hash()}"
    with checkpoint_folder(IDENTITY, "torch", "second", "sqlite://") as (folder, interrupted):
        assert interrupted == InterruptedRun("first", tracker_hash("sqlite://"))
        assert folder is not None
        assert (folder / "step-3").is_dir()
    assert checkpoint_folders(home) == []


@pytest.mark.parametrize("content", ["", '{"run": "fi', "[]", '{"run": 1, "tracker": null}', '{"other": "version"}'])
def test_torn_owner_of_checkpoints_stops_nothing(content: str, home: Path) -> None:
    owner = leave_checkpoints("first") / "run.json"
    owner.write_text(content)
    with checkpoint_folder(IDENTITY, "torch", "second", "sqlite://") as (folder, interrupted):
        assert interrupted is None
        assert folder is not None
    assert checkpoint_folders(home) == []


def test_checkpoint_folder_that_cannot_be_written_is_done_without(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "checkpoints").mkdir(parents=True)
    (home / "checkpoints" / f"torch-{IDENTITY.hash()}").write_text("a file")
    with checkpoint_folder(IDENTITY, "torch", "run", "sqlite://") as found:
        assert found == (None, None)
    (home / "checkpoints").rename(home / "aside")
    (home / "checkpoints").write_text("a file")
    with checkpoint_folder(IDENTITY, "torch", "run", "sqlite://") as found:
        assert found == (None, None)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(": File exists: this run writes no checkpoints")
    assert second.endswith(": this run writes no checkpoints")
