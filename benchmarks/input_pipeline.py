"""Compare the training speed with augmentation of every batch to that with preprocessing once before the training.

    python benchmarks/input_pipeline.py [--framework torch] [--repeats 5] [--seconds 10]

Network, image size and batches are those of TensorFlow's CIFAR-10 default. Its crops, flips, brightness and contrast
are computed by a thread while the framework trains. The two variants take turns, each in a worker of its own, on random
images. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from pathlib import Path

import numpy as np

from gtdl_mlflow import config, environments
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.worker.events import Metrics
from gtdl_mlflow.worker_process import run_worker

IMAGES_PER_S = 1500
"""Approximate training speed; only the number of steps of a repeat depends on it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", default="torch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="approximate training time of each repeat")
    options = parser.parse_args()
    augmented = config.compose(
        [
            f"framework={options.framework}",
            "mode=default",
            "setting=tensorflow_cifar10",
            "training.evaluate_every_epochs=0",
        ]
    )
    augmented.training.iterations = int(options.seconds * IMAGES_PER_S / augmented.training.batch_size)
    preprocessed = copy.deepcopy(augmented)
    preprocessed.training.preprocessing = {"central_crop": {"pixels": 24}, "standardize_image": {}}
    speeds: dict[str, list[float]] = {"augmented": [], "preprocessed": []}
    with tempfile.TemporaryDirectory() as folder:
        data = random_images(Path(folder))
        for repeat in range(options.repeats):
            variants = [("augmented", augmented), ("preprocessed", preprocessed)]
            for name, composed in variants if repeat % 2 == 0 else reversed(variants):
                speeds[name].append(images_per_s(composed, data))
    ratios = [one / other for one, other in zip(*speeds.values(), strict=True)]
    for name, values in speeds.items():
        print(f"{options.framework} {name}: {statistics.median(values):,.0f} images/s")
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, n = {options.repeats})")


def random_images(folder: Path) -> Path:
    """Write a prepared data set of random images in the shape of CIFAR-10 and return its folder."""
    random = np.random.RandomState(0)
    for part, count in (("train", 10_000), ("test", 1_000)):
        np.save(folder / f"{part}_images.npy", random.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8))
        np.save(folder / f"{part}_labels.npy", random.randint(0, 10, count).astype(np.uint8))
    return folder


def images_per_s(composed: config.Config, data: Path) -> float:
    """Return the steady-state training speed of one worker."""
    environment = environments.ensure(composed.framework, composed.hardware.device)
    with tempfile.TemporaryDirectory() as folder:
        job = create_job(composed, data, Path(folder))
        job.image_shape = [32, 32, 3]
        values: dict[str, float] = {}
        for event in run_worker(job, environment.python, composed.execution.environment, Path(folder), 3600):
            if isinstance(event, Metrics):
                values |= event.values
    return values["train/steady_state_images_per_s"]


if __name__ == "__main__":
    main()
