"""Softmax regression in NumPy; runs in the driver's own interpreter, so tests and first runs need no environment."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...initialization import Weights
from ...inputs import Batch
from ...job import Optimizer
from ...layers import Dense
from ..base import Adapter, Setup, Unsupported


class Reference(Adapter):
    """One dense layer and softmax cross-entropy, trained by plain SGD."""

    def __init__(self, setup: Setup) -> None:
        nodes = setup.network.nodes
        first = nodes[0].layer
        if len(nodes) > 1 or not isinstance(first, Dense):
            raise Unsupported(
                f"framework=reference is softmax regression, one dense layer; it cannot run layer {first.name}: choose "
                "setting=reference_mnist or another framework"
            )
        training = setup.training
        if training.optimizer is not Optimizer.sgd:
            raise Unsupported(
                f"training.optimizer={training.optimizer.value}: framework=reference has sgd only: choose that or "
                "another framework"
            )
        for name in ("momentum", "weight_decay", "ema_decay"):
            if value := getattr(training, name):
                raise Unsupported(
                    f"training.{name}={value:g}: framework=reference has none: choose "
                    "setting=reference_mnist or another framework"
                )
        self._name = first.name
        self._weights = setup.weights[f"{self._name}/weights"].copy()
        self._biases = setup.weights[f"{self._name}/biases"].copy()
        self._bias_lr_multiplier = training.bias_lr_multiplier

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        losses = []
        for rate, (images, labels) in zip(rates, batches, strict=False):
            inputs = images.reshape(len(images), -1)
            logits = self._logits(images)
            logits -= logits.max(axis=1, keepdims=True)
            rows = np.arange(len(labels))
            exponents = np.exp(logits)
            sums = exponents.sum(axis=1)
            losses.append(np.mean(np.log(sums) - logits[rows, labels]))
            gradient = exponents / sums[:, None]
            gradient[rows, labels] -= 1
            gradient /= len(labels)
            self._weights -= np.float32(rate) * (inputs.T @ gradient)
            self._biases -= np.float32(rate * self._bias_lr_multiplier) * gradient.sum(axis=0)
        return np.array(losses, np.float32)

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([self._logits(images) for images in batches])

    def _logits(self, images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = images.reshape(len(images), -1) @ self._weights + self._biases
        return logits

    def weights(self) -> Weights:
        return {f"{self._name}/weights": self._weights.copy(), f"{self._name}/biases": self._biases.copy()}

    def save(self, folder: Path) -> None:
        np.savez(folder / "weights.npz", weights=self._weights, biases=self._biases)

    def load(self, folder: Path) -> None:
        with np.load(folder / "weights.npz") as saved:
            self._weights, self._biases = saved["weights"], saved["biases"]

    def checkpoint(self, folder: Path) -> None:
        self.save(folder)  # plain SGD has no other state

    def restore(self, folder: Path, step: int) -> None:
        self.load(folder)

    def describe(self) -> dict[str, Any]:
        # NumPy has no function that returns the number of threads. NumPy's BLAS reads this variable when it is loaded.
        threads = os.environ.get("OPENBLAS_NUM_THREADS")
        return {
            **({"threads": int(threads)} if threads else {}),
            "version": np.__version__,
            "device": "cpu",
            "precision": str(self._weights.dtype),
            "python": platform.python_version(),
        }
