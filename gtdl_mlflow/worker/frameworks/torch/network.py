"""A network's layers as PyTorch modules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import layers
from ...layers import Layer, Pads
from ...network import IMAGES, Network, Node
from ..base import implementation
from .opaque_max_pool import max_pool

ALLOW_IN_PLACE = (
    layers.Convolution,
    layers.Dense,
    layers.MaxPool,
    layers.AveragePool,
    layers.BatchNormalization,
    layers.Add,
)
"""Layers whose gradient does not need their output, so an activation may overwrite it."""


class TorchNetwork(nn.Module):
    """The network's layers, named as in the model, and the connections between them.

    With ``bfloat16`` autocast chooses the type of each operation. The logits are float32 in any case.
    """

    def __init__(self, network: Network, bfloat16: bool) -> None:
        super().__init__()
        self.bfloat16 = bfloat16
        nodes = network.nodes
        uses = Counter(source for node in nodes for source in node.sources)
        for node in nodes:
            # An activation may overwrite its input if no other layer reads it.
            only_user = all(uses[source] == 1 and source != IMAGES for source in node.sources)
            in_place = only_user and isinstance(nodes[node.sources[0]].layer, ALLOW_IN_PLACE)
            create = implementation("torch", LAYERS, node.layer)
            self.add_module(node.layer.name, create(node.layer, node, in_place))
        self._is_chain = all(node.sources == (position - 1,) for position, node in enumerate(nodes))
        self._sources = [node.sources for node in nodes]
        # Outputs that no later layer reads, by position: their memory is freed early while classifying.
        last_use = {source: position for position, sources in enumerate(self._sources) for source in sources}
        self._unused_after = [
            [source for source, last in last_use.items() if last == position] for position in range(len(nodes))
        ]

    def forward(self, images: Tensor) -> Tensor:
        if not self.bfloat16:
            return self._logits(images)
        with torch.autocast(images.device.type, torch.bfloat16):
            return self._logits(images).float()

    def _logits(self, images: Tensor) -> Tensor:
        if self._is_chain:
            value = images
            for module in self._modules.values():
                value = module(value)
            return value
        values = {IMAGES: images}
        for position, (module, sources) in enumerate(zip(self._modules.values(), self._sources, strict=True)):
            values[position] = module(*[values[source] for source in sources])
            for source in self._unused_after[position]:
                del values[source]
        return values[len(self._sources) - 1]


class PaddedConv2d(nn.Conv2d):
    """Convolution whose padding may differ from side to side."""

    def __init__(self, layer: layers.Convolution, node: Node) -> None:
        native, self._explicit = _split_padding(node.pads)
        super().__init__(
            node.input[0], layer.filters, layer.kernel, layer.stride, native, bias=layer.biases is not None
        )

    def forward(self, images: Tensor) -> Tensor:
        if self._explicit:
            images = F.pad(images, self._explicit)
        return self._conv_forward(images, self.weight, self.bias)


class PaddedMaxPool2d(nn.MaxPool2d):
    """Max-pooling whose padding may differ from side to side."""

    def __init__(self, layer: layers.MaxPool, node: Node) -> None:
        native, self._explicit = _split_padding(node.pads, largest_native=layer.size // 2)
        # PyTorch's ceil mode covers windows that only overhang at the far side, without a padded copy.
        ceil_mode = bool(self._explicit) and native == (0, 0) and _ceil_mode_fits(layer, node)
        if ceil_mode:
            self._explicit = ()
        super().__init__(layer.size, layer.stride, native, ceil_mode=ceil_mode)

    def forward(self, images: Tensor) -> Tensor:
        if self._explicit:
            images = F.pad(images, self._explicit, value=-torch.inf)
        if self.training and torch.compiler.is_compiling():
            return max_pool(images, self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return super().forward(images)


class CountedAvgPool2d(nn.Module):
    """Mean of the cells of each window that lie inside the image."""

    def __init__(self, layer: layers.AveragePool, node: Node) -> None:
        super().__init__()
        # PyTorch's padding is not used: on a GPU with channels last, torch 2.11 computed wrong gradients for it, with
        # errors of half the largest gradient. It also cannot exclude padding on one side only.
        _, self._explicit = _split_padding(node.pads, largest_native=0)
        self._layer = layer
        self._ceil_mode = bool(self._explicit) and _ceil_mode_fits(layer, node)
        if self._explicit and not self._ceil_mode:
            # Share of each window's cells that lie inside the image; the mean over all cells is divided by it.
            ones = F.avg_pool2d(F.pad(torch.ones(1, 1, *node.input[1:]), self._explicit), layer.size, layer.stride)
            self.register_buffer("_share", ones, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        size, stride = self._layer.size, self._layer.stride
        if self._explicit and not self._ceil_mode:
            return F.avg_pool2d(F.pad(images, self._explicit), size, stride) / self._share
        return F.avg_pool2d(images, size, stride, ceil_mode=self._ceil_mode, count_include_pad=False)


class FlattenLinear(nn.Linear):
    """Dense layer that first flattens its input, channels slowest, whatever the memory format."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1))


