"""Checks of values beyond their types. Each error names the key, the value and what is allowed."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import re
import shutil
import subprocess
import sys
from urllib.parse import urlsplit

from .. import cgroups, metrics
from ..console import Failure
from ..redaction import redact
from ..worker import preprocessing
from ..worker.job import LearningRateSchedule, Schedule, Training
from ..worker.layers import NetworkError
from .errors import RENAMED_METRICS, renamed, similar
from .resolvers import LARGEST_IMAGE_SIDE, choices, image_sides, is_residual_depth
from .schema import BEST, DEFAULT, Config, Dataset, Framework, Mode


class ConfigError(Failure, ValueError):
    """An invalid request or configuration. The message is one line: key, value and what is allowed."""

    status = 2


class Unavailable(ConfigError):
    """A valid configuration that cannot run here: no support for the device, mode or precision, or a missing tool."""


def check(config: Config) -> None:
    """Raise an error if the configuration cannot run.

    Raises:
        Unavailable: the device, mode, precision or number of threads is not available here.
        ConfigError: a value is impossible.
    """
    check_data(config)
    _check_framework(config.framework)
    _check_objective(config.sweep.objective)
    _check_training(config.training, config.dataset)
    depth = config.model.depth
    if depth is not None and not is_residual_depth(depth):
        raise ConfigError(f"model.depth={depth}: expected 6 n + 2, at least 8 (20, 32, 44, 56, 110)")
    try:
        _ = config.network
    except (NetworkError, preprocessing.PreprocessingError) as error:
        raise ConfigError(f"model={config.model.name} on dataset={config.dataset.name}: {error}") from error
    _check_batch_size(config.training, config.dataset)
    check_tracker(config.tracking.uri)
    if not config.tracking.experiment.strip():
        raise ConfigError("tracking.experiment=: expected the name of an MLflow experiment, such as gtdl")
    _check_device(config)
    _check_execution(config)


def check_data(config: Config) -> None:
    """Raise ConfigError if a value of the data set, or a number, is impossible. The network is not checked."""
    _check_dataset(config.dataset)
    _check_ranges(config)


def _check_dataset(dataset: Dataset) -> None:
    if not 2 <= dataset.classes <= 256:
        raise ConfigError(f"dataset.classes={dataset.classes}: expected 2 to 256, because a label is one byte")
    for key in ("train_per_class", "test_per_class", "train_limit", "test_limit"):
        value = getattr(dataset, key)
        if value is not None and value < 1:
            raise ConfigError(f"dataset.{key}={value}: must be at least 1")
    for part in ("train", "test"):
        limit, images = getattr(dataset, f"{part}_limit"), getattr(dataset, f"{part}_images")
        if limit is not None and images is not None and limit > images:
            raise ConfigError(
                f"dataset.{part}_limit={limit}: must be at most {images}, the images of dataset={dataset.name}"
            )
    if dataset.labels is not None and dataset.labels.value not in dataset.label_classes:
        raise ConfigError(
            f"dataset.labels={dataset.labels.value}: dataset={dataset.name} has only one kind of labels; "
            "leave dataset.labels out"
        )
    split = [dataset.split_seed, dataset.train_per_class, dataset.test_per_class]
    # A data set that is published in two parts states the number of images of each.
    if split != [None] * 3 and dataset.train_images is not None:
        raise ConfigError(
            "dataset.split_seed, dataset.train_per_class, dataset.test_per_class: "
            f"dataset={dataset.name} has a fixed split; use dataset.train_limit and dataset.test_limit for fewer images"
        )
    if None in split and dataset.train_images is None:
        raise ConfigError(
            "dataset.split_seed, dataset.train_per_class, dataset.test_per_class: "
            f"dataset={dataset.name} needs all three, because it is published without a split"
        )
    if dataset.split_seed is not None and not 0 <= dataset.split_seed < 2**32:
        raise ConfigError(f"dataset.split_seed={dataset.split_seed}: must be at least 0 and below 2**32")
    _check_image_size(dataset)


SCHEMES = ("http", "https", "databricks", "sqlite", "postgresql", "mysql", "mssql")
"""Schemes of MLflow's tracking stores. ``file`` is missing because MLflow no longer writes to folders of files."""


