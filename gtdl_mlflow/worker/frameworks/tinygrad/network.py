"""A network's forward pass as tinygrad tensor operations; images are NHWC.

tinygrad fuses operations into kernels. ``_materialize`` stores a value and its gradient in separate buffers, so that
matrix products run as separate kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tinygrad import Tensor, dtypes

from ... import layers
from ...layers import Layer, Pads
from ...network import IMAGES, Network, Node
from ..base import implementation


@dataclass(frozen=True)
class TinygradForward:
    """Data shared by all layers of one forward pass."""

    network: Network
    parameters: dict[str, Tensor]
    """Values of the parameters, by canonical name."""
    statistics: dict[str, Tensor]
    """Running statistics before this pass, by canonical name."""
    cells: dict[str, Tensor]
    """Cells of each window that lie inside the image, (windows, windows, 1), by the name of the average pooling."""
    seed: Tensor | None = None
    """Seed of dropout and number of the training step, uint32 (2,); None in inference, which skips dropout and uses the
    running statistics."""
    new_statistics: dict[str, Tensor] = field(default_factory=dict)
    """Running statistics after this pass, by canonical name; filled by batch normalization in training."""


def logits(images: Tensor, forward: TinygradForward) -> Tensor:
    """Return the logits of one batch of images."""
    outputs = {IMAGES: images}
    for position, node in enumerate(forward.network.nodes):
        inputs = [outputs[source] for source in node.sources]
        outputs[position] = implementation("tinygrad", LAYERS, node.layer)(node.layer, node, inputs, forward)
    return outputs[position]


# Tensor.conv2d becomes one kernel with many nested loops, which takes 2.2 times as long on a CPU as a matrix product
# of the windows: a training step of caffe_mnist takes 105 instead of 47 ms. Matrix dimensions are padded to a multiple
# of four, so that tinygrad computes tiles of 4 x 4. With one product per image, the gradient of the weights is a sum
# of small products over images. One sum over all windows takes ten times as long.


def _convolution(layer: layers.Convolution, node: Node, inputs: list[Tensor], forward: TinygradForward) -> Tensor:
    filters, (_, rows, columns) = layer.filters, node.output
    value = inputs[0].pad(_explicit_padding(node.pads))
    windows = value.unfold(1, layer.kernel, layer.stride).unfold(2, layer.kernel, layer.stride)
    windows = windows.permute(0, 1, 2, 4, 5, 3).reshape(len(value), rows * columns, -1)
    weights = forward.parameters[f"{layer.name}/weights"].reshape(-1, filters)
    more_inputs, more_filters = -weights.shape[0] % 4, -filters % 4
    windows = _materialize(windows.pad(((0, 0), (0, 0), (0, more_inputs))))
    weights = _materialize(weights.pad(((0, more_inputs), (0, more_filters))))
    repeated = weights.expand(len(value), *weights.shape).contiguous_backward()
    result = _materialize(windows @ repeated)[..., :filters].reshape(len(value), rows, columns, filters)
    return result if layer.biases is None else result + forward.parameters[f"{layer.name}/biases"]


# Overlapping windows are pooled over rows first and then over columns, so that a gradient is a sum over the few
# windows of one direction. This reduces the time of a training step of caffe_cifar10 to 0.75.


def _max_pool(layer: layers.MaxPool, node: Node, inputs: list[Tensor], forward: TinygradForward) -> Tensor:
    # The gradient goes to cells equal to the maximum. A cell that another kernel computes again may differ from it.
    value = _materialize(inputs[0].pad(_explicit_padding(node.pads), value=-math.inf))
    if _is_tiled(layer, value):
        return _tiles(value, layer.size).max((2, 4))
    for size, stride in _directions(layer):
        value = _materialize(value.permute(0, 3, 1, 2).max_pool2d(size, stride).permute(0, 2, 3, 1))
    return value


def _average_pool(layer: layers.AveragePool, node: Node, inputs: list[Tensor], forward: TinygradForward) -> Tensor:
    value = inputs[0].pad(_explicit_padding(node.pads))
    if _is_tiled(layer, value):
        value = _tiles(value, layer.size).sum((2, 4))
    else:
        value = _materialize(value)
        for size, stride in _directions(layer):
            means = value.permute(0, 3, 1, 2).avg_pool2d(size, stride).permute(0, 2, 3, 1)
            value = _materialize(means * layer.size)
    return value / forward.cells[layer.name]


def _global_average_pool(
    layer: layers.GlobalAveragePool, node: Node, inputs: list[Tensor], forward: TinygradForward
) -> Tensor:
    return inputs[0].mean((1, 2), keepdim=True)


def _dense(layer: layers.Dense, node: Node, inputs: list[Tensor], forward: TinygradForward) -> Tensor:
    value = _materialize(inputs[0].flatten(1))
    return value @ forward.parameters[f"{layer.name}/weights"] + forward.parameters[f"{layer.name}/biases"]


def _dropout(layer: layers.Dropout, node: Node, inputs: list[Tensor], forward: TinygradForward) -> Tensor:
    value = inputs[0]
    if forward.seed is None or layer.keep == 1:
        return value
    # Tensor.dropout uses a process-wide counter, which cannot be restored.
    counter = Tensor.full((2,), forward.network.nodes.index(node), dtype=dtypes.uint32)
    bits = Tensor.random_bits(forward.seed, counter, value.numel()).reshape(value.shape)
    return (bits < round(layer.keep * 2**32)).contiguous().where(value / layer.keep, 0)


def _local_response_normalization(
    layer: layers.LocalResponseNormalization, node: Node, inputs: list[Tensor], forward: TinygradForward
) -> Tensor:
    value, channels = inputs[0], Tensor.arange(node.input[0])
    neighbours = ((channels.reshape(-1, 1) - channels).abs() <= layer.radius).float()
    sums = _materialize(value.square() @ neighbours)
    return value * (layer.bias + layer.alpha * sums) ** -layer.beta


def _batch_normalization(
    layer: layers.BatchNormalization, node: Node, inputs: list[Tensor], forward: TinygradForward
) -> Tensor:
    value = _materialize(inputs[0])
    mean, variance = (forward.statistics[f"{layer.name}/{name}"] for name in ("mean", "variance"))
    if forward.seed is not None:
        count = value.numel() // value.shape[-1]
        running = {"mean": mean, "variance": variance}
        mean, variance = value.mean((0, 1, 2)), value.var((0, 1, 2), correction=0)
        of_batch = {"mean": mean.detach(), "variance": variance.detach() * (count / (count - 1))}
        for name, before in running.items():
            after = layer.momentum * before + (1 - layer.momentum) * of_batch[name]
            forward.new_statistics[f"{layer.name}/{name}"] = after
    factor = (variance + layer.epsilon).rsqrt()
    if layer.scale:
        factor = factor * forward.parameters[f"{layer.name}/gamma"]
    return (value - mean) * factor + forward.parameters[f"{layer.name}/beta"]


def _add(layer: layers.Add, node: Node, inputs: list[Tensor], forward: TinygradForward) -> Tensor:
    return inputs[0] + inputs[1]


def _relu(layer: layers.Relu, node: Node, inputs: list[Tensor], forward: TinygradForward) -> Tensor:
    return inputs[0].relu()


def _tanh(layer: layers.Tanh, node: Node, inputs: list[Tensor], forward: TinygradForward) -> Tensor:
    # Tensor.tanh, 2 sigmoid(2 x) - 1, has four times the rounding error near 1. A max pooling then selects other cells.
    return 1 - 2 / ((2 * inputs[0].clip(-15, 15)).exp() + 1)


LAYERS: dict[type[Layer], Callable[[Any, Node, list[Tensor], TinygradForward], Tensor]] = {
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


def _materialize(value: Tensor) -> Tensor:
    """Store a value and its gradient in separate buffers, which ends the fusion of kernels."""
    return value.contiguous().contiguous_backward()


def _explicit_padding(pads: Pads) -> tuple[tuple[int, int], ...]:
    return ((0, 0), *pads, (0, 0))


def _is_tiled(layer: layers.Pool, value: Tensor) -> bool:
    """Return whether the windows of a padded image cover each cell once."""
    return layer.size == layer.stride and all(length % layer.size == 0 for length in value.shape[1:3])


def _tiles(value: Tensor, size: int) -> Tensor:
    """Return images as windows without overlap: (images, windows, size, windows, size, channels)."""
    count, height, width, channels = value.shape
    return value.reshape(count, height // size, size, width // size, size, channels)


def _directions(layer: layers.Pool) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the size and the stride of the windows over rows, and of those over columns."""
    return [((layer.size, 1), (layer.stride, 1)), ((1, layer.size), (1, layer.stride))]
