"""The job of a worker: one JSON file, written by the driver, from which the run can be repeated by hand."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

# The string that marks a mandatory value in Hydra's schemas. Hydra is not installed in the worker's environment.
MISSING: Any = "???"

WARM_UP_STEPS = 10
"""Number of first steps that the steady-state throughput excludes. The training time includes them."""


class BatchOrder(str, Enum):
    """Order of the training images: ``sequential`` repeats the data set's order, ``shuffled`` changes every epoch."""

    sequential = "sequential"
    shuffled = "shuffled"


class Optimizer(str, Enum):
    """Optimization method.

    ``sgd``: V <- momentum V + rate gradient, W <- W - V (as in Caffe: V includes the rate); ``adam``: Kingma and Ba,
    algorithm 1.
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
    """Parameters with weight decay.

    ``all``; ``weights``: all except biases and betas; ``hidden_dense_weights``: the weights of all dense layers except
    the last.
    """

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
    """Iterations between two changes of the schedule ``step``."""
    boundary_iterations: list[float] = field(default_factory=list)
    """Iterations at which the schedule ``multistep`` changes, in ascending order."""

    def factor(self, iteration: float) -> float:
        """Return the multiple of the learning rate at ``iteration``, counted from 0.

        The iteration may be a fraction, because it is scaled by the budget.
        """
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
    """Early stopping: training ends when the validation error no longer falls.

    The model with the lowest validation error is tested. The rule is that of Theano's deep-learning tutorial: once per
    epoch, if the error is below ``improvement`` times the lowest so far, the limit becomes ``increase`` times the
    current iteration, unless it is already higher. Training ends at the limit, which starts as ``patience_iterations``.
    """

    patience_iterations: int = MISSING
    """Number of iterations before which early stopping does not end training."""
    increase: float = 2.0
    improvement: float = 0.995


@dataclass
class Training:
    """Hyper-parameters of training, including the preprocessing of the input."""

    name: str = MISSING
    preprocessing: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Preprocessing operations in order: name to options. ``worker/preprocessing.py`` defines the names."""
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
    """Factor by which each parameter in ``weight_decay_on`` is added to its gradient.

    The reported loss does not include weight decay.
    """
    weight_decay_on: WeightDecayOn = WeightDecayOn.all
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    early_stopping: EarlyStopping | None = None
    ema_decay: float | None = None
    """Decay of an exponential moving average of all parameters; None: no average.

    With a decay, the model that is tested and saved has the averaged parameters.
    """
    evaluate_every_epochs: int = 1
    """Epochs between two evaluations on the test set, with the clock stopped; 0: none before the end."""
    target_accuracy_percent: float | None = None
    """Target accuracy in percent. The time to reach it is measured; training continues afterwards."""
    checkpoint_every_s: float = 300.0
    """Seconds of training between two checkpoints, from which a killed run can resume; 0: no checkpoints."""

    def steps(self, images: int, budget: float) -> int:
        """Return the number of training steps.

        ``images`` is the number of training images without those held out; ``budget`` is the share of
        the full training to run, in (0, 1].
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

        As in TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``, the decay is smaller in the first steps.
        """
        assert self.ema_decay is not None
        return min(self.ema_decay, (1 + step) / (10 + step))


@dataclass
class Latency:
    """Settings for timing single operations after training and testing."""

    repeats: int = 100
    """Largest number of timed training steps, and of timed batches of each size; 0: no timing."""
    batch_sizes: list[int] = field(default_factory=list)
    """Batch sizes for which inference is timed."""
    limit_s: float = 0.5
    """Time limit in seconds for the training steps, and for the batches of each size. No operation starts after it."""


class Activity(str, Enum):
    """Activity of a turn, which defines the turn's unit of work."""

    training = "training"
    """Training steps, each on the next batch."""
    testing = "testing"
    """Inference on batches of the test set."""
    latency = "latency"
    """Inference on one image at a time."""


@dataclass
class Job:
    """One run of one framework."""

    adapter: str
    """Adapter class, as ``module:Class``."""
    options: dict[str, Any]
    """Options of the execution mode, which are passed to the adapter."""
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
    """SHA-256 of each ``.npy`` file in ``data``, by array name; empty: the files are not checked."""
    checkpoints: str = ""
    """Folder of the checkpoints; empty: none are written or read."""
    mean_per_class: bool = False
    """Whether the headline accuracy is the mean of the per-class accuracies instead of the accuracy over all images."""
    parity: bool = False
    """Whether to run the parity check before training."""
    latency: Latency = field(default_factory=Latency)
    precision: Precision = Precision.float32
    deterministic: bool = True
    """Whether the same seed must give bitwise identical results."""
    compile_cache: str = ""
    """Folder of compiled code that later runs reuse; empty: no cache."""
    saved_options: dict[str, Any] | None = None
    """Options for the saved model, with which it needs no compiler; None: ``options``."""
    saved_environment: dict[str, str] = field(default_factory=dict)
    """Environment variables that the saved model sets, if they are unset, before it imports the framework."""
    takes_turns: bool = False
    """Whether the worker performs turns of a paired measurement on request (``turns.py``) instead of one run."""

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
