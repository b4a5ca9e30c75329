"""The schema of ``conf/``: a key or a type that is wrong stops at composition, an impossible value right after it.

Nothing here imports MLflow or a framework: a mistake on the command line is answered before anything slow starts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .explain import explain, unknown_key
from .worker import inputs, network, treatments
from .worker.job import WARM_UP_STEPS, Latency, LearningRateSchedule, Schedule, Training
from .worker.layers import NetworkError

_HERE = Path(__file__).parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"
"""``conf/``: beside the package in a checkout, inside it when installed."""


class ConfigError(ValueError):
    """What the user asked for cannot be; the message is one line with the key, the value and the choices."""


class Unavailable(ConfigError):
    """It could be elsewhere: this framework cannot use that device here."""


class Tuning(str, Enum):
    """``plain``: what the framework's own tutorial does; ``best``: the fastest settings found that compute the same."""

    plain = "plain"
    best = "best"


@dataclass
class Python:
    """Which interpreters a framework's environment may use."""

    preferred: str = MISSING
    """Taken when the machine has it, so that all frameworks run on the same one where they can: ``3.11``."""
    supported: str = MISSING
    """A version specifier, as in packaging: ``>=3.10,<3.14``."""


@dataclass
class SystemPackage:
    """What a recipe needs of one package of the operating system, which the user installs."""

    tools: list[str] = field(default_factory=list)
    """Programs on the PATH that answer ``--version``."""
    headers: list[str] = field(default_factory=list)
    """As in ``#include <...>``."""
    libraries: list[str] = field(default_factory=list)
    """As in the linker's ``-l``; see ``Build`` for the words that are filled in."""
    include: str = ""
    """Where its headers are, if the compiler does not look there by itself."""


@dataclass
class Build:
    """A source package that CMake compiles for an environment once its requirements are in it.

    In options and libraries, ``{environment}`` is its folder, ``{python}`` its version (3.11), ``{python_tag}`` 311.
    """

    source: str = MISSING
    """``NAME==VERSION``, on the package index."""
    sha256: str = MISSING
    """Of the source package."""
    target: str = MISSING
    """Of CMake: what to build."""
    package: str = MISSING
    """The folder of what CMake installs that becomes an importable package in the environment."""
    options: list[str] = field(default_factory=list)
    """Arguments of ``cmake``."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Libraries by the names that the sources use, to those they have in ``Recipe.system``."""


@dataclass
class Recipe:
    """One way to fill an environment."""

    requirements: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    """Further arguments of ``uv pip install``."""
    system: dict[str, SystemPackage] = field(default_factory=dict)
    """What has to be installed beforehand, by the names of Debian's packages."""
    build: Build | None = None
    note: str = ""
    """Said to the user when this way is the one taken."""


@dataclass
class Device:
    """What a framework can do on one kind of device."""

    recipes: list[Recipe] = field(default_factory=list)
    """Tried in this order until one installs. None at all: the driver's own interpreter runs the worker."""
    unavailable: str = ""
    """Why this framework cannot use this device here; empty if it can."""


@dataclass
class Settings:
    """What makes a framework fast or slow without changing what it computes."""

    options: dict[str, Any] = field(default_factory=dict)
    """Read by the adapter."""
    environment: dict[str, str] = field(default_factory=dict)
    """Set for the worker's process before it starts."""


@dataclass
class Framework:
    """One framework: what its environment holds, which adapter speaks for it, what it can run on."""

    name: str = MISSING
    version: str = MISSING
    adapter: str = MISSING
    """``module:Class``, imported in the worker only."""
    numpy: str = ""
    """NumPy's version in the framework's environment, for use in the recipes."""
    python: Python = field(default_factory=Python)
    devices: dict[str, Device] = field(default_factory=dict)
    tuning: dict[str, Settings] = field(default_factory=dict)


@dataclass
class Download:
    """A file as published, and the addresses that have it."""

    file: str = MISSING
    """Its name in the data set's folder."""
    bytes: int = MISSING
    """Its size; without a checksum, the most that is accepted."""
    sha256: str = ""
    md5: str = ""
    """Where only this was published. With neither, it is all of the data set, and the reader has to accept it."""
    urls: list[str] = MISSING
    """Tried in this order: the publisher's, then mirrors."""
    instead_of: str = ""
    """Another download of which this is another packing: needed only when that one cannot be had."""


class Labels(str, Enum):
    """Of CIFAR-100: the 100 classes, or the 20 superclasses that they belong to."""

    fine = "fine"
    coarse = "coarse"


