"""Schema of the configuration: dataclasses against which Hydra checks every key and type."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from .. import cgroups
from ..worker import inputs, network
from ..worker.job import Latency, Precision, Training

BEST, DEFAULT = "best", "default"
"""Choices of ``mode`` beside the names of a framework's modes: the measured winner, and the mode of its tutorial."""


@dataclass
class Python:
    """Python interpreters that a framework's environment may use."""

    preferred: str = MISSING
    """Version used if the machine has it, such as ``3.11``, so that all frameworks run on the same one if possible."""
    supported: str = MISSING
    """Version specifier as in packaging, such as ``>=3.10,<3.14``."""


@dataclass
class SystemPackage:
    """Requirements of a recipe that one package of the operating system provides; the user installs it."""

    tools: list[str] = field(default_factory=list)
    """Programs on the PATH that accept ``--version``."""
    headers: list[str] = field(default_factory=list)
    """Names as in ``#include <...>``."""
    libraries: list[str] = field(default_factory=list)
    """Names as in the linker's ``-l``; the placeholders of ``Build`` are replaced."""
    include: str = ""
    """Folder of the headers, if the compiler does not search it by default."""


@dataclass
class Build:
    """Source package that CMake compiles for an environment after its requirements are installed.

    Placeholders in options and libraries: ``{environment}`` is the environment's folder, ``{python}`` its version of
    Python (3.11), ``{python_tag}`` the same without the dot (311).
    """

    source: str = MISSING
    """``NAME==VERSION`` on the package index."""
    sha256: str = MISSING
    """SHA-256 of the source package."""
    target: str = MISSING
    """CMake target to build."""
    package: str = MISSING
    """Folder, relative to what CMake installs, that becomes an importable package in the environment."""
    options: list[str] = field(default_factory=list)
    """Arguments of ``cmake``."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Library names: from those in the sources to those in ``Recipe.system``."""
    edits: dict[str, dict[str, str]] = field(default_factory=dict)
    """Changes to the sources: file name to replacements. Each replaced text occurs exactly once in its file."""


@dataclass
class Recipe:
    """One way to install a framework into an environment."""

    requirements: list[str] = field(default_factory=list)
    """Requirements as for pip."""
    options: list[str] = field(default_factory=list)
    """Further arguments of ``uv pip install``."""
    index: str = ""
    """Address of the package index that has these builds, if it is not the default one; for a model's requirements."""
    lock: str = ""
    """Name of a file in ``conf/framework/locks`` with the versions and hashes of all packages."""
    system: dict[str, SystemPackage] = field(default_factory=dict)
    """Packages of the operating system that must already be installed, by their names in Debian."""
    build: Build | None = None
    note: str = ""
    """Message to the user when this recipe is used."""


@dataclass
class DeviceSupport:
    """How a framework is installed for one kind of device, or why it cannot use it."""

    recipes: list[Recipe] = field(default_factory=list)
    """Recipes, tried in this order until one installs. Without any, the driver's own interpreter runs the worker."""
    unavailable: str = ""
    """Reason why the framework cannot use the device; empty if it can."""


@dataclass
class Mode:
    """One way in which a framework executes a network. All modes of a framework compute the same function."""

    description: str = MISSING
    """What the mode does, in one line."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the execution mode, which the adapter interprets."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the worker's process. ``{compile_cache}`` is the folder of compiled code."""
    model_environment: dict[str, str] = field(default_factory=dict)
    """Further environment variables of a process that loads a saved model."""
    compiles: bool = False
    """Whether the mode compiles for seconds before its first step, which a short training cannot win back."""
    tools: list[str] = field(default_factory=list)
    """Programs that the mode needs on the PATH."""
    devices: list[str] = field(default_factory=lambda: ["cpu", "gpu"])
    """Devices on which the mode runs."""
    deterministic: bool = True
    """Whether the same seed gives the same bits; if not, the mode needs ``deterministic=false``."""


