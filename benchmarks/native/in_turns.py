"""Our training and testing and the native loop's in one process, in turns of a fraction of a second.

    python in_turns.py FRAMEWORK NETWORK JOB.json SECONDS

Ours is what a run does under its clock: batches from the feed, the adapter, the losses read. Prints one JSON object: of
training and of testing, our images/s, the native loop's, and the median ratio of two neighbouring turns.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parents[1])]  # isolated, Python does not look there

from gtdl_mlflow.worker.assembly import adapter, assemble  # noqa: E402
from gtdl_mlflow.worker.inputs import test_batches  # noqa: E402
from gtdl_mlflow.worker.job import Job  # noqa: E402
from gtdl_mlflow.worker.training import Data  # noqa: E402

Timed = Callable[[int], float]

TURN_S = 0.15
"""Long beside what a call takes before its first batch, short beside how fast a machine changes its speed:
on one that does, a loop held against itself for six seconds came within 2 % of 1, with turns of 0.4 s within 9 %.
"""

LEAST_STEPS = 10
WARM_UP_STEPS = 15
LEAST_PAIRS = 3


def main() -> None:
    framework, network, job, seconds = sys.argv[1], sys.argv[2], Job.read(Path(sys.argv[3])), float(sys.argv[4])
    adapter_class = adapter(job.adapter)
    loop = importlib.import_module(f"{framework}_loop")
    treatment, model, _ = assemble(job, adapter_class)
    model.compile()
    data = Data(job, treatment, model)
    feed, size, done = data.feed(0), job.training.test_batch_size, 0
    images = model.adopt(data.test_images)

    def our_train(count: int) -> float:
        nonlocal done
        began = perf_counter()
        model.train(feed, job.training.rates(done, done + count, job.budget))
        done += count
        return perf_counter() - began

    def our_test(batches: int) -> float:
        began = perf_counter()
        model.predict(test_batches(images[: batches * size], size))
        return perf_counter() - began

    on_gpu = {} if job.device == "cpu" else {"device": job.device}  # few loops have a way there
    train, test, batch = loop.loop(network, Path(job.data), job.threads, size, **on_gpu)
    most = len(data.test_images) // size
    print(
        json.dumps(
            {
                "train": in_turns(our_train, train, batch, sys.maxsize, seconds),
                "test": in_turns(our_test, lambda batches: test(batches * size), size, most, seconds),
            }
        )
    )


def in_turns(ours: Timed, native: Timed, batch: int, most: int, seconds: float) -> tuple[float, float, float]:
    """Images/s of both, and the ratio, from turns of at most ``most`` batches that take ``seconds`` together."""
    warm_up = min(WARM_UP_STEPS, most)
    ours(warm_up), native(warm_up)
    count = min(most, max(LEAST_STEPS, round(TURN_S * warm_up / min(ours(warm_up), native(warm_up)))))
    pairs: list[tuple[float, float]] = []
    while len(pairs) < LEAST_PAIRS or sum(map(sum, pairs)) < seconds:
        if len(pairs) % 2:
            theirs, mine = native(count), ours(count)
        else:
            mine, theirs = ours(count), native(count)
        pairs.append((mine, theirs))
    speeds = [count * batch / statistics.median(side) for side in zip(*pairs, strict=True)]
    return speeds[0], speeds[1], statistics.median(theirs / mine for mine, theirs in pairs)


if __name__ == "__main__":
    main()
