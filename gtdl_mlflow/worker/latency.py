"""Timing of single operations after training and testing: training steps, and batches to classify."""

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

WARM_UP_CALLS = 3
"""Number of untimed calls before the timed ones. A framework may compile or choose kernels for a new size."""

PERCENTILES = (50, 90, 99)

SATURATION_SHARE = 0.95
"""Share of the highest throughput; the smallest batch that reaches it is the saturation batch size."""


def training_steps(job: Job, model: Adapter, data: Data, step: int) -> dict[str, float]:
    """Time single training steps after the ``step``-th step and return percentiles in ms.

    Each step waits for the device. This makes the times comparable between frameworks: in normal training, some
    frameworks receive many steps at a time or queue them. The steps change the weights of the model.
    """
    rates = job.training.rates(step - 1, step, job.budget)
    with closing(data.training_batches(step)) as batches:
        seconds = time_calls(lambda: model.train(batches, rates), job.latency)
    return {f"train_step/{key}": value for key, value in percentiles(seconds).items()}


def inference(job: Job, model: Adapter, images: np.ndarray) -> list[Metrics]:
    """Return latency and throughput of inference, as one event for each of ``job.latency.batch_sizes``.

    The step of each of these events is the batch size. One more event has the saturation batch size and the highest
    throughput. A batch of more than N images repeats ``images`` (N, ...).
    """
    events, throughput = [], {}
    for size in job.latency.batch_sizes:
        batch = model.to_native(np.ascontiguousarray(images[np.arange(size) % len(images)]))
        seconds = time_calls(partial(model.predict, [batch]), job.latency)
        throughput[size] = size * len(seconds) / sum(seconds)
        values = {**percentiles(seconds), "images_per_s": throughput[size]}
        events.append(Metrics({f"inference/{key}": value for key, value in values.items()}, size))
    if throughput:
        highest = max(throughput.values())
        saturated = min(size for size, each in throughput.items() if each >= SATURATION_SHARE * highest)
        events.append(
            Metrics({"inference/saturation_batch_size": saturated, "inference/highest_images_per_s": highest})
        )
    return events


def time_calls(operation: Callable[[], object], latency: Latency) -> list[float]:
    """Return the seconds of each of ``latency.repeats`` calls, after ``WARM_UP_CALLS`` calls that are not timed.

    After ``latency.limit_s`` seconds no further call starts; at least one is timed.
    """
    for _ in range(WARM_UP_CALLS):
        operation()
    taken: list[float] = []
    while len(taken) < latency.repeats and sum(taken) < latency.limit_s:
        start = time.perf_counter_ns()
        operation()
        taken.append((time.perf_counter_ns() - start) / 1e9)
    return taken


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the ``PERCENTILES`` of ``seconds`` in ms, and the number of samples."""
    values = np.percentile(seconds, PERCENTILES)
    ranks = {f"p{rank}_ms": 1e3 * float(value) for rank, value in zip(PERCENTILES, values, strict=True)}
    return {**ranks, "samples": len(seconds)}
