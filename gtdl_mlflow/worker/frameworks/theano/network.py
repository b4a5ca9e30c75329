"""A network's layers as Theano expressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from theano import tensor
from theano.sandbox.rng_mrg import MRG_RandomStream
from theano.tensor.nnet import conv2d
from theano.tensor.nnet.bn import batch_normalization_test, batch_normalization_train
from theano.tensor.signal.pool import Pool, pool_2d

from ... import layers
from ...layers import Layer
from ...network import IMAGES, Network, Node
from ..base import Unsupported, implementation

SMALLEST_EPSILON = 1e-5
"""Smallest epsilon of batch normalization that Theano accepts; cuDNN's limit."""

Symbol = Any
"""A variable of Theano's graph; Theano has no type annotations."""


@dataclass
class TheanoForward:
    """Data shared by all layers of one forward pass."""

    values: dict[str, Symbol]
    """Parameters and running statistics, by canonical name."""
    random: MRG_RandomStream | None = None
    """Random stream of dropout in training; None in inference."""
    batch_size: int | None = None
    """Batch size in training, so that steps need not compute shapes; None: any batch size."""
    new_state: dict[str, Symbol] = field(default_factory=dict)
    """Running statistics after a training step, by canonical name; filled by the layers."""


def logits(network: Network, images: Symbol, forward: TheanoForward) -> Symbol:
    """Return the logits of a batch of images."""
    values = {IMAGES: images}
    for position, node in enumerate(network.nodes):
        if isinstance(node.layer, layers.MaxPool) and _has_equal_maxima(network, node):
            raise Unsupported(
                "framework=theano gives each of several equal maxima the whole gradient, so that max pooling after "
                f"ReLU and batch normalization (layer {node.layer.name}) has another gradient: choose another "
                "setting or framework"
            )
        inputs = [values[source] for source in node.sources]
        values[position] = implementation("theano", LAYERS, node.layer)(node.layer, node, inputs, forward)
    return values[position]


def _has_equal_maxima(network: Network, node: Node) -> bool:
    """Return whether windows often have equal maxima: zeros of a ReLU, shifted by batch normalization."""
    before = [network.nodes[source] for source in node.sources if source != IMAGES]
    normalized = [each for each in before if isinstance(each.layer, layers.BatchNormalization)]
    sources = (source for each in normalized for source in each.sources if source != IMAGES)
    return any(isinstance(network.nodes[source].layer, layers.Relu) for source in sources)


def _convolution(layer: layers.Convolution, node: Node, inputs: list[Symbol], forward: TheanoForward) -> Symbol:
    shapes = (forward.batch_size, *node.input), node.parameters["weights"]
    weights, stride = forward.values[f"{layer.name}/weights"], (layer.stride, layer.stride)
    value = conv2d(inputs[0], weights, *shapes, border_mode=node.pads, subsample=stride, filter_flip=False)
    if layer.biases is None:
        return value
    return value + forward.values[f"{layer.name}/biases"].dimshuffle("x", 0, "x", "x")


def _max_pool(layer: layers.MaxPool, node: Node, inputs: list[Symbol], forward: TheanoForward) -> Symbol:
    if arguments := _native_pooling(layer, node):
        return _crop(node, pool_2d(inputs[0], *arguments))
    return _pool_padded(layer, _pad(node, inputs[0], -np.inf))


def _average_pool(layer: layers.AveragePool, node: Node, inputs: list[Symbol], forward: TheanoForward) -> Symbol:
    arguments = _native_pooling(layer, node)
    if arguments and arguments[-1] == (0, 0):
        return _crop(node, pool_2d(inputs[0], *arguments, mode="average_exc_pad"))
    # With padding, Theano has no gradient of the mean that excludes padding. Compute the mean from the sum.
    if arguments:
        sums = _crop(node, pool_2d(inputs[0], *arguments, mode="sum"))
    else:
        sums = _pool_padded(layer, _pad(node, inputs[0], 0), "sum")
    return sums * tensor.constant((1 / node.cells)[None, None].astype(np.float32))


def _dense(layer: layers.Dense, node: Node, inputs: list[Symbol], forward: TheanoForward) -> Symbol:
    [value] = inputs
    flat = value.reshape((-1, int(np.prod(node.input)))) if value.ndim > 2 else value
    return tensor.dot(flat, forward.values[f"{layer.name}/weights"]) + forward.values[f"{layer.name}/biases"]


def _dropout(layer: layers.Dropout, node: Node, inputs: list[Symbol], forward: TheanoForward) -> Symbol:
    if forward.random is None or layer.keep == 1:
        return inputs[0]
    mask = forward.random.binomial((forward.batch_size, *node.input), p=layer.keep, dtype="float32")
    return inputs[0] * mask * np.float32(1 / layer.keep)