@dataclass
class Framework:
    """A framework: its environment, its adapter, and the devices that it can use."""

    name: str = MISSING
    label: str = MISSING
    """Name in charts, tables and sentences."""
    color: str = MISSING
    """Colour in charts, as ``#RRGGBB``."""
    version: str = MISSING
    last_release: int | None = None
    """Year of the last release of a framework that is no longer developed; None: it is developed."""
    adapter: str = MISSING
    """``module:Class``, imported in the worker only."""
    plain: str | None = None
    """Framework that this one runs on; a report compares the two (the cost of the abstraction). None: no other."""
    default_settings: str | None = None
    """First part of the names of its default settings, as in ``keras_mnist``; None: its own name."""
    numpy: str = ""
    """NumPy's version in the framework's environment, for use in the recipes."""
    max_threads: int | None = None
    """Largest number of threads that the framework computes with on the CPU; None if it has no limit."""
    python: Python = field(default_factory=Python)
    devices: dict[str, DeviceSupport] = field(default_factory=dict)
    """Support by device: ``cpu``, ``gpu``."""
    modes: dict[str, Mode] = field(default_factory=dict)
    """Execution modes by their names."""
    default_mode: str = MISSING
    """Mode of the framework's own tutorial, which ``mode=default`` selects."""
    precisions: dict[str, list[str]] = field(default_factory=dict)
    """Names of ``Precision`` by device."""


@dataclass
class Download:
    """A published file and its addresses."""

    file: str = MISSING
    """File name in the data set's folder."""
    size_bytes: int = MISSING
    """Size of the file; without a checksum, the largest size that is accepted."""
    sha256: str = ""
    md5: str = ""
    """Checksum where no SHA-256 is published. With neither, the file is the whole data set; the reader checks it."""
    urls: list[str] = MISSING
    """Addresses, tried in this order: the publisher's, then mirrors."""
    instead_of: str = ""
    """Name of another download with the same content; this one is used only if that one is not available."""


class Labels(str, Enum):
    """Kind of labels of CIFAR-100: the 100 classes (``fine``) or their 20 superclasses (``coarse``)."""

    fine = "fine"
    coarse = "coarse"


@dataclass
class Dataset:
    """A data set: its files, its shape and its split into training and test images."""

    name: str = MISSING
    family: str = MISSING
    """``mnist`` or ``cifar10``: selects a framework's default setting for this data set."""
    reader: str = MISSING
    """``module:function`` that receives this configuration and the folder of its files and returns ``Arrays``."""
    labels: Labels | None = None
    """Kind of labels to learn, if the publisher has several; ``label_classes`` has the choices."""
    label_classes: dict[str, int] = field(default_factory=dict)
    """Number of classes of each choice of ``labels``."""
    classes: int = MISSING
    image_size: Any = None
    """Size in pixels to which images of other sizes are resized in preparation: one number, or [height, width]."""
    image_shape: list[int] = MISSING
    """Height, width and channels; derived from ``image_size`` where there is one."""
    train_images: int | None = None
    test_images: int | None = None
    """Number of images; None if it depends on the copy of the data set and is known only after preparation."""
    split_seed: int | None = None
    """Seed of the split into training and test images, if the publisher has none; see ``datasets/splits.py``."""
    train_per_class: int | None = None
    test_per_class: int | None = None
    """Largest number of images per class that such a split uses for training and for testing."""
    train_limit: int | None = None
    test_limit: int | None = None
    """Largest number of images, the same number of every class, for quick trials."""
    mean_per_class: bool = False
    """Whether ``accuracy_percent`` is the mean of the accuracies of the classes, as is usual if their sizes differ."""
    files: dict[str, str] = field(default_factory=dict)
    """The publisher's files: name without compression, to the MD5 of the uncompressed content."""
    archives: list[str] = field(default_factory=list)
    """Possible names of the publisher's archive. The first that exists is read if nothing is unpacked. If it is a
    compressed tar, it may have been decompressed."""
    unpacked: str = ""
    """File or folder of the archive whose presence shows that it has been unpacked."""
    downloads: dict[str, Download] = field(default_factory=dict)
    """Files that `gtdl data fetch` downloads, by any short names; empty for a built-in data set."""
    target_accuracy_percent: float = MISSING
    """Default of ``training.target_accuracy_percent``."""
    source: str = MISSING
    """Address of a description of the data set."""
    terms: str = MISSING
    """Licence or terms of use."""

    @property
    def training_images(self) -> int | None:
        """Number of training images, or its upper limit; None if it is known only after preparation."""
        known = [count for count in (self.train_images, self.train_limit) if count is not None]
        return min(known, default=None)