@dataclass
class Dataset:
    """One data set, as its publisher describes it."""

    name: str = MISSING
    family: str = MISSING
    """``mnist`` or ``cifar10``: whose default setting fits it."""
    reader: str = MISSING
    """``module:function``: given this configuration and the folder of its files, returns ``Arrays``."""
    labels: Labels | None = None
    """Which of the publisher's labels are learnt, where there are several; the choices are in ``label_classes``."""
    label_classes: dict[str, int] = field(default_factory=dict)
    """How many classes each choice of ``labels`` has."""
    classes: int = MISSING
    image_size: Any = None
    """What images that come in other sizes are brought to in preparation: one number, or [height, width]."""
    image_shape: list[int] = MISSING
    """Height, width, channels; where there is an ``image_size``, made of it."""
    train_images: int | None = None
    test_images: int | None = None
    """None: depends on the copy of the data set, and is known when it has been prepared."""
    split_seed: int | None = None
    """Of the split into training and testing, where it is not the publisher's; ``datasets/splits.py`` has the rule."""
    train_each: int | None = None
    test_each: int | None = None
    """Images of a class that such a split gives to training and testing, at most."""
    train_limit: int | None = None
    test_limit: int | None = None
    """For quick looks: no more images than that, as many of each class as of any other."""
    mean_per_class: bool = False
    """Whether the accuracy is customarily the mean over the classes, because they are of different sizes."""
    files: dict[str, str] = field(default_factory=dict)
    """The publisher's files, unpacked names, with the MD5 of what is inside."""
    archives: list[str] = field(default_factory=list)
    """Names that the publisher's archive goes by: one of them is read, where there is nothing unpacked."""
    unpacked: str = ""
    """A file or folder in that archive by which it is seen that it has been unpacked."""
    downloads: dict[str, Download] = field(default_factory=dict)
    """What `gtdl data fetch` gets, by any short names; nothing for a data set that is built in."""
    target_accuracy: float = MISSING
    """Percent: the default of ``training.target_accuracy``."""
    source: str = MISSING
    """Where the data set is described."""
    terms: str = MISSING
    """Licence or terms of use."""

    @property
    def training_images(self) -> int | None:
        """How many images there are for training, or at most; None if that is known only when they are prepared."""
        known = [count for count in (self.train_images, self.train_limit) if count is not None]
        return min(known, default=None)


@dataclass
class Model:
    """A network, as data; ``worker/layers.py`` has the vocabulary."""

    name: str = MISSING
    depth: int | None = None
    """Of a residual network: its layers with weights, 6 n + 2; ``layers`` refers to it."""
    layers: dict[str, Any] = field(default_factory=dict)
    """Layer name to ``{type: ..., ...}``, in their order."""
    weights: dict[str, Any] = field(default_factory=dict)
    """Starting distribution that layers refer to as ``${model.weights}``."""
    biases: dict[str, Any] = field(default_factory=dict)


@dataclass
class Hardware:
    """Where the worker runs."""

    name: str = MISSING
    device: str = MISSING
    """``cpu`` or ``gpu``."""
    threads: int | None = None
    """Threads the framework may use; None: one for each of ``cores``."""
    cores: list[int] | None = None
    """CPUs the worker is pinned to; None: those this process may use."""
    side_by_side: bool = False
    """Whether others that say so too may run at the same time on other cores. They share caches, memory and power."""

    def usable_cores(self) -> list[int]:
        """The CPUs a worker has."""
        return self.cores if self.cores is not None else sorted(os.sched_getaffinity(0))


@dataclass
class Tracking:
    """Where MLflow keeps the run."""

    uri: str = MISSING
    experiment: str = "gtdl"
    """Used unless MLflow was told an experiment itself (``mlflow run``, MLFLOW_EXPERIMENT_NAME or _ID)."""
    model: bool = True
    """Whether to log the trained model."""
    system_metrics_interval_s: float = 1.0
    """Between two samples of MLflow's system metrics; 0: none. MLflow's own 10 s would miss a short run."""


class Order(str, Enum):
    """Of a sweep's runs: ``interleaved``, all frameworks for a seed, then the next; ``grouped``, all of a framework."""

    interleaved = "interleaved"
    grouped = "grouped"


class Rerun(str, Enum):
    """Which cells are run again when the same sweep is started again; see ``Sweep.rerun``."""

    failed = "failed"
    all = "all"
    none = "none"


class Study(str, Enum):
    """``stability``: the spread and the drift of repeats; ``scaling``: speed by threads and batch size."""

    stability = "stability"
    scaling = "scaling"