def _local_response_normalization(
    layer: layers.LocalResponseNormalization, node: Node, inputs: list[Symbol], forward: TheanoForward
) -> Symbol:
    # Theano has no such layer; the sums over neighbouring channels are a 1x1 convolution with a band of ones.
    [images], channels = inputs, node.input[0]
    distances = np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
    band = (distances <= layer.radius).astype(np.float32)[:, :, None, None]
    sums = conv2d(tensor.sqr(images), tensor.constant(band), (None, *node.input), band.shape, filter_flip=False)
    return images * (np.float32(layer.bias) + np.float32(layer.alpha) * sums) ** np.float32(-layer.beta)


def _batch_normalization(
    layer: layers.BatchNormalization, node: Node, inputs: list[Symbol], forward: TheanoForward
) -> Symbol:
    if layer.epsilon < SMALLEST_EPSILON:
        raise Unsupported(
            f"framework=theano requires epsilon of at least {SMALLEST_EPSILON:g}, not {layer.epsilon:g} "
            f"(layer {layer.name})"
        )
    # Theano rounds epsilon to float32 before it checks the limit. 1e-5 in float32 is slightly smaller than 1e-5.
    epsilon = max(layer.epsilon, float(np.nextafter(np.float32(SMALLEST_EPSILON), np.float32(1))))
    beta, mean, variance = (forward.values[f"{layer.name}/{name}"] for name in ("beta", "mean", "variance"))
    gamma = forward.values[f"{layer.name}/gamma"] if layer.scale else tensor.ones_like(beta)
    if forward.random is None:
        return batch_normalization_test(inputs[0], gamma, beta, mean, variance, "spatial", epsilon)
    normalized, _, _, new_mean, new_variance = batch_normalization_train(
        inputs[0], gamma, beta, "spatial", epsilon, 1 - layer.momentum, mean, variance
    )
    forward.new_state |= {f"{layer.name}/mean": new_mean, f"{layer.name}/variance": new_variance}
    return normalized


LAYERS: dict[type[Layer], Callable[[Any, Node, list[Symbol], TheanoForward], Symbol]] = {
    layers.Convolution: _convolution,
    layers.MaxPool: _max_pool,
    layers.AveragePool: _average_pool,
    layers.GlobalAveragePool: lambda layer, node, inputs, forward: inputs[0].mean(axis=(2, 3), keepdims=True),
    layers.Dense: _dense,
    layers.Dropout: _dropout,
    layers.LocalResponseNormalization: _local_response_normalization,
    layers.BatchNormalization: _batch_normalization,
    layers.Add: lambda layer, node, inputs, forward: inputs[0] + inputs[1],
    # Theano's relu, (x + |x|) / 2, has a gradient of 1/2 at 0; the definition requires 0. A switch branches for each
    # value and takes several times as long as a product.
    layers.Relu: lambda layer, node, inputs, forward: inputs[0] * (inputs[0] > 0),
    layers.Tanh: lambda layer, node, inputs, forward: tensor.tanh(inputs[0]),
}
"""Functions (layer, node, inputs, forward pass) that return the expression of a layer."""


def _native_pooling(layer: layers.Pool, node: Node) -> tuple[Any, ...] | None:
    """Return window, ignore_border, stride and padding of a ``pool_2d`` with at least the windows of ``node``, or None.

    ``pool_2d`` pads both sides alike, and only with ignore_border; without it, it clips the last window at the border.
    """
    (top, bottom), (left, right) = node.pads
    window, stride = (layer.size, layer.size), (layer.stride, layer.stride)
    if top >= bottom and left >= right:
        return window, True, stride, (top, left)
    if top == left == 0 and tuple(Pool.out_shape(node.input, window, False, stride))[1:] == node.output[1:]:
        return window, False, stride, (0, 0)
    return None


def _pool_padded(layer: layers.Pool, padded: Symbol, mode: str = "max") -> Symbol:
    return pool_2d(padded, (layer.size, layer.size), True, (layer.stride, layer.stride), mode=mode)


def _crop(node: Node, pooled: Symbol) -> Symbol:
    """Remove the windows that exist only because ``pool_2d`` pads both sides alike."""
    if all(before <= after for before, after in node.pads):
        return pooled
    return pooled[:, :, : node.output[1], : node.output[2]]


def _pad(node: Node, images: Symbol, value: float) -> Symbol:
    (top, bottom), (left, right) = node.pads
    channels, height, width = node.input
    padded = tensor.alloc(np.float32(value), images.shape[0], channels, top + height + bottom, left + width + right)
    return tensor.set_subtensor(padded[:, :, top : top + height, left : left + width], images)
