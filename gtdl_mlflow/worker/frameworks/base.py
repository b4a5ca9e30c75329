"""The interface between the shared procedure and one framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..initialization import Weights
from ..inputs import Batch
from ..job import Precision, Training, WeightDecayOn
from ..layers import Dense, Layer
from ..network import Network, Node
from ..random_streams import framework_seed

Implementation = TypeVar("Implementation")


class Unsupported(Exception):
    """Error for a network or training that a framework cannot run; the message is one line with the layer or key."""


@dataclass(frozen=True)
class Setup:
    """Everything an adapter receives to build and train a network."""

    network: Network
    weights: Weights
    """Initial values of all parameters and state, canonical layout, float32: convolution (out, in, height, width),
    dense (in, out)."""
    masks: Weights
    """0/1 masks (out, in, 1, 1) of the convolutions that read only some input maps, by the name of their weights."""
    training: Training
    device: str
    """``cpu`` or ``gpu``."""
    threads: int
    seed: int
    """Seed of the framework's own random numbers (dropout)."""
    options: dict[str, Any]
    """Options of the execution mode, from ``conf/framework/X.yaml``."""
    precision: Precision = Precision.float32
    """Precision of convolutions and matrix products."""
    deterministic: bool = True
    """Whether runs with the same seed must give bitwise identical results."""

    def step_seed(self, step: int) -> int:
        """Return a seed below 2**31 for one step, for frameworks whose generator state cannot be saved."""
        return framework_seed(self.seed, step)

    def lr_multiplier(self, name: str) -> float:
        """Return the learning-rate multiplier of the parameter ``layer/array``."""
        return self.training.bias_lr_multiplier if name.endswith("/biases") else 1.0

    def weight_decay(self, name: str) -> float:
        """Return the factor by which the value of ``layer/array`` is multiplied before it is added to its gradient."""
        weight_decay_on = self.training.weight_decay_on
        if weight_decay_on is WeightDecayOn.weights:
            applies = not name.endswith(("/biases", "/beta"))
        elif weight_decay_on is WeightDecayOn.hidden_dense_weights:
            dense = [node.layer.name for node in self.network.nodes if isinstance(node.layer, Dense)]
            applies = name in [f"{layer}/weights" for layer in dense[:-1]]
        else:
            applies = True
        return self.training.weight_decay if applies else 0.0


class Adapter(ABC):
    """One network in one framework.

    ``train`` and ``predict`` are timed. They do only the work that the framework needs to train and classify, in its
    fastest idiom, and return after the device has finished. An adapter never shuffles, scores, times or logs.
    """

    layout: str = "NCHW"
    """Memory layout of the images that the adapter takes: NCHW or NHWC. May be set in ``__init__``."""
    label_type: str = "int64"
    """NumPy type of the labels that the adapter takes."""

    @abstractmethod
    def __init__(self, setup: Setup) -> None:
        """Build the network on the device.

        Raises:
            Unsupported: the framework cannot run this network; the message names the layer.
        """

    def compile(self) -> None:  # noqa: B027 (most frameworks have nothing to compile ahead)
        """Compile what can be compiled before the first batch; measured separately (``setup/compile_s``)."""

    def to_native(self, array: np.ndarray) -> Any:
        """Return images (N, ...) in ``layout``, or labels (N,), as the framework's host array, if possible a view.

        ``train`` and ``predict`` receive the result or slices of it: slicing the framework's array can take less time
        than converting every slice of a NumPy array.
        """
        return array

    @abstractmethod
    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        """Do one training step per learning rate, each on the next batch.

        Returns:
            The loss of each step before its update, float32 (steps,).
        """

    @abstractmethod
    def predict(self, batches: Iterable[Any]) -> np.ndarray:
        """Return the logits of all images of all batches with dropout off, float32 (images, classes)."""

    @abstractmethod
    def weights(self) -> Weights:
        """Return copies, in canonical layout, of all state and of the parameters that ``predict`` uses.

        With ``training.ema_decay`` these parameters are the moving average.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model in the framework's native format."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Load what ``save`` wrote."""

    @abstractmethod
    def checkpoint(self, folder: Path) -> None:
        """Write everything the next step depends on: parameters, state, moments, moving average, random state."""

    @abstractmethod
    def restore(self, folder: Path, step: int) -> None:
        """Load what ``checkpoint`` wrote after ``step`` steps; training continues with bitwise identical results."""

    def metrics(self) -> dict[str, float]:
        """Return metrics that only the framework can measure, such as ``worker/peak_gpu_memory_mb``."""
        return {}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return metadata reported by the framework: ``version``, ``device``, ``threads``, ``precision``, build."""


def implementation(
    framework: str, implementations: Mapping[type[Layer], Implementation], layer: Layer
) -> Implementation:
    """Return the entry of a framework's dispatch table for the type of ``layer``.

    Raises:
        Unsupported: the table has no entry for this type.
    """
    try:
        return implementations[type(layer)]
    except KeyError:
        raise Unsupported(
            f"framework={framework} does not implement {type(layer).__name__} (layer {layer.name}): choose another "
            "setting or framework"
        ) from None


def to_channels_last(node: Node, value: np.ndarray) -> np.ndarray:
    """Convert a parameter of ``node`` from the canonical layout to that of a framework with NHWC images.

    Filters become (height, width, in, out). The rows of a dense layer after an image are reordered for an input that is
    flattened with channels fastest.
    """
    if value.ndim == 4:
        return np.ascontiguousarray(value.transpose(2, 3, 1, 0))
    if value.ndim == 2 and len(node.input) == 3:
        return value.reshape(*node.input, -1).transpose(1, 2, 0, 3).reshape(value.shape)
    return value


def from_channels_last(node: Node, value: np.ndarray) -> np.ndarray:
    """Return a copy of a parameter in the canonical layout; the inverse of ``to_channels_last``."""
    if value.ndim == 4:
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1))
    if value.ndim == 2 and len(node.input) == 3:
        channels, height, width = node.input
        return value.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(value.shape)
    return value.copy()
