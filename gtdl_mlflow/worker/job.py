"""The job of a worker: one JSON file, written by the driver, from which the run can be repeated by hand."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

# The string that marks a mandatory value in Hydra's schemas; not imported from there, because the worker has no Hydra.
MISSING: Any = "???"

WARM_UP_STEPS = 10
"""Steps that the steady-state throughput leaves out. The training time includes them."""


class BatchOrder(str, Enum):
    """Order of the training images: ``sequential`` repeats the data set's order, ``shuffled`` changes every epoch."""

    sequential = "sequential"
    shuffled = "shuffled"


class Optimizer(str, Enum):
    """Optimization method.

    ``sgd``: V <- momentum V + rate gradient, W <- W - V (Caffe's, the rate inside V); ``adam``: Kingma and Ba's.
    """

    sgd = "sgd"
    adam = "adam"


class Precision(str, Enum):
    """Precision of convolutions and matrix products; weights and the optimizer's state are always float32.

    ``tf32``: float32 with a mantissa of 10 bits in the products, on NVIDIA GPUs; ``bfloat16``: the framework's
    automatic mixed precision.
    """

    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"


class Schedule(str, Enum):
    """Learning-rate schedule.

    ``constant``; ``inverse``: rate (1 + gamma iteration)^-power (Caffe's "inv"); ``step``: rate gamma^(iteration //
    every_iterations); ``multistep``: rate gamma^(number of ``boundary_iterations`` that the iteration has reached).
    """

    constant = "constant"
    inverse = "inverse"
    step = "step"
    multistep = "multistep"


class WeightDecayOn(str, Enum):
    """Parameters with weight decay: all, all but biases and betas, or the weights of dense layers but the last."""

    all = "all"
    weights = "weights"
    hidden_dense_weights = "hidden_dense_weights"


class HeldOut(str, Enum):
    """End of the training set that is held out for validation."""

    first = "first"
    last = "last"


