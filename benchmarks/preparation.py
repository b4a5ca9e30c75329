"""Measure the time and the peak memory to prepare each available data set, and the time to open a prepared one.

    python benchmarks/preparation.py [--repeats 5] [DATASET ...]

Each preparation is a new process with an empty GTDL_HOME. The files are read once before, so that the page cache is
warm. Memory is the peak resident memory of the process, including the interpreter and NumPy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gtdl_mlflow import config, datasets
from gtdl_mlflow.files import datasets_dir

PREPARE = """
import json, resource, statistics, sys, time
from gtdl_mlflow import config, datasets
dataset = config.compose([f"dataset={sys.argv[1]}"]).dataset
started = time.perf_counter()
prepared = datasets.prepare(dataset)
seconds = time.perf_counter() - started
opened = []
for _ in range(20):
    started = time.perf_counter()
    datasets.prepare(dataset)
    opened.append(time.perf_counter() - started)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([seconds, peak, statistics.median(opened), prepared.train_images, prepared.test_images]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("datasets", nargs="*", default=config.choices("dataset"))
    options = parser.parse_args()
    for name in options.datasets:
        if datasets.locate(config.compose([f"dataset={name}"]).dataset).startswith("not downloaded"):
            print(f"{name:12} is not downloaded")
            continue
        results = []
        for _ in range(options.repeats + 1):
            with tempfile.TemporaryDirectory() as home:
                results.append(prepare(name, home))
        seconds, peak, opened, *images = zip(*results[1:], strict=True)  # the first one warmed the disk's cache
        print(
            f"{name:12} {images[0][0]:6,} + {images[1][0]:6,} images: {statistics.median(seconds):6.2f} s "
            f"({min(seconds):.2f} to {max(seconds):.2f}), peak {max(peak):4.0f} MB, "
            f"opened in {1000 * statistics.median(opened):.1f} ms (n = {options.repeats})",
            flush=True,
        )


def prepare(name: str, home: str) -> list[float]:
    environment = {**os.environ, "GTDL_HOME": home, "GTDL_DATA": str(datasets_dir()),
                   "PYTHONPATH": str(Path(__file__).parents[1])}  # fmt: skip
    answer = subprocess.run([sys.executable, "-c", PREPARE, name], env=environment, capture_output=True, text=True,
                            check=True).stdout  # fmt: skip
    figures: list[float] = json.loads(answer.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
