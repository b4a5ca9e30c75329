"""A network's forward pass as JAX operations; images and outputs are NHWC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ... import layers
from ...layers import Layer, Pads
from ...network import IMAGES, Network, Node
from ..base import implementation


@dataclass(frozen=True)
class JaxForward:
    """Data shared by all layers of one forward pass."""

    network: Network
    parameters: dict[str, Array]
    """Values of the parameters, by canonical name: float32 for batch normalization, else ``compute_type``."""
    statistics: dict[str, Array]
    """Running statistics before this pass, by canonical name."""
    compute_type: Any
    """Type of the layers' inputs and outputs."""
    key: Array | None = None
    """Seed and step as a random key; None in inference, which skips dropout and uses the running statistics."""
    new_statistics: dict[str, Array] = field(default_factory=dict)
    """Running statistics after this pass, by canonical name; filled by batch normalization in training."""


def logits(images: Array, forward: JaxForward) -> Array:
    """Return the logits, float32, of one batch of images."""
    outputs = {IMAGES: images.astype(forward.compute_type)}
    for position, node in enumerate(forward.network.nodes):
        inputs = [outputs[source] for source in node.sources]
        outputs[position] = implementation("jax", LAYERS, node.layer)(node.layer, node, inputs, forward)
    return outputs[position].astype(jnp.float32)


