"""Start a worker, yield its events as they happen, and end all of its processes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from . import processor
from .console import Failure, info, printable
from .metrics import HEADLINE
from .process_tree import descendants
from .worker import events
from .worker.job import Activity, Job

if TYPE_CHECKING:  # the schema imports Hydra
    from .config import Mode

WORKER_MAIN = Path(__file__).parent / "worker" / "__main__.py"

# Environment variables that a worker inherits. Any other would change what is measured (an OMP_NUM_THREADS or a TF_*
# left over in a user's shell) or does not belong in a framework's process (a tracking token).
INHERITED = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "TERM",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    "OPENBLAS_CORETYPE",  # set where an older OpenBLAS does not know the processor
}  # fmt: skip

COMPILE_CACHE = "{compile_cache}"
"""Placeholder in ``Mode.environment``."""

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Variables with which glibc requests huge pages. Linux provides them unless transparent huge pages are ``never``."""

JOB, EVENTS, LOG = "job.json", "events.jsonl", "worker.log"
"""Files in a run's folder that only the user reads. The run continues if they cannot be written."""

MARK = "GTDL_WORKER"
"""Environment variable whose value only the processes of one worker have."""

LOG_LINES, LINE_LIMIT = 5, 500
"""Lines of a worker's output that an error message has, and the characters of each."""

LOG_LIMIT = 2**20
"""Bytes from the beginning, and bytes from the end, of a worker's output that its log has."""

END_TIMEOUT_S = 10
"""Time in which the processes of a worker end after a signal, before they are killed one by one."""


class WorkerFailed(Failure):
    """The worker did not finish; the message has the way it ended and the last lines of its log."""


