"""What a configuration is made of: dataclasses, which Hydra holds every key and type against."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from ..worker import inputs, network
from ..worker.job import Latency, Training


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
    edits: dict[str, dict[str, str]] = field(default_factory=dict)
    """What the sources are changed in: of a file, a text that it has once, to what takes its place."""


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
class DeviceSupport:
    """What a framework can do on one kind of device."""

    recipes: list[Recipe] = field(default_factory=list)
    """Tried in this order until one installs. None at all: the driver's own interpreter runs the worker."""
    unavailable: str = ""
    """Why this framework cannot use this device here; empty if it can."""


@dataclass
class SpeedSettings:
    """What makes a framework fast or slow without changing what it computes."""

    options: dict[str, Any] = field(default_factory=dict)
    """Read by the adapter."""
    environment: dict[str, str] = field(default_factory=dict)
    """Set for the worker's process before it starts."""


@dataclass
class Framework:
    """One framework: what its environment holds, which adapter speaks for it, what it can run on."""

    name: str = MISSING
    label: str = MISSING
    """Name in charts, tables and sentences."""
    color: str = MISSING
    """Colour in charts, as ``#RRGGBB``."""
    version: str = MISSING
    adapter: str = MISSING
    """``module:Class``, imported in the worker only."""
    numpy: str = ""
    """NumPy's version in the framework's environment, for use in the recipes."""
    python: Python = field(default_factory=Python)
    devices: dict[str, DeviceSupport] = field(default_factory=dict)
    tuning: dict[str, SpeedSettings] = field(default_factory=dict)


@dataclass
class Download:
    """A file as published, and the addresses that have it."""

    file: str = MISSING
    """Its name in the data set's folder."""
    size_bytes: int = MISSING
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
    train_per_class: int | None = None
    test_per_class: int | None = None
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
    target_accuracy_percent: float = MISSING
    """Percent: the default of ``training.target_accuracy_percent``."""
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


class SweepOrder(str, Enum):
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

    order: SweepOrder = SweepOrder.interleaved
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
    def settings(self) -> SpeedSettings:
        """The framework's speed settings that ``tuning`` chose."""
        return self.framework.tuning[self.tuning.value]

    @property
    def network(self) -> network.Network:
        """The network of ``model`` on this data set, after the input treatment."""
        height, width, channels = self.dataset.image_shape
        shape = inputs.Preprocessing(self.training.preprocessing).shape((height, width, channels))
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
        del plain["framework"]["label"], plain["framework"]["color"]
        del plain["dataset"]["downloads"], plain["dataset"]["target_accuracy_percent"]
        del plain["training"]["checkpoint_every_s"], plain["training"]["target_accuracy_percent"]
        if not self.hardware.side_by_side:
            del plain["hardware"]["side_by_side"]  # alone is what runs were before they could be anything else
        return plain


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
