"""Overhead of a sweep per cell, and the driver's memory over 100 cells.

python benchmarks/long_sweep.py [--cells 100]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from mlflow.tracking import MlflowClient

SWEEP = ["-m", "framework=reference", "dataset=mnist_5k", "training.epochs=5"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100)
    cells = parser.parse_args().cells
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        process = subprocess.Popen(
            [sys.executable, "-m", "gtdl_mlflow", *SWEEP, f"seed=range({cells})"],
            cwd=folder,
            env={**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        memory = []
        for line in process.stdout:
            if re.match(r"accuracy ", line):
                memory.append(psutil.Process(process.pid).memory_info().rss / 1e6)
        assert process.wait() == 0
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("gtdl")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], max_results=10_000)
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        children.sort(key=lambda run: run.info.start_time)
        (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
        print(f"{len(children)} children of one parent, {parent.info.status}; {parent.data.metrics}")
        starts = [run.info.start_time / 1000 for run in children] + [parent.info.end_time / 1000]
        outside_clocks, outside_worker = [], []
        for run, start, following in zip(children, starts, starts[1:], strict=False):
            metrics = run.data.metrics
            outside_clocks.append(following - start - metrics["training_time_s"] - metrics["testing_time_s"])
            outside_worker.append(following - start - metrics["worker/wall_s"])
        for label, seconds in (("training and testing", outside_clocks), ("its worker", outside_worker)):
            median = statistics.median(seconds)
            print(f"time per cell outside {label}: median {median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f} s)")
        at = [9, len(memory) // 2, len(memory) - 1]
        print("driver's resident memory: " + ", ".join(f"{memory[index]:.0f} MB at cell {index + 1}" for index in at))


if __name__ == "__main__":
    main()
