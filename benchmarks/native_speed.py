"""Our training and testing speed over a hand-written native loop's: same network, same data in memory, same threads.

    python benchmarks/native_speed.py [--repeats 5] [--seconds 10] [--one-process | --control] [--hardware gpu]

Both run in the framework's own environment, each in a fresh process, in turns (ours, native, native, ours, ...), so
that a drift of the machine hits both alike, on the same random images. Prints, per network, the median of each and of
the pairwise ratio, with its lowest and highest. Run it on an otherwise idle machine.

On a machine whose speed changes from one second to the next, as a virtual one's may, ``--one-process`` tells more: both
take turns of a fraction of a second in one process. Whoever is made first there may be faster or slower for good, by
where its buffers come to lie: a repeat is two processes, one for either order, and its ratio their geometric mean.
``--control`` holds ours against ours, made twice, in the same way: how far from 1 its ratios are is what the instrument
itself gets wrong.
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
NETWORKS = {"tensorflow_mnist": 1500, "caffe_mnist": 6000, "torch_mnist": 3000, "caffe_cifar10": 2000,
            "torch_cifar10": 600}  # fmt: skip
"""Roughly how many images a second the machine trains: only how many steps a repeat takes depends on it."""

LARGEST_TEST_BATCH = 100

SLOW = {"caffe": 3, "theano": 3}
"""Frameworks that are that many times slower, for the same purpose."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase in a repeat, roughly")
    frameworks = sorted(path.stem.removesuffix("_loop") for path in NATIVE.glob("*_loop.py"))
    parser.add_argument("--frameworks", nargs="+", choices=frameworks, default=frameworks)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--one-process", action="store_true", help="both in one process, in shorter turns")
    mode.add_argument("--control", action="store_true", help="so too, but ours against ours")
    parser.add_argument("--hardware", default="cpu", help="as for a run; of the loops, PyTorch's has a way to a GPU")
    options = parser.parse_args()
    if options.hardware == "gpu" and options.frameworks != ["torch"]:
        parser.error("--hardware gpu: of the loops only PyTorch's has a way there; add --frameworks torch")
    with tempfile.TemporaryDirectory() as folder:
        for framework, network in itertools.product(options.frameworks, options.networks):
            data = made_up(network, Path(folder))
            measure = both if options.one_process else control if options.control else apart
            words = {"framework": framework, "setting": network, "hardware": options.hardware}
            composed = config.compose([*map("=".join, words.items()), "training.evaluate_every_epochs=0"])
            composed.hardware.threads = options.threads or None
            compare(composed, data, options.repeats, options.seconds, measure)


def made_up(network: str, folder: Path) -> Path:
    """A data set of random images, prepared: what they show does not matter for speed."""
    place = folder / network
    if not place.exists():
        place.mkdir()
        random = np.random.RandomState(0)
        shape = (32, 32, 3) if network.endswith("cifar10") else (28, 28, 1)
        for part, count in (("train", 10_000), ("test", min(10_000, 5 * NETWORKS[network]))):
            np.save(place / f"{part}_images.npy", random.randint(0, 256, (count, *shape)).astype(np.uint8))
            np.save(place / f"{part}_labels.npy", random.randint(0, 10, count).astype(np.uint8))
        begin(network, place)
    return place


def begin(network: str, data: Path) -> None:
    """What the native loops begin with: treated images, float32 (N, height, width, channels), and our first weights."""
    composed = config.compose([f"setting={network}"])
    treatment = Preprocessing(composed.training.preprocessing)
    for part in ("train", "test"):
        images = np.load(data / f"{part}_images.npy")
        np.save(data / f"{part}_treated.npy", treatment.apply(part, images, "NHWC"))
    height, width, channels = images.shape[1:]
    built = build(composed.model.layers, treatment.shape((height, width, channels)), 10)
    masks = {f"{name} mask": mask for name, mask in initialization.masks(built, 0).items()}
    np.savez(data / "start.npz", **initialization.weights(built, 0), **masks)


Figures = tuple[float, float, float]
"""Our images/s, the native loop's, and their ratio."""

Measure = Callable[[config.Config, Path, float, int], dict[str, Figures]]


