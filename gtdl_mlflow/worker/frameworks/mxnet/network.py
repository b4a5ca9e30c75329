"""A network as an MXNet symbol, and copies between NumPy and MXNet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mxnet as mx
import numpy as np

from ... import layers
from ...layers import Layer
from ...network import IMAGES, Network, Node
from ..base import implementation

Symbol = Any
"""A node of MXNet's graph; MXNet has no type annotations."""

Arrays = dict[str, Any]
"""MXNet arrays by name."""


def build_symbol(network: Network, constants: Arrays, training: bool) -> Symbol:
    """Return the symbol of the logits and add its constant arrays to ``constants``.

    In training the factors of each dropout layer are an input, ``layer/factors``; otherwise the symbol has MXNet's own
    dropout operator.
    """
    values = {IMAGES: mx.sym.var("images")}
    for position, node in enumerate(network.nodes):
        inputs = [values[source] for source in node.sources]
        if training and isinstance(node.layer, layers.Dropout):
            values[position] = inputs[0] * mx.sym.var(f"{node.layer.name}/factors")
        else:
            values[position] = implementation("mxnet", LAYERS, node.layer)(node.layer, node, inputs, constants)
    return values[position]


def _convolution(layer: layers.Convolution, node: Node, inputs: list[Symbol], constants: Arrays) -> Symbol:
    value = inputs[0]
    weights, *biases = (mx.sym.var(f"{layer.name}/{name}") for name in node.parameters)
    (top, bottom), (left, right) = node.pads
    pad = (top, left)
    if (top, left) != (bottom, right):
        value, pad = _pad(node, value, 0.0), (0, 0)
    return mx.sym.Convolution(
        value,
        weights,
        *biases,
        num_filter=layer.filters,
        kernel=(layer.kernel,) * 2,
        stride=(layer.stride,) * 2,
        pad=pad,
        no_bias=not biases,
    )


def _max_pool(layer: layers.MaxPool, node: Node, inputs: list[Symbol], constants: Arrays) -> Symbol:
    return _pool(layer, node, inputs[0], float(np.finfo(np.float32).min), pool_type="max")


def _average_pool(layer: layers.AveragePool, node: Node, inputs: list[Symbol], constants: Arrays) -> Symbol:
    pooled = _pool(layer, node, inputs[0], 0.0, pool_type="avg", count_include_pad=False)
    if _pooling_convention(layer, node) is not None:
        return pooled
    # The mean includes the zeros of the padding. Scale it to the cells inside the image.
    share = (layer.size**2 / node.cells)[None, None]
    return mx.sym.broadcast_mul(pooled, _constant(constants, f"{layer.name}/share", share))


def _dense(layer: layers.Dense, node: Node, inputs: list[Symbol], constants: Arrays) -> Symbol:
    weights, biases = (mx.sym.var(f"{layer.name}/{name}") for name in ("weights", "biases"))
    return mx.sym.FullyConnected(inputs[0], weights, biases, num_hidden=layer.units)


def _local_response_normalization(
    layer: layers.LocalResponseNormalization, node: Node, inputs: list[Symbol], constants: Arrays
) -> Symbol:
    # MXNet divides alpha by the window size; our definition, like TensorFlow's, does not.
    size = 2 * layer.radius + 1
    normalized = mx.sym.LRN(inputs[0], alpha=layer.alpha * size, beta=layer.beta, knorm=layer.bias, nsize=size)
    # The slice copies the output into the plain layout, because oneDNN's normalization misreads the gradient that a
    # following convolution returns in a blocked layout (MXNet 1.9.1: wrong by 2 %).
    return mx.sym.slice_axis(normalized, axis=0, begin=0, end=None)