@dataclass
class LearningRateSchedule:
    """The learning rate at an iteration, as a multiple of ``training.learning_rate``."""

    type: Schedule = Schedule.constant
    gamma: float = 0.0
    power: float = 1.0
    every_iterations: float = 0.0
    """Iterations between two changes of ``step``."""
    boundary_iterations: list[float] = field(default_factory=list)
    """Iterations, rising, at which ``multistep`` changes."""

    def factor(self, iteration: float) -> float:
        """Return the multiple at ``iteration``, which counts from 0; the budget scales it, so it may be a fraction."""
        if self.type is Schedule.constant:
            return 1.0
        if self.type is Schedule.inverse:
            return float((1.0 + self.gamma * iteration) ** -self.power)
        if self.type is Schedule.step:
            return float(self.gamma ** (iteration // self.every_iterations))
        return float(self.gamma ** sum(iteration >= boundary for boundary in self.boundary_iterations))


@dataclass
class Validation:
    """The training images held out for validation: ``images`` in every ``out_of``."""

    images: int = 0
    out_of: int = 1
    take: HeldOut = HeldOut.last

    def count(self, images: int) -> int:
        """Return how many of ``images`` training images are held out."""
        return round(images * self.images / self.out_of)


@dataclass
class EarlyStopping:
    """Early stopping: end when the validation error no longer falls, and test the model with the lowest error.

    The rule of Theano's deep-learning tutorial: once an epoch, if the error is below ``improvement`` times the lowest
    so far, the iteration times ``increase`` becomes the new ``patience_iterations``. Training ends at that iteration.
    """

    patience_iterations: int = MISSING
    """Iterations to run in any case."""
    increase: float = 2.0
    improvement: float = 0.995


@dataclass
class Training:
    """Hyper-parameters, with the preprocessing of the input that belongs to them."""

    name: str = MISSING
    preprocessing: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Preprocessing operations in their order: name to options. ``worker/preprocessing.py`` has the names."""
    order: BatchOrder = MISSING
    validation: Validation = field(default_factory=Validation)
    batch_size: int = MISSING
    test_batch_size: int = MISSING
    epochs: float | None = None
    """Passes over the training images; training ends at ``epochs`` or ``iterations``, whichever comes first."""
    iterations: int | None = None
    optimizer: Optimizer = MISSING
    learning_rate: float = MISSING
    schedule: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    bias_lr_multiplier: float = 1.0
    """Multiple of the learning rate for biases."""
    weight_decay: float = 0.0
    """Multiple of a value that is added to its gradient, for the parameters of ``weight_decay_on``. Not in the loss."""
    weight_decay_on: WeightDecayOn = WeightDecayOn.all
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    early_stopping: EarlyStopping | None = None
    ema_decay: float | None = None
    """Decay of an exponential moving average of all parameters, which is then the model that is tested and saved."""
    evaluate_every_epochs: int = 1
    """Epochs between two evaluations on the test set, with the clock stopped; 0: none before the end."""
    target_accuracy_percent: float | None = None
    """Accuracy in percent; the time to reach it is measured. Training does not end there."""
    checkpoint_every_s: float = 300.0
    """Seconds of training between two checkpoints, from which a killed run can resume; 0: no checkpoints."""

    def steps(self, images: int, budget: float) -> int:
        """Return the number of training steps.

        ``images`` is the number of training images without those held out; ``budget`` is the share, in (0, 1].
        """
        limits = [] if self.iterations is None else [self.iterations]
        if self.epochs is not None:
            limits.append(round(self.epochs * images / self.batch_size))
        return max(1, round(budget * min(limits)))

    def reaches_target(self, accuracy_percent: float) -> bool:
        """Return whether there is a target accuracy and ``accuracy_percent`` reaches it."""
        return self.target_accuracy_percent is not None and accuracy_percent >= self.target_accuracy_percent

    def rates(self, start: int, stop: int, budget: float) -> list[float]:
        """Return the learning rates of the steps from ``start`` to ``stop``. The schedule is scaled by ``budget``."""
        return [self.learning_rate * self.schedule.factor(step / budget) for step in range(start, stop)]

    def ema_decay_at(self, step: int) -> float:
        """Return the decay d of the moving average A <- d A + (1 - d) W after the ``step``-th step, counted from 1.

        TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``: smaller in the first steps.
        """
        assert self.ema_decay is not None
        return min(self.ema_decay, (1 + step) / (10 + step))


@dataclass
class Latency:
    """Single operations that are timed after training and testing."""

    repeats: int = 100
    """Largest number of timed training steps, and of timed batches of each size; 0: no timing."""
    batch_sizes: list[int] = field(default_factory=list)
    """Batch sizes for which inference is timed."""
    limit_s: float = 0.5
    """Largest total time of the training steps, and of the batches of each size."""


class Activity(str, Enum):
    """What a turn does, and its unit."""

    training = "training"
    """Training steps, each on the next batch."""
    testing = "testing"
    """Batches of the test set, classified."""
    latency = "latency"
    """Single images, classified one after the other."""


@dataclass
class Job:
    """One run of one framework."""

    adapter: str
    """``module:Class``."""
    options: dict[str, Any]
    """The adapter's speed options."""
    layers: dict[str, dict[str, Any]]
    image_shape: list[int]
    """Height, width and channels before preprocessing."""
    classes: int
    data: str
    """Folder of the prepared data set."""
    training: Training
    budget: float
    seed: int
    device: str
    threads: int
    cores: list[int] | None
    """CPUs to which this process is pinned; None: no pinning."""
    folder: str
    """Folder for the trained model."""
    data_sha256: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each ``.npy`` file in ``data``: name of the array to hash; empty: the files are not checked."""
    checkpoints: str = ""
    """Folder of the checkpoints; empty: none are written or read."""
    mean_per_class: bool = False
    """Whether the headline accuracy is the mean of the classes' accuracies and not the share of all images."""
    parity: bool = False
    """Whether to check first that the framework computes the network."""
    latency: Latency = field(default_factory=Latency)
    precision: Precision = Precision.float32
    deterministic: bool = True
    """Whether the same seed must give the same bits."""
    compile_cache: str = ""
    """Folder of compiled code that later runs reuse; empty: the mode has none."""
    saved_options: dict[str, Any] | None = None
    """Options of the adapter for the saved model, which needs no compiler; None: ``options``."""
    saved_environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the saved model, which are set before the framework is imported."""
    takes_turns: bool = False
    """Whether the worker does turns of a paired measurement on request (``turns.py``) instead of one run."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Job:
        return cls.parse(path.read_text())

    @classmethod
    def parse(cls, text: str) -> Job:
        values = json.loads(text)
        training, latency = training_from_json(values["training"]), Latency(**values.get("latency", {}))
        precision = Precision(values.get("precision", Precision.float32))
        return cls(**{**values, "training": training, "latency": latency, "precision": precision})


def training_from_json(values: dict[str, Any]) -> Training:
    """Return the ``Training`` with these JSON values."""
    schedule, validation, stopping = values["schedule"], values["validation"], values["early_stopping"]
    return Training(
        **{
            **values,
            "order": BatchOrder(values["order"]),
            "optimizer": Optimizer(values["optimizer"]),
            "weight_decay_on": WeightDecayOn(values["weight_decay_on"]),
            "schedule": LearningRateSchedule(**{**schedule, "type": Schedule(schedule["type"])}),
            "early_stopping": None if stopping is None else EarlyStopping(**stopping),
            "validation": Validation(**{**validation, "take": HeldOut(validation["take"])}),
        }
    )
