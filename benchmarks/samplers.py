"""The cost of sampling system metrics beside a worker: training with and without the sampler, in turns.

    python benchmarks/samplers.py [--pairs 60] [--seconds 2] [--interval 1] [--frameworks torch ...] [OVERRIDE ...]

One worker trains on random images in turns of a few seconds. In every other turn the driver's sampler runs, as in a
run. Prints the median ratio of the times of two neighbouring turns, with the sampler over without; its 95 % interval,
by ranks, so that single disturbed turns do not decide; and the sampler's CPU time as a share of one core. Use an idle
machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

from native_speed import job_of_random_images, random_data
from scipy import stats

from gtdl_mlflow import config, environments
from gtdl_mlflow.hardware.system_metrics import Sampler
from gtdl_mlflow.worker.job import Activity
from gtdl_mlflow.worker_process import WorkerProcess, environment_variables

LEVEL = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=2.0, help="approximate duration of a turn")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two samples")
    parser.add_argument("--frameworks", nargs="+", default=["torch"])
    parser.add_argument("overrides", nargs="*", default=["setting=caffe_mnist"])
    options = parser.parse_args()
    for framework in options.frameworks:
        overrides = [f"framework={framework}", "mode=default", *options.overrides]
        composed = config.compose([*overrides, "training.evaluate_every_epochs=0"])
        ratios, shares = measure(composed, options.pairs, options.seconds, options.interval)
        low, high = interval(ratios)
        print(
            f"{framework} {composed.model.name}, a sample every {options.interval:g} s: time with / without sampler "
            f"{statistics.median(ratios):.4f} ({low:.4f} to {high:.4f}, n = {len(ratios)} pairs); "
            f"the sampler used {statistics.median(shares):.2%} of a core (at most {max(shares):.2%})",
            flush=True,
        )


def measure(composed: config.Config, pairs: int, seconds: float, interval_s: float) -> tuple[list[float], list[float]]:
    """Return the ratio of times of each pair, and the sampler's share of a core in each of its turns."""
    found = environments.ensure(composed.framework, composed.hardware.device)
    environment = environment_variables(composed.execution, found.compile_cache)
    with tempfile.TemporaryDirectory() as name, WorkerProcess(Path(name), composed.threads, environment) as worker:
        folder = Path(name)
        pid = worker.start(found.python)
        job = job_of_random_images(composed, random_data(composed.model.name, folder), folder)
        worker.begin_turns(job, math.inf)
        worker.next_event()  # the model is built

        def turn() -> float:
            return worker.turn(Activity.training, seconds).wall_s

        def sampled_turn() -> tuple[float, float]:
            sampler = Sampler(interval_s, composed.hardware.device)
            sampler.start(pid)
            cpu_s, started = time.process_time(), time.perf_counter()
            taken_s = turn()
            share = (time.process_time() - cpu_s) / (time.perf_counter() - started)
            sampler.stop()
            return taken_s, share

        turn()  # warms up
        ratios, shares = [], []
        for pair in range(pairs):
            if pair % 2:
                without, (sampled, share) = turn(), sampled_turn()
            else:
                (sampled, share), without = sampled_turn(), turn()
            ratios.append(sampled / without)
            shares.append(share)
    return ratios, shares


def interval(values: list[float]) -> tuple[float, float]:
    """Return the confidence interval of the median by order statistics; the whole range if there are too few values."""
    ordered, count = sorted(values), len(values)
    below = max(0, int(stats.binom.ppf((1 - LEVEL) / 2, count, 0.5)) - 1)
    return ordered[below], ordered[count - 1 - below]


if __name__ == "__main__":
    main()
