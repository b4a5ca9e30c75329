"""What a worker is asked to do: one JSON file, written by the driver, enough to repeat the run by hand."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

# The string that marks a mandatory value in Hydra's schemas; not imported from there, since the worker has no Hydra.
MISSING: Any = "???"

WARM_UP_STEPS = 10
"""Steps left out of the steady speed, though never out of the training time."""


class BatchOrder(str, Enum):
    """``sequential``: the data set's own order, over and over; ``shuffled``: a new order every epoch."""

    sequential = "sequential"
    shuffled = "shuffled"


class Optimizer(str, Enum):
    """``sgd``: V <- momentum V + rate gradient, W <- W - V (Caffe's, the rate inside V); ``adam``: Kingma and Ba's."""

    sgd = "sgd"
    adam = "adam"


class Schedule(str, Enum):
    """How the learning rate moves.

    ``constant``; ``inverse``: rate (1 + gamma iteration)^-power (Caffe's "inv"); ``step``: rate gamma^(iteration //
    every_iterations), a staircase; ``multistep``: rate gamma^(how many of ``boundary_iterations`` the iteration has reached).
    """

    constant = "constant"
    inverse = "inverse"
    step = "step"
    multistep = "multistep"


class WeightDecayOn(str, Enum):
    """What weight decay acts on: everything, all but biases and betas, or the weights of dense layers but the last."""

    all = "all"
    weights = "weights"
    hidden_dense_weights = "hidden_dense_weights"


class Take(str, Enum):
    """Which end of the training set is held back."""

    first = "first"
    last = "last"


@dataclass
class LearningRateSchedule:
    """The learning rate at an iteration, as a multiple of ``training.learning_rate``."""

    type: Schedule = Schedule.constant
    gamma: float = 0.0
    power: float = 1.0
    every_iterations: float = 0.0
    """Iterations between two steps of ``step``."""
    boundary_iterations: list[float] = field(default_factory=list)
    """Iterations, rising, at which ``multistep`` steps."""

    def factor(self, iteration: float) -> float:
        """``iteration`` counts from 0 and is stretched by the budget, so it may be a fraction."""
        if self.type is Schedule.constant:
            return 1.0
        if self.type is Schedule.inverse:
            return float((1.0 + self.gamma * iteration) ** -self.power)
        if self.type is Schedule.step:
            return float(self.gamma ** (iteration // self.every_iterations))
        return float(self.gamma ** sum(iteration >= boundary for boundary in self.boundary_iterations))


@dataclass
class Validation:
    """The part of the training images held back from training, as a share: ``images`` in every ``out_of``."""

    images: int = 0
    out_of: int = 1
    take: Take = Take.last

    def count(self, images: int) -> int:
        """How many of ``images`` training images are held back."""
        return round(images * self.images / self.out_of)


@dataclass
class EarlyStopping:
    """Stop when the error on the held-back images no longer falls, and keep the model with the lowest.

    The rule of Theano's deep-learning tutorial: once an epoch, the iteration times ``increase`` becomes the new
    ``patience_iterations`` if the error is below ``improvement`` times the lowest so far; training ends when it has run out.
    """

    patience_iterations: int = MISSING
    """Iterations to run in any case."""
    increase: float = 2.0
    improvement: float = 0.995


@dataclass
class Training:
    """Hyper-parameters, and the treatment of the input that goes with them."""

    name: str = MISSING
    preprocessing: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Treatments in their order: name to options; the names are in ``worker/inputs.py``."""
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
    """Biases learn at this multiple of the learning rate."""
    weight_decay: float = 0.0
    """Added to the gradient of what is ``weight_decay_on``: weight_decay times the value. Not part of the loss reported."""
    weight_decay_on: WeightDecayOn = WeightDecayOn.all
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    early_stopping: EarlyStopping | None = None
    ema_decay: float | None = None
    """Decay of an exponential moving average of all parameters, which then is the model that is tested and saved."""
    evaluate_every_epochs: int = 1
    """Epochs between two looks at the test accuracy, with the clock stopped; 0: none before the end."""
    target_accuracy_percent: float | None = None
    """Percent of the test images: how long it takes to get there is measured, and no training stops for it."""
    checkpoint_every_s: float = 300.0
    """Seconds of training between two checkpoints, from which the same run goes on after a kill; 0: none."""

    def steps(self, images: int, budget: float) -> int:
        """Training steps on ``images`` training images (those held back not counted) at a ``budget`` in (0, 1]."""
        full = [] if self.iterations is None else [self.iterations]
        if self.epochs is not None:
            full.append(round(self.epochs * images / self.batch_size))
        return max(1, round(budget * min(full)))

    def reaches(self, accuracy: float) -> bool:
        """Whether ``accuracy``, in percent, is the target's or better."""
        return self.target_accuracy_percent is not None and accuracy >= self.target_accuracy_percent

    def rates(self, start: int, stop: int, budget: float) -> list[float]:
        """Learning rates of the steps ``start`` to ``stop``, the schedule compressed into the ``budget``."""
        return [self.learning_rate * self.schedule.factor(step / budget) for step in range(start, stop)]

    def ema_decay_at(self, step: int) -> float:
        """What the average keeps of itself after the ``step``-th step, counted from 1: A <- d A + (1 - d) W.

        TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``: shorter while there is little to average.
        """
        assert self.ema_decay is not None
        return min(self.ema_decay, (1 + step) / (10 + step))


@dataclass
class Latency:
    """What is timed call by call when training and testing are over."""

    repeats: int = 100
    """Of a training step, each waited for, and of each batch, at most; 0: nothing is timed."""
    batch_sizes: list[int] = field(default_factory=list)
    """Of test images, to classify."""
    limit_s: float = 0.5
    """At most, for the steps and for each batch size."""


@dataclass
class Job:
    """One run of one framework."""

    adapter: str
    """``module:Class``."""
    options: dict[str, Any]
    """The adapter's speed options."""
    layers: dict[str, dict[str, Any]]
    image_shape: list[int]
    """Height, width, channels, before any treatment."""
    classes: int
    data: str
    """Folder of the prepared data set."""
    training: Training
    budget: float
    seed: int
    device: str
    threads: int
    cores: list[int] | None
    """CPUs this process is pinned to; None: all."""
    folder: str
    """Where the trained model goes."""
    checkpoints: str = ""
    """Where checkpoints are, and go; empty: none."""
    parity: bool = False
    """Whether to prove first that the framework computes the network."""
    latency: Latency = field(default_factory=Latency)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Job:
        values = json.loads(path.read_text())
        return cls(
            **{
                **values,
                "training": training_from_json(values["training"]),
                "latency": Latency(**values.get("latency", {})),
            }
        )


def training_from_json(values: dict[str, Any]) -> Training:
    """``Training`` from its JSON form."""
    schedule, validation, stopping = values["schedule"], values["validation"], values["early_stopping"]
    return Training(
        **{
            **values,
            "order": BatchOrder(values["order"]),
            "optimizer": Optimizer(values["optimizer"]),
            "weight_decay_on": WeightDecayOn(values["weight_decay_on"]),
            "schedule": LearningRateSchedule(**{**schedule, "type": Schedule(schedule["type"])}),
            "early_stopping": None if stopping is None else EarlyStopping(**stopping),
            "validation": Validation(**{**validation, "take": Take(validation["take"])}),
        }
    )
