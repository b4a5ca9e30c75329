"""Measure time, memory and file size of `gtdl report` on a store of many runs.

    python benchmarks/large_report.py [--runs 500 10000]

The store has copies of one real run of the reference with other seeds, frameworks and values, so that number and size
of params, tags and metrics are those of real runs.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from functools import cache
from pathlib import Path

from gtdl_mlflow import config

FRAMEWORKS = ("torch", "tensorflow", "mxnet", "theano", "caffe")
DATASETS = ("mnist_5k", "mnist", "cifar10")
SETTINGS = {
    "mnist_5k": ("caffe_mnist", "torch_mnist"),
    "mnist": ("caffe_mnist", "torch_mnist"),
    "cifar10": ("caffe_cifar10", "torch_cifar10"),
}
MACHINES = 8

TIMEOUT_S = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[500, 10_000])
    for count in parser.parse_args().runs:
        with tempfile.TemporaryDirectory() as name:
            measure(Path(name), count)


def measure(folder: Path, count: int) -> None:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    run = [sys.executable, "-m", "gtdl_mlflow", "framework=reference", "training.epochs=20"]
    subprocess.run(run, cwd=folder, env=environment, check=True, capture_output=True, timeout=TIMEOUT_S)
    multiply(folder / "mlflow.db", count)
    code = (
        "import resource, sys; from gtdl_mlflow.cli import __main__ as cli; status = cli.main(sys.argv[1:]);"
        "both = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN;"
        "print(*(resource.getrusage(each).ru_maxrss // 1024 for each in both));"
        "sys.exit(status)"
    )
    report = [sys.executable, "-c", code, "report", "--output", str(folder / "report.html")]
    started = time.perf_counter()
    done = subprocess.run(
        report, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    seconds = time.perf_counter() - started
    size = (folder / "report.html").stat().st_size / 1e6
    own, second = done.stdout.splitlines()[-1].split()
    peak = f"peak {own} MB and {second} MB in the second process"
    print(f"{count:6,} runs: {seconds:5.1f} s, {peak}, {size:.1f} MB of HTML", flush=True)


def multiply(path: Path, count: int) -> None:
    """Copy the only run of the store until there are ``count`` runs, on several machines and with different values."""
    generator = random.Random(0)
    with sqlite3.connect(path) as store:
        (first,) = (row[0] for row in store.execute("SELECT run_uuid FROM runs"))
        tables = {
            table: [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
            for table in ("runs", "params", "tags", "metrics", "latest_metrics")
        }
        rows = {
            table: store.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (first,)).fetchall() for table in tables
        }
        for number in range(count - 1):
            identifier = uuid.UUID(int=generator.getrandbits(128), version=4).hex
            dataset = DATASETS[number // len(FRAMEWORKS) % len(DATASETS)]
            setting = SETTINGS[dataset][number // 15 % 2]
            new = {
                "gtdl.framework": FRAMEWORKS[number % len(FRAMEWORKS)],
                "gtdl.dataset": dataset,
                "gtdl.model": setting,
                "gtdl.training": setting,
                "gtdl.seed": str(number // 30 // MACHINES),
                "gtdl.machine": f"machine {number // 30 % MACHINES}",
            }
            new["gtdl.cell"] = cell(new["gtdl.framework"], dataset, setting)
            factor = generator.uniform(0.98, 1.02) * (1 + number % len(FRAMEWORKS))
            for table, columns in tables.items():
                copies = []
                for row in rows[table]:
                    values = dict(zip(columns, row, strict=True)) | {"run_uuid": identifier}
                    if table == "tags" and values["key"] in new:
                        values["value"] = new[values["key"]]
                    if table.endswith("metrics") and values["key"].endswith("_s"):
                        values["value"] *= factor
                    copies.append(tuple(values.values()))
                store.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(columns))})", copies)


@cache
def cell(framework: str, dataset: str, setting: str) -> str:
    """Return the cell of an unchanged setting. All copies have the reference's version."""
    overrides = [f"framework={framework}", f"dataset={dataset}", f"setting={setting}", "framework.version=1"]
    return config.compose(overrides).cell()


if __name__ == "__main__":
    main()
