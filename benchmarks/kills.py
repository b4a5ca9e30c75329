"""Kill a sweep of 20 cells at random moments, ten times, resume it each time, and count the runs at the end.

    python benchmarks/kills.py [--kills 10] [--seed 0]

Each kill is a SIGKILL of the driver, the worker, both, or the driver's whole process group, in turns. After the last
one, the same command runs undisturbed. Every cell must then be FINISHED exactly once, and no run RUNNING.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from mlflow.tracking import MlflowClient

CELLS = 20
SWEEP = ["-m", "framework=reference", "training.epochs=400", "training.checkpoint_every_s=0.2", f"seed=range({CELLS})"]
VICTIMS = ("driver", "worker", "driver and worker", "process group")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "GTDL_LOCKS": str(folder / "locks"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        print("killed             after s  FINISHED FAILED KILLED RUNNING  (before resuming)")
        for number in range(options.kills):
            victim = VICTIMS[number % len(VICTIMS)]
            seconds = kill(folder, environment, victim, generator)
            states = Counter(run.info.status for run in cells(folder))
            counts = [states[state] for state in ("FINISHED", "FAILED", "KILLED", "RUNNING")]
            print(f"{victim:18} {seconds:7.1f}  {counts[0]:8} {counts[1]:6} {counts[2]:6} {counts[3]:7}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "gtdl_mlflow", *SWEEP],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        runs = cells(folder)
        finished = Counter(run.data.tags["gtdl.seed"] for run in runs if run.info.status == "FINISHED")
        states = Counter(run.info.status for run in runs)
        print(f"undisturbed start: exit status {done.returncode}; {len(runs)} attempts: {dict(states)}")
        print(
            f"cells FINISHED: {len(finished)} of {CELLS}, more than once: {sum(n > 1 for n in finished.values())}; "
            f"RUNNING: {sum(run.info.status == 'RUNNING' for run in all_runs(folder))}; "
            f"parents: {len(all_runs(folder)) - len(runs)}; "
            f"resumed from a checkpoint: {sum('gtdl.resumed' in run.data.tags for run in runs)}"
        )
        if len(finished) != CELLS or set(finished.values()) != {1} or done.returncode:
            sys.exit(f"a cell is missing or was repeated:\n{done.stdout}")


def kill(folder: Path, environment: dict[str, str], victim: str, generator: random.Random) -> float:
    """Start or resume the sweep and kill ``victim`` within six seconds of its first worker.

    Return the seconds from the start to the kill, or to the end of the sweep if it ended before.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "gtdl_mlflow", *SWEEP],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    started, moment = time.monotonic(), math.inf
    while time.monotonic() < moment or not (workers := psutil.Process(process.pid).children()):
        if process.poll() is not None:
            return time.monotonic() - started
        if math.isinf(moment) and psutil.Process(process.pid).children():
            moment = time.monotonic() + generator.uniform(0, 6)  # one or two cells
        time.sleep(0.01)
    seconds = time.monotonic() - started
    if victim == "process group":
        os.killpg(process.pid, signal.SIGKILL)
    if "driver" in victim:
        process.kill()
    if "worker" in victim:
        for worker in workers:
            worker.kill()
    if victim == "worker":  # its driver continues with the next cell: interrupt it, as a user does
        time.sleep(1)
        process.send_signal(signal.SIGINT)
    process.wait()
    return seconds


def all_runs(folder: Path) -> list:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gtdl")
    return list(client.search_runs([experiment.experiment_id], max_results=1000)) if experiment else []


def cells(folder: Path) -> list:
    return [run for run in all_runs(folder) if "gtdl.sweep_position" in run.data.tags]


if __name__ == "__main__":
    main()
