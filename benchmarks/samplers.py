"""The cost of sampling system metrics beside a worker: training with and without the sampler, in turns.

    python benchmarks/samplers.py [--pairs 60] [--seconds 2] [--interval 1] [--frameworks torch ...] [OVERRIDE ...]

One process trains on random images in turns of a few seconds. In every other turn the driver's sampler runs, as in a
run. Prints the median ratio of the times of two neighbouring turns, with the sampler over without; its 95 % interval,
by ranks, so that single disturbed turns do not decide; and the sampler's CPU time as a share of one core. Use an idle
machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from native_speed import NATIVE, job_of_random_images, random_data
from scipy import stats

from gtdl_mlflow import config, environments
from gtdl_mlflow.hardware.system_metrics import Sampler
from gtdl_mlflow.worker_process import worker_environment

LEVEL = 0.95
TRIAL_STEPS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=2.0, help="approximate duration of a turn")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two samples")
    parser.add_argument("--frameworks", nargs="+", default=["torch"])
    parser.add_argument("overrides", nargs="*", default=["setting=caffe_mnist"])
    options = parser.parse_args()
    for framework in options.frameworks:
        composed = config.compose([f"framework={framework}", *options.overrides, "training.evaluate_every_epochs=0"])
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
    python = environments.ensure(composed.framework, composed.hardware.device).python
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = job_of_random_images(composed, random_data(composed.model.name, folder), folder)
        job.write(folder / "job.json")
        with subprocess.Popen(
            [python, "-I", NATIVE / "step_server.py", folder / "job.json"],
            env=worker_environment(composed.threads, composed.speed_settings.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        ) as worker:
            requests, seconds_taken = worker.stdin, worker.stdout
            assert requests is not None
            assert seconds_taken is not None

            def turn(steps: int) -> float:
                requests.write(f"{steps}\n")
                return float(seconds_taken.readline())

            def sampled_turn(steps: int) -> tuple[float, float]:
                sampler = Sampler(interval_s, composed.hardware.device)
                sampler.start(worker.pid)
                cpu_s, started = time.process_time(), time.perf_counter()
                taken_s = turn(steps)
                share = (time.process_time() - cpu_s) / (time.perf_counter() - started)
                sampler.stop()
                return taken_s, share

            steps = round(TRIAL_STEPS * seconds / turn(TRIAL_STEPS))
            ratios, shares = [], []
            for pair in range(pairs):
                if pair % 2:
                    without, (sampled, share) = turn(steps), sampled_turn(steps)
                else:
                    (sampled, share), without = sampled_turn(steps), turn(steps)
                ratios.append(sampled / without)
                shares.append(share)
            requests.close()
    return ratios, shares


def interval(values: list[float]) -> tuple[float, float]:
    """Return the confidence interval of the median by order statistics; the whole range if there are too few values."""
    ordered, count = sorted(values), len(values)
    below = max(0, int(stats.binom.ppf((1 - LEVEL) / 2, count, 0.5)) - 1)
    return ordered[below], ordered[count - 1 - below]


if __name__ == "__main__":
    main()