def compare(composed: config.Config, data: Path, repeats: int, seconds: float, measure: Measure) -> None:
    """Print the ratios of one framework on one network."""
    framework, network = composed.framework.name, composed.model.name
    # The setting's own batches, but none of all test images at once: Caffe's would take a gigabyte.
    composed.training.test_batch_size = min(composed.training.test_batch_size, LARGEST_TEST_BATCH)
    results = [measure(composed, data, seconds, repeat) for repeat in range(repeats)]
    for phase in ("train", "test"):
        mine, theirs, ratios = zip(*(result[phase] for result in results), strict=True)
        print(
            f"{framework + ' ' + network + ' ' + phase:32} "
            f"{statistics.median(mine):8,.0f} over {statistics.median(theirs):8,.0f} images/s  "
            f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, n = {repeats})",
            flush=True,
        )


def both(composed: config.Config, data: Path, seconds: float, repeat: int) -> dict[str, Figures]:
    """Both in one process, and in another, made in the other order; the means of the two."""
    return either_way(composed, data, seconds, "native")


def control(composed: config.Config, data: Path, seconds: float, repeat: int) -> dict[str, Figures]:
    """Two of ours so: the figures of the second are given as native."""
    return either_way(composed, data, seconds, "ours")


def either_way(composed: config.Config, data: Path, seconds: float, other: str) -> dict[str, Figures]:
    """Ours and the ``other`` side in two processes, each made first in one: means of images/s, and of the ratios."""
    straight = in_turns(composed, data, seconds / 2, "ours", other)
    turned = in_turns(composed, data, seconds / 2, other, "ours")
    return {
        phase: (
            statistics.mean([straight[phase][0], turned[phase][1]]),
            statistics.mean([straight[phase][1], turned[phase][0]]),
            math.sqrt(straight[phase][2] / turned[phase][2]),
        )
        for phase in straight
    }


def in_turns(composed: config.Config, data: Path, seconds: float, *sides: str) -> dict[str, Figures]:
    """The figures of the first of two ``sides``, of the second, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        job_file = Path(folder) / "job.json"
        job_of_random_images(composed, data, Path(folder)).write(job_file)
        answer: dict[str, Figures] = run("in_turns", composed, job_file, seconds, *sides)
        return answer


def apart(composed: config.Config, data: Path, seconds: float, repeat: int) -> dict[str, Figures]:
    """A process for each, in the order of this ``repeat``."""
    framework, network = composed.framework.name, composed.model.name
    steps = int(seconds * NETWORKS[network] / SLOW.get(framework, 1) / composed.training.batch_size)
    composed.training.iterations, composed.training.epochs = steps, None
    turns = [ours, native] if repeat % 2 == 0 else [native, ours]
    results = {turn: turn(composed, data) for turn in turns}
    mine, theirs = results[ours], results[native]
    return {phase: (mine[phase], theirs[phase], mine[phase] / theirs[phase]) for phase in mine}


def ours(composed: config.Config, data: Path) -> dict[str, float]:
    """One run of the worker, without the tracker."""
    environment = environments.ensure(composed.framework, composed.hardware.device)
    with tempfile.TemporaryDirectory() as folder:
        job = job_of_random_images(composed, data, Path(folder))
        values: dict[str, float] = {}
        for event in run_worker(job, environment.python, composed.speed_settings.environment, Path(folder), 3600):
            if isinstance(event, Metrics):
                values |= event.values
    return {"train": values["train/steady_state_images_per_s"], "test": values["test/images_per_s"]}


def native(composed: config.Config, data: Path) -> dict[str, float]:
    """One run of the native loop."""
    answer: dict[str, float] = run(
        "alone",
        composed,
        data,
        composed.training.iterations,
        composed.threads,
        composed.training.test_batch_size,
        composed.hardware.device,
    )
    return answer


def run(script: str, composed: config.Config, *arguments: object) -> Any:
    """What a script beside the loops prints, run as a worker is."""
    python = environments.ensure(composed.framework, composed.hardware.device).python
    answer = subprocess.run(
        [python, "-I", NATIVE / f"{script}.py", composed.framework.name, composed.model.name, *map(str, arguments)],
        env=worker_environment(composed.threads, composed.speed_settings.environment),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return json.loads(answer.splitlines()[-1])


def job_of_random_images(composed: config.Config, data: Path, folder: Path) -> Job:
    job = create_job(composed, data, folder)
    return replace(job, image_shape=list(np.load(data / "train_images.npy", mmap_mode="r").shape[1:]))


if __name__ == "__main__":
    main()
