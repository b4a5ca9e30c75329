"""A network as a functional Keras model; images and outputs are channels_last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from ... import layers
from ...layers import Layer, Pads
from ...network import IMAGES, Network, Node
from ..base import implementation

ARRAYS = {
    "weights": "kernel",
    "biases": "bias",
    "gamma": "gamma",
    "beta": "beta",
    "mean": "moving_mean",
    "variance": "moving_variance",
}
"""Attributes of Keras's layers by the canonical names of the arrays."""


def framework() -> str:
    """Return the name of this framework, such as ``keras_jax``."""
    return f"keras_{keras.backend.backend()}"


def build(network: Network, seed: Callable[[int], int]) -> keras.Model:
    """Return the model; its layers have the names of the network's layers.

    ``seed`` returns the seed of the dropout layer at a position. Layers use the global dtype policy. The logits are
    float32.
    """
    channels, height, width = network.nodes[0].input
    images = keras.Input((height, width, channels))
    outputs = {IMAGES: images}
    for position, node in enumerate(network.nodes):
        inputs = [outputs[source] for source in node.sources]
        outputs[position] = implementation(framework(), LAYERS, node.layer)(node.layer, node, inputs, seed(position))
    logits = keras.layers.Activation("linear", dtype="float32")(outputs[position])
    return keras.Model(images, logits)


def variables(model: keras.Model, network: Network) -> dict[str, keras.Variable]:
    """Return the parameters and the running statistics of a model by their canonical names."""
    return {
        name: getattr(model.get_layer(layer), ARRAYS[array])
        for name in (*network.parameters, *network.state)
        for layer, array in [name.split("/")]
    }


def assign(variable: keras.Variable, value: Any) -> None:
    """Set a variable to a copy of ``value``: with JAX, a step overwrites the memory of the model's variables."""
    variable.assign(ops.copy(value))


class PaddedMaxPooling2D(keras.layers.Layer):
    """Max-pooling whose padding may differ from side to side."""

    def __init__(self, layer: layers.MaxPool, pads: Pads) -> None:
        super().__init__(name=layer.name)
        self._layer, self._padding = layer, ((0, 0), *pads, (0, 0))

    def call(self, inputs: Any) -> Any:
        padded = ops.pad(inputs, self._padding, constant_values=-np.inf)
        return ops.max_pool(padded, self._layer.size, self._layer.stride)


class CountedAveragePooling2D(keras.layers.Layer):
    """Mean of the cells of each window that lie inside the image, with padding that may differ from side to side."""

    def __init__(self, layer: layers.AveragePool, node: Node) -> None:
        super().__init__(name=layer.name)
        self._layer, self._padding = layer, ((0, 0), *node.pads, (0, 0))
        # Number of cells in each window divided by the number inside the image.
        self._share = (layer.size**2 / node.cells)[..., None].astype(np.float32)

    def call(self, inputs: Any) -> Any:
        means = ops.average_pool(ops.pad(inputs, self._padding), self._layer.size, self._layer.stride)
        return means * ops.cast(self._share, means.dtype)


class ChannelNormalization(keras.layers.Layer):
    """Local response normalization; Keras has no such layer."""

    def __init__(self, layer: layers.LocalResponseNormalization, maps: int) -> None:
        super().__init__(name=layer.name)
        self._layer, channels = layer, np.arange(maps)
        self._neighbours = (abs(channels[:, None] - channels) <= layer.radius).astype(np.float32)

    def call(self, inputs: Any) -> Any:
        value = ops.cast(inputs, "float32")
        sums = ops.matmul(ops.square(value), self._neighbours)
        normalized = value * ops.power(self._layer.bias + self._layer.alpha * sums, -self._layer.beta)
        return ops.cast(normalized, inputs.dtype)


class UnbiasedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization whose running variance averages unbiased variances; Keras averages biased ones."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return super().call(inputs, training=False)
        *outer, _ = ops.shape(inputs)
        count = ops.cast(outer[0] * outer[1] * outer[2], "float32")
        factor = count / (count - 1)
        # Keras computes r' = m r + (1 - m) b. With the unbiased c b for b, it is c r' + (1 - c) m r.
        correction = (1 - factor) * self.momentum * self.moving_variance
        outputs = super().call(inputs, training=True)
        self.moving_variance.assign(factor * self.moving_variance + correction)
        return outputs


def _convolution(layer: layers.Convolution, node: Node, inputs: list[Any], seed: int) -> Any:
    value, padding = inputs[0], node.padding_name
    if padding is None:
        value = keras.layers.ZeroPadding2D(node.pads)(value)
    return keras.layers.Conv2D(
        layer.filters,
        layer.kernel,
        strides=layer.stride,
        padding=padding or "valid",
        use_bias=layer.biases is not None,
        name=layer.name,
    )(value)


def _max_pool(layer: layers.MaxPool, node: Node, inputs: list[Any], seed: int) -> Any:
    padding = node.padding_name
    if padding is None:
        return PaddedMaxPooling2D(layer, node.pads)(inputs[0])
    return keras.layers.MaxPooling2D(layer.size, layer.stride, padding, name=layer.name)(inputs[0])


def _average_pool(layer: layers.AveragePool, node: Node, inputs: list[Any], seed: int) -> Any:
    padding = node.padding_name
    # With PyTorch, Keras replicates the border cells if the padding of both sides differs, and the mean includes them.
    repeats_cells = keras.backend.backend() == "torch" and any(before != after for before, after in node.pads)
    if padding is None or repeats_cells:
        return CountedAveragePooling2D(layer, node)(inputs[0])
    return keras.layers.AveragePooling2D(layer.size, layer.stride, padding, name=layer.name)(inputs[0])


def _global_average_pool(layer: layers.GlobalAveragePool, node: Node, inputs: list[Any], seed: int) -> Any:
    if keras.backend.backend() == "jax" and inputs[0].dtype == "bfloat16":
        # On a CPU, XLA of jaxlib 0.12 computed NaN when it fused a mean with preceding bfloat16 operations.
        return keras.layers.AveragePooling2D(node.input[1:], name=layer.name)(inputs[0])
    return keras.layers.GlobalAveragePooling2D(keepdims=True, name=layer.name)(inputs[0])


def _dense(layer: layers.Dense, node: Node, inputs: list[Any], seed: int) -> Any:
    value = keras.layers.Flatten()(inputs[0]) if len(node.input) == 3 else inputs[0]
    return keras.layers.Dense(layer.units, name=layer.name)(value)


def _batch_normalization(layer: layers.BatchNormalization, node: Node, inputs: list[Any], seed: int) -> Any:
    options = {"momentum": layer.momentum, "epsilon": layer.epsilon, "scale": layer.scale}
    return UnbiasedBatchNormalization(**options, name=layer.name)(inputs[0])


LAYERS: dict[type[Layer], Callable[[Any, Node, list[Any], int], Any]] = {
    layers.Convolution: _convolution,
    layers.MaxPool: _max_pool,
    layers.AveragePool: _average_pool,
    layers.GlobalAveragePool: _global_average_pool,
    layers.Dense: _dense,
    layers.Dropout: lambda layer, node, inputs, seed: keras.layers.Dropout(1 - layer.keep, seed=seed, name=layer.name)(
        inputs[0]
    ),
    layers.LocalResponseNormalization: lambda layer, node, inputs, seed: ChannelNormalization(layer, node.input[0])(
        inputs[0]
    ),
    layers.BatchNormalization: _batch_normalization,
    layers.Add: lambda layer, node, inputs, seed: keras.layers.Add(name=layer.name)(inputs),
    layers.Relu: lambda layer, node, inputs, seed: keras.layers.ReLU(name=layer.name)(inputs[0]),
    layers.Tanh: lambda layer, node, inputs, seed: keras.layers.Activation("tanh", name=layer.name)(inputs[0]),
}
"""Functions (layer, node, inputs, seed) that return the symbolic output of a layer."""