@dataclass
class Model:
    """A network as data; ``worker/layers.py`` defines the types of layers."""

    name: str = MISSING
    depth: int | None = None
    """Number of layers with weights in a residual network, 6 n + 2; ``layers`` refers to it."""
    layers: dict[str, Any] = field(default_factory=dict)
    """Layer name to ``{type: ..., ...}``, in the order of the network."""
    weights: dict[str, Any] = field(default_factory=dict)
    """Initial distribution that layers refer to as ``${model.weights}``."""
    biases: dict[str, Any] = field(default_factory=dict)
    """Initial distribution that layers refer to as ``${model.biases}``."""


@dataclass
class Hardware:
    """The device, threads and cores of the worker."""

    name: str = MISSING
    device: str = MISSING
    """``cpu`` or ``gpu``."""
    threads: int | None = None
    """Threads that the framework may use; None: one per core of ``cores``, or fewer if the CPU time is limited."""
    cores: list[int] | None = None
    """CPU cores to which the worker is pinned; None: those that this process may use."""
    side_by_side: bool = False
    """Whether other runs with ``side_by_side`` may use other cores at the same time. They share caches, memory and
    power."""

    def usable_cores(self) -> list[int]:
        """Return the CPU cores that the worker may use."""
        return self.cores if self.cores is not None else cgroups.usable_cores()


@dataclass
class Tracking:
    """The tracking store and what is logged to it."""

    uri: str = MISSING
    """Address of the tracking store."""
    experiment: str = "gtdl"
    """Name of the experiment. ``mlflow run``, MLFLOW_EXPERIMENT_NAME and MLFLOW_EXPERIMENT_ID take precedence."""
    model: bool = True
    """Whether to log the trained model."""
    system_metrics_interval_s: float = 1.0
    """Time between two samples of the system metrics; 0: none. MLflow's default of 10 s would miss a short run."""


class SweepOrder(str, Enum):
    """Order of the runs of a sweep.

    ``interleaved``: all frameworks for one seed, then for the next; ``grouped``: all runs of one framework, then of the
    next.
    """

    interleaved = "interleaved"
    grouped = "grouped"


class Rerun(str, Enum):
    """Cells that are run again when the same sweep is started again; see ``Sweep.rerun``."""

    failed = "failed"
    all = "all"
    none = "none"


class Study(str, Enum):
    """Evaluation at the end of a sweep.

    ``scaling``: speed by threads and batch size; ``paired``: a paired measurement of the sweep's frameworks, after its
    runs; ``stability``: the same, of each framework against itself.
    """

    stability = "stability"
    scaling = "scaling"
    paired = "paired"


@dataclass
class Sweep:
    """Order, repetition and evaluation of the runs of a sweep."""

    order: SweepOrder = SweepOrder.interleaved
    """Order of the runs. If the frameworks take turns, a drift of the machine affects all of them alike."""
    rerun: Rerun = Rerun.failed
    """Cells of an earlier start of the same sweep that are run again: those that did not finish (``failed``), ``all``
    or ``none``. Cells that were never started always run."""
    objective: str = "accuracy_percent"
    """Metric returned to optimizing sweepers such as Optuna."""
    study: Study | None = None
    """Evaluation at the end of the sweep; None: none."""
    paired_minutes: float = 5.0
    """Time limit of a paired measurement, in minutes. It ends earlier if all ratios are resolved."""
    minutes: float | None = None
    """Time limit, in minutes, of a whole sweep with a paired measurement; None: no limit. The measurement gets the time
    that remains after the runs, and ``paired_minutes`` is ignored.
    """


@dataclass
class Limits:
    """Timeouts."""

    run_timeout_s: float = 86400.0
    """Time limit of a worker. After it the worker is killed and its run fails."""
    fetch_timeout_s: float = 30.0
    """Time without data after which a download is abandoned and its next address is tried."""


