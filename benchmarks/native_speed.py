"""Training and testing speed of the harness over a hand-written native loop: same network, data in memory and threads.

    python benchmarks/native_speed.py [--repeats 5] [--seconds 10] [--one-process | --control] [--hardware gpu]

Both run on the same random images in the framework's own environment, each in a fresh process, in turns (harness, loop,
loop, harness, ...), so that a drift of the machine affects both alike. Prints, for each network, the median of each and
of the pairwise ratio, with its lowest and highest value. Use an idle machine.

``--one-process`` is more precise on a machine whose speed changes from one second to the next, such as a virtual one:
both sides take turns of a fraction of a second in one process. The side created first may be faster or slower for the
whole process, depending on the memory addresses of its buffers. Therefore a repeat is two processes, one for either
order, and its ratio is their geometric mean. ``--control`` measures the instrument's own error by timing the harness
against itself in the same way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gtdl_mlflow import config, environments
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.worker import initialization
from gtdl_mlflow.worker.events import Metrics
from gtdl_mlflow.worker.inputs import Preprocessing
from gtdl_mlflow.worker.job import Job
from gtdl_mlflow.worker.network import build
from gtdl_mlflow.worker_process import run_worker, worker_environment

NATIVE = Path(__file__).parent / "native"
NETWORKS = {
    "tensorflow_mnist": 1500,
    "caffe_mnist": 6000,
    "torch_mnist": 3000,
    "caffe_cifar10": 2000,
    "torch_cifar10": 600,
}
"""Networks with a hand-written loop, and the approximate training speed in images/s that sets the number of steps."""

LARGEST_TEST_BATCH = 100

SLOWER = {"caffe": 3, "theano": 3}
"""Frameworks that are slower by these factors."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="approximate duration of each phase in a repeat")
    frameworks = sorted(path.stem.removesuffix("_loop") for path in NATIVE.glob("*_loop.py"))
    parser.add_argument("--frameworks", nargs="+", choices=frameworks, default=frameworks)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=0, help="threads per process; 0: one per core")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--one-process", action="store_true", help="both sides in one process, in short turns")
    mode.add_argument("--control", action="store_true", help="the same, but harness against harness")
    parser.add_argument("--hardware", default="cpu", help="cpu or gpu; only PyTorch's loop supports a GPU")
    options = parser.parse_args()
    if options.hardware == "gpu" and options.frameworks != ["torch"]:
        parser.error("--hardware gpu: only PyTorch's loop supports a GPU; add --frameworks torch")
    with tempfile.TemporaryDirectory() as folder:
        for framework, network in itertools.product(options.frameworks, options.networks):
            data = random_data(network, Path(folder))
            measure = paired if options.one_process else control if options.control else separate
            overrides = [f"framework={framework}", f"setting={network}", f"hardware={options.hardware}"]
            composed = config.compose([*overrides, "training.evaluate_every_epochs=0"])
            composed.hardware.threads = options.threads or None
            compare(composed, data, options.repeats, options.seconds, measure)


def random_data(network: str, folder: Path) -> Path:
    """Return the folder of a prepared data set of random images, whose contents do not change the speed."""
    data = folder / network
    if not data.exists():
        data.mkdir()
        random = np.random.RandomState(0)
        shape = (32, 32, 3) if network.endswith("cifar10") else (28, 28, 1)
        for part, count in (("train", 10_000), ("test", min(10_000, 5 * NETWORKS[network]))):
            np.save(data / f"{part}_images.npy", random.randint(0, 256, (count, *shape)).astype(np.uint8))
            np.save(data / f"{part}_labels.npy", random.randint(0, 10, count).astype(np.uint8))
        write_loop_inputs(network, data)
    return data


def write_loop_inputs(network: str, data: Path) -> None:
    """Write what the native loops start from.

    These are preprocessed images, float32 (N, height, width, channels), and the harness's initial weights and masks.
    """
    composed = config.compose([f"setting={network}"])
    preprocessing = Preprocessing(composed.training.preprocessing)
    for part in ("train", "test"):
        images = np.load(data / f"{part}_images.npy")
        np.save(data / f"{part}_preprocessed.npy", preprocessing.apply(part, images, "NHWC"))
    height, width, channels = images.shape[1:]
    built = build(composed.model.layers, preprocessing.shape((height, width, channels)), 10)
    masks = {f"{name} mask": mask for name, mask in initialization.masks(built, 0).items()}
    np.savez(data / "start.npz", **initialization.weights(built, 0), **masks)


Speeds = tuple[float, float, float]
"""Images/s of the harness and of the native loop, and their ratio."""

Measure = Callable[[config.Config, Path, float, int], dict[str, Speeds]]