def check_tracker(uri: str, option: str = "tracking.uri=") -> None:
    """Raise ConfigError if ``uri`` cannot be the address of a tracking store.

    Runs for such an address would be saved for a delivery that never succeeds. A folder of files is refused, because
    MLflow no longer writes to it. ``option`` is the text before the address in the error message.
    """
    try:
        parts = urlsplit(uri)
        complete = parts.scheme not in ("http", "https") or (parts.hostname and parts.port != 0)
        plugins = importlib.metadata.entry_points(group="mlflow.tracking_store")
        known = parts.scheme.partition("+")[0] in SCHEMES or uri == "databricks" or parts.scheme in plugins.names
        complete = complete and known and ("://" in uri or uri == "databricks")
    except ValueError:  # a port that is no number, an incomplete IPv6 address
        complete = False
    if not complete:
        variable = "MLFLOW_TRACKING_URI"
        name = f"{variable}=" if os.environ.get(variable) == uri else option
        raise ConfigError(f"{name}{redact(uri)}: expected http://HOST:PORT, or a database such as sqlite:///mlflow.db")
    if uri.startswith("sqlite:") and uri.partition("?")[0].rstrip("/").endswith((":memory:", "sqlite:")):
        raise ConfigError(f"{option}{uri}: a database in memory is lost with its process; use sqlite:///mlflow.db")


def _check_image_size(dataset: Dataset) -> None:
    height, width, _ = dataset.image_shape
    sides = image_sides(dataset.image_size)
    if 0 in (height, width) or (dataset.image_size is not None and sides is None):
        raise ConfigError(
            f"dataset.image_size={dataset.image_size}: expected a whole number from 1 to {LARGEST_IMAGE_SIDE}, or two "
            "of them as [height,width]"
        )
    if dataset.image_size is not None and sides != [height, width]:
        raise ConfigError(
            f"dataset.image_size={dataset.image_size}: the images of dataset={dataset.name} are not resized; they have "
            f"{height} x {width} pixels (dataset.image_shape)"
        )


def _check_ranges(config: Config) -> None:
    training, latency, limits = config.training, config.latency, config.limits
    minima = {
        "training.batch_size": (training.batch_size, 1),
        "training.test_batch_size": (training.test_batch_size, 1),
        "training.iterations": (training.iterations, 1),
        "training.evaluate_every_epochs": (training.evaluate_every_epochs, 0),
        "training.checkpoint_every_s": (training.checkpoint_every_s, 0),
        "training.weight_decay": (training.weight_decay, 0),
        "training.validation.images": (training.validation.images, 0),
        "training.schedule.gamma": (training.schedule.gamma, 0),
        "latency.repeats": (latency.repeats, 1 if latency.batch_sizes else 0),
        "latency.batch_sizes": (min(latency.batch_sizes, default=None), 1),
        "hardware.threads": (config.hardware.threads, 1),
        "tracking.system_metrics_interval_s": (config.tracking.system_metrics_interval_s, 0),
    }
    for key, (value, minimum) in minima.items():
        if value is not None and not value >= minimum:  # not `value < minimum`: refuses NaN too
            raise ConfigError(f"{key}={value}: must be at least {minimum}")
    positive = {
        "training.epochs": training.epochs,
        "training.learning_rate": training.learning_rate,
        "training.bias_lr_multiplier": training.bias_lr_multiplier,
        "training.epsilon": training.epsilon,
        "latency.limit_s": latency.limit_s,
        "limits.run_timeout_s": limits.run_timeout_s,
        "limits.fetch_timeout_s": limits.fetch_timeout_s,
        "sweep.paired_minutes": config.sweep.paired_minutes,
        "sweep.minutes": config.sweep.minutes,
    }
    for key, value in positive.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{key}={value}: must be above 0")
    for key in ("momentum", "beta1", "beta2"):
        if not 0 <= (value := getattr(training, key)) < 1:
            raise ConfigError(f"training.{key}={value}: must be at least 0 and below 1")
    if not 0 < config.budget <= 1:
        raise ConfigError(
            f"budget={config.budget}: must be above 0 and at most 1; budget=0.1 runs a tenth of the iterations"
        )
    target = training.target_accuracy_percent
    if target is not None and not 0 < target <= 100:
        raise ConfigError(f"training.target_accuracy_percent={target}: must be above 0 and at most 100")
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed={config.seed}: must be at least 0 and below 2**32")


