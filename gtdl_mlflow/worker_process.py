"""Start a worker, yield its events as they happen, and end all of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import TextIO

from .worker import events
from .worker.job import Job

WORKER_MAIN = Path(__file__).parent / "worker" / "__main__.py"

# Environment variables that a worker inherits. Any other would change what is measured (an OMP_NUM_THREADS or a TF_*
# left over in a user's shell) or does not belong in a framework's process (a tracking token).
INHERITED = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "TERM",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    "OPENBLAS_CORETYPE",  # set where an older OpenBLAS would compute wrong results on this processor
}  # fmt: skip

JOB, EVENTS, LOG = "job.json", "events.jsonl", "worker.log"
"""Files in a run's folder."""

LOG_LINES = 5


class WorkerFailed(Exception):
    """The worker did not finish; the message has the way it ended and the last lines of its log."""


class WorkerProcess:
    """The process of one framework. Its interpreter starts with ``start`` and waits for its job until ``run``.

    A context manager: at its end, all processes of the worker have ended. ``folder`` gets ``job.json``,
    ``events.jsonl`` and ``worker.log``; ``environment`` has the framework's environment variables.
    """

    def __init__(self, folder: Path, threads: int, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, worker_environment(threads, environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._events: TextIO | None = None

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self, python: Path) -> int:
        """Start the interpreter, unless it has been started, and return its process ID.

        Raises:
            WorkerFailed: the interpreter cannot be started.
        """
        if self._process is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            read_end, write_end = os.pipe()
            self._events = os.fdopen(read_end)
            try:
                self._process = self._popen(python, write_end)
            except OSError as error:
                self._end()
                raise WorkerFailed(f"the worker cannot be started with {python}: {error.strerror}") from error
            finally:
                os.close(write_end)
        return self._process.pid

    def run(self, job: Job, timeout_s: float) -> Generator[events.Event, None, None]:
        """Run the job and yield its events. When the generator ends or is closed, the worker has ended.

        Raises:
            WorkerFailed: the worker crashed, was killed, took longer than ``timeout_s`` seconds or sent an invalid
                event.
        """
        process, lines = self._process, self._events
        assert process is not None
        assert process.stdin is not None
        assert lines is not None
        timed_out = threading.Event()

        def time_out() -> None:
            timed_out.set()
            _kill(process)

        timer = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), time_out)
        timer.daemon = True
        timer.start()
        finished = False
        try:
            job.write(self._job_file)
            process.stdin.close()  # the signal to begin
            with (self._folder / EVENTS).open("w") as record:
                for line in lines:
                    record.write(line)
                    try:
                        event = events.parse(line)
                    except ValueError as error:
                        if line.endswith("\n"):
                            raise WorkerFailed(f"the worker sent an {error}; {self._log_tail()}") from error
                        break  # an incomplete line: the process ended while it wrote; its status is the better reason
                    finished = isinstance(event, events.Finished)
                    yield event
            status = process.wait()
            if timed_out.is_set():
                raise WorkerFailed(
                    f"the worker was killed after limits.run_timeout_s={timeout_s:g} seconds; {self._log_tail()}"
                )
            if status or not finished:
                raise WorkerFailed(f"the worker {_exit_reason(status)}; {self._log_tail()}")
        finally:
            timer.cancel()
            self._end()

    def _popen(self, python: Path, write_end: int) -> subprocess.Popen[bytes]:
        # A virtual environment's python is a symlink: resolving it would leave the environment. -I excludes PYTHONPATH
        # and the user's site-packages from the measurement.
        command: list[str | Path] = [python, "-I", "-X", "faulthandler", WORKER_MAIN, self._job_file]
        numbers = map(str, (write_end, os.getpid(), time.perf_counter_ns()))
        with self._log_file.open("wb") as log:
            return subprocess.Popen(
                [*command, *numbers],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                pass_fds=[write_end],
                start_new_session=True,  # one process group to kill; Ctrl-C at the terminal reaches only the driver
            )

    def _end(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process = None
        if self._events is not None:
            self._events.close()
            self._events = None

    @property
    def _job_file(self) -> Path:
        return self._folder / JOB

    @property
    def _log_file(self) -> Path:
        return self._folder / LOG

    def _log_tail(self) -> str:
        lines = [line.strip() for line in self._log_file.read_text(errors="replace").splitlines() if line.strip()]
        if not lines:
            return f"{self._log_file} is empty"
        return f"last lines of {self._log_file}: {' | '.join(lines[-LOG_LINES:])}"


def run_worker(
    job: Job, python: Path, environment: dict[str, str], folder: Path, timeout_s: float
) -> Generator[events.Event, None, None]:
    """Run ``job`` in a worker under the interpreter ``python`` and yield its events.

    Raises:
        WorkerFailed: as for ``WorkerProcess``.
    """
    with WorkerProcess(folder, job.threads, environment) as worker:
        worker.start(python)
        yield from worker.run(job, timeout_s)


def worker_environment(threads: int, framework: dict[str, str]) -> dict[str, str]:
    """Return a worker's environment variables: the inherited ones, the thread counts and the framework's own."""
    inherited = {key: value for key, value in os.environ.items() if key in INHERITED or key.startswith("LC_")}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**inherited, **counts, **framework}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the worker and all processes of its session, which exists as long as one of them does."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _exit_reason(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}" + ("" if status else " before it had finished")
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
