"""Kill one training at random moments, ten times, go on each time, and hold its end against an undisturbed one's.

    python benchmarks/resume.py [--kills 10] [--seed 0] [OVERRIDE ...]

The overrides are those of a run, by default PyTorch under caffe_mnist on 5,000 digits, a checkpoint a second. Each kill
is a SIGKILL of driver and worker, once the worker has left a new checkpoint and a random moment after that.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from mlflow.tracking import MlflowClient

from gtdl_mlflow.files import cache_dir

RUN = ["framework=torch", "setting=caffe_mnist", "training.checkpoint_every_s=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", default=RUN)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
                       "PYTHONPATH": str(Path(__file__).parents[1])}  # fmt: skip
        command = [sys.executable, "-m", "gtdl_mlflow", *options.overrides]
        subprocess.run([*command, "training.checkpoint_every_s=0"], cwd=folder, env=environment, check=True)
        for number in range(options.kills):
            print(
                f"kill {number + 1}: {kill(command, folder, environment, chance):.1f} s after a new checkpoint",
                flush=True,
            )
        subprocess.run(command, cwd=folder, env=environment, check=True)
        client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("gtdl")
        assert experiment is not None
        whole, *_, resumed = reversed(client.search_runs([experiment.experiment_id], max_results=1000))
        for name, run in (("undisturbed", whole), ("killed", resumed)):
            metrics, tags = run.data.metrics, run.data.tags
            print(f"{name:12} {run.info.status}, accuracy {metrics['accuracy_percent']:.2f} %, training "
                  f"{metrics['training_time_s']:.1f} s, weights {tags['gtdl.weights_sha256'][:16]}, "
                  f"{tags.get('gtdl.resumed', 'not resumed')}")  # fmt: skip


def kill(command: list[str], folder: Path, environment: dict[str, str], chance: random.Random) -> float:
    """Start the run, wait for a checkpoint that was not there before, and kill it a random moment later."""
    before = checkpoints()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while checkpoints() <= before:
        if process.poll() is not None:
            sys.exit("the run ended before it could be killed: give it more to do")
        time.sleep(0.05)
    seconds = chance.uniform(0, 3)
    time.sleep(seconds)
    for victim in (psutil.Process(process.pid), *psutil.Process(process.pid).children()):
        victim.send_signal(signal.SIGKILL)
    process.wait()
    return seconds


def checkpoints() -> set[str]:
    """The newest ones, of all runs."""
    return {str(path) for path in cache_dir().glob("checkpoints/*/step-*")}


if __name__ == "__main__":
    main()