class WorkerProcess:
    """The process of one framework. Its interpreter starts with ``start`` and waits for its job until ``run``.

    A context manager: at its end, all processes of the worker have ended, and their temporary files are removed.
    ``folder`` gets ``job.json``, ``events.jsonl`` and ``worker.log``; ``environment`` has the framework's environment
    variables.
    """

    def __init__(self, folder: Path, threads: int, environment: dict[str, str]) -> None:
        self._folder, self._mark = folder, f"{os.getpid()}-{secrets.token_hex(8)}"
        self._environment = {**worker_environment(threads, environment), MARK: self._mark}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._events: IO[bytes] | None = None
        self._log: _Log | None = None
        self._turn_limit_s = math.inf
        self._kills_before = _out_of_memory_kills()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self, python: Path) -> int:
        """Start the interpreter, unless it has been started, and return its process ID.

        On Linux this is the process that ends the worker's descendants (``worker/__main__.py``); the worker is its
        child.

        Raises:
            WorkerFailed: the interpreter cannot be started.
        """
        if self._process is None:
            with suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
            read_end, write_end = os.pipe()
            self._events = os.fdopen(read_end, "rb")
            with suppress(OSError):  # without this folder, the worker uses the inherited TMPDIR
                # A worker that is killed leaves its temporary files.
                self._temporary = tempfile.TemporaryDirectory(prefix="gtdl-worker-", ignore_cleanup_errors=True)
                self._environment["TMPDIR"] = self._temporary.name
            try:
                self._process = self._popen(python, write_end)
            except OSError as error:
                self._end()
                raise WorkerFailed(f"the worker cannot be started with {python}: {error.strerror}") from error
            finally:
                os.close(write_end)
            assert self._process.stdout is not None
            self._log = _Log(self._process.stdout, self._folder / LOG)
        return self._process.pid

    def run(self, job: Job, timeout_s: float) -> Generator[events.Event, None, None]:
        """Run the job and yield its events. When the generator ends or is closed, the worker has ended.

        Raises:
            WorkerFailed: the worker crashed, was killed, took longer than ``timeout_s`` seconds, sent an invalid
                event, or finished without its headline metrics.
        """
        process, stream = self._process, self._events
        assert process is not None
        assert stream is not None
        reported: set[str] = set()
        finished = False
        with ExitStack() as stack:
            stack.callback(self._end)
            timed_out = stack.enter_context(self._time_limit(timeout_s))
            self._send(job)
            with closing(_Record(self._folder / EVENTS)) as record:
                while line := stream.readline(events.LONGEST_LINE):
                    record.write(line)
                    if not line.endswith(b"\n") and len(line) < events.LONGEST_LINE:
                        break  # an incomplete line: the process ended while it wrote; its status is the better reason
                    try:
                        event = events.parse(line)
                    except ValueError as error:
                        raise WorkerFailed(f"the worker sent an {error}; {self._log_tail()}") from error
                    if finished:
                        raise WorkerFailed(f"the worker sent an event after the last one; {self._log_tail()}")
                    if isinstance(event, events.Metrics):
                        reported |= event.values.keys()
                    elif isinstance(event, events.Finished):
                        finished = True
                        if missing := ", ".join(name for name in HEADLINE if name not in reported):
                            raise WorkerFailed(f"the worker finished without {missing}; {self._log_tail()}")
                    yield event
            status = process.wait()
            if timed_out.is_set():
                raise WorkerFailed(
                    f"the worker was killed after limits.run_timeout_s={timeout_s:g} seconds; {self._log_tail()}"
                )
            if status or not finished:
                raise WorkerFailed(self._failure(status))

    def begin_turns(self, job: Job, timeout_s: float) -> None:
        """Let the worker build the job's model for a paired measurement.

        ``next_event`` then returns its ``Metadata``, and ``turn`` requests its turns. A build or a turn that takes
        longer than ``timeout_s`` seconds ends the worker.
        """
        self._turn_limit_s = timeout_s
        self._send(dataclasses.replace(job, takes_turns=True))

    def turn(self, activity: Activity, seconds: float) -> events.Turn:
        """Let the worker do a turn of about ``seconds`` and return its measurement.

        Raises:
            WorkerFailed: as for ``next_event``.
        """
        self._write(json.dumps({"activity": activity.value, "seconds": seconds}))
        event = self.next_event()
        if not isinstance(event, events.Turn):
            raise WorkerFailed(f"the worker sent {type(event).__name__} instead of a turn; {self._log_tail()}")
        return event

    def next_event(self) -> events.Event:
        """Wait for the next event of a paired measurement and return it.

        Raises:
            WorkerFailed: the worker ended, took too long or sent an invalid event.
        """
        process, stream = self._process, self._events
        assert process is not None
        assert stream is not None
        with self._time_limit(self._turn_limit_s) as timed_out:
            line = stream.readline(events.LONGEST_LINE)
        if timed_out.is_set():
            raise WorkerFailed(f"the worker was killed after {self._turn_limit_s:g} seconds; {self._log_tail()}")
        if not line.endswith(b"\n"):
            raise WorkerFailed(self._failure(process.wait()))
        try:
            return events.parse(line)
        except ValueError as error:
            raise WorkerFailed(f"the worker sent an {error}; {self._log_tail()}") from error

    def pause(self) -> None:
        """Stop all threads of the worker: the pools of some frameworks use the CPU while they wait."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused worker run again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        """Send a signal to the worker, but not to the process that ends its descendants."""
        assert self._process is not None
        for pid in descendants(self._process.pid) or [self._process.pid]:
            with suppress(ProcessLookupError):  # next_event reports why it has ended
                os.kill(pid, number)

    def _send(self, job: Job) -> None:
        """Write ``job.json`` and send the job to the waiting interpreter, which starts it on receipt."""
        with closing(_Record(self._folder / JOB)) as record:
            record.write(json.dumps(dataclasses.asdict(job), indent=1).encode())
        self._write(json.dumps(dataclasses.asdict(job)))

    def _write(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended: its status is the better reason
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    @contextmanager
    def _time_limit(self, seconds: float) -> Iterator[threading.Event]:
        """Kill the worker if the block takes longer than ``seconds``; the event is then set."""
        process, timed_out = self._process, threading.Event()
        assert process is not None

        def time_out() -> None:
            timed_out.set()
            self._kill(process)

        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), time_out)
        timer.daemon = True
        timer.start()
        try:
            yield timed_out
        finally:
            timer.cancel()

    def _popen(self, python: Path, write_end: int) -> subprocess.Popen[bytes]:
        # A virtual environment's python is a symlink: resolving it would leave the environment. -I excludes PYTHONPATH
        # and the user's site-packages from the measurement.
        command: list[str | Path] = [python, "-I", "-X", "faulthandler", WORKER_MAIN, self._folder / JOB]
        numbers = map(str, (write_end, os.getpid(), time.perf_counter_ns()))
        return subprocess.Popen(
            [*command, *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            pass_fds=[write_end],
            start_new_session=True,  # one process group to kill; Ctrl-C at the terminal reaches only the driver
        )

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """End all processes of the worker: terminate ``process``, which ends the others, then kill the rest."""
        if process.poll() is None:
            process.terminate()
            process.send_signal(signal.SIGCONT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_TIMEOUT_S)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # the process group exists as long as one of its processes
        _kill_marked(self._mark)

    def _end(self) -> None:
        if self._process is not None:
            self._kill(self._process)
            self._process.wait()
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _failure(self, status: int) -> str:
        """Return why a worker with this exit status did not finish."""
        if status == events.REFUSED and (lines := self._last_lines()):
            return lines[-1]
        return f"the worker {self._exit_reason(status)}; {self._log_tail()}"

    def _last_lines(self) -> list[str]:
        assert self._process is not None
        assert self._log is not None
        self._kill(self._process)  # no process can write any more
        self._log.close()
        lines = [printable(line.expandtabs().strip()) for line in self._log.end.splitlines()]
        return [line[:LINE_LIMIT] for line in lines if line.strip("~^ ")][-LOG_LINES:]  # not a traceback's marks

    def _log_tail(self) -> str:
        last, path = self._last_lines(), self._folder / LOG
        return f"last lines of {path}: {' | '.join(last)}" if last else f"{path} is empty"

    def _exit_reason(self, status: int) -> str:
        if status >= 0:
            return f"exited with status {status}" + ("" if status else " before it had finished")
        name = signal.Signals(-status).name
        kills = _out_of_memory_kills()
        if name != "SIGKILL" or (kills is not None and kills == self._kills_before):
            return f"was killed by {name}"
        return f"was killed by {name} (out of memory{'?' if kills is None else ''})"


class _Record:
    """A file for the user. The first error, such as a full disk, is printed and ends the writing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            self._fail(error)

    def write(self, content: bytes) -> None:
        if self._file is not None:
            try:
                self._file.write(content)
            except OSError as error:
                self.close()
                self._fail(error)

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _fail(self, error: OSError) -> None:
        info(f"{self._path}: not written ({error.strerror}); the run goes on")


