"""Keras models of default networks, as a Keras user would write them: the baseline of native_speed.py.

They do not use gtdl_mlflow. KERAS_BACKEND selects the backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from trainings import TRAININGS, Optimizer

Run = Callable[[int], None]

MODES = ("eager", "graph", "jit_compile")


class InverseDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Caffe's schedule ``inv``."""

    def __init__(self, training: Optimizer) -> None:
        self.training = training

    def __call__(self, step: Any) -> Any:
        return self.training.rate * (1 + self.training.gamma * ops.cast(step, "float32")) ** -self.training.power

    def get_config(self) -> dict[str, Any]:
        return {"training": self.training}


def tensorflow_mnist(regularizer: Any) -> list[Any]:
    return [
        layers.Conv2D(32, 5, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(64, 5, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(1024, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(10),
    ]


def caffe_mnist(regularizer: Any) -> list[Any]:
    decay = {"kernel_regularizer": regularizer, "bias_regularizer": regularizer}
    return [
        layers.Conv2D(20, 5, **decay),
        layers.MaxPooling2D(2),
        layers.Conv2D(50, 5, **decay),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(500, activation="relu", **decay),
        layers.Dense(10, **decay),
    ]


def torch_mnist(regularizer: Any) -> list[Any]:
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return [
        layers.Conv2D(32, 5, activation="tanh"),
        layers.Lambda(lambda x: ops.pad(x, pads, constant_values=-np.inf)),
        layers.MaxPooling2D(3),
        layers.Conv2D(64, 5, activation="tanh"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(200, activation="tanh"),
        layers.Dense(10),
    ]


def torch_cifar10(regularizer: Any) -> list[Any]:
    return [
        layers.Conv2D(16, 5, activation="tanh"),
        layers.MaxPooling2D(2),
        layers.Conv2D(256, 5, activation="tanh"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(128, activation="tanh"),
        layers.Dense(10),
    ]


def caffe_cifar10(regularizer: Any) -> list[Any]:
    decay = {"kernel_regularizer": regularizer, "bias_regularizer": regularizer}
    return [
        layers.Conv2D(32, 5, padding="same", **decay),
        layers.MaxPooling2D(3, 2, "same"),
        layers.ReLU(),
        layers.Conv2D(32, 5, padding="same", activation="relu", **decay),
        layers.AveragePooling2D(3, 2, "same"),
        layers.Conv2D(64, 5, padding="same", activation="relu", **decay),
        layers.AveragePooling2D(3, 2, "same"),
        layers.Flatten(),
        layers.Dense(64, **decay),
        layers.Dense(10, **decay),
    ]


NETWORKS: dict[str, Callable[[Any], list[Any]]] = {
    "tensorflow_mnist": tensorflow_mnist,
    "caffe_mnist": caffe_mnist,
    "torch_mnist": torch_mnist,
    "caffe_cifar10": caffe_cifar10,
    "torch_cifar10": torch_cifar10,
}
"""Layers of each network."""


def create_optimizer(training: Optimizer, masks: dict[int, np.ndarray]) -> Any:
    """Return the optimizer; ``masks`` are those of gradients, by the position of the parameter."""
    if training.adam:
        return keras.optimizers.Adam(training.rate)
    rate = InverseDecay(training) if training.gamma else training.rate
    plain = keras.optimizers.SGD(rate, momentum=training.momentum)
    if training.biases == 1 and not masks:
        return plain

    class WithFactors(type(plain)):  # type: ignore[misc]
        """SGD with a larger rate of the biases, and with weights that do not learn."""

        def apply(self, grads: Any, trainable_variables: Any = None) -> None:
            grads = [gradient * training.biases if len(gradient.shape) == 1 else gradient for gradient in grads]
            for position, mask in masks.items():
                grads[position] = grads[position] * ops.convert_to_tensor(mask)
            super().apply(grads, trainable_variables)

    return WithFactors(rate, momentum=training.momentum)


def set_threads(threads: int) -> None:
    """Set the number of threads of the backend, before it computes."""
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(threads)
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    else:
        os.environ["NPROC"] = str(threads)


def set_start(model: Any, folder: Path) -> dict[int, np.ndarray]:
    """Set the initial weights and return the masks of gradients, by the position of the parameter."""
    values, masks = [], {}
    with np.load(folder / "start.npz") as saved:
        for name in (name.removesuffix("/weights") for name in saved if name.endswith("/weights")):
            weights = saved[f"{name}/weights"]
            if f"{name}/weights mask" in saved:
                masks[len(values)] = saved[f"{name}/weights mask"].transpose(2, 3, 1, 0)
            values += [weights.transpose(2, 3, 1, 0) if weights.ndim == 4 else weights, saved[f"{name}/biases"]]
    model.set_weights(values)
    return masks


def loop(name: str, folder: Path, threads: int, test_batch: int, mode: str) -> tuple[Run, Run, int]:
    """Return the training and testing of a network, and its batch size.

    The first does a number of further steps, the second classifies a number of images.
    """
    set_threads(threads)
    create, (training, batch) = NETWORKS[name], TRAININGS[name]
    images, labels = np.load(folder / "train_preprocessed.npy"), np.load(folder / "train_labels.npy").astype(np.int32)
    test_images = np.load(folder / "test_preprocessed.npy")
    # The derivative of L2(f) is 2 f times the value.
    regularizer = keras.regularizers.L2(training.decay / 2) if training.decay else None
    model = keras.Sequential([keras.Input(images.shape[1:]), *create(regularizer)])
    masks = set_start(model, folder)
    model.compile(
        create_optimizer(training, masks),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=mode == "jit_compile",
    )
    done = 0

    def train(count: int) -> None:
        nonlocal done
        largest = len(images) // batch
        while count:
            at = done % largest
            steps = min(count, largest - at)
            part = slice(at * batch, (at + steps) * batch)
            model.fit(images[part], labels[part], batch_size=batch, shuffle=False, verbose=0)
            done += steps
            count -= steps

    def test(count: int) -> None:
        model.predict(test_images[:count], batch_size=test_batch, verbose=0)

    return train, test, batch
