"""Whatever becomes of a worker, the caller hears why, and no process of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gtdl_mlflow import config, datasets, worker_process
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.worker.events import Event, Finished, Metadata, Metrics
from gtdl_mlflow.worker_process import WorkerFailed

SAMPLE = Path(__file__).parent / "helpers" / "samples" / "worker.py"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Launch the sample worker with a behaviour."""
    monkeypatch.setattr(worker_process, "WORKER_MAIN", SAMPLE)

    def started(behaviour: str, timeout_s: float = 30, environment: dict[str, str] | None = None) -> Iterator[Event]:
        job = create_job(config.compose(["framework=reference"]), tmp_path, tmp_path)
        job.options = {"behaviour": behaviour}
        return worker_process.run_worker(job, Path(sys.executable), environment or {}, tmp_path, timeout_s)

    return started


def gone(pid: int) -> bool:
    """Whether a process ends soon: its new parent may take a moment to reap it."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def until_idle(pid: int) -> None:
    """Wait for a process to have nothing more to do, however slow the machine is just now."""
    used, process = -1.0, psutil.Process(pid)
    while used < (used := sum(process.cpu_times()[:2])) or not used:
        time.sleep(1)


def no_children() -> bool:
    """Whether this process has neither children nor zombies."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", r"exited with status 1; .*RuntimeError: the framework fell over"),
        ("segfault", r"was killed by SIGSEGV; .*about to segfault"),
        ("be killed", r"was killed by SIGKILL \(out of memory\?\); .*about to be killed"),
        ("leave quietly", r"exited with status 0 before it had finished"),
        ("talk nonsense", r"not an event: 'Epoch 1/10 loss 0.5'; .*about to talk nonsense"),
        ("stop mid-word", r"exited with status 3"),
    ],
)
def test_a_failing_worker_says_how_it_ended_and_its_last_words(
    start: Any, tmp_path: Path, behaviour: str, reason: str
) -> None:
    heard = []
    with pytest.raises(WorkerFailed, match=reason) as failure:
        for event in start(behaviour):
            heard.append(event)
    assert heard == [Metrics({"setup/import_s": 1.5}, 0, 1.0)]
    assert "\n" not in str(failure.value)
    assert str(tmp_path / "worker.log") in str(failure.value)
    assert '"setup/import_s": 1.5' in (tmp_path / "events.jsonl").read_text()
    assert no_children()


def test_a_worker_that_hangs_is_killed_with_its_children(start: Any) -> None:
    facts: dict[str, Any] = {}
    with pytest.raises(WorkerFailed, match=r"killed after limits\.run_timeout_s=2 seconds"):
        for event in start("hang with a child", timeout_s=2):
            if isinstance(event, Metadata):
                facts = event.facts
    assert gone(facts["child"])
    assert no_children()


def test_leaving_early_kills_the_worker_and_its_children(start: Any) -> None:
    events = start("hang with a child")
    next(events)
    child = next(events).facts["child"]
    events.close()
    assert gone(child)
    assert no_children()


def test_what_a_framework_prints_is_kept_apart_from_its_events(start: Any, tmp_path: Path) -> None:
    assert list(start("print to descriptor 1"))[-1] == Finished()
    assert "said from C" in (tmp_path / "worker.log").read_text()


def test_a_worker_inherits_neither_the_tracker_nor_stray_thread_counts(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    strays = {
        "MLFLOW_RUN_ID": "x", "MLFLOW_TRACKING_TOKEN": "secret", "OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "7",
        "TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONPATH": "/x", "LD_PRELOAD": "",
    }  # fmt: skip
    for name, value in strays.items():
        monkeypatch.setenv(name, value)
    described = list(start("show its environment", environment={"MALLOC_TRIM_THRESHOLD_": "5"}))[1]
    seen = described.facts
    assert "PATH" in seen
    assert not {"MLFLOW_RUN_ID", "MLFLOW_TRACKING_TOKEN", "TF_ENABLE_ONEDNN_OPTS", "PYTHONPATH", "LD_PRELOAD"} & set(
        seen
    )
    threads = str(config.compose([]).threads)
    assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]) == (threads, threads)
    assert seen["MALLOC_TRIM_THRESHOLD_"] == "5"


def test_an_interpreter_that_is_gone_is_one_line(tmp_path: Path) -> None:
    job = create_job(config.compose(["framework=reference"]), tmp_path, tmp_path)
    with pytest.raises(WorkerFailed, match=r"cannot be started with /nowhere/python: No such file"):
        list(worker_process.run_worker(job, Path("/nowhere/python"), {}, tmp_path, 10))


def test_a_worker_stops_when_its_driver_is_gone(tmp_path: Path) -> None:
    # The real worker, with the reading end of its events closed as it is when a driver is killed.
    composed = config.compose(["framework=reference", "training.epochs=100000"])
    job = create_job(composed, datasets.prepare(composed.dataset).folder, tmp_path)
    job.write(tmp_path / "job.json")
    read_end, write_end = os.pipe()
    worker = subprocess.Popen(
        [
            sys.executable,
            "-I",
            worker_process.WORKER_MAIN,
            tmp_path / "job.json",
            str(write_end),
            str(os.getpid()),
            "0",
        ],
        pass_fds=[write_end],
        stderr=subprocess.DEVNULL,
    )
    os.close(write_end)
    os.read(read_end, 10)
    os.close(read_end)
    assert worker.wait(timeout=30) == 1


def test_the_worker_runs_by_hand_from_its_job_file(tmp_path: Path) -> None:
    composed = config.compose(["framework=reference", "training.epochs=1"])
    job = create_job(composed, datasets.prepare(composed.dataset).folder, tmp_path)
    job.write(tmp_path / "job.json")
    done = subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow.worker", tmp_path / "job.json"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '{"event": "finished"}'


def test_signals_are_named() -> None:
    assert worker_process._ending(-signal.SIGTERM) == "was killed by SIGTERM"


def test_at_its_end_a_worker_runs_what_was_registered_and_takes_nothing_apart() -> None:
    worker = Path(worker_process.__file__).parent / "worker" / "__main__.py"
    program = f"""
import atexit, os, runpy, sys
class Framework:
    def __del__(self, write=os.write): write(2, b"taken apart")
framework = Framework()
atexit.register(print, "farewell", file=sys.stderr)
sys.argv = ["worker"]
runpy.run_path({str(worker)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2  # no job was given
    assert "farewell" in done.stderr
    assert "taken apart" not in done.stderr


def test_an_interpreter_that_is_ready_early_waits_and_that_counts_nowhere(tmp_path: Path) -> None:
    composed = config.compose(["framework=reference", "training.epochs=1"])
    job = create_job(composed, datasets.prepare(composed.dataset).folder, tmp_path)
    values: dict[str, float] = {}
    began = time.monotonic()
    with worker_process.WorkerProcess(tmp_path, job.threads, {}) as worker:
        number = worker.start(Path(sys.executable))
        until_idle(number)
        ready_s = time.monotonic() - began
        time.sleep(4)
        assert worker.start(Path("/nowhere/python")) == number  # it is there already
        os.kill(number, 0)
        for event in worker.work(job, 60):
            if isinstance(event, Metrics):
                values |= event.values
    assert "accuracy_percent" in values
    assert values["setup/start_s"] <= ready_s
    assert values["worker/wall_s"] < time.monotonic() - began - 3
    assert gone(number)


def test_a_worker_that_was_never_told_to_begin_is_gone(tmp_path: Path) -> None:
    with worker_process.WorkerProcess(tmp_path, 1, {}) as worker:
        number = worker.start(Path(sys.executable))
    assert gone(number)
    assert no_children()
