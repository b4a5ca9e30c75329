"""Start a worker, hand on its events as they happen, and leave nothing of it behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

from .worker import events
from .worker.job import Job

WORKER = Path(__file__).parent / "worker" / "__main__.py"

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


def launch(
    job: Job,
    python: Path,
    environment: dict[str, str],
    folder: Path,
    timeout_s: float,
    started: Callable[[int], None] = lambda worker: None,
) -> Generator[events.Event, None, None]:
    """Run ``job`` under the interpreter ``python`` and yield its events; ``started`` hears the worker's number.

    ``folder`` gets ``job.json``, ``events.jsonl`` and ``worker.log``. However the generator is left, by its end, an
    exception or ``close()``, no process of the worker survives it.

    Raises:
        WorkerFailed: it crashed, was killed, took longer than ``timeout_s`` seconds, or said what is not an event.
    """
    job_file, log_file = folder / "job.json", folder / "worker.log"
    job.write(job_file)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as stream, log_file.open("wb") as log, (folder / "events.jsonl").open("w") as record:
        try:
            process = subprocess.Popen(
                # A virtual environment's python is a symlink: resolving it would leave the environment. -I keeps
                # PYTHONPATH and the user's site-packages out of the measurement.
                [
                    python,
                    "-I",
                    "-X",
                    "faulthandler",
                    WORKER,
                    job_file,
                    str(write_end),
                    str(os.getpid()),
                    str(time.perf_counter_ns()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=worker_environment(job.threads, environment),
                pass_fds=[write_end],
                start_new_session=True,  # one group to kill, and a Ctrl-C at the terminal comes to the driver alone
            )
        except OSError as error:
            raise WorkerFailed(f"the worker cannot be started with {python}: {error.strerror}") from error
        finally:
            os.close(write_end)

        timed_out = threading.Event()

        def give_up() -> None:
            timed_out.set()
            _kill(process)

        timer = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), give_up)
        timer.daemon = True
        timer.start()
        finished = False
        try:
            started(process.pid)
            for line in stream:
                record.write(line)
                try:
                    event = events.parse(line)
                except ValueError as error:
                    if line.endswith("\n"):
                        raise WorkerFailed(f"the worker said what is {error}; {_last_words(log_file)}") from error
                    break  # cut off in the middle of a word: how the process ended tells more
                finished = isinstance(event, events.Finished)
                yield event
            status = process.wait()
            if timed_out.is_set():
                raise WorkerFailed(
                    f"the worker was killed after limits.run_timeout_s={timeout_s:g} seconds; {_last_words(log_file)}"
                )
            if status or not finished:
                raise WorkerFailed(f"the worker {_ending(status)}; {_last_words(log_file)}")
        finally:
            timer.cancel()
            _kill(process)
            process.wait()


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


def _last_words(log_file: Path) -> str:
    lines = [line.strip() for line in log_file.read_text(errors="replace").splitlines() if line.strip()]
    said = " | ".join(lines[-LOG_LINES:]) if lines else "it printed nothing"
    return f"last lines of {log_file}: {said}"
