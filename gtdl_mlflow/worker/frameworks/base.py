"""The interface between the shared procedure and one framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..initialization import Weights
from ..inputs import Batch
from ..job import Training, WeightDecayOn
from ..layers import Dense
from ..network import Network


@dataclass(frozen=True)
class Setup:
    """All that an adapter is given."""

    network: Network
    weights: Weights
    """Canonical starting values of all parameters and state, float32: convolution (out, in, height, width), dense
    (in, out)."""
    masks: Weights
    """0/1 masks (out, in, 1, 1) of convolutions that read only some maps, by the name of their weights."""
    training: Training
    device: str
    """``cpu`` or ``gpu``."""
    threads: int
    seed: int
    """For what only the framework draws (dropout)."""
    options: dict[str, Any]
    """The framework's speed options, ``conf/framework/X.yaml``."""

    def step_seed(self, step: int) -> int:
        """A seed below 2**31 for each step, for frameworks whose generator cannot be kept in a checkpoint."""
        return int(np.random.SeedSequence([self.seed, 17, step]).generate_state(1)[0] >> 1)

    def lr_multiplier(self, name: str) -> float:
        """The multiple of the learning rate at which the parameter ``layer/array`` learns."""
        return self.training.bias_lr_multiplier if name.endswith("/biases") else 1.0

    def weight_decay(self, name: str) -> float:
        """What times its value is added to the gradient of the parameter ``layer/array``."""
        which = self.training.weight_decay_on
        if which is WeightDecayOn.weights:
            chosen = not name.endswith(("/biases", "/beta"))
        elif which is WeightDecayOn.hidden_dense_weights:
            dense = [node.layer.name for node in self.network.nodes if isinstance(node.layer, Dense)]
            chosen = name in [f"{layer}/weights" for layer in dense[:-1]]
        else:
            chosen = True
        return self.training.weight_decay if chosen else 0.0


class Adapter(ABC):
    """One network in one framework.

    ``train`` and ``predict`` run under the clock: they do nothing but what the framework needs to train and classify,
    in its own fastest idiom, and return when the device is done. No adapter shuffles, scores, times or logs.
    """

    layout: str = "NCHW"
    """Memory layout of the images it wants: NCHW or NHWC. May be set in ``__init__``."""
    label_type: str = "int64"
    """NumPy type of the labels it wants."""

    @abstractmethod
    def __init__(self, setup: Setup) -> None:
        """Build the network on the device.

        Raises:
            NotImplementedError: the framework cannot run this network; the message names the layer.
        """

    def compile(self) -> None:  # noqa: B027 (most frameworks have nothing to do here)
        """Compile ahead of the first batch what this framework compiles ahead; timed apart (``setup/compile_s``)."""

    def to_native(self, array: np.ndarray) -> Any:
        """Images (N, ...) in ``layout``, or labels (N,), as the framework has them on the host: the same memory.

        What ``train`` and ``predict`` get are slices of this, or this: to slice the framework's own array may take less
        time than to make one of each of NumPy's slices.
        """
        return array

    @abstractmethod
    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        """One step per learning rate on as many batches; the loss of each step, before its update, float32."""

    @abstractmethod
    def predict(self, batches: Iterable[Any]) -> np.ndarray:
        """Logits of all images of all batches, (images, classes), float32; dropout off."""

    @abstractmethod
    def weights(self) -> Weights:
        """What ``predict`` uses (the average, if there is one), and all state, in canonical layout: a copy."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model in the framework's native format."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Take over what ``save`` wrote."""

    @abstractmethod
    def checkpoint(self, folder: Path) -> None:
        """Write all that the next training step depends on: parameters, state, moments, average, random numbers."""

    @abstractmethod
    def restore(self, folder: Path, step: int) -> None:
        """Go on where ``checkpoint`` was called, after ``step`` steps, as if nothing had happened in between."""

    def metrics(self) -> dict[str, float]:
        """What only the framework knows at the end of a run, as metrics: ``worker/peak_gpu_memory_mb``, on a GPU."""
        return {}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the framework reports of itself: ``version``, ``device``, ``threads``, ``precision``, build."""