class OptionalGammaBatchNorm2d(nn.Module):
    """Batch normalization with an optional gamma; PyTorch's momentum is the share of the new batch."""

    running_mean: Tensor
    running_var: Tensor
    ones: Tensor | None

    def __init__(self, layer: layers.BatchNormalization, node: Node) -> None:
        super().__init__()
        self._layer, maps = layer, node.input[0]
        self.gamma = nn.Parameter(torch.ones(maps)) if layer.scale else None
        # With a beta and without a gamma, torch 2.11 failed on a GPU in the backward pass: "tensor does not have a
        # device".
        self.register_buffer("ones", None if layer.scale else torch.ones(maps), persistent=False)
        self.beta = nn.Parameter(torch.zeros(maps))
        self.register_buffer("running_mean", torch.zeros(maps))
        self.register_buffer("running_var", torch.ones(maps))

    def forward(self, images: Tensor) -> Tensor:
        gamma = self.ones if self.gamma is None else self.gamma
        momentum, epsilon = 1 - self._layer.momentum, self._layer.epsilon
        return F.batch_norm(
            images, self.running_mean, self.running_var, gamma, self.beta, self.training, momentum, epsilon
        )


class Sum(nn.Module):
    """Sum of two outputs."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


class TanhActivation(nn.Module):
    """Hyperbolic tangent, optionally in place."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self._tanh = torch.tanh_ if in_place else torch.tanh

    def forward(self, values: Tensor) -> Tensor:
        return self._tanh(values)


def _local_response_normalization(layer: layers.LocalResponseNormalization) -> nn.Module:
    # PyTorch divides alpha by the window size; our definition, like TensorFlow's, does not.
    size = 2 * layer.radius + 1
    return nn.LocalResponseNorm(size, alpha=layer.alpha * size, beta=layer.beta, k=layer.bias)


LAYERS: dict[type[Layer], Callable[[Any, Node, bool], nn.Module]] = {
    layers.Convolution: lambda layer, node, in_place: PaddedConv2d(layer, node),
    layers.MaxPool: lambda layer, node, in_place: PaddedMaxPool2d(layer, node),
    layers.AveragePool: lambda layer, node, in_place: CountedAvgPool2d(layer, node),
    layers.GlobalAveragePool: lambda layer, node, in_place: nn.AdaptiveAvgPool2d(1),
    layers.Dense: lambda layer, node, in_place: FlattenLinear(*node.parameters["weights"]),
    layers.Dropout: lambda layer, node, in_place: nn.Dropout(1 - layer.keep),
    layers.LocalResponseNormalization: lambda layer, node, in_place: _local_response_normalization(layer),
    layers.BatchNormalization: lambda layer, node, in_place: OptionalGammaBatchNorm2d(layer, node),
    layers.Add: lambda layer, node, in_place: Sum(),
    layers.Relu: lambda layer, node, in_place: nn.ReLU(in_place),
    layers.Tanh: lambda layer, node, in_place: TanhActivation(in_place),
}
"""Functions (layer, node, whether the layer may overwrite its input) that create the module of a layer."""


CANONICAL_NAMES = {
    "weight": "weights",
    "bias": "biases",
    "gamma": "gamma",
    "beta": "beta",
    "running_mean": "mean",
    "running_var": "variance",
}
"""Canonical array names by the names of the modules' tensors."""


def by_canonical_name(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a module by their canonical names ``layer/array``."""
    renamed = {}
    for name, tensor in tensors:
        layer, array = name.split(".")
        renamed[f"{layer}/{CANONICAL_NAMES[array]}"] = tensor
    return renamed


def _split_padding(pads: Pads, largest_native: float = math.inf) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return (height, width) that the operation pads on both sides, and the arguments of ``F.pad``; one is empty."""
    (top, bottom), (left, right) = pads
    if top == bottom and left == right and max(top, left) <= largest_native:
        return (top, left), ()
    return (0, 0), (left, right, top, bottom)


def _ceil_mode_fits(layer: layers.Pool, node: Node) -> bool:
    """Return whether rounding the output size up, without padding, gives the windows of this pool."""
    (top, _), (left, _) = node.pads
    rounded_up = tuple(-(-(length - layer.size) // layer.stride) + 1 for length in node.input[1:])
    return top == left == 0 and rounded_up == node.output[1:]
