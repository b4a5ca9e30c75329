"""What one run costs beyond its worker, and how much memory the driver takes.

    python benchmarks/overhead.py [--repeats 5] [OVERRIDE ...]

A run is timed from outside, from the command to its end; the worker's own wall time (framework import, data, build,
training, testing, saving) is taken off. ``import mlflow, hydra`` is timed in turns with it, in a fresh process too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("overrides", nargs="*", default=["framework=torch", "setting=caffe_mnist", "budget=0.02"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one_run(folder, options.overrides)  # makes the store, the environment and the prepared data
        beyond, imports, memory = [], [], []
        for _ in range(options.repeats):
            wall_s, worker_s, peak_mb = one_run(folder, options.overrides)
            beyond.append(wall_s - worker_s)
            memory.append(peak_mb)
            imports.append(timed([sys.executable, "-c", "import mlflow, hydra"], folder)[0])
    for what, values, unit in (
        ("a run beyond its worker", beyond, "s"),
        ("import mlflow, hydra", imports, "s"),
        ("difference", [a - b for a, b in zip(beyond, imports, strict=True)], "s"),
        ("peak resident memory of the driver", memory, "MB"),
    ):
        print(f"{what:36} {statistics.median(values):7.2f} {unit} ({min(values):.2f} to {max(values):.2f})")


def one_run(folder: str, overrides: list[str]) -> tuple[float, float, float]:
    """(wall seconds, the worker's wall seconds, peak resident MB of the driver)."""
    wall_s, peak_mb = timed([sys.executable, "-m", "gtdl_mlflow", *overrides], folder)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("gtdl")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"], max_results=1)[0]
    assert run.info.status == "FINISHED", run.data.tags
    return wall_s, run.data.metrics["worker/wall_s"], peak_mb


def timed(command: list[str], folder: str) -> tuple[float, float]:
    """Wall seconds of a command, and the peak resident memory in MB of its first process alone."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    began, peak_kb = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                peak_kb = int(line.split()[1])
        time.sleep(0.02)
    assert process.returncode == 0, command
    return time.perf_counter() - began, peak_kb / 1e3


if __name__ == "__main__":
    main()
