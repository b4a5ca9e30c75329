"""Single operations, timed one by one once training and testing are over: training steps, and batches to classify."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import numpy as np

from .events import Metrics
from .frameworks.base import Adapter
from .job import Job, Latency
from .training import Data

WARM_UP = 3
"""Calls left out: a framework may compile, or choose its kernels, when it first sees a size."""

PERCENTILES = (50, 90, 99)

SATURATED = 0.95
"""Of the highest throughput: the smallest batch that has so much is where it saturates."""


def training_steps(job: Job, model: Adapter, data: Data, step: int) -> dict[str, float]:
    """Milliseconds of training steps after ``step``, the device waited for after each.

    The same for every framework, where steps within a training are not: some are handed over many at a time, or queued.
    The model is not the trained one any more.
    """
    rates = job.training.rates(step - 1, step, job.budget)
    with closing(data.feed(step)) as feed:
        seconds = time_calls(lambda: model.train(feed, rates), job.latency)
    return {f"train_step/{key}": value for key, value in percentiles(seconds).items()}


def inference(job: Job, model: Adapter, images: np.ndarray) -> list[Metrics]:
    """Milliseconds to classify a batch, and images/s, for each of ``job.latency.batch_sizes``, which are the events'
    steps; then where throughput saturates. ``images`` are repeated where a batch is larger than all of them.
    """
    said, throughput = [], {}
    for size in job.latency.batch_sizes:
        batch = model.to_native(np.ascontiguousarray(images[np.arange(size) % len(images)]))
        seconds = time_calls(partial(model.predict, [batch]), job.latency)
        throughput[size] = size * len(seconds) / sum(seconds)
        figures = {**percentiles(seconds), "images_per_s": throughput[size]}
        said.append(Metrics({f"inference/{key}": value for key, value in figures.items()}, size))
    if throughput:
        highest = max(throughput.values())
        saturated = min(size for size, each in throughput.items() if each >= SATURATED * highest)
        said.append(Metrics({"inference/saturation_batch_size": saturated, "inference/highest_images_per_s": highest}))
    return said


def time_calls(operation: Callable[[], object], latency: Latency) -> list[float]:
    """Seconds of each of ``latency.repeats`` calls, ``WARM_UP`` before them left out; fewer, though one at least, where
    ``latency.limit_s`` are over.
    """
    for _ in range(WARM_UP):
        operation()
    taken: list[float] = []
    while len(taken) < latency.repeats and sum(taken) < latency.limit_s:
        began = time.perf_counter_ns()
        operation()
        taken.append((time.perf_counter_ns() - began) / 1e9)
    return taken


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Of ``seconds``, in ms, and how many there are."""
    values = np.percentile(seconds, PERCENTILES)
    return {f"p{rank}_ms": 1e3 * float(value) for rank, value in zip(PERCENTILES, values, strict=True)} | {
        "samples": len(seconds)
    }