@dataclass
class Sweep:
    """How a sweep goes about its runs."""

    order: Order = Order.interleaved
    """A drift of the machine hits all frameworks alike if they take turns."""
    rerun: Rerun = Rerun.failed
    """Which cells that an earlier start of the same sweep has tried are run again: those that did not finish, all of
    them, or none; what it never came to is always run."""
    objective: str = "accuracy_percent"
    """The metric that a run answers a sweeper with, for those that search."""
    study: Study | None = None
    """What the sweep is for, if it is to be concluded at its end."""


@dataclass
class Limits:
    """When to give up."""

    run_timeout_s: float = 86400.0
    """A worker that has not finished by then is killed and its run fails."""
    fetch_timeout_s: float = 30.0
    """A server of data sets that is silent for so long is given up for this try."""


@dataclass
class Config:
    """One run."""

    framework: Framework = field(default_factory=Framework)
    dataset: Dataset = field(default_factory=Dataset)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    hardware: Hardware = field(default_factory=Hardware)
    tracking: Tracking = field(default_factory=Tracking)
    sweep: Sweep = field(default_factory=Sweep)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    """Of the initial weights, the order of the images and dropout."""
    budget: float = 1.0
    """Share of the training's iterations to run, above 0 and at most 1; the schedule is compressed with them."""
    tuning: Tuning = Tuning.best
    latency: Latency = field(default_factory=Latency)
    parity: bool = False
    """Whether to prove, before training, that the framework computes what the float64 NumPy network does."""

    @property
    def settings(self) -> Settings:
        """The framework's speed settings that ``tuning`` chose."""
        return self.framework.tuning[self.tuning.value]

    @property
    def network(self) -> network.Network:
        """The network of ``model`` on this data set, after the input treatment."""
        height, width, channels = self.dataset.image_shape
        shape = inputs.Treatment(self.training.inputs).shape((height, width, channels))
        return network.build(self.model.layers, shape, self.dataset.classes)

    @property
    def threads(self) -> int:
        return self.hardware.threads or len(self.hardware.usable_cores())

    def plain(self) -> dict[str, Any]:
        """All of it as plain types, for a file or a hash."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def hash(self) -> str:
        """Of everything that can change a result: not where data come from, what tracks it, when to save or give up."""
        return _hash(self._decisive())

    def cell(self) -> str:
        """The same without the seed: runs of one cell are repeats of each other."""
        decisive = self._decisive()
        del decisive["seed"]
        return _hash(decisive)

    def _decisive(self) -> dict[str, Any]:
        plain = self.plain()
        del plain["tracking"], plain["sweep"], plain["limits"], plain["latency"]
        del plain["dataset"]["downloads"], plain["dataset"]["target_accuracy"]
        del plain["training"]["checkpoint_every"], plain["training"]["target_accuracy"]
        if not self.hardware.side_by_side:
            del plain["hardware"]["side_by_side"]  # alone is what runs were before they could be anything else
        return plain


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def choices(group: str) -> list[str]:
    """The names that ``group=`` takes."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def family(dataset: str) -> str:
    """``family`` in the data set's yaml; the name itself if there is none, so that Hydra says what is wrong."""
    path = CONF / "dataset" / f"{dataset}.yaml"
    return _family(path) if path.is_file() else dataset


@cache
def _family(path: Path) -> str:
    return str(OmegaConf.select(OmegaConf.load(path), "family"))


def _other_family(dataset: str) -> str:
    """The kind of data that ``dataset`` is not of."""
    others = {family(name) for name in choices("dataset")} - {family(dataset)}
    return min(others)


def _settings_for(dataset: str) -> str:
    """The defaults of all frameworks with an environment of their own, for this kind of data, as a sweep lists them."""
    kind, names = family(dataset), []
    for path in sorted((CONF / "framework").glob("*.yaml")):
        if OmegaConf.select(OmegaConf.load(path), "devices.cpu.recipes"):
            names.append(f"{path.stem}_{kind}")
    return ",".join(names)


def _image_shape(size: Any, channels: int) -> list[int]:
    """``dataset.image_shape`` for a ``dataset.image_size``; zeros for one that cannot be, which ``check`` refuses."""
    return [*(_sides(size) or (0, 0)), channels]


def _sides(size: Any) -> list[int] | None:
    """Height and width in ``dataset.image_size``; None for what cannot be."""
    sides = list(size) if isinstance(size, (list, ListConfig)) else [size, size]
    possible = len(sides) == 2 and all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides)
    return sides if possible else None


def _residual_units(depth: Any) -> int:
    """Units of a stage after its first, in a residual network of ``depth``; 0 for one that ``check`` refuses."""
    return (depth - 2) // 6 - 1 if _is_depth(depth) else 0