def _check_framework(framework: Framework) -> None:
    if not re.match(r"\d", framework.version):
        raise ConfigError(f"framework.version={framework.version}: expected a version, such as 2.13.0")
    if not re.fullmatch(r"[\w.]+:\w+", framework.adapter):
        raise ConfigError(
            f"framework.adapter={framework.adapter}: expected MODULE:CLASS, such as my_package.adapter:MyFramework"
        )
    if framework.plain is None:
        return
    others = [name for name in choices("framework") if name != framework.name]
    if framework.plain not in others:
        raise ConfigError(
            f"framework.plain={framework.plain}: expected one of {', '.join(others)}{similar(framework.plain, others)}"
        )


def _check_objective(name: str) -> None:
    if metrics.find(name) is not None:
        return
    if new := renamed(name, RENAMED_METRICS):
        raise ConfigError(f"sweep.objective={name}: renamed to {new}")
    raise ConfigError(
        f"sweep.objective={name}: no such metric, expected {', '.join(metrics.HEADLINE)} or another metric of a run"
        f"{similar(name, metrics.METRICS)}"
    )


def _check_training(training: Training, dataset: Dataset) -> None:
    if training.epochs is None and training.iterations is None:
        raise ConfigError("training.epochs=null, training.iterations=null: set one of them, or training would not end")
    if training.ema_decay is not None and not 0 < training.ema_decay < 1:
        raise ConfigError(
            f"training.ema_decay={training.ema_decay}: must be above 0 and below 1, or null for no averaging"
        )
    _check_schedule(training.schedule)
    validation = training.validation
    if validation.images >= validation.out_of:
        raise ConfigError(
            f"training.validation.images={validation.images}: must be below training.validation.out_of="
            f"{validation.out_of}, or no images are left for training"
        )
    stopping = training.early_stopping
    if stopping is None:
        return
    images = dataset.training_images
    if validation.images < 1 or (images is not None and validation.count(images) < 1):
        raise ConfigError(
            "training.early_stopping: requires validation images; set training.validation.images, or "
            "training.early_stopping=null"
        )
    for key, value in (("patience_iterations", stopping.patience_iterations), ("increase", stopping.increase)):
        if not value >= 1:
            raise ConfigError(f"training.early_stopping.{key}={value}: must be at least 1")
    if not 0 < stopping.improvement <= 1:
        raise ConfigError(f"training.early_stopping.improvement={stopping.improvement}: must be above 0 and at most 1")


def _check_schedule(schedule: LearningRateSchedule) -> None:
    key = "training.schedule"
    if schedule.type in (Schedule.step, Schedule.multistep) and not schedule.gamma > 0:
        raise ConfigError(
            f"{key}.gamma={schedule.gamma}: must be above 0, the factor of the learning rate at each step"
        )
    if schedule.type is Schedule.step and not schedule.every_iterations > 0:
        raise ConfigError(
            f"{key}.every_iterations={schedule.every_iterations}: must be above 0, the iterations between two steps"
        )
    boundaries = schedule.boundary_iterations
    increasing = all(before < after for before, after in itertools.pairwise([0, *boundaries]))
    if schedule.type is Schedule.multistep and not (boundaries and increasing):
        raise ConfigError(
            f"{key}.boundary_iterations={boundaries}: expected increasing numbers above 0, such as [4000,4500]"
        )


