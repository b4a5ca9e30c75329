"""Check that ``mode=best`` selects the fastest mode, and print all modes: compilation, step time and break-even.

    python benchmarks/modes.py [--frameworks torch ...] [--networks caffe_mnist ...] [--choices 2] [--minutes 1]

For each framework and network, all modes are measured as by ``gtdl tune``. Independently, without stored measurements,
``mode=best`` selects a mode ``--choices`` times for each number of ``STEPS``. A choice is correct if, according to the
first measurement, its training takes at most 2 % longer than the shortest. All times are CPU times with one thread.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

from gtdl_mlflow import config, datasets, environments, modes
from gtdl_mlflow.hardware import device_lock

STEPS = (500, 20_000)
"""A training for which compilation does not pay, and one for which it may."""

ALLOWED = 1.02

NETWORKS = {name: [] for name in ("caffe_mnist", "tensorflow_mnist", "torch_mnist", "caffe_cifar10")} | {
    "mxnet_cifar10": ["model.depth=20"]
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frameworks", nargs="+", default=["torch", "tensorflow", "mxnet"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--choices", type=int, default=2, help="choices for each number of steps")
    parser.add_argument("--minutes", type=float, default=1.0, help="paired measurement of each framework and network")
    options = parser.parse_args()
    right = total = 0
    for framework, network in itertools.product(options.frameworks, options.networks):
        some, every = compare(framework, network, options.choices, options.minutes)
        right, total = right + some, total + every
    print(f"{right} of {total} choices take at most {ALLOWED - 1:.0%} longer than the shortest training")


def compare(framework: str, network: str, choices: int, minutes: float) -> tuple[int, int]:
    """Print the modes of a framework under a network; return how many choices were right, and how many there were."""
    overrides = [f"framework={framework}", f"setting={network}", "hardware=cpu_1core", *NETWORKS[network]]
    overrides += ["dataset=cifar10"] if network.endswith("cifar10") else []
    composed = config.compose(overrides)
    environment = environments.ensure(composed.framework, "cpu")
    data = datasets.prepare(composed.dataset)
    right = 0
    with tempfile.TemporaryDirectory() as name, device_lock.hold(composed.hardware):
        names, _ = modes.usable(composed)
        reference = modes.ModeStudy(composed, environment)
        reference.measure_all(names, 60 * minutes, data, Path(name, "reference"))
        print(f"\n{framework}, {network}")
        lines = modes.table(reference.costs, composed.framework.modes, composed.training.batch_size, STEPS[-1])
        print("\n".join(lines), flush=True)
        for number, steps in itertools.product(range(choices), STEPS):
            study = modes.ModeStudy(composed, environment)
            study.costs = {}
            study.measure(names, steps, data, Path(name, f"{number}-{steps}"))
            best = study.best(names, steps)
            seconds = {mode: cost.total_s(steps) for mode, cost in reference.costs.items()}
            ratio = seconds[best] / min(seconds.values())
            right += ratio <= ALLOWED
            print(f"{steps:6,} steps: {best}, {ratio:.3f} of the shortest training", flush=True)
    return right, choices * len(STEPS)


if __name__ == "__main__":
    main()
