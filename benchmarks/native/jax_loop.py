"""Hand-written JAX loops of default networks, as an expert would write them: the baseline of native_speed.py.

They do not use gtdl_mlflow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from trainings import TRAININGS

Run = Callable[[int], None]


def convolution(x: Array, weights: Array, biases: Array, padding: str = "VALID") -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, weights, (1, 1), padding, dimension_numbers=numbers) + biases


def dense(x: Array, weights: Array, biases: Array) -> Array:
    return x.reshape(len(x), -1) @ weights + biases


def cells(x: Array, size: int, stride: int) -> list[Array]:
    """Return the first cell of all windows, the second one, and so on: pooling without lax.reduce_window.

    The gradient of lax.reduce_window is slow on a CPU.
    """
    end = (x.shape[1] - size) // stride * stride + 1
    return [x[:, i : i + end : stride, j : j + end : stride] for i in range(size) for j in range(size)]


def max_pool(x: Array, size: int, stride: int, before: int = 0, after: int = 0) -> Array:
    pads = ((0, 0), (before, after), (before, after), (0, 0))
    return reduce(jnp.maximum, cells(jnp.pad(x, pads, constant_values=-np.inf), size, stride))


def average_pool(x: Array) -> Array:
    """Return the means of windows of 3 x 3 with a stride of 2, the last of which overhang by one cell."""
    inside = np.full(x.shape[1] // 2, 3)
    inside[-1] = 2
    pads = ((0, 0), (0, 1), (0, 1), (0, 0))
    return sum(cells(jnp.pad(x, pads), 3, 2)) / np.outer(inside, inside)[..., None].astype(np.float32)


def tensorflow_mnist(p: list[Any], x: Array, key: Array | None) -> Array:
    x = max_pool(jax.nn.relu(convolution(x, *p[0], "SAME")), 2, 2)
    x = max_pool(jax.nn.relu(convolution(x, *p[1], "SAME")), 2, 2)
    x = jax.nn.relu(dense(x, *p[2]))
    if key is not None:
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0)
    return dense(x, *p[3])


def caffe_mnist(p: list[Any], x: Array, key: Array | None) -> Array:
    x = max_pool(convolution(max_pool(convolution(x, *p[0]), 2, 2), *p[1]), 2, 2)
    return dense(jax.nn.relu(dense(x, *p[2])), *p[3])


def torch_mnist(p: list[Any], x: Array, key: Array | None) -> Array:
    x = max_pool(jnp.tanh(convolution(x, *p[0])), 3, 3, 1, 1)
    x = max_pool(jnp.tanh(convolution(x, *p[1])), 2, 2)
    return dense(jnp.tanh(dense(x, *p[2])), *p[3])


def torch_cifar10(p: list[Any], x: Array, key: Array | None) -> Array:
    x = max_pool(jnp.tanh(convolution(x, *p[0])), 2, 2)
    x = max_pool(jnp.tanh(convolution(x, *p[1])), 2, 2)
    return dense(jnp.tanh(dense(x, *p[2])), *p[3])


def caffe_cifar10(p: list[Any], x: Array, key: Array | None) -> Array:
    x = jax.nn.relu(max_pool(convolution(x, *p[0], "SAME"), 3, 2, after=1))
    x = average_pool(jax.nn.relu(convolution(x, *p[1], "SAME")))
    x = average_pool(jax.nn.relu(convolution(x, *p[2], "SAME")))
    return dense(dense(x, *p[3]), *p[4])


NETWORKS: dict[str, Any] = {
    "tensorflow_mnist": tensorflow_mnist,
    "caffe_mnist": caffe_mnist,
    "torch_mnist": torch_mnist,
    "caffe_cifar10": caffe_cifar10,
    "torch_cifar10": torch_cifar10,
}
"""Forward pass of each network."""


def start(folder: Path) -> tuple[list[Any], list[Any]]:
    """Return the initial [weights, biases] of each layer, and the masks of weights of which only some learn, or 1."""
    with np.load(folder / "start.npz") as saved:
        layers = [name.removesuffix("/weights") for name in saved if name.endswith("/weights")]
        parameters, masks = [], []
        for layer in layers:
            weights, mask = saved[f"{layer}/weights"], saved.get(f"{layer}/weights mask", np.float32(1))
            is_convolution = weights.ndim == 4
            parameters.append(
                [
                    jnp.array(weights.transpose(2, 3, 1, 0) if is_convolution else weights),
                    jnp.array(saved[f"{layer}/biases"]),
                ]
            )
            masks.append([jnp.array(mask.transpose(2, 3, 1, 0) if mask.ndim else mask), jnp.float32(1)])
    return parameters, masks


def loop(name: str, folder: Path, threads: int, test_batch: int) -> tuple[Run, Run, int]:
    """Return the training and testing of a network, and its batch size.

    The first does a number of further steps, the second classifies a number of images.
    """
    os.environ["NPROC"] = str(threads)  # the size of XLA's thread pools; read when JAX first uses a device
    jax.config.update("jax_platforms", "cpu")
    forward, (optimizer, batch) = NETWORKS[name], TRAININGS[name]
    parameters, masks = start(folder)
    rates = [[optimizer.rate, optimizer.rate * optimizer.biases] for _ in parameters]
    moments = jax.tree.map(lambda p: [jnp.zeros_like(p), jnp.zeros_like(p)], parameters)

    def update(p: Array, g: Array, moments: list[Array], mask: Array, rate: float, step: Array) -> Any:
        g = g * mask
        if optimizer.adam:
            m = 0.9 * moments[0] + 0.1 * g
            v = 0.999 * moments[1] + 0.001 * g * g
            done = step + 1.0
            return p - rate * (m / (1 - 0.9**done)) / (jnp.sqrt(v / (1 - 0.999**done)) + 1e-8), [m, v]
        now = rate * (1 + optimizer.gamma * step) ** -optimizer.power if optimizer.gamma else rate
        change = optimizer.momentum * moments[0] + now * (g + optimizer.decay * p)
        return p - change, [change, moments[1]] if optimizer.momentum else moments

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, x: Array, y: Array, step: int) -> tuple[Any, Array]:
        parameters, moments = state

        def loss(parameters: list[Any]) -> Array:
            logits = forward(parameters, x, jax.random.fold_in(jax.random.key(0), step))
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

        value, gradients = jax.value_and_grad(loss)(parameters)
        after = [
            [update(*arguments, step) for arguments in zip(*layer, strict=True)]
            for layer in zip(parameters, gradients, moments, masks, rates, strict=True)
        ]
        return ([[p for p, _ in layer] for layer in after], [[m for _, m in layer] for layer in after]), value

    @jax.jit
    def classify(parameters: list[Any], x: Array) -> Array:
        return forward(parameters, x, None)

    images, labels = np.load(folder / "train_preprocessed.npy"), np.load(folder / "train_labels.npy").astype(np.int32)
    test_images = np.load(folder / "test_preprocessed.npy")
    state, done = (parameters, moments), 0

    def train(count: int) -> None:
        nonlocal state, done
        for step in range(done, done + count):
            first = step * batch % (len(images) - batch)
            state, _ = train_step(state, images[first : first + batch], labels[first : first + batch], step)
        done += count
        jax.block_until_ready(state)

    def test(count: int) -> None:
        starts = range(0, count, test_batch)
        np.concatenate(jax.device_get([classify(state[0], test_images[at : at + test_batch]) for at in starts]))

    return train, test, batch
