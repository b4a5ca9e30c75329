"""``python -m gtdl_mlflow.worker JOB.json [EVENTS_FD DRIVER STARTED]``: run one job in its framework's interpreter.

Events go to the file descriptor EVENTS_FD, or to standard output without one. Everything that a framework prints goes
to standard error. DRIVER is the process ID of the driver; this process is killed when the driver ends. STARTED is the
time at which the driver started this process, by ``time.perf_counter_ns``; the job begins when the driver closes
standard input.
"""

from __future__ import annotations

import os
import signal
import sys
import time
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
    if len(arguments) not in (1, 4):
        print(__doc__, file=sys.stderr)
        return 2
    has_driver = len(arguments) == 4
    descriptor = int(arguments[1]) if has_driver else os.dup(1)
    if has_driver:
        end_with_driver(int(arguments[2]))
    # Frameworks print to descriptor 1 from C, so it is redirected before any of them is imported.
    os.dup2(2, 1)
    # A process that a framework starts must not hold the stream open after this process has ended.
    os.set_inheritable(descriptor, False)

    from . import events, experiment
    from .job import Job
    from .prepared_data import DataChanged

    start_s = None
    if has_driver:
        start_s = (time.perf_counter_ns() - int(arguments[3])) / 1e9
        sys.stdin.read()  # returns when the driver closes it: the job is ready
    job = Job.read(Path(arguments[0]))
    if job.cores is not None:
        os.sched_setaffinity(0, job.cores)
    with os.fdopen(descriptor, "w") as stream:
        try:
            experiment.run(job, lambda event: events.write(stream, event), start_s)
        except DataChanged as error:
            print(error, file=sys.stderr)
            return 1
        except BrokenPipeError:
            # The result has no reader any more, and other runs wait for the device.
            print("the driver has ended, stopping", file=sys.stderr)
            os._exit(1)
    return 0


def end_with_driver(driver: int) -> None:
    """Have the kernel kill this process when the driver ends, so that it does not occupy the device unattended."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != driver:  # it ended before the call
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