def _is_depth(depth: Any) -> bool:
    return type(depth) is int and depth >= 8 and (depth - 2) % 6 == 0


def _thread_counts() -> str:
    """1, 2, 4, ... up to the cores that this process may use, as a sweep lists them."""
    cores = len(os.sched_getaffinity(0))
    return ",".join(map(str, sorted({cores, *(2**power for power in range(cores.bit_length()))})))


def _iterations_for(images: int, batch_size: Any) -> int:
    """Iterations that train on so many images, though enough of them to have a steady pace after the warm-up."""
    size = batch_size if type(batch_size) is int and batch_size > 0 else 1  # `check` refuses what it cannot be
    return max(3 * WARM_UP_STEPS, round(images / size))


LARGEST_SIDE = 256
"""Pixels of a side of ``dataset.image_size``: the prepared images have to fit into memory, and into a network."""

OmegaConf.register_new_resolver("dataset_family", family, replace=True)
OmegaConf.register_new_resolver("other_family", _other_family, replace=True)
OmegaConf.register_new_resolver("settings_for", _settings_for, replace=True)
OmegaConf.register_new_resolver("residual_units", _residual_units, replace=True)
OmegaConf.register_new_resolver("image_shape", _image_shape, replace=True)
OmegaConf.register_new_resolver("thread_counts", _thread_counts, replace=True)
OmegaConf.register_new_resolver("iterations_for", _iterations_for, replace=True)
ConfigStore.instance().store(name="schema", node=Config)


def compose(overrides: list[str]) -> Config:
    """The configuration of a command line.

    Raises:
        ConfigError: it is wrong; the message is one line.
    """
    config = meaning(overrides)
    check(config)
    return config


def meaning(overrides: list[str]) -> Config:
    """What a command line says, whether it can be run here or not.

    Raises:
        ConfigError: it says nothing; the message is one line.
    """
    # Inside a running Hydra application there is one to ask already.
    running = GlobalHydra.instance().is_initialized()
    start = nullcontext() if running else initialize_config_dir(str(CONF), version_base="1.3", job_name="gtdl")
    try:
        with start:
            return typed(hydra_compose("config", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, Config)) from error


def load(composed: Any) -> Config:
    """A composed ``DictConfig``, typed and checked.

    Raises:
        ConfigError: a value that cannot be.
    """
    config = typed(composed)
    check(config)
    return config


def typed(composed: Any) -> Config:
    """A composed ``DictConfig`` as dataclasses; what its values are is not looked at.

    Raises:
        ConfigError: a key that the schema does not know.
    """
    if complaint := unknown_key(composed):
        raise ConfigError(complaint)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def check(config: Config) -> None:
    """Refuse what cannot be run.

    Raises:
        Unavailable: all else is right, but this framework cannot use that device here.
        ConfigError: a value that cannot be, with what can.
    """
    training, hardware = config.training, config.hardware
    _check_dataset(config.dataset)
    depth = config.model.depth
    if depth is not None and not _is_depth(depth):
        raise ConfigError(f"model.depth={depth}: expected 6 n + 2, at least 8 (20, 32, 44, 56, 110)")
    at_least = [
        ("training.batch_size", training.batch_size, 1),
        ("training.test_batch_size", training.test_batch_size, 1),
        ("training.iterations", training.iterations, 1),
        ("training.evaluate_every", training.evaluate_every, 0),
        ("training.checkpoint_every", training.checkpoint_every, 0),
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
        ("training.bias_rate", training.bias_rate),
        ("training.epsilon", training.epsilon),
        ("latency.seconds", config.latency.seconds),
        ("limits.run_timeout_s", config.limits.run_timeout_s),
        ("limits.fetch_timeout_s", config.limits.fetch_timeout_s),
    ]
    for key, value in above_zero:
        if value is not None and not value > 0:
            raise ConfigError(f"{key}={value}: must be above 0")
    if not 0 < config.budget <= 1:
        raise ConfigError(f"budget={config.budget}: must be above 0 and at most 1 (0.1 runs a tenth of the iterations)")
    if training.average is not None and not 0 < training.average < 1:
        raise ConfigError(f"training.average={training.average}: must be above 0 and below 1, or null for no averaging")
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
        if not (stopping.patience >= 1 and stopping.increase >= 1 and 0 < stopping.improvement <= 1):
            raise ConfigError(
                f"training.early_stopping={asdict(stopping)}: expected patience and increase of at least 1, and an "
                "improvement above 0, at most 1"
            )
    try:
        _ = config.network
    except (NetworkError, treatments.InputError) as error:
        raise ConfigError(f"model={config.model.name} on dataset={config.dataset.name}: {error}") from error
    available = config.dataset.training_images
    if available is not None and training.batch_size > (images := available - validation.count(available)):
        raise ConfigError(f"training.batch_size={training.batch_size}: there are only {images} training images")
    _check_device(config)