class _Log:
    """A thread that reads a worker's output until its end and writes its first and last ``LOG_LIMIT`` bytes to a file.

    While a worker is silent, the thread waits without CPU time. The output never fills the disk or the memory.
    """

    def __init__(self, output: IO[bytes], path: Path) -> None:
        self._output, self._path = output, path
        self._tail, self._timeout_s = bytearray(), 5.0
        self._thread = threading.Thread(target=self._copy, name="worker's log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait until all output is in the file, which is soon: the processes that could write more have ended."""
        self._thread.join(self._timeout_s)
        self._timeout_s = 0.0  # a process that could not be killed holds the stream: do not wait twice

    @property
    def end(self) -> str:
        """The last ``LOG_LIMIT`` bytes of the output."""
        return bytes(self._tail[-LOG_LIMIT:]).decode(errors="replace")

    def _copy(self) -> None:
        written = skipped = 0
        with self._output, closing(_Record(self._path)) as record:
            while part := os.read(self._output.fileno(), 2**16):
                self._tail += part
                head = part[: LOG_LIMIT - written]
                record.write(head)
                written += len(head)
                skipped += len(part) - len(head)
                if len(self._tail) > 2 * LOG_LIMIT:
                    del self._tail[:-LOG_LIMIT]
            if skipped:
                last = self._tail[-min(skipped, LOG_LIMIT) :]
                record.write(b"\n[%d bytes are left out]\n" % (skipped - len(last)) + last)


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


def environment_variables(mode: Mode, compile_cache: Path | None) -> dict[str, str]:
    """Return the environment variables of a mode's worker, whose compiled code goes to the folder ``compile_cache``."""
    return {name: value.replace(COMPILE_CACHE, str(compile_cache)) for name, value in mode.environment.items()}


def worker_environment(threads: int, framework: dict[str, str]) -> dict[str, str]:
    """Return a worker's environment variables: the inherited ones, the thread counts and the framework's own.

    glibc requests huge pages (``HUGE_PAGES``). The placement of small pages in memory differs from process to process,
    and with it the number of cache conflicts. With huge pages, the ratio of PyTorch to itself varies by 1.5 % instead
    of 3.0 % from restart to restart, and training caffe_mnist takes 0.87 (PyTorch) to 0.98 (TensorFlow) of the time.

    ``OPENBLAS_CORETYPE`` selects the kernels for the processor's vector extensions, unless the user has set it. An
    OpenBLAS that is older than the processor selects its slowest kernels: training caffe_mnist in Caffe on an Intel
    Xeon of 2023 took 2.3 times as long.
    """
    kernels = processor.openblas_kernels()
    selected = {"OPENBLAS_CORETYPE": kernels} if kernels else {}
    inherited = {key: value for key, value in os.environ.items() if key in INHERITED or key.startswith("LC_")}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**selected, **inherited, **counts, **HUGE_PAGES, **framework}


def _kill_marked(mark: str) -> None:
    """Kill the processes whose environment has this mark: those of a worker that has been killed from outside."""
    entry = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def _out_of_memory_kills() -> int | None:
    """Return the number of processes that the kernel has killed for lack of memory; None if it does not report it."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None
