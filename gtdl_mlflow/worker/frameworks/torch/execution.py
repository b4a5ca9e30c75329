"""The interface between the adapter and an execution mode, eager or compiled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .network import TorchNetwork


@dataclass(frozen=True)
class Networks:
    """Trained network, evaluated network, and gradient masks of the trained network."""

    trained: TorchNetwork
    """Always in training mode."""
    evaluated: TorchNetwork
    """Always in evaluation mode. It shares its state with ``trained``, and its parameters unless they are averaged."""
    is_averaged: bool
    """Whether the parameters of ``evaluated`` are the moving average of those of ``trained``."""
    masks: dict[Tensor, Tensor]
    """Gradient masks, by parameter of ``trained``."""


class Execution(ABC):
    """Execution mode: runs training steps, classifies images and holds the optimizer's state."""

    @abstractmethod
    def train(self, batches: Iterable[tuple[Tensor, Tensor]], rates: list[float]) -> list[Tensor]:
        """Do one training step per learning rate and return the losses; the device may still be computing."""

    @abstractmethod
    def classify(self, images: Tensor) -> Tensor:
        """Return the logits of a batch, float32. They are valid until the next call."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Load what ``state_dict`` returned after ``step`` steps."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return metadata of the optimizer and the compiler."""
