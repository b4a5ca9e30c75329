"""Keras adapter for its three backends: a compiled functional model, train_on_batch and predict_on_batch."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ...initialization import Weights
from ...inputs import Batch
from ...job import Precision
from ..base import Adapter, Setup, from_channels_last, to_channels_last
from . import network, optimizers

backend = importlib.import_module(f".on_{keras.backend.backend()}", __package__)
"""Module of Keras's backend; the environment variable KERAS_BACKEND selects the backend."""


class Keras(Adapter):
    """Network in Keras.

    Options: ``jit_compile`` (of ``Model.compile``).
    """

    layout = "NHWC"
    label_type = "int32"

    def __init__(self, setup: Setup) -> None:
        backend.configure(setup)
        keras.config.set_dtype_policy("mixed_bfloat16" if setup.precision is Precision.bfloat16 else "float32")
        self._setup = setup
        self._nodes = {f"{node.layer.name}/{array}": node for node in setup.network.nodes for array in node.parameters}
        self._model = network.build(setup.network, setup.step_seed)
        self._variables = network.variables(self._model, setup.network)
        for name, value in setup.weights.items():
            converted = to_channels_last(self._nodes[name], value) if name in self._nodes else value
            network.assign(self._variables[name], converted)
        self._optimizer = optimizers.create(setup, self._model, self._variables)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self._model.compile(self._optimizer, loss, jit_compile=setup.options["jit_compile"])
        self._evaluated = self._model
        if self._optimizer.averages:
            self._evaluated = network.build(setup.network, setup.step_seed)
            self._evaluated.compile(jit_compile=setup.options["jit_compile"])
        self._evaluated_variables = network.variables(self._evaluated, setup.network)
        self._update_evaluated()
        self._synchronize()

    def compile(self) -> None:
        # Keras traces and compiles in the first step. Afterwards the initial state is restored.
        training, before = self._setup.training, self._training_state()
        channels, height, width = self._setup.network.nodes[0].input
        images, tested = (
            np.zeros((size, height, width, channels), np.float32)
            for size in (training.batch_size, training.test_batch_size)
        )
        self.train([(images, np.zeros(len(images), self.label_type))], [0.0])
        self.predict([tested])
        self._load_training_state(before)

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        losses = []
        # The rates come first, so that zip does not consume an unused batch.
        for rate, (images, labels) in zip(rates, batches, strict=False):
            self._optimizer.learning_rate = rate
            losses.append(self._model.train_on_batch(images, labels))
        self._update_evaluated()
        self._synchronize()
        return np.array(losses, np.float32)

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        # XLA compiles for each batch size, so a smaller batch is padded to the largest size so far.
        size, outputs = 0, []
        for images in batches:
            count, size = len(images), max(len(images), size)
            if count < size:
                images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), np.float32)])
            outputs.append(self._evaluated.predict_on_batch(images)[:count])
        self._synchronize()
        return np.concatenate(outputs)

    def weights(self) -> Weights:
        values = {name: _to_numpy(variable) for name, variable in self._evaluated_variables.items()}
        return {
            name: from_channels_last(self._nodes[name], value) if name in self._nodes else value.copy()
            for name, value in values.items()
        }

    def save(self, folder: Path) -> None:
        self._evaluated.save_weights(folder / "model.weights.h5")

    def load(self, folder: Path) -> None:
        self._evaluated.load_weights(folder / "model.weights.h5")
        self._synchronize()

    def checkpoint(self, folder: Path) -> None:
        np.savez(folder / "training.npz", *self._training_state())

    def restore(self, folder: Path, step: int) -> None:
        with np.load(folder / "training.npz") as saved:
            self._load_training_state([saved[f"arr_{number}"] for number in range(len(saved.files))])

    def metrics(self) -> dict[str, float]:
        if self._setup.device == "cpu":
            return {}
        return {"worker/peak_gpu_memory_mb": backend.peak_memory_mb()}

    def describe(self) -> dict[str, Any]:
        return {
            "version": keras.__version__,
            "backend": keras.backend.backend(),
            **backend.describe(next(iter(self._variables.values()))),
            "precision": self._setup.precision.value,
            "dtype_policy": keras.config.dtype_policy().name,
            "image_data_format": keras.config.image_data_format(),
            "jit_compile": self._model.jit_compile,
        }

    def _synchronize(self) -> None:
        """Wait for the device, which computes asynchronously; called before a time measurement starts or ends."""
        backend.synchronize(self._setup, self._model.variables)

    def _update_evaluated(self) -> None:
        """Copy the moving averages and the running statistics to the evaluated model if it is a separate model."""
        if self._evaluated is self._model:
            return
        averages = self._optimizer.averages
        for name, variable in self._evaluated_variables.items():
            network.assign(variable, averages.get(name, self._variables[name]))

    # The training state includes the state of dropout's random generators, which are variables of the Keras model.

    def _training_variables(self) -> list[keras.Variable]:
        return [*self._model.variables, *self._optimizer.variables]

    def _training_state(self) -> list[np.ndarray]:
        return [_to_numpy(variable).copy() for variable in self._training_variables()]

    def _load_training_state(self, values: list[np.ndarray]) -> None:
        for variable, value in zip(self._training_variables(), values, strict=True):
            network.assign(variable, value)
        self._update_evaluated()
        self._synchronize()


def _to_numpy(variable: keras.Variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))
