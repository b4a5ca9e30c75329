"""Measure what the harness costs per training step, with a framework that takes its batches and returns at once.

    python benchmarks/null_framework.py [--steps 20000 200000] [--batch-sizes 1 50] [--repeats 5] [OVERRIDE ...]

The worker's own procedure runs in this process: batches in their order, clock, progress events, an evaluation once an
epoch. Microseconds per step are the whole training time divided by the number of steps; equal values for a short and a
long training show that the cost of a step does not grow.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gtdl_mlflow import config, datasets
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.worker import experiment
from gtdl_mlflow.worker.events import Event, Metrics, write
from gtdl_mlflow.worker.frameworks.base import Adapter, Setup
from gtdl_mlflow.worker.initialization import Weights
from gtdl_mlflow.worker.inputs import Batch


class Null(Adapter):
    """An adapter without a framework."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._classes = setup.network.nodes[-1].output[0]

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        for _ in itertools.islice(batches, len(rates)):
            pass
        return np.zeros(len(rates), np.float32)

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        return np.zeros((sum(len(images) for images in batches), self._classes), np.float32)

    def weights(self) -> Weights:
        return self._setup.weights

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...
    def checkpoint(self, folder: Path) -> None: ...
    def restore(self, folder: Path, step: int) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {"version": "0", "device": "none", "threads": 1, "precision": "none"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 50])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("overrides", nargs="*", default=["setting=caffe_mnist"])
    options = parser.parse_args()
    cells = list(itertools.product(("sequential", "shuffled"), options.batch_sizes, options.steps))
    times: dict[Any, list[float]] = {cell: [] for cell in cells}
    for _ in range(options.repeats):
        for order, size, steps in cells:
            times[order, size, steps].append(1e6 * train(options.overrides, order, size, steps) / steps)
    for (order, size, steps), values in times.items():
        print(
            f"{order:10}, batch {size:4}, {steps:9,} steps: {statistics.median(values):7.2f} us per step "
            f"({min(values):.2f} to {max(values):.2f}, n = {len(values)})"
        )


def train(overrides: list[str], order: str, size: int, steps: int) -> float:
    """Return the training time in seconds."""
    composed = config.compose(["mode=default", *overrides, f"training.order={order}", f"training.batch_size={size}"])
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w", encoding="utf-8") as pipe:
        job = create_job(composed, datasets.prepare(composed.dataset).folder, Path(folder))
        job = replace(job, training=replace(job.training, iterations=steps, epochs=None), adapter=f"{__name__}:Null")
        values: dict[str, float] = {}

        def emit(event: Event) -> None:
            write(pipe, event)
            if isinstance(event, Metrics):
                values.update(event.values)

        experiment.run(job, emit)
    return values["training_time_s"]


if __name__ == "__main__":
    main()
