"""Two sides' training and testing in one process, in turns of a fraction of a second.

    python in_turns.py FRAMEWORK NETWORK JOB.json SECONDS SIDE SIDE

A side is ``ours`` or ``native``, the native loop's; they are made in the order given, and one may be there twice. Ours
is what a run does under its clock: batches from the feed, the adapter, the losses read. Prints one JSON object: of
training and of testing, the first side's images/s, the second's, and the median ratio of two neighbouring turns.
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
sys.path += [str(HERE), str(HERE.parents[1])]  # isolated, Python does not look there

from gtdl_mlflow.worker.assembly import build_model, load_adapter  # noqa: E402
from gtdl_mlflow.worker.frameworks.base import Adapter  # noqa: E402
from gtdl_mlflow.worker.inputs import test_batches  # noqa: E402
from gtdl_mlflow.worker.job import Job  # noqa: E402
from gtdl_mlflow.worker.training import Data  # noqa: E402

Timed = Callable[[int], float]
"""Does so many batches, takes so many seconds."""

TURN_S = 0.15
"""Long beside what a call takes before its first batch, short beside how fast a machine changes its speed:
on one that does, a loop held against itself for six seconds came within 2 % of 1, with turns of 0.4 s within 9 %.
"""

LEAST_STEPS = 10
WARM_UP_STEPS = 15
LEAST_PAIRS = 3


def main() -> None:
    framework, network, job, seconds = sys.argv[1], sys.argv[2], Job.read(Path(sys.argv[3])), float(sys.argv[4])
    # Imported in this order whoever is made first: some frameworks take their settings from whoever imports them.
    adapter_class, loop = load_adapter(job.adapter), importlib.import_module(f"{framework}_loop")
    makers = {"ours": lambda: ours(job, adapter_class), "native": lambda: native(loop, network, job)}
    one, other = (makers[side]() for side in sys.argv[5:])
    batch, test_batch = job.training.batch_size, job.training.test_batch_size
    most = len(np.load(Path(job.data) / "test_labels.npy", mmap_mode="r")) // test_batch
    print(
        json.dumps(
            {
                "train": in_turns(one[0], other[0], batch, sys.maxsize, seconds),
                "test": in_turns(one[1], other[1], test_batch, most, seconds),
            }
        )
    )


def ours(job: Job, adapter_class: type[Adapter]) -> tuple[Timed, Timed]:
    """Training and testing as a run does them."""
    treatment, model, _ = build_model(job, adapter_class)
    model.compile()
    data = Data(job, treatment, model)
    feed, size, done = data.training_batches(0), job.training.test_batch_size, 0
    images = model.to_native(data.test_images)

    def train(count: int) -> float:
        nonlocal done
        began = perf_counter()
        model.train(feed, job.training.rates(done, done + count, job.budget))
        done += count
        return perf_counter() - began

    def test(batches: int) -> float:
        began = perf_counter()
        model.predict(test_batches(images[: batches * size], size))
        return perf_counter() - began

    return train, test


def native(loop: Any, network: str, job: Job) -> tuple[Timed, Timed]:
    """Those of the hand-written loop."""
    size = job.training.test_batch_size
    on_gpu = {} if job.device == "cpu" else {"device": job.device}  # few loops have a way there
    train, test, batch = loop.loop(network, Path(job.data), job.threads, size, **on_gpu)
    assert batch == job.training.batch_size, f"{network}: the loop's batches have {batch} images"
    return train, lambda batches: test(batches * size)


def in_turns(one: Timed, other: Timed, batch: int, most: int, seconds: float) -> tuple[float, float, float]:
    """Images/s of both, and the ratio, from turns of at most ``most`` batches that take ``seconds`` together."""
    warm_up = min(WARM_UP_STEPS, most)
    one(warm_up), other(warm_up)
    count = min(most, max(LEAST_STEPS, round(TURN_S * warm_up / min(one(warm_up), other(warm_up)))))
    pairs: list[tuple[float, float]] = []
    while len(pairs) < LEAST_PAIRS or sum(map(sum, pairs)) < seconds:
        if len(pairs) % 2:
            second, first = other(count), one(count)
        else:
            first, second = one(count), other(count)
        pairs.append((first, second))
    speeds = [count * batch / statistics.median(side) for side in zip(*pairs, strict=True)]
    return speeds[0], speeds[1], statistics.median(second / first for first, second in pairs)


if __name__ == "__main__":
    main()
