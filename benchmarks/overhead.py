"""Time of a run outside its worker, next to a bare script, and the peak memory of the driver.

    python benchmarks/overhead.py [--repeats 5] [OVERRIDE ...]

A run is timed from the command to its end, and the worker's own wall time (framework import, data, build, training,
testing, saving) is subtracted. The bare script imports Hydra and MLflow and logs 50 params and 50 metrics into the same
store. Both are timed in turns, in fresh processes.
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

BARE_SCRIPT = """
import hydra, mlflow
mlflow.set_experiment("bare")
with mlflow.start_run():
    mlflow.log_params({f"param {number}": number for number in range(50)})
    mlflow.log_metrics({f"metric {number}": number for number in range(50)})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "overrides", nargs="*", default=["framework=torch", "mode=default", "setting=caffe_mnist", "budget=0.02"]
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one_run(folder, options.overrides)  # creates the store, the environment and the prepared data
        outside_s, bare_s, memory_mb = [], [], []
        for _ in range(options.repeats):
            wall_s, worker_s, peak_mb = one_run(folder, options.overrides)
            outside_s.append(wall_s - worker_s)
            memory_mb.append(peak_mb)
            bare_s.append(timed([sys.executable, "-c", BARE_SCRIPT], folder)[0])
    ratios = [run / bare for run, bare in zip(outside_s, bare_s, strict=True)]
    for label, values, unit in (
        ("run, outside its worker", outside_s, "s"),
        ("bare script", bare_s, "s"),
        ("ratio", ratios, ""),
        ("peak resident memory of the driver", memory_mb, "MB"),
    ):
        print(f"{label:36} {statistics.median(values):7.2f} {unit:2} ({min(values):.2f} to {max(values):.2f})")


def one_run(folder: str, overrides: list[str]) -> tuple[float, float, float]:
    """Return the wall seconds of a run, those of its worker, and the driver's peak resident memory in MB."""
    wall_s, peak_mb = timed([sys.executable, "-m", "gtdl_mlflow", *overrides], folder)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("gtdl")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"], max_results=1)[0]
    assert run.info.status == "FINISHED", run.data.tags
    return wall_s, run.data.metrics["worker/wall_s"], peak_mb


def timed(command: list[str], folder: str) -> tuple[float, float]:
    """Return the wall seconds of a command, and the peak resident memory in MB of its process without children."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    started, peak_kb = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                peak_kb = int(line.split()[1])
        time.sleep(0.02)
    assert process.returncode == 0, command
    return time.perf_counter() - started, peak_kb / 1e3


if __name__ == "__main__":
    main()