def compare(composed: config.Config, data: Path, repeats: int, seconds: float, measure: Measure) -> None:
    """Print the ratios of one framework on one network."""
    framework, network = composed.framework.name, composed.model.name
    # The setting's own test batches, but not all test images at once: Caffe would need a gigabyte.
    composed.training.test_batch_size = min(composed.training.test_batch_size, LARGEST_TEST_BATCH)
    results = [measure(composed, data, seconds, repeat) for repeat in range(repeats)]
    for phase in ("train", "test"):
        harness, native, ratios = zip(*(result[phase] for result in results), strict=True)
        print(
            f"{framework + ' ' + network + ' ' + phase:32} "
            f"{statistics.median(harness):8,.0f} over {statistics.median(native):8,.0f} images/s  "
            f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, n = {repeats})",
            flush=True,
        )


def paired(composed: config.Config, data: Path, seconds: float, repeat: int) -> dict[str, Speeds]:
    """Measure harness and native loop in one process, for either order of creation."""
    return measure_both_orders(composed, data, seconds, "native")


def control(composed: config.Config, data: Path, seconds: float, repeat: int) -> dict[str, Speeds]:
    """Measure the harness against itself; the second one's speed is printed as the native loop's."""
    return measure_both_orders(composed, data, seconds, "harness")


def measure_both_orders(composed: config.Config, data: Path, seconds: float, other: str) -> dict[str, Speeds]:
    """Measure the harness and the ``other`` side in two processes, each side created first in one.

    Returns:
        For each phase the means of images/s and the geometric mean of the ratios.
    """
    straight = measure_paired(composed, data, seconds / 2, "harness", other)
    swapped = measure_paired(composed, data, seconds / 2, other, "harness")
    return {
        phase: (
            statistics.mean([straight[phase][0], swapped[phase][1]]),
            statistics.mean([straight[phase][1], swapped[phase][0]]),
            math.sqrt(straight[phase][2] / swapped[phase][2]),
        )
        for phase in straight
    }


def measure_paired(composed: config.Config, data: Path, seconds: float, *sides: str) -> dict[str, Speeds]:
    """Return speed of the first and of the second of two ``sides``, and their ratio, from one process."""
    with tempfile.TemporaryDirectory() as folder:
        job_file = Path(folder) / "job.json"
        job_of_random_images(composed, data, Path(folder)).write(job_file)
        speeds: dict[str, Speeds] = run_script("paired", composed, job_file, seconds, *sides)
        return speeds


def separate(composed: config.Config, data: Path, seconds: float, repeat: int) -> dict[str, Speeds]:
    """Measure harness and native loop in a process each; the order alternates with ``repeat``."""
    framework, network = composed.framework.name, composed.model.name
    steps = int(seconds * NETWORKS[network] / SLOWER.get(framework, 1) / composed.training.batch_size)
    composed.training.iterations, composed.training.epochs = steps, None
    sides = [run_harness, run_native_loop] if repeat % 2 == 0 else [run_native_loop, run_harness]
    results = {side: side(composed, data) for side in sides}
    harness, native = results[run_harness], results[run_native_loop]
    return {phase: (harness[phase], native[phase], harness[phase] / native[phase]) for phase in harness}


def run_harness(composed: config.Config, data: Path) -> dict[str, float]:
    """Return the speeds of one run of the worker, without tracking."""
    environment = environments.ensure(composed.framework, composed.hardware.device)
    with tempfile.TemporaryDirectory() as folder:
        job = job_of_random_images(composed, data, Path(folder))
        values: dict[str, float] = {}
        for event in run_worker(job, environment.python, composed.speed_settings.environment, Path(folder), 3600):
            if isinstance(event, Metrics):
                values |= event.values
    return {"train": values["train/steady_state_images_per_s"], "test": values["test/images_per_s"]}


def run_native_loop(composed: config.Config, data: Path) -> dict[str, float]:
    """Return the speeds of one run of the native loop."""
    training = composed.training
    arguments = training.iterations, composed.threads, training.test_batch_size, composed.hardware.device
    speeds: dict[str, float] = run_script("separate", composed, data, *arguments)
    return speeds


def run_script(script: str, composed: config.Config, *arguments: object) -> Any:
    """Run a script of ``benchmarks/native`` as a worker runs, and return the JSON that it prints."""
    python = environments.ensure(composed.framework, composed.hardware.device).python
    output = subprocess.run(
        [python, "-I", NATIVE / f"{script}.py", composed.framework.name, composed.model.name, *map(str, arguments)],
        env=worker_environment(composed.threads, composed.speed_settings.environment),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


def job_of_random_images(composed: config.Config, data: Path, folder: Path) -> Job:
    """Return the job of a configuration on the data set of ``random_data``."""
    job = create_job(composed, data, folder)
    return replace(job, image_shape=list(np.load(data / "train_images.npy", mmap_mode="r").shape[1:]))


if __name__ == "__main__":
    main()