def _check_batch_size(training: Training, dataset: Dataset) -> None:
    if dataset.training_images is None:
        return
    images = dataset.training_images - training.validation.count(dataset.training_images)
    if training.batch_size > images:
        raise ConfigError(
            f"training.batch_size={training.batch_size}: must be at most {images}, the number of training images"
        )


def _check_device(config: Config) -> None:
    framework, hardware = config.framework, config.hardware
    if sys.platform == "win32":
        raise ConfigError("Windows: frameworks run on Linux; use the Windows Subsystem for Linux (wsl --install)")
    if hardware.device not in framework.devices:
        raise ConfigError(f"hardware.device={hardware.device}: expected one of {', '.join(sorted(framework.devices))}")
    if reason := framework.devices[hardware.device].unavailable:
        usable = ", ".join(name for name, device in sorted(framework.devices.items()) if not device.unavailable)
        raise Unavailable(f"hardware.device={hardware.device}: framework={framework.name} runs on {usable}: {reason}")
    if hardware.device == "gpu" and not has_gpu():
        raise Unavailable("hardware.device=gpu: no NVIDIA GPU on this machine; hardware=cpu uses its CPU")
    cores = cgroups.usable_cores()
    if hardware.cores is not None and sys.platform != "linux":
        raise ConfigError(f"hardware.cores={hardware.cores}: only Linux can pin a process to cores; leave it out")
    if hardware.cores is not None and not (hardware.cores and set(hardware.cores) <= set(cores)):
        raise ConfigError(f"hardware.cores={hardware.cores}: expected some of {cores}, the cores this process may use")
    if hardware.cores is not None and len(set(hardware.cores)) < len(hardware.cores):
        raise ConfigError(f"hardware.cores={hardware.cores}: each core may be listed once")
    if hardware.side_by_side and hardware.cores is None:
        raise ConfigError(
            f"hardware.side_by_side=true: requires hardware.cores, some of {cores}, different in each run"
        )
    if hardware.threads is not None and hardware.threads > len(hardware.usable_cores()):
        raise ConfigError(
            f"hardware.threads={hardware.threads}: must be at most {len(hardware.usable_cores())}, the number of cores "
            "that the worker may use"
        )
    if framework.max_threads and hardware.threads is not None and hardware.threads > framework.max_threads:
        raise Unavailable(
            f"hardware.threads={hardware.threads}: framework={framework.name} computes with at most "
            f"{framework.max_threads} on the CPU; leave hardware.threads out, or give hardware.threads="
            f"{framework.max_threads}"
        )


def _check_execution(config: Config) -> None:
    framework, device = config.framework, config.hardware.device
    names = [BEST, DEFAULT, *framework.modes]
    if config.mode not in names:
        raise ConfigError(
            f"mode={config.mode}: framework={framework.name} has {', '.join(dict.fromkeys(names))}"
            f"{similar(config.mode, names)}"
        )
    precisions = framework.precisions.get(device, [])
    if config.precision.value not in precisions:
        raise Unavailable(
            f"precision={config.precision.value}: framework={framework.name} has {', '.join(precisions)} on "
            f"hardware.device={device}"
        )
    if config.mode == BEST:
        return
    name, mode = config.mode_names[0], config.execution
    if device not in mode.devices:
        raise Unavailable(f"mode={name}: framework={framework.name} has this mode on {', '.join(mode.devices)} only")
    if config.deterministic and not mode.deterministic:
        raise ConfigError(f"mode={name}: results are not bit-for-bit reproducible; add deterministic=false")
    if missing := missing_tools(mode):
        packages = ", ".join(missing)
        raise Unavailable(f"mode={name}: needs {packages} on the PATH; on Debian: apt-get install {' '.join(missing)}")


def missing_tools(mode: Mode) -> list[str]:
    """Return the programs that a mode needs and that are not on the PATH."""
    return [tool for tool in mode.tools if shutil.which(tool) is None]


def has_gpu() -> bool:
    """Return whether NVIDIA's driver lists a GPU; this needs no framework."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, timeout=30).stdout.startswith(b"GPU")