def _convolution(layer: layers.Convolution, node: Node, inputs: list[Array], forward: JaxForward) -> Array:
    value = lax.conv_general_dilated(
        inputs[0],
        forward.parameters[f"{layer.name}/weights"],
        (layer.stride, layer.stride),
        node.pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return value if layer.biases is None else value + forward.parameters[f"{layer.name}/biases"]


def _max_pool(layer: layers.MaxPool, node: Node, inputs: list[Array], forward: JaxForward) -> Array:
    padded = jnp.pad(inputs[0], _explicit_padding(node.pads), constant_values=-np.inf)
    return _padded_max_pool(padded, layer.size, layer.stride)


# On a CPU, the gradient of lax.reduce_window takes 15 to 20 times as long as this one: 6.6 instead of 0.45 ms for
# 64 x 24 x 24 x 20 values and windows of 2 x 2, 74 instead of 3.8 ms for 100 x 33 x 33 x 32 values and overlapping
# windows of 3 x 3.


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _padded_max_pool(value: Array, size: int, stride: int) -> Array:
    return reduce(jnp.maximum, _cells(value, size, stride))


def _max_pool_forward(value: Array, size: int, stride: int) -> tuple[Array, tuple[Array, Array]]:
    largest = _padded_max_pool(value, size, stride)
    return largest, (value, largest)


def _max_pool_backward(size: int, stride: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    """Return the gradient of the input. Equal maxima of a window receive equal parts of its gradient.

    Cells whose row and column are the same modulo the stride form one array. The gradient of each array is a sum over
    the windows that cover its cells, so that no scatter is necessary.
    """
    value, largest = saved
    count, height, width, channels = value.shape
    gradient /= sum((cell == largest).astype(gradient.dtype) for cell in _cells(value, size, stride))
    rows, columns = -(-height // stride), -(-width // stride)
    before = (size - 1) // stride  # number of earlier windows that cover a cell
    after = (rows - largest.shape[1], columns - largest.shape[2])
    around = ((0, 0), *((before, missing) for missing in after), (0, 0))
    largest, gradient = jnp.pad(largest, around), jnp.pad(gradient, around)
    value = jnp.pad(value, ((0, 0), (0, rows * stride - height), (0, columns * stride - width), (0, 0)))

    def place(row: int, column: int) -> Array:
        cell = value[:, row::stride, column::stride]
        result = jnp.zeros_like(cell)
        for i in range(row, size, stride):
            for j in range(column, size, stride):
                top, left = before - i // stride, before - j // stride
                window = np.s_[:, top : top + rows, left : left + columns]
                result += jnp.where(cell == largest[window], gradient[window], 0)
        return result

    places = [jnp.stack([place(row, column) for column in range(stride)], 3) for row in range(stride)]
    whole = jnp.stack(places, 2).reshape(count, rows * stride, columns * stride, channels)
    return (whole[:, :height, :width],)


_padded_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _average_pool(layer: layers.AveragePool, node: Node, inputs: list[Array], forward: JaxForward) -> Array:
    # The gradient of lax.reduce_window takes 15 times as long as that of slices.
    total = sum(_cells(jnp.pad(inputs[0], _explicit_padding(node.pads)), layer.size, layer.stride))
    return total / jnp.asarray(node.cells[..., None], inputs[0].dtype)


def _global_average_pool(
    layer: layers.GlobalAveragePool, node: Node, inputs: list[Array], forward: JaxForward
) -> Array:
    # On a CPU, XLA of jaxlib 0.12 computed NaN when it fused this mean with preceding bfloat16 operations.
    return lax.optimization_barrier(inputs[0]).mean((1, 2), keepdims=True)


def _dense(layer: layers.Dense, node: Node, inputs: list[Array], forward: JaxForward) -> Array:
    value = inputs[0].reshape(len(inputs[0]), -1)
    return value @ forward.parameters[f"{layer.name}/weights"] + forward.parameters[f"{layer.name}/biases"]


def _dropout(layer: layers.Dropout, node: Node, inputs: list[Array], forward: JaxForward) -> Array:
    if forward.key is None or layer.keep == 1:
        return inputs[0]
    key = jax.random.fold_in(forward.key, forward.network.nodes.index(node))
    return jnp.where(jax.random.bernoulli(key, layer.keep, inputs[0].shape), inputs[0] / layer.keep, 0)


def _local_response_normalization(
    layer: layers.LocalResponseNormalization, node: Node, inputs: list[Array], forward: JaxForward
) -> Array:
    value, channels = inputs[0].astype(jnp.float32), np.arange(node.input[0])
    neighbours = (abs(channels[:, None] - channels) <= layer.radius).astype(np.float32)
    sums = jnp.matmul(jnp.square(value), neighbours, precision=lax.Precision.HIGHEST)
    return (value * (layer.bias + layer.alpha * sums) ** -layer.beta).astype(inputs[0].dtype)


def _batch_normalization(
    layer: layers.BatchNormalization, node: Node, inputs: list[Array], forward: JaxForward
) -> Array:
    value = inputs[0].astype(jnp.float32)
    mean, variance = (forward.statistics[f"{layer.name}/{name}"] for name in ("mean", "variance"))
    if forward.key is not None:
        count = value.size // value.shape[-1]
        running = {"mean": mean, "variance": variance}
        mean, variance = value.mean((0, 1, 2)), value.var((0, 1, 2))
        of_batch = {"mean": mean, "variance": variance * (count / (count - 1))}
        for name, before in running.items():
            after = layer.momentum * before + (1 - layer.momentum) * of_batch[name]
            forward.new_statistics[f"{layer.name}/{name}"] = after
    factor = lax.rsqrt(variance + layer.epsilon)
    if layer.scale:
        factor *= forward.parameters[f"{layer.name}/gamma"]
    return ((value - mean) * factor + forward.parameters[f"{layer.name}/beta"]).astype(inputs[0].dtype)


def _add(layer: layers.Add, node: Node, inputs: list[Array], forward: JaxForward) -> Array:
    return inputs[0] + inputs[1]


def _relu(layer: layers.Relu, node: Node, inputs: list[Array], forward: JaxForward) -> Array:
    return jax.nn.relu(inputs[0])


def _tanh(layer: layers.Tanh, node: Node, inputs: list[Array], forward: JaxForward) -> Array:
    return jnp.tanh(inputs[0])


LAYERS: dict[type[Layer], Callable[[Any, Node, list[Array], JaxForward], Array]] = {
    layers.Convolution: _convolution,
    layers.MaxPool: _max_pool,
    layers.AveragePool: _average_pool,
    layers.GlobalAveragePool: _global_average_pool,
    layers.Dense: _dense,
    layers.Dropout: _dropout,
    layers.LocalResponseNormalization: _local_response_normalization,
    layers.BatchNormalization: _batch_normalization,
    layers.Add: _add,
    layers.Relu: _relu,
    layers.Tanh: _tanh,
}
"""Functions (layer, node, inputs, forward pass) that return the output of a layer."""


def _explicit_padding(pads: Pads) -> tuple[tuple[int, int], ...]:
    return ((0, 0), *pads, (0, 0))


def _cells(value: Array, size: int, stride: int) -> Iterator[Array]:
    """Yield, for each position in a window, its cell in all windows: (images, windows, windows, channels)."""
    lasts = [(length - size) // stride * stride + 1 for length in value.shape[1:3]]
    for row in range(size):
        for column in range(size):
            yield value[:, row : row + lasts[0] : stride, column : column + lasts[1] : stride]
