"""Training and testing time of the harness over a hand-written native loop: same network, data in memory and threads.

    python benchmarks/native_speed.py [--minutes 2] [--frameworks torch ...] [--networks caffe_mnist ...]
                                      [--modes compiled ...] [--control]

The harness and the loop take turns on the same random images, each in its own process and in the framework's own
environment: a paired measurement, as in ``experiment=paired``. Prints, for each network, the ratio of the times by CPU
time with one thread, and by wall clock with all threads if nothing else used the machine. ``--control`` measures the
harness against itself.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from substitutes import interpreter

from gtdl_mlflow import config, environments
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.paired import Contestant, MeasurementPlan, PairedMeasurement
from gtdl_mlflow.reporting import ratios
from gtdl_mlflow.reporting.ratios import CPU, WALL
from gtdl_mlflow.worker import initialization
from gtdl_mlflow.worker.inputs import Preprocessing
from gtdl_mlflow.worker.job import Activity, Job
from gtdl_mlflow.worker.network import build
from gtdl_mlflow.worker_process import environment_variables

NATIVE = Path(__file__).parent / "native"
NETWORKS = ("tensorflow_mnist", "caffe_mnist", "torch_mnist", "caffe_cifar10", "torch_cifar10")
"""Networks with a hand-written loop."""

TRAIN_IMAGES, TEST_IMAGES = 10_000, 10_000

LARGEST_TEST_BATCH = 100

ACTIVITIES = (Activity.training, Activity.testing)

HARNESS, LOOP = "harness", "loop"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="limit for each network in each framework")
    frameworks = [name for name in config.choices("framework") if (NATIVE / f"{loop_module(name)}.py").is_file()]
    parser.add_argument("--frameworks", nargs="+", choices=frameworks, default=frameworks)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--modes", nargs="+", help="execution modes; by default all deterministic ones of a framework")
    parser.add_argument("--threads", type=int, default=0, help="threads for the wall clock; 0: one per core")
    parser.add_argument("--control", action="store_true", help="measure the harness against itself")
    parser.add_argument("--hardware", default="cpu", help="cpu or gpu; only PyTorch's loop supports a GPU")
    options = parser.parse_args()
    if options.hardware == "gpu" and options.frameworks != ["torch"]:
        parser.error("--hardware gpu: only PyTorch's loop supports a GPU; add --frameworks torch")
    for framework, network in itertools.product(options.frameworks, options.networks):
        overrides = [f"framework={framework}", f"setting={network}", f"hardware={options.hardware}"]
        for mode in options.modes or config.compose(overrides).mode_names:
            composed = config.compose([*overrides, f"mode={mode}"])
            composed.hardware.threads = options.threads or None
            with tempfile.TemporaryDirectory() as folder:
                print_ratios(composed, measure(composed, Path(folder), options.minutes, options.control))


def loop_module(framework: str) -> str:
    """Return the name of the module with the native loop of a framework: one for all backends of Keras."""
    return f"{framework.partition('_')[0]}_loop"


def measure(composed: config.Config, folder: Path, minutes: float, control: bool) -> PairedMeasurement:
    """Measure the harness and the native loop, or the harness twice."""
    # The setting's own test batches, but not all test images at once: Caffe would need a gigabyte.
    composed.training.test_batch_size = min(composed.training.test_batch_size, LARGEST_TEST_BATCH)
    network = composed.model.name
    found = environments.ensure(composed.framework, composed.hardware.device)
    python = found.python
    job = job_of_random_images(composed, random_data(network, folder), folder)
    environment = environment_variables(composed.execution, found.compile_cache)
    if control:
        other = Contestant(LOOP, python, environment, job)
    else:
        options = {
            "loop": loop_module(composed.framework.name),
            "mode": composed.mode,
            "network": network,
            "data": job.data,
        }
        native = replace(job, adapter="native_adapter:NativeLoop", options=options)
        other = Contestant(LOOP, interpreter(python, NATIVE, folder), environment, native)
    clock = ratios.WALL if composed.hardware.device == "gpu" else ratios.CPU
    plan = MeasurementPlan(60 * minutes, activities=ACTIVITIES, clock=clock)
    contestants = [Contestant(HARNESS, python, environment, job), other]
    measurement = PairedMeasurement(contestants, composed.threads, plan, folder / "paired")
    for _ in measurement.run():
        pass
    if measurement.failures:
        raise SystemExit(f"a worker failed: {measurement.failures}")
    return measurement


def print_ratios(composed: config.Config, measurement: PairedMeasurement) -> None:
    """Print the time of the harness over that of the loop in both activities, by both clocks."""
    undisturbed = ratios.undisturbed(measurement.turns_with(composed.threads))
    for activity in ACTIVITIES:
        for clock, turns in ((CPU, measurement.turns), (WALL, undisturbed)):
            ranking = ratios.rank(turns, activity.value, clock)
            if len(ranking.frameworks) < 2:
                continue
            unit_ms = {each.framework: 1e3 * each.unit_s for each in ranking.frameworks}
            ratio = ratios.compare(turns, activity.value, clock, HARNESS, LOOP)
            if not ratio.has_interval:
                continue
            print(
                f"{composed.framework.name} {composed.mode} {composed.model.name} {activity.value} {clock}: "
                f"{unit_ms[HARNESS]:.3f} over {unit_ms[LOOP]:.3f} ms a batch  "
                f"ratio {ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}, {ratio.n} restarts)",
                flush=True,
            )


def random_data(network: str, folder: Path) -> Path:
    """Return the folder of a prepared data set of random images, whose contents do not change the speed."""
    data = folder / network
    if not data.exists():
        data.mkdir()
        random = np.random.RandomState(0)
        shape = (32, 32, 3) if network.endswith("cifar10") else (28, 28, 1)
        for part, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
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


def job_of_random_images(composed: config.Config, data: Path, folder: Path) -> Job:
    """Return the job of a configuration on the data set of ``random_data``."""
    job = create_job(composed, data, folder)
    return replace(job, image_shape=list(np.load(data / "train_images.npy", mmap_mode="r").shape[1:]))


if __name__ == "__main__":
    main()
