"""However a worker ends, the driver gets the reason, and no process of the worker is left."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.disks import fill, small_disk
from helpers.processes import read_line, start_script

from gtdl_mlflow import config, datasets, worker_process
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.worker.events import Event, Finished, Metadata, Metrics
from gtdl_mlflow.worker_process import WorkerFailed

SAMPLE = Path(__file__).parent / "helpers" / "samples" / "worker.py"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the stand-in for the worker with a behaviour."""
    monkeypatch.setattr(worker_process, "WORKER_MAIN", SAMPLE)

    def run(behaviour: str, timeout_s: float = 30, environment: dict[str, str] | None = None) -> Iterator[Event]:
        job = create_job(config.compose(["framework=reference"]), tmp_path, tmp_path)
        job.options = {"behaviour": behaviour}
        return worker_process.run_worker(job, Path(sys.executable), environment or {}, tmp_path, timeout_s)

    return run


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def has_ended(pid: int) -> bool:
    """Return whether a process ends within 5 s: its new parent may need a moment to reap it."""
    for _ in range(100):
        if is_gone(pid):
            return True
        time.sleep(0.05)
    return False


def wait_until_idle(pid: int) -> None:
    """Wait until a process has started and uses no more CPU time, on a machine of any speed."""
    deadline, used, process = time.monotonic() + 60, -1.0, psutil.Process(pid)
    while used < (used := sum(process.cpu_times()[:2])) or not used:
        assert time.monotonic() < deadline, f"process {pid} is still busy"
        time.sleep(1)


