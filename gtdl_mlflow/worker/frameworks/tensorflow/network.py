"""A network's forward pass as TensorFlow operations; images and outputs are NHWC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from ... import layers
from ...layers import Layer, Pads
from ...network import IMAGES, Network, Node
from ..base import implementation


@dataclass(frozen=True)
class TensorFlowForward:
    """Data shared by all layers of one forward pass."""

    network: Network
    parameters: dict[str, tf.Tensor]
    """Values of the parameters, by canonical name: float32 for batch normalization, else ``compute_type``."""
    statistics: dict[str, tf.Variable]
    """Running statistics, by canonical name."""
    compute_type: tf.DType
    """Type of the layers' inputs and outputs."""
    seed: tf.Tensor | None
    """Seed of dropout and number of the training step, int64 (2,); None in inference, which skips dropout and uses the
    running statistics.
    """


def logits(images: tf.Tensor, forward: TensorFlowForward) -> tf.Tensor:
    """Return the logits, float32, of one batch of images."""
    outputs = {IMAGES: tf.cast(images, forward.compute_type)}
    for position, node in enumerate(forward.network.nodes):
        inputs = [outputs[source] for source in node.sources]
        outputs[position] = implementation("tensorflow", LAYERS, node.layer)(node.layer, node, inputs, forward)
    return tf.cast(outputs[position], tf.float32)


def _convolution(
    layer: layers.Convolution, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward
) -> tf.Tensor:
    weights = forward.parameters[f"{layer.name}/weights"]
    padding = _named_padding(node) or _explicit_padding(node.pads)
    value = tf.nn.conv2d(inputs[0], weights, layer.stride, padding)
    return value if layer.biases is None else tf.nn.bias_add(value, forward.parameters[f"{layer.name}/biases"])


def _max_pool(layer: layers.MaxPool, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward) -> tf.Tensor:
    value, padding = inputs[0], _named_padding(node)
    if padding is None:
        value = tf.pad(value, _explicit_padding(node.pads), constant_values=value.dtype.min)
    return tf.nn.max_pool2d(value, layer.size, layer.stride, padding or "VALID")


def _average_pool(
    layer: layers.AveragePool, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward
) -> tf.Tensor:
    padding = _named_padding(node)
    if padding is not None:  # SAME excludes padding from the mean
        return tf.nn.avg_pool2d(inputs[0], layer.size, layer.stride, padding)
    value = tf.pad(inputs[0], _explicit_padding(node.pads))
    # Number of cells in each window divided by the number inside the image.
    share = tf.constant((layer.size**2 / node.cells)[..., None], value.dtype)
    return tf.nn.avg_pool2d(value, layer.size, layer.stride, "VALID") * share


def _global_average_pool(
    layer: layers.GlobalAveragePool, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward
) -> tf.Tensor:
    return tf.reduce_mean(inputs[0], (1, 2), keepdims=True)


def _dense(layer: layers.Dense, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward) -> tf.Tensor:
    value = tf.reshape(inputs[0], (-1, int(np.prod(node.input))))
    product = tf.matmul(value, forward.parameters[f"{layer.name}/weights"])
    return tf.nn.bias_add(product, forward.parameters[f"{layer.name}/biases"])


def _dropout(layer: layers.Dropout, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward) -> tf.Tensor:
    if forward.seed is None or layer.keep == 1:
        return inputs[0]
    seed = forward.seed * [1, 1000] + [0, forward.network.nodes.index(node)]
    # TensorFlow uses this algorithm by default without XLA. With XLA's default, a step of tensorflow_mnist takes 1.35
    # times as long.
    return tf.nn.experimental.stateless_dropout(inputs[0], 1 - layer.keep, seed, rng_alg="philox")


def _local_response_normalization(
    layer: layers.LocalResponseNormalization, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward
) -> tf.Tensor:
    value = tf.cast(inputs[0], tf.float32)  # TensorFlow has no kernel for bfloat16
    normalized = tf.nn.local_response_normalization(value, layer.radius, layer.bias, layer.alpha, layer.beta)
    return tf.cast(normalized, inputs[0].dtype)


def _batch_normalization(
    layer: layers.BatchNormalization, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward
) -> tf.Tensor:
    beta = forward.parameters[f"{layer.name}/beta"]
    gamma = forward.parameters[f"{layer.name}/gamma"] if layer.scale else tf.ones_like(beta)
    mean, variance = (forward.statistics[f"{layer.name}/{name}"] for name in ("mean", "variance"))
    operands = {"x": inputs[0], "scale": gamma, "offset": beta, "epsilon": layer.epsilon}
    if forward.seed is None:
        return tf.raw_ops.FusedBatchNormV3(**operands, mean=mean, variance=variance, is_training=False).y
    # In training the operation takes no statistics and returns the batch's mean and unbiased variance.
    normalized = tf.raw_ops.FusedBatchNormV3(**operands, mean=[], variance=[], is_training=True)
    for running, of_batch in ((mean, normalized.batch_mean), (variance, normalized.batch_variance)):
        running.assign_sub((1 - layer.momentum) * (running - of_batch))
    return normalized.y


def _add(layer: layers.Add, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward) -> tf.Tensor:
    return inputs[0] + inputs[1]


def _relu(layer: layers.Relu, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward) -> tf.Tensor:
    return tf.nn.relu(inputs[0])


def _tanh(layer: layers.Tanh, node: Node, inputs: list[tf.Tensor], forward: TensorFlowForward) -> tf.Tensor:
    return tf.tanh(inputs[0])


LAYERS: dict[type[Layer], Callable[[Any, Node, list[tf.Tensor], TensorFlowForward], tf.Tensor]] = {
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


def _explicit_padding(pads: Pads) -> list[list[int]]:
    return [[0, 0], *map(list, pads), [0, 0]]


def _named_padding(node: Node) -> str | None:
    """Return TensorFlow's name for the padding of a layer, or None."""
    return node.padding_name.upper() if node.padding_name else None
