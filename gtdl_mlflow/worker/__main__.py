"""``python -m gtdl_mlflow.worker JOB.json [EVENTS_FD DRIVER STARTED]``: do one job, in its framework's interpreter.

Events go to the descriptor EVENTS_FD, or to standard output if none is given; all that a framework prints goes to
standard error, whichever stream it chose. DRIVER is the process that started this one, which ends with it, and STARTED
when it did, by ``time.perf_counter_ns``; the job begins when it has closed standard input.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from pathlib import Path

if not __package__:
    # Started by its path, in isolated mode: make this one package importable without putting its neighbours, which
    # are the driver's site-packages, on the framework's path.
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
    driven = len(arguments) == 4
    descriptor = int(arguments[1]) if driven else os.dup(1)
    if driven:
        end_with(int(arguments[2]))
    # Frameworks print to descriptor 1 from C, so it is moved before any of them is imported.
    os.dup2(2, 1)
    # A process that a framework starts must not hold the stream open after this one is gone.
    os.set_inheritable(descriptor, False)

    from . import events, experiment
    from .job import Job

    start_s = None
    if driven:
        start_s = (time.perf_counter_ns() - int(arguments[3])) / 1e9
        sys.stdin.read()  # to its end: the driver has said to begin
    job = Job.read(Path(arguments[0]))
    if job.cores is not None:
        os.sched_setaffinity(0, job.cores)
    with os.fdopen(descriptor, "w") as stream:
        try:
            experiment.run(job, lambda event: events.write(stream, event), start_s)
        except BrokenPipeError:
            # The driver is gone. Nobody will read the result, and the device is wanted by others.
            print("the driver is gone, stopping", file=sys.stderr)
            os._exit(1)
    return 0


def end_with(driver: int) -> None:
    """Be killed with the driver: whoever waits for the device must not have to wait for a worker that nobody hears."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != driver:  # it went before it could be asked for
            os._exit(1)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # What a framework has asked for at the end, and then the end: to take all of it apart, object by object, takes up
    # to half a second for nothing.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
