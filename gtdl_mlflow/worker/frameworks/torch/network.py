"""A network's layers as PyTorch's modules."""

from __future__ import annotations

import math
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import layers as vocabulary
from ...layers import Pads
from ...network import IMAGES, Node
from ..base import Setup

OVERWRITABLE = (
    vocabulary.Convolution, vocabulary.Dense, vocabulary.Pool, vocabulary.BatchNormalization, vocabulary.Add,
)  # fmt: skip
"""Layers whose gradient does not need what they gave."""


class TorchNetwork(nn.Module):
    """The layers by their names, and which of them takes what of which."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        nodes = setup.network.nodes
        uses = Counter(source for node in nodes for source in node.sources)
        for node in nodes:
            # Where nobody else takes a value, it gives its memory to what an activation makes of it.
            own = all(uses[source] == 1 and source != IMAGES for source in node.sources)
            in_place = own and isinstance(nodes[node.sources[0]].layer, OVERWRITABLE)
            self.add_module(node.layer.name, _module(node, in_place))
        self._chain = all(node.sources == (place - 1,) for place, node in enumerate(nodes))
        self._sources = [node.sources for node in nodes]
        # After which position nobody takes a value any more, so that its memory can go while classifying.
        last = {source: place for place, sources in enumerate(self._sources) for source in sources}
        self._done = [[source for source, after in last.items() if after == place] for place in range(len(nodes))]

    def forward(self, images: Tensor) -> Tensor:
        if self._chain:
            value = images
            for module in self._modules.values():
                value = module(value)
            return value
        values = {IMAGES: images}
        for place, (module, sources) in enumerate(zip(self._modules.values(), self._sources, strict=True)):
            values[place] = module(*[values[source] for source in sources])
            for source in self._done[place]:
                del values[source]
        return values[len(self._sources) - 1]


def _module(node: Node, in_place: bool) -> nn.Module:
    layer = node.layer
    if isinstance(layer, vocabulary.Convolution):
        return _Convolution(node)
    if isinstance(layer, vocabulary.MaxPool):
        return _MaxPool(node)
    if isinstance(layer, vocabulary.AveragePool):
        return _AveragePool(node)
    if isinstance(layer, vocabulary.Dense):
        return _Dense(*node.parameters["weights"])
    if isinstance(layer, vocabulary.Dropout):
        return nn.Dropout(1 - layer.keep)
    if isinstance(layer, vocabulary.LocalResponseNormalization):
        # torch divides alpha by the window; the vocabulary, like TensorFlow, does not.
        size = 2 * layer.radius + 1
        return nn.LocalResponseNorm(size, alpha=layer.alpha * size, beta=layer.beta, k=layer.bias)
    if isinstance(layer, vocabulary.BatchNormalization):
        return _BatchNormalization(node)
    if isinstance(layer, vocabulary.GlobalAveragePool):
        return nn.AdaptiveAvgPool2d(1)
    if isinstance(layer, vocabulary.Add):
        return _Add()
    if isinstance(layer, vocabulary.Relu):
        return nn.ReLU(in_place)
    if isinstance(layer, vocabulary.Tanh):
        return _Tanh(in_place)
    raise NotImplementedError(f"framework=torch has no {type(layer).__name__} (layer {layer.name})")


class _Tanh(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self._tanh = torch.tanh_ if in_place else torch.tanh

    def forward(self, values: Tensor) -> Tensor:
        return self._tanh(values)


class _Add(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


class _BatchNormalization(nn.Module):
    """With a gamma only where the network has one; torch's own momentum is the share of the new batch."""

    running_mean: Tensor
    running_var: Tensor
    ones: Tensor | None

    def __init__(self, node: Node) -> None:
        super().__init__()
        layer = node.layer
        assert isinstance(layer, vocabulary.BatchNormalization)
        self._layer, maps = layer, node.input[0]
        self.gamma = nn.Parameter(torch.ones(maps)) if layer.scale else None
        # Given no gamma but a beta, torch 2.11 failed on a GPU in the backward pass: "tensor does not have a device".
        self.register_buffer("ones", None if layer.scale else torch.ones(maps), persistent=False)
        self.beta = nn.Parameter(torch.zeros(maps))
        self.register_buffer("running_mean", torch.zeros(maps))
        self.register_buffer("running_var", torch.ones(maps))

    def forward(self, images: Tensor) -> Tensor:
        gamma = self.ones if self.gamma is None else self.gamma
        return F.batch_norm(
            images, self.running_mean, self.running_var, gamma, self.beta, self.training,
            1 - self._layer.momentum, self._layer.epsilon,
        )  # fmt: skip


