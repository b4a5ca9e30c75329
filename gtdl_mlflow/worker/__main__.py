"""``python -m gtdl_mlflow.worker JOB.json [EVENTS_FD DRIVER STARTED]``: run one job in its framework's interpreter.

``python -m gtdl_mlflow.worker predict MODEL IMAGES.npy PROBABILITIES.npy``: classify images with a saved model.

Events go to the file descriptor EVENTS_FD, or to standard output without one. Everything that a framework prints goes
to standard error. DRIVER is the process ID of the driver. With a driver, the job comes as the first line of
standard input; JOB.json is not read. STARTED is the time at which the driver started this process, by
``time.perf_counter_ns``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

if not __package__:
    # Started by its path, in isolated mode: make only this package importable. Its parent folder, the driver's
    # site-packages, must not get onto the framework's path.
    import importlib.util

    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location(
        "gtdl_mlflow", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["gtdl_mlflow"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    __package__ = "gtdl_mlflow.worker"


def main(arguments: list[str]) -> int:
    if len(arguments) == 4 and arguments[0] == "predict":
        from . import saved_model

        saved_model.classify(*map(Path, arguments[1:]))
        return 0
    if len(arguments) not in (1, 4):
        print(__doc__, file=sys.stderr)
        return 2
    has_driver = len(arguments) == 4
    descriptor = int(arguments[1]) if has_driver else os.dup(1)
    if has_driver and sys.platform == "linux":
        continue_in_child(int(arguments[2]), descriptor)
    # Frameworks print to descriptor 1 from C, so it is redirected before any of them is imported.
    os.dup2(2, 1)
    # A process that a framework starts must not hold the stream open after this process has ended.
    os.set_inheritable(descriptor, False)

    from . import events, experiment, turns
    from .frameworks.base import Unsupported
    from .job import Job
    from .prepared_data import DataChanged

    start_s = None
    if has_driver:
        start_s = (time.perf_counter_ns() - int(arguments[3])) / 1e9
    job = Job.parse(sys.stdin.readline()) if has_driver else Job.read(Path(arguments[0]))
    if job.cores is not None:
        os.sched_setaffinity(0, job.cores)
    with os.fdopen(descriptor, "w") as stream:
        try:
            if job.takes_turns:
                turns.serve(job, sys.stdin, lambda event: events.write(stream, event))
            else:
                experiment.run(job, lambda event: events.write(stream, event), start_s)
        except (DataChanged, Unsupported) as error:
            print(error, file=sys.stderr)
            return events.REFUSED
        except BrokenPipeError:
            # No process reads the result any more. Exit at once, because other runs may be waiting for the device.
            print("the driver has ended, stopping", file=sys.stderr)
            os._exit(1)
    return 0


def continue_in_child(driver: int, events_descriptor: int) -> None:
    """Fork, and return only in the child process, which becomes the worker.

    The parent process waits for the worker and then kills all remaining descendants. It also kills them when the driver
    ends or sends SIGTERM. The parent is a child subreaper: it becomes the parent of every descendant whose parent has
    ended, so it can also kill descendants that have left the worker's session. It ends with the worker's exit status or
    signal. It uses no CPU time while it waits.
    """
    import ctypes

    set_parent_death_signal, set_child_subreaper = 1, 36  # linux/prctl.h
    prctl, guard = ctypes.CDLL(None).prctl, os.getpid()
    prctl(set_child_subreaper, 1, 0, 0, 0)
    # Block SIGTERM until its handler is installed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    worker = os.fork()
    if not worker:
        prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != guard:  # the guard ended before prctl was called
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    # The driver waits for the end of these streams: only the worker and its descendants may hold them.
    for descriptor in (0, 1, 2, events_descriptor):
        os.close(descriptor)
    signal.signal(signal.SIGTERM, lambda *_: kill_children())
    prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != driver:
        signal.raise_signal(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    ended = status = 0
    while ended != worker:
        ended, status = os.wait()
    exit_status = os.waitstatus_to_exitcode(status)
    while True:  # children of killed processes become children of this process
        kill_children()
        try:
            os.wait()
        except ChildProcessError:
            break
    if exit_status < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-exit_status, signal.SIG_DFL)
        os.kill(guard, -exit_status)
    os._exit(exit_status)


def kill_children() -> None:
    """Kill all child processes of this process. It must have only one thread: /proc lists children by thread."""
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(int(child), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
