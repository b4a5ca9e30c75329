"""Start a worker, hand on its events as they happen, and leave nothing of it behind."""

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

# What a worker inherits. All else is the framework's configuration: an OMP_NUM_THREADS or a TF_* left over in
# somebody's shell would change what is measured, and a tracking token has no business in a framework's process.
INHERITED = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "TERM",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    "OPENBLAS_CORETYPE",  # set where an older OpenBLAS would compute wrong results on this processor
}  # fmt: skip

LOG_LINES = 5


class WorkerFailed(Exception):
    """The worker did not finish; the message says how it ended and what it last said."""


class WorkerProcess:
    """A framework's process. Its interpreter gets ready from ``start`` on and waits, until ``work``, for its job.

    A context: however it is left, no process of the worker survives it. ``folder`` gets ``job.json``, ``events.jsonl``
    and ``worker.log``; ``environment`` are the framework's variables.
    """

    def __init__(self, folder: Path, threads: int, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, worker_environment(threads, environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._said: TextIO | None = None

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self, python: Path) -> int:
        """Start its interpreter, if that has not been done; its process's number.

        Raises:
            WorkerFailed: there is no such interpreter.
        """
        if self._process is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            read_end, write_end = os.pipe()
            self._said = os.fdopen(read_end)
            try:
                self._process = self._popen(python, write_end)
            except OSError as error:
                self._end()
                raise WorkerFailed(f"the worker cannot be started with {python}: {error.strerror}") from error
            finally:
                os.close(write_end)
        return self._process.pid

    def run(self, job: Job, timeout_s: float) -> Generator[events.Event, None, None]:
        """Have it do the job and yield its events; however the generator is left, the worker is gone.

        Raises:
            WorkerFailed: it crashed, was killed, took longer than ``timeout_s`` seconds, or said what is not an event.
        """
        process, said = self._process, self._said
        assert process is not None
        assert process.stdin is not None
        assert said is not None
        timed_out = threading.Event()

        def give_up() -> None:
            timed_out.set()
            _kill(process)

        timer = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), give_up)
        timer.daemon = True
        timer.start()
        finished = False
        try:
            job.write(self._job_file)
            process.stdin.close()  # the word to begin
            with (self._folder / "events.jsonl").open("w") as record:
                for line in said:
                    record.write(line)
                    try:
                        event = events.parse(line)
                    except ValueError as error:
                        if line.endswith("\n"):
                            raise WorkerFailed(f"the worker said what is {error}; {self._last_words()}") from error
                        break  # cut off in the middle of a word: how the process ended tells more
                    finished = isinstance(event, events.Finished)
                    yield event
            status = process.wait()
            if timed_out.is_set():
                raise WorkerFailed(
                    f"the worker was killed after limits.run_timeout_s={timeout_s:g} seconds; {self._last_words()}"
                )
            if status or not finished:
                raise WorkerFailed(f"the worker {_ending(status)}; {self._last_words()}")
        finally:
            timer.cancel()
            self._end()

    def _popen(self, python: Path, write_end: int) -> subprocess.Popen[bytes]:
        # A virtual environment's python is a symlink: resolving it would leave the environment. -I keeps PYTHONPATH and
        # the user's site-packages out of the measurement.
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
                start_new_session=True,  # one group to kill, and a Ctrl-C at the terminal comes to the driver alone
            )

    def _end(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process = None
        if self._said is not None:
            self._said.close()
            self._said = None

    @property
    def _job_file(self) -> Path:
        return self._folder / "job.json"

    @property
    def _log_file(self) -> Path:
        return self._folder / "worker.log"

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log_file.read_text(errors="replace").splitlines() if line.strip()]
        said = " | ".join(lines[-LOG_LINES:]) if lines else "it printed nothing"
        return f"last lines of {self._log_file}: {said}"


def run_worker(
    job: Job, python: Path, environment: dict[str, str], folder: Path, timeout_s: float
) -> Generator[events.Event, None, None]:
    """Have a worker under the interpreter ``python`` do ``job`` and yield its events.

    Raises:
        WorkerFailed: as by ``Worker``.
    """
    with WorkerProcess(folder, job.threads, environment) as worker:
        worker.start(python)
        yield from worker.run(job, timeout_s)


def worker_environment(threads: int, framework: dict[str, str]) -> dict[str, str]:
    """The worker's environment variables: a few of ours, the thread count, the framework's settings."""
    inherited = {key: value for key, value in os.environ.items() if key in INHERITED or key.startswith("LC_")}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**inherited, **counts, **framework}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The worker and all that it started. Its session outlives it only if it has children left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _ending(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}" + ("" if status else " before it had finished")
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