class _Convolution(nn.Conv2d):
    """With padding that may differ from side to side."""

    def __init__(self, node: Node) -> None:
        layer = node.layer
        assert isinstance(layer, vocabulary.Convolution)
        native, self._extra = _padding(node.pads)
        super().__init__(
            node.input[0], layer.filters, layer.kernel, layer.stride, native, bias=layer.biases is not None
        )

    def forward(self, images: Tensor) -> Tensor:
        if self._extra:
            images = F.pad(images, self._extra)
        return self._conv_forward(images, self.weight, self.bias)


class _Dense(nn.Linear):
    """Flattens first, channels slowest, whatever the memory format."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1))


class _MaxPool(nn.MaxPool2d):
    def __init__(self, node: Node) -> None:
        layer = node.layer
        assert isinstance(layer, vocabulary.MaxPool)
        native, self._extra = _padding(node.pads, most=layer.size // 2)
        # Windows that only overhang at the far side are torch's ceil mode, which needs no padded copy.
        overhang = bool(self._extra) and native == (0, 0) and _ceil_fits(node)
        if overhang:
            self._extra = ()
        super().__init__(layer.size, layer.stride, native, ceil_mode=overhang)

    def forward(self, images: Tensor) -> Tensor:
        if self._extra:
            images = F.pad(images, self._extra, value=-torch.inf)
        return super().forward(images)


class _AveragePool(nn.Module):
    """The mean of the cells inside the image: sums divided by how many cells each window really covers."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        layer = node.layer
        assert isinstance(layer, vocabulary.AveragePool)
        # Never by torch's own padding: on a GPU, with channels last, torch 2.11 gave wrong gradients for it, off
        # by half of the largest. Nor can it leave out cells padded on one side only.
        _, self._extra = _padding(node.pads, most=0)
        self._layer = layer
        self._ceil = bool(self._extra) and _ceil_fits(node)
        if self._extra and not self._ceil:
            # What the padded cells took of the mean is put back.
            ones = F.avg_pool2d(F.pad(torch.ones(1, 1, *node.input[1:]), self._extra), layer.size, layer.stride)
            self.register_buffer("_share", ones, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        size, stride = self._layer.size, self._layer.stride
        if self._extra and not self._ceil:
            return F.avg_pool2d(F.pad(images, self._extra), size, stride) / self._share
        return F.avg_pool2d(images, size, stride, ceil_mode=self._ceil, count_include_pad=False)


def _padding(pads: Pads, most: float = math.inf) -> tuple[tuple[int, int], tuple[int, ...]]:
    """(height, width) that the operation itself can add on both sides, or what ``F.pad`` must add before it."""
    (top, bottom), (left, right) = pads
    if top == bottom and left == right and max(top, left) <= most:
        return (top, left), ()
    return (0, 0), (left, right, top, bottom)


def _ceil_fits(node: Node) -> bool:
    """Whether rounding the output size up, with no padding, gives the windows wanted."""
    layer, ((top, _), (left, _)) = node.layer, node.pads
    assert isinstance(layer, vocabulary.Pool)
    rounded = tuple(-(-(length - layer.size) // layer.stride) + 1 for length in node.input[1:])
    return top == left == 0 and rounded == node.output[1:]
