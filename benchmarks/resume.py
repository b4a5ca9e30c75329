"""Kill one training at random moments, ten times, resume it each time, and compare the result with an undisturbed run.

    python benchmarks/resume.py [--kills 10] [--seed 0] [OVERRIDE ...]

The overrides are those of a run. The default is PyTorch with setting caffe_mnist on 5,000 digits, with one checkpoint
per second. Each kill is a SIGKILL of driver and worker at a random moment after a new checkpoint.
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

RUN = ["framework=torch", "mode=default", "setting=caffe_mnist", "training.checkpoint_every_s=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", default=RUN)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        command = [sys.executable, "-m", "gtdl_mlflow", *options.overrides]
        subprocess.run([*command, "training.checkpoint_every_s=0"], cwd=folder, env=environment, check=True)
        for number in range(options.kills):
            seconds = kill(command, folder, environment, generator)
            print(f"kill {number + 1}: {seconds:.1f} s after a new checkpoint", flush=True)
        subprocess.run(command, cwd=folder, env=environment, check=True)
        client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("gtdl")
        assert experiment is not None
        whole, *_, resumed = reversed(client.search_runs([experiment.experiment_id], max_results=1000))
        for name, run in (("undisturbed", whole), ("killed", resumed)):
            metrics, tags = run.data.metrics, run.data.tags
            print(
                f"{name:12} {run.info.status}, accuracy {metrics['accuracy_percent']:.2f} %, training "
                f"{metrics['training_time_s']:.1f} s, weights {tags['gtdl.weights_sha256'][:16]}, "
                f"{tags.get('gtdl.resumed', 'not resumed')}"
            )


def kill(command: list[str], folder: Path, environment: dict[str, str], generator: random.Random) -> float:
    """Start the run, kill it at a random moment after a new checkpoint, and return the seconds between the two."""
    before = checkpoints()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while checkpoints() <= before:
        if process.poll() is not None:
            sys.exit("the run ended before it was killed: increase training.epochs")
        time.sleep(0.05)
    seconds = generator.uniform(0, 3)
    time.sleep(seconds)
    for victim in (psutil.Process(process.pid), *psutil.Process(process.pid).children()):
        victim.send_signal(signal.SIGKILL)
    process.wait()
    return seconds


def checkpoints() -> set[str]:
    """Return the checkpoints of all runs in the cache directory."""
    return {str(path) for path in cache_dir().glob("checkpoints/*/step-*")}


if __name__ == "__main__":
    main()