def no_children() -> bool:
    """Return whether this process has neither children nor zombies."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", r"exited with status 1; .*RuntimeError: error in the framework"),
        ("segfault", r"was killed by SIGSEGV; .*next: segfault"),
        ("be killed", r"was killed by SIGKILL; .*next: be killed"),
        ("exit early", r"exited with status 0 before it had finished"),
        ("send text", r"sent an invalid event: 'Epoch 1/10 loss 0.5'; .*next: send text"),
        ("send deep nesting", r"sent an invalid event: '\[+'; .*next: send deep nesting"),
        ("send an endless line", r"sent an invalid event: '\[+'; .*next: send an endless line"),
        ("send nothing more", r"finished without training_time_s, testing_time_s, accuracy_percent; "),
        ("stop within a line", r"exited with status 4"),
    ],
)
def test_failure_has_the_way_the_worker_ended_and_its_last_output(
    start: Any, tmp_path: Path, behaviour: str, reason: str
) -> None:
    received = []
    with pytest.raises(WorkerFailed, match=reason) as failure:
        for event in start(behaviour):
            received.append(event)
    assert received == [Metrics({"setup/import_s": 1.5}, 0, 1.0)]
    assert "\n" not in str(failure.value)
    assert str(tmp_path / "worker.log") in str(failure.value)
    assert '"setup/import_s": 1.5' in (tmp_path / "events.jsonl").read_text()
    assert no_children()


def test_a_refusal_is_the_whole_message(start: Any) -> None:
    with pytest.raises(WorkerFailed, match=r"^framework=sample cannot run layer conv1$"):
        list(start("refuse"))


def test_kill_for_lack_of_memory_is_named(start: Any) -> None:
    group = Path(f"/sys/fs/cgroup/memory/gtdl-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(2**26))
    except OSError as error:
        pytest.skip(f"no control group can be created: {error}")
    try:
        with pytest.raises(WorkerFailed, match=r"the worker was killed by SIGKILL \(out of memory\); "):
            list(start(f"use much memory: {group}"))
    finally:
        group.rmdir()


@pytest.mark.slow
def test_worker_is_killed_with_its_children_at_the_timeout(start: Any) -> None:
    child = 0
    with pytest.raises(WorkerFailed, match=r"killed after limits\.run_timeout_s=2 seconds"):
        for event in start("hang with a child", timeout_s=2):
            if isinstance(event, Metadata):
                child = event.values["child"]
    assert has_ended(child)
    assert no_children()


def test_closing_the_events_kills_the_worker_and_its_children(start: Any) -> None:
    events = start("hang with a child")
    next(events)
    child = next(events).values["child"]
    events.close()
    assert has_ended(child)
    assert no_children()


@pytest.mark.parametrize("end", ["", " and crash", " and be killed", " and hang"])
def test_processes_that_leave_the_workers_session_end_with_it(start: Any, end: str) -> None:
    left: list[int] = []
    events = start(f"leave processes{end}")
    with suppress(WorkerFailed):
        for event in events:
            if isinstance(event, Metadata):
                left = event.values["left"]
                if end == " and hang":
                    assert not any(map(is_gone, left))
                    events.close()
    assert len(left) == 3
    assert all(map(has_ended, left))
    assert no_children()


@pytest.mark.parametrize("end", ["", " and crash", " and be killed", " and hang"])
def test_temporary_files_of_the_worker_are_removed(start: Any, end: str) -> None:
    events = start(f"leave a temporary file{end}")
    next(events)
    file = Path(next(events).values["file"])
    assert file.exists()
    assert file.parent.parent == Path(tempfile.gettempdir())
    if end == " and hang":
        events.close()
    else:
        with suppress(WorkerFailed):
            list(events)
    assert not file.parent.exists()


def test_a_worker_runs_without_a_temporary_folder(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    *_, last = start("finish")
    assert isinstance(last, Finished)


@pytest.mark.parametrize("victim", ["first process", "process group", "stopped process group"])
def test_processes_end_if_the_first_process_of_the_worker_is_killed_from_outside(start: Any, victim: str) -> None:
    left: list[int] = []
    with pytest.raises(WorkerFailed, match="was killed by SIGKILL"):
        for event in start("leave processes and hang"):
            if isinstance(event, Metadata):
                left, worker = event.values["left"], event.values["worker"]
                os.kill(left[1], signal.SIGKILL)  # without the parent and the environment, nothing connects the two
                first = psutil.Process(worker).ppid()
                if victim == "stopped process group":
                    os.killpg(first, signal.SIGSTOP)
                    os.kill(worker, signal.SIGKILL)
                    time.sleep(0.5)
                    os.kill(first, signal.SIGCONT)
                elif victim == "process group":
                    os.killpg(first, signal.SIGKILL)
                else:
                    os.kill(first, signal.SIGKILL)
    assert all(map(has_ended, [worker, *left]))
    assert no_children()


@pytest.mark.slow
def test_all_processes_of_the_worker_end_when_the_driver_is_killed(tmp_path: Path) -> None:
    driver = start_script(
        "import sys; from pathlib import Path; from gtdl_mlflow import config, worker_process\n"
        "from gtdl_mlflow.config.job import create_job; worker_process.WORKER_MAIN = Path(sys.argv[1])\n"
        "folder = Path(sys.argv[2]); job = create_job(config.compose(['framework=reference']), folder, folder)\n"
        "job.options = {'behaviour': 'leave processes and hang'}\n"
        "for event in worker_process.run_worker(job, Path(sys.executable), {}, folder, 60):\n"
        "    if 'left' in event.values: print(*event.values['left'], event.values['worker'], flush=True)",
        SAMPLE,
        tmp_path,
    )
    processes = [int(word) for word in read_line(driver, driver.stdout).split()]
    assert len(processes) == 4
    driver.kill()
    driver.communicate(timeout=30)
    assert all(map(has_ended, processes))


def test_other_children_of_the_driver_are_left_alone(start: Any) -> None:
    others = [subprocess.Popen(["sleep", "60"]), subprocess.Popen(["false"])]
    list(start("leave processes"))
    assert others[0].poll() is None
    assert others[1].wait(timeout=30) == 1  # its status is still there
    others[0].kill()
    others[0].wait(timeout=30)


def test_long_output_is_limited_on_the_disk_and_in_the_message(start: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="exited with status 4") as failure:
        list(start("print much"))
    log = (tmp_path / "worker.log").read_bytes()
    assert len(log) < 2 * worker_process.LOG_LIMIT + 100
    assert log.startswith(b"next: print much\n0 xxx")
    assert b"bytes are left out]\n" in log
    assert log.endswith(b"y" * worker_process.LOG_LIMIT)
    assert len(str(failure.value)) < 5000


def test_control_characters_of_the_output_are_not_in_the_message(start: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match=r"before\ufffdafter\ufffd\[31m +tab\ufffd\ufffd \| z+$") as failure:
        list(start("print control characters"))
    assert str(failure.value).isprintable()
    assert len(str(failure.value)) < 5000
    assert b"before\x00after" in (tmp_path / "worker.log").read_bytes()


@pytest.mark.parametrize("behaviour", ["send more", "finish twice"])
def test_nothing_follows_the_last_event(start: Any, behaviour: str) -> None:
    with pytest.raises(WorkerFailed, match="sent an event after the last one"):
        list(start(behaviour))
    assert no_children()


def test_worker_needs_no_space_for_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker_process, "WORKER_MAIN", SAMPLE)
    with small_disk(tmp_path / "disk", size_kib=64) as disk:
        fill(disk)
        job = create_job(config.compose(["framework=reference"]), disk, disk)
        job.options = {"behaviour": "print to descriptor 1"}
        received = list(worker_process.run_worker(job, Path(sys.executable), {}, disk, 30))
    assert received[-1] == Finished(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(Path(line.split(":")[1].strip()).name for line in lines) == ["events.jsonl", "job.json", "worker.log"]
    assert all(line.endswith("not written (No space left on device); the run goes on") for line in lines)


def test_output_of_a_framework_goes_to_the_log_and_not_to_the_events(start: Any, tmp_path: Path) -> None:
    assert list(start("print to descriptor 1"))[-1] == Finished(0.5)
    assert "printed from C" in (tmp_path / "worker.log").read_text()


def test_worker_inherits_neither_tracking_variables_nor_thread_counts(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "MLFLOW_RUN_ID": "x", "MLFLOW_TRACKING_TOKEN": "secret", "OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "7",
        "TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONPATH": "/x", "LD_PRELOAD": "",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    metadata = list(start("send its environment", environment={"MALLOC_TRIM_THRESHOLD_": "5"}))[1]
    received = metadata.values
    assert "PATH" in received
    assert not {"MLFLOW_RUN_ID", "MLFLOW_TRACKING_TOKEN", "TF_ENABLE_ONEDNN_OPTS", "PYTHONPATH", "LD_PRELOAD"} & set(
        received
    )
    threads = str(config.compose([]).threads)
    assert (received["OMP_NUM_THREADS"], received["MKL_NUM_THREADS"]) == (threads, threads)
    assert received["MALLOC_TRIM_THRESHOLD_"] == "5"


TRANSPARENT_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not TRANSPARENT_HUGE_PAGES.exists() or "[never]" in TRANSPARENT_HUGE_PAGES.read_text(),
    reason="the kernel gives no huge pages",
)
def test_the_memory_of_a_worker_lies_in_huge_pages() -> None:
    code = (
        "import re, pathlib\n"
        "memory = bytearray(64 * 2**20)\n"
        "print(re.search(r'AnonHugePages: +([0-9]+) kB', pathlib.Path('/proc/self/smaps_rollup').read_text())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=worker_process.worker_environment(1, {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 32 * 1024


def test_missing_interpreter_is_reported_in_one_line(tmp_path: Path) -> None:
    job = create_job(config.compose(["framework=reference"]), tmp_path, tmp_path)
    with pytest.raises(WorkerFailed, match=r"cannot be started with /nowhere/python: No such file"):
        list(worker_process.run_worker(job, Path("/nowhere/python"), {}, tmp_path, 10))


@pytest.mark.slow
def test_worker_stops_when_its_driver_has_ended(tmp_path: Path) -> None:
    # The real worker. The reading end of its events is closed, as it is when a driver is killed.
    composed = config.compose(["framework=reference", "training.epochs=100000"])
    job = create_job(composed, datasets.prepare(composed.dataset).folder, tmp_path)
    (tmp_path / "job.json").write_text(f"{json.dumps(asdict(job))}\n")
    read_end, write_end = os.pipe()
    arguments = [tmp_path / "job.json", str(write_end), str(os.getpid()), "0"]
    with (tmp_path / "job.json").open() as file:
        worker = subprocess.Popen(
            [sys.executable, "-I", worker_process.WORKER_MAIN, *arguments],
            pass_fds=[write_end],
            stdin=file,
            stderr=subprocess.PIPE,
            text=True,
        )
    os.close(write_end)
    assert select.select([read_end], [], [], 60)[0], "no event in a minute"
    os.read(read_end, 10)
    os.close(read_end)
    assert worker.communicate(timeout=30)[1] == "the driver has ended, stopping\n"
    assert worker.returncode == 1


@pytest.mark.slow
def test_worker_can_be_run_by_hand_from_a_job_file(tmp_path: Path) -> None:
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
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "finished"


@pytest.mark.slow
def test_waiting_time_of_an_early_interpreter_is_not_measured(tmp_path: Path) -> None:
    composed = config.compose(["framework=reference", "training.epochs=1"])
    job = create_job(composed, datasets.prepare(composed.dataset).folder, tmp_path)
    values: dict[str, float] = {}
    begin = time.monotonic()
    with worker_process.WorkerProcess(tmp_path, job.threads, {}) as worker:
        pid = worker.start(Path(sys.executable))
        wait_until_idle(pid)
        ready_s = time.monotonic() - begin
        time.sleep(4)
        assert worker.start(Path("/nowhere/python")) == pid  # it has been started
        os.kill(pid, 0)
        for event in worker.run(job, 60):
            if isinstance(event, Metrics):
                values |= event.values
    assert "accuracy_percent" in values
    assert values["setup/start_s"] <= ready_s
    assert values["worker/wall_s"] < time.monotonic() - begin - 3
    assert has_ended(pid)


def test_worker_that_never_received_a_job_is_ended(tmp_path: Path) -> None:
    with worker_process.WorkerProcess(tmp_path, 1, {}) as worker:
        pid = worker.start(Path(sys.executable))
    assert has_ended(pid)
    assert no_children()