@dataclass
class Config:
    """The configuration of one run."""

    framework: Framework = field(default_factory=Framework)
    dataset: Dataset = field(default_factory=Dataset)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    hardware: Hardware = field(default_factory=Hardware)
    tracking: Tracking = field(default_factory=Tracking)
    sweep: Sweep = field(default_factory=Sweep)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    """Seed of the initial weights, the order of the images, augmentation and dropout."""
    budget: float = 1.0
    """Share of the training's iterations, above 0 and at most 1. The learning-rate schedule is compressed with it."""
    mode: str = BEST
    """Execution mode: one of ``framework.modes``, ``default`` or ``best``."""
    precision: Precision = Precision.float32
    """Precision of convolutions and matrix products."""
    deterministic: bool = True
    """Whether the same seed must give the same bits."""
    latency: Latency = field(default_factory=Latency)
    parity: bool = False
    """Whether to compare the framework's computation with a float64 NumPy network before training."""

    @property
    def mode_names(self) -> list[str]:
        """Modes between which ``mode`` leaves the choice: several for ``best``, otherwise one."""
        framework = self.framework
        if self.mode == DEFAULT:
            return [framework.default_mode]
        if self.mode != BEST:
            return [self.mode]
        usable = {
            name: mode
            for name, mode in framework.modes.items()
            if self.hardware.device in mode.devices and (mode.deterministic or not self.deterministic)
        }
        return list(usable)

    @property
    def execution(self) -> Mode:
        """The framework's execution mode.

        Raises:
            ValueError: ``mode`` is ``best``; ``modes.choose`` selects one.
        """
        [name] = self.mode_names
        return self.framework.modes[name]

    @property
    def network(self) -> network.Network:
        """The network of ``model`` for preprocessed images of this data set."""
        height, width, channels = self.dataset.image_shape
        shape = inputs.Preprocessing(self.training.preprocessing).shape((height, width, channels))
        return network.build(self.model.layers, shape, self.dataset.classes)

    @property
    def setting_name(self) -> str:
        """Name of the network and the hyper-parameters: one name, or both with ``+`` if they differ."""
        names = dict.fromkeys((self.model.name, self.training.name))
        return " + ".join(names)

    @property
    def threads(self) -> int:
        """Number of threads that the framework may use."""
        threads = self.hardware.threads or cgroups.threads_for(len(self.hardware.usable_cores()))
        return min(threads, self.framework.max_threads or threads)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain types that JSON can represent."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    def hash(self) -> str:
        """Return a hash of every value that can change a result."""
        return hash_values(self._values_for_hash())

    def cell(self) -> str:
        """Return the same hash without the seed. Runs of one cell are repeats of each other."""
        return hash_values(self.cell_values())

    def cell_values(self) -> dict[str, Any]:
        """Return the values that ``cell`` is the hash of."""
        values = self._values_for_hash()
        del values["seed"]
        return values

    def work(self) -> str:
        """Return the hash of data set, network and training: frameworks with the same hash do the same work."""
        values = self._values_for_hash()
        return hash_values({key: values[key] for key in ("dataset", "model", "training", "parity")})

    def _values_for_hash(self) -> dict[str, Any]:
        """Return the configuration without the values that cannot change a result.

        These are tracking, sweep, limits, latency, names for display, variables of processes that load a model,
        downloads, locks, target accuracies and checkpoints.
        """
        values = self.to_dict()
        del values["tracking"], values["sweep"], values["limits"], values["latency"]
        for key in ("label", "color", "last_release", "plain", "default_settings"):
            del values["framework"][key]
        for mode in values["framework"]["modes"].values():
            del mode["description"], mode["model_environment"]
        for device in values["framework"]["devices"].values():
            for recipe in device["recipes"]:
                del recipe["lock"]  # the environment's key has what is installed
        del values["dataset"]["downloads"], values["dataset"]["target_accuracy_percent"]
        del values["training"]["checkpoint_every_s"], values["training"]["target_accuracy_percent"]
        # The hash of runs that are older than these keys stays the same.
        if not self.hardware.side_by_side:
            del values["hardware"]["side_by_side"]
        if self.framework.max_threads is None:
            del values["framework"]["max_threads"]
        return values


def hash_values(values: dict[str, Any]) -> str:
    """Return the hash of values of a configuration."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