def _batch_normalization(
    layer: layers.BatchNormalization, node: Node, inputs: list[Symbol], constants: Arrays
) -> Symbol:
    beta, mean, variance = (mx.sym.var(f"{layer.name}/{name}") for name in ("beta", "mean", "variance"))
    if layer.scale:
        gamma = mx.sym.var(f"{layer.name}/gamma")
    else:
        gamma = _constant(constants, f"{layer.name}/gamma", np.ones(node.input[0]))
    options = {"eps": layer.epsilon, "momentum": layer.momentum, "fix_gamma": not layer.scale}
    return mx.sym.BatchNorm(inputs[0], gamma, beta, mean, variance, **options)


LAYERS: dict[type[Layer], Callable[[Any, Node, list[Symbol], Arrays], Symbol]] = {
    layers.Convolution: _convolution,
    layers.MaxPool: _max_pool,
    layers.AveragePool: _average_pool,
    layers.GlobalAveragePool: lambda layer, node, inputs, constants: mx.sym.Pooling(
        inputs[0], global_pool=True, pool_type="avg", kernel=(1, 1)
    ),
    layers.Dense: _dense,
    layers.Dropout: lambda layer, node, inputs, constants: mx.sym.Dropout(inputs[0], p=1 - layer.keep),
    layers.LocalResponseNormalization: _local_response_normalization,
    layers.BatchNormalization: _batch_normalization,
    layers.Add: lambda layer, node, inputs, constants: mx.sym.elemwise_add(*inputs),
    layers.Relu: lambda layer, node, inputs, constants: mx.sym.Activation(inputs[0], act_type="relu"),
    # mx.sym.tanh is a scalar loop; Activation uses oneDNN.
    layers.Tanh: lambda layer, node, inputs, constants: mx.sym.Activation(inputs[0], act_type="tanh"),
}
"""Functions (layer, node, inputs, constants) that return the symbol of a layer."""


def _constant(constants: Arrays, name: str, value: np.ndarray) -> Symbol:
    """Add a constant array to ``constants`` and return its symbol."""
    constants[name] = to_mxnet(value)
    return mx.sym.var(name)


def _pad(node: Node, value: Symbol, fill: float) -> Symbol:
    (top, bottom), (left, right) = node.pads
    width = (0, 0, 0, 0, top, bottom, left, right)
    return mx.sym.pad(value, mode="constant", pad_width=width, constant_value=fill)


def _pool(layer: layers.Pool, node: Node, value: Symbol, fill: float, **options: Any) -> Symbol:
    (top, _), (left, _) = node.pads
    window = {"kernel": (layer.size,) * 2, "stride": (layer.stride,) * 2}
    convention = _pooling_convention(layer, node)
    if convention is None:
        return mx.sym.Pooling(_pad(node, value, fill), **window, **options)
    return mx.sym.Pooling(value, pad=(top, left), pooling_convention=convention, **window, **options)


def _pooling_convention(layer: layers.Pool, node: Node) -> str | None:
    """Return the ``pooling_convention`` that gives these windows without padding the image first, or None."""
    if all(before == after for before, after in node.pads):
        return "valid"
    full = tuple(
        math.ceil((length + 2 * before - layer.size) / layer.stride) + 1
        for length, (before, _) in zip(node.input[1:], node.pads, strict=True)
    )
    return "full" if full == node.output[1:] else None


# ``mx.nd.array`` and ``asnumpy`` copy a large array in the calling thread, with a separate OpenMP team. OpenMP then
# counts more threads than cores and suspends them between any two operators: training tensorflow_mnist took 15 %
# longer. Copies by MXNet's engine use only one team.


def to_mxnet(value: np.ndarray) -> Any:
    """Return a float32 copy of ``value`` as an MXNet array."""
    return mx.nd.from_numpy(np.array(value, np.float32)).copy()


def to_numpy(array: Any) -> np.ndarray:
    """Return a NumPy copy of an MXNet array."""
    value = np.empty(array.shape, array.dtype)
    array.copyto(mx.nd.from_numpy(value)).wait_to_read()
    return value
