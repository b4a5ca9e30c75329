"""Paired measurement of two sides in one process, in turns of a fraction of a second.

    python paired.py FRAMEWORK NETWORK JOB.json SECONDS SIDE SIDE

A side is ``harness``, which does what a run does under its clock (batches, adapter, losses), or ``native``, the
hand-written loop. The sides are created in the order given; both may be the same. Prints one JSON object: for training
and testing, images/s of the first side and of the second, and the median ratio of two neighbouring turns.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parents[1])]  # the isolated interpreter has no path to these folders

from gtdl_mlflow.worker.assembly import build_model, load_adapter  # noqa: E402
from gtdl_mlflow.worker.frameworks.base import Adapter  # noqa: E402
from gtdl_mlflow.worker.inputs import test_batches  # noqa: E402
from gtdl_mlflow.worker.job import Job  # noqa: E402
from gtdl_mlflow.worker.prepared_data import open_arrays  # noqa: E402
from gtdl_mlflow.worker.training import Data  # noqa: E402

Timed = Callable[[int], float]
"""Function that processes a number of batches and returns the seconds that they took."""

TURN_S = 0.15
"""Seconds of a turn: long beside the overhead of a call, short beside the time in which a machine changes its speed.
On such a machine a loop measured against itself for six seconds came within 2 % of 1; with turns of 0.4 s, within 9 %.
"""

MIN_STEPS = 10
WARM_UP_STEPS = 15
MIN_PAIRS = 3


def main() -> None:
    framework, network, job, seconds = sys.argv[1], sys.argv[2], Job.read(Path(sys.argv[3])), float(sys.argv[4])
    # Always imported in this order, because some frameworks take their settings from the module that imports them.
    adapter_class, loop = load_adapter(job.adapter), importlib.import_module(f"{framework}_loop")
    sides = {"harness": lambda: harness(job, adapter_class), "native": lambda: native(loop, network, job)}
    first, second = (sides[name]() for name in sys.argv[5:])
    batch_size, test_batch_size = job.training.batch_size, job.training.test_batch_size
    test_batches_count = len(np.load(Path(job.data) / "test_labels.npy", mmap_mode="r")) // test_batch_size
    training = measure(first[0], second[0], batch_size, sys.maxsize, seconds)
    testing = measure(first[1], second[1], test_batch_size, test_batches_count, seconds)
    print(json.dumps({"train": training, "test": testing}))


def harness(job: Job, adapter_class: type[Adapter]) -> tuple[Timed, Timed]:
    """Return the timed training and testing of a run."""
    preprocessing, model, _ = build_model(job, adapter_class)
    model.compile()
    data = Data(job, preprocessing, model, open_arrays(job))
    batches, size, steps = data.training_batches(0), job.training.test_batch_size, 0
    images = model.to_native(data.test_images)

    def train(count: int) -> float:
        nonlocal steps
        start = perf_counter()
        model.train(batches, job.training.rates(steps, steps + count, job.budget))
        steps += count
        return perf_counter() - start

    def test(count: int) -> float:
        start = perf_counter()
        model.predict(test_batches(images[: count * size], size))
        return perf_counter() - start

    return train, test


def native(loop: Any, network: str, job: Job) -> tuple[Timed, Timed]:
    """Return the timed training and testing of the hand-written loop."""
    size = job.training.test_batch_size
    device = {} if job.device == "cpu" else {"device": job.device}  # few loops support a GPU
    train, test, batch_size = loop.loop(network, Path(job.data), job.threads, size, **device)
    assert batch_size == job.training.batch_size, f"{network}: the loop's batches have {batch_size} images"
    return train, lambda count: test(count * size)


def measure(first: Timed, second: Timed, batch_size: int, max_count: int, seconds: float) -> tuple[float, float, float]:
    """Return images/s of both sides and their ratio.

    A turn has at most ``max_count`` batches; all turns take about ``seconds``.
    """
    warm_up = min(WARM_UP_STEPS, max_count)
    first(warm_up), second(warm_up)
    count = min(max_count, max(MIN_STEPS, round(TURN_S * warm_up / min(first(warm_up), second(warm_up)))))
    pairs: list[tuple[float, float]] = []
    while len(pairs) < MIN_PAIRS or sum(map(sum, pairs)) < seconds:
        if len(pairs) % 2:
            second_s, first_s = second(count), first(count)
        else:
            first_s, second_s = first(count), second(count)
        pairs.append((first_s, second_s))
    speeds = [count * batch_size / statistics.median(times) for times in zip(*pairs, strict=True)]
    return speeds[0], speeds[1], statistics.median(second_s / first_s for first_s, second_s in pairs)


if __name__ == "__main__":
    main()