def _check_dataset(dataset: Dataset) -> None:
    for key in ("train_each", "test_each", "train_limit", "test_limit"):
        value = getattr(dataset, key)
        if value is not None and value < 1:
            raise ConfigError(f"dataset.{key}={value}: must be at least 1")
    if dataset.labels is not None and dataset.labels.value not in dataset.label_classes:
        raise ConfigError(f"dataset.labels={dataset.labels.value}: dataset={dataset.name} has one kind of labels only")
    given = [dataset.split_seed, dataset.train_each, dataset.test_each]
    # A data set that is published in two parts states how many images each has.
    if given != [None] * 3 and dataset.train_images is not None:
        raise ConfigError(
            f"dataset.split_seed, dataset.train_each, dataset.test_each: dataset={dataset.name} has a fixed split; "
            "dataset.train_limit and dataset.test_limit take fewer images of it"
        )
    if None in given and dataset.train_images is None:
        raise ConfigError(
            f"dataset.split_seed, dataset.train_each, dataset.test_each: dataset={dataset.name} needs all three, "
            "it is published in one part"
        )
    if dataset.split_seed is not None and not 0 <= dataset.split_seed < 2**32:
        raise ConfigError(f"dataset.split_seed={dataset.split_seed}: must be at least 0 and below 2**32")
    _check_image_size(dataset)


def _check_image_size(dataset: Dataset) -> None:
    height, width, _ = dataset.image_shape
    sides = _sides(dataset.image_size)
    if 0 in (height, width) or (dataset.image_size is not None and sides is None):
        raise ConfigError(
            f"dataset.image_size={dataset.image_size}: expected a whole number from 1 to {LARGEST_SIDE}, or two of "
            "them as [height,width]"
        )
    if dataset.image_size is not None and sides != [height, width]:
        raise ConfigError(
            f"dataset.image_size={dataset.image_size}: dataset={dataset.name} has images of {height} x {width} "
            "(dataset.image_shape), which are not resized"
        )


def _check_schedule(schedule: LearningRateSchedule) -> None:
    stepped = schedule.type in (Schedule.step, Schedule.multistep)
    if stepped and not schedule.gamma > 0:
        raise ConfigError(f"training.schedule.gamma={schedule.gamma}: must be above 0, the rate is multiplied by it")
    if schedule.type is Schedule.step and not schedule.every > 0:
        raise ConfigError(
            f"training.schedule.every={schedule.every}: must be above 0, the iterations between two steps"
        )
    rising = all(before < after for before, after in itertools.pairwise([0, *schedule.boundaries]))
    if schedule.type is Schedule.multistep and not (schedule.boundaries and rising):
        raise ConfigError(
            f"training.schedule.boundaries={schedule.boundaries}: expected rising iterations above 0, as [4000, 4500]"
        )


def _check_device(config: Config) -> None:
    framework, hardware = config.framework, config.hardware
    if hardware.device not in framework.devices:
        raise ConfigError(f"hardware.device={hardware.device}: expected one of {', '.join(sorted(framework.devices))}")
    if reason := framework.devices[hardware.device].unavailable:
        usable = ", ".join(name for name, device in sorted(framework.devices.items()) if not device.unavailable)
        raise Unavailable(f"hardware.device={hardware.device}: framework={framework.name} runs on {usable}: {reason}")
    if hardware.device == "gpu" and not _has_gpu():
        raise Unavailable("hardware.device=gpu: no NVIDIA GPU on this machine; hardware=cpu uses its CPU")
    own = sorted(os.sched_getaffinity(0))
    if hardware.cores is not None and not (hardware.cores and set(hardware.cores) <= set(own)):
        raise ConfigError(f"hardware.cores={hardware.cores}: expected some of {own}, the cores this process may use")
    if hardware.side_by_side and hardware.cores is None:
        raise ConfigError(f"hardware.side_by_side=true: needs hardware.cores, some of {own}, to give each run its own")
    if hardware.threads is not None and hardware.threads > len(hardware.usable_cores()):
        raise ConfigError(f"hardware.threads={hardware.threads}: there are {len(hardware.usable_cores())} cores to use")


def _has_gpu() -> bool:
    """Whether NVIDIA's driver lists a GPU; asked without any framework."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, timeout=30).stdout.startswith(b"GPU")
