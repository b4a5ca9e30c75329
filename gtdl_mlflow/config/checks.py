"""Values that cannot be, each refused with those that can."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from dataclasses import asdict

from ..worker import preprocessing
from ..worker.job import LearningRateSchedule, Schedule
from ..worker.layers import NetworkError
from .resolvers import LARGEST_SIDE, is_depth, sides
from .schema import Config, Dataset


class ConfigError(ValueError):
    """What the user asked for cannot be; the message is one line with the key, the value and the choices."""


class Unavailable(ConfigError):
    """It could be elsewhere: this framework cannot use that device here."""


def check(config: Config) -> None:
    """Refuse what cannot be run.

    Raises:
        Unavailable: all else is right, but this framework cannot use that device here.
        ConfigError: a value that cannot be, with what can.
    """
    training, hardware = config.training, config.hardware
    _check_dataset(config.dataset)
    depth = config.model.depth
    if depth is not None and not is_depth(depth):
        raise ConfigError(f"model.depth={depth}: expected 6 n + 2, at least 8 (20, 32, 44, 56, 110)")
    at_least = [
        ("training.batch_size", training.batch_size, 1),
        ("training.test_batch_size", training.test_batch_size, 1),
        ("training.iterations", training.iterations, 1),
        ("training.evaluate_every_epochs", training.evaluate_every_epochs, 0),
        ("training.checkpoint_every_s", training.checkpoint_every_s, 0),
        ("training.weight_decay", training.weight_decay, 0),
        ("training.validation.images", training.validation.images, 0),
        ("latency.repeats", config.latency.repeats, 1 if config.latency.batch_sizes else 0),
        ("latency.batch_sizes", min(config.latency.batch_sizes, default=None), 1),
        ("training.schedule.gamma", training.schedule.gamma, 0),
        ("hardware.threads", hardware.threads, 1),
        ("tracking.system_metrics_interval_s", config.tracking.system_metrics_interval_s, 0),
    ]
    for key, value, least in at_least:
        if value is not None and not value >= least:
            raise ConfigError(f"{key}={value}: must be at least {least}")
    above_zero = [
        ("training.epochs", training.epochs),
        ("training.learning_rate", training.learning_rate),
        ("training.bias_lr_multiplier", training.bias_lr_multiplier),
        ("training.epsilon", training.epsilon),
        ("latency.limit_s", config.latency.limit_s),
        ("limits.run_timeout_s", config.limits.run_timeout_s),
        ("limits.fetch_timeout_s", config.limits.fetch_timeout_s),
    ]
    for key, value in above_zero:
        if value is not None and not value > 0:
            raise ConfigError(f"{key}={value}: must be above 0")
    if not 0 < config.budget <= 1:
        raise ConfigError(f"budget={config.budget}: must be above 0 and at most 1 (0.1 runs a tenth of the iterations)")
    if training.ema_decay is not None and not 0 < training.ema_decay < 1:
        raise ConfigError(
            f"training.ema_decay={training.ema_decay}: must be above 0 and below 1, or null for no averaging"
        )
    _check_schedule(training.schedule)
    for key, value in (("momentum", training.momentum), ("beta1", training.beta1), ("beta2", training.beta2)):
        if not 0 <= value < 1:
            raise ConfigError(f"training.{key}={value}: must be at least 0 and below 1")
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed={config.seed}: must be at least 0 and below 2**32")
    if training.epochs is None and training.iterations is None:
        raise ConfigError("training.epochs=null: set training.epochs or training.iterations, nothing says when to stop")
    validation = training.validation
    if validation.images >= validation.out_of:
        raise ConfigError(
            f"training.validation.images={validation.images}: must be below training.validation.out_of="
            f"{validation.out_of}, or nothing is left to train on"
        )
    stopping = training.early_stopping
    if stopping is not None:
        images = config.dataset.training_images
        if validation.images < 1 or (images is not None and validation.count(images) < 1):
            raise ConfigError("training.early_stopping: needs held-back images, see training.validation.images")
        if not (stopping.patience_iterations >= 1 and stopping.increase >= 1 and 0 < stopping.improvement <= 1):
            raise ConfigError(
                f"training.early_stopping={asdict(stopping)}: expected patience and increase of at least 1, and an "
                "improvement above 0, at most 1"
            )
    try:
        _ = config.network
    except (NetworkError, preprocessing.PreprocessingError) as error:
        raise ConfigError(f"model={config.model.name} on dataset={config.dataset.name}: {error}") from error
    available = config.dataset.training_images
    if available is not None and training.batch_size > (images := available - validation.count(available)):
        raise ConfigError(f"training.batch_size={training.batch_size}: there are only {images} training images")
    _check_device(config)


def _check_dataset(dataset: Dataset) -> None:
    for key in ("train_per_class", "test_per_class", "train_limit", "test_limit"):
        value = getattr(dataset, key)
        if value is not None and value < 1:
            raise ConfigError(f"dataset.{key}={value}: must be at least 1")
    if dataset.labels is not None and dataset.labels.value not in dataset.label_classes:
        raise ConfigError(f"dataset.labels={dataset.labels.value}: dataset={dataset.name} has one kind of labels only")
    given = [dataset.split_seed, dataset.train_per_class, dataset.test_per_class]
    # A data set that is published in two parts states how many images each has.
    if given != [None] * 3 and dataset.train_images is not None:
        raise ConfigError(
            f"dataset.split_seed, dataset.train_per_class, dataset.test_per_class: dataset={dataset.name} has a fixed split; "
            "dataset.train_limit and dataset.test_limit take fewer images of it"
        )
    if None in given and dataset.train_images is None:
        raise ConfigError(
            f"dataset.split_seed, dataset.train_per_class, dataset.test_per_class: dataset={dataset.name} needs all three, "
            "it is published in one part"
        )
    if dataset.split_seed is not None and not 0 <= dataset.split_seed < 2**32:
        raise ConfigError(f"dataset.split_seed={dataset.split_seed}: must be at least 0 and below 2**32")
    _check_image_size(dataset)


def _check_image_size(dataset: Dataset) -> None:
    height, width, _ = dataset.image_shape
    asked = sides(dataset.image_size)
    if 0 in (height, width) or (dataset.image_size is not None and asked is None):
        raise ConfigError(
            f"dataset.image_size={dataset.image_size}: expected a whole number from 1 to {LARGEST_SIDE}, or two of "
            "them as [height,width]"
        )
    if dataset.image_size is not None and asked != [height, width]:
        raise ConfigError(
            f"dataset.image_size={dataset.image_size}: dataset={dataset.name} has images of {height} x {width} "
            "(dataset.image_shape), which are not resized"
        )


def _check_schedule(schedule: LearningRateSchedule) -> None:
    stepped = schedule.type in (Schedule.step, Schedule.multistep)
    if stepped and not schedule.gamma > 0:
        raise ConfigError(f"training.schedule.gamma={schedule.gamma}: must be above 0, the rate is multiplied by it")
    if schedule.type is Schedule.step and not schedule.every_iterations > 0:
        raise ConfigError(
            f"training.schedule.every_iterations={schedule.every_iterations}: must be above 0, the iterations between two steps"
        )
    rising = all(before < after for before, after in itertools.pairwise([0, *schedule.boundary_iterations]))
    if schedule.type is Schedule.multistep and not (schedule.boundary_iterations and rising):
        raise ConfigError(
            f"training.schedule.boundary_iterations={schedule.boundary_iterations}: expected rising iterations above 0, as [4000, 4500]"
        )


def _check_device(config: Config) -> None:
    framework, hardware = config.framework, config.hardware
    if hardware.device not in framework.devices:
        raise ConfigError(f"hardware.device={hardware.device}: expected one of {', '.join(sorted(framework.devices))}")
    if reason := framework.devices[hardware.device].unavailable:
        usable = ", ".join(name for name, device in sorted(framework.devices.items()) if not device.unavailable)
        raise Unavailable(f"hardware.device={hardware.device}: framework={framework.name} runs on {usable}: {reason}")
    if hardware.device == "gpu" and not has_gpu():
        raise Unavailable("hardware.device=gpu: no NVIDIA GPU on this machine; hardware=cpu uses its CPU")
    own = sorted(os.sched_getaffinity(0))
    if hardware.cores is not None and not (hardware.cores and set(hardware.cores) <= set(own)):
        raise ConfigError(f"hardware.cores={hardware.cores}: expected some of {own}, the cores this process may use")
    if hardware.side_by_side and hardware.cores is None:
        raise ConfigError(f"hardware.side_by_side=true: needs hardware.cores, some of {own}, to give each run its own")
    if hardware.threads is not None and hardware.threads > len(hardware.usable_cores()):
        raise ConfigError(f"hardware.threads={hardware.threads}: there are {len(hardware.usable_cores())} cores to use")


def has_gpu() -> bool:
    """Whether NVIDIA's driver lists a GPU; asked without any framework."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, timeout=30).stdout.startswith(b"GPU")
