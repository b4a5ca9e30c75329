"""A network's layers as Paddle layers; images and outputs are NCHW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ... import layers
from ...layers import Layer
from ...network import IMAGES, Network, Node
from ..base import implementation


class PaddleNetwork(nn.Layer):
    """The network's layers and the connections between them.

    Parameters and running statistics have the canonical array names.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._sources = [node.sources for node in network.nodes]
        # Lists instead of attributes, because a layer name may be the name of an attribute of nn.Layer.
        self._names = [node.layer.name for node in network.nodes]
        self.layers = nn.LayerList(
            [implementation("paddle", LAYERS, node.layer)(node.layer, node) for node in network.nodes]
        )

    def forward(self, images: Tensor) -> Tensor:
        outputs = {IMAGES: images}
        for position, layer in enumerate(self.layers):
            outputs[position] = layer(*[outputs[source] for source in self._sources[position]])
        return outputs[len(self._sources) - 1]

    def named(self) -> Iterator[tuple[str, nn.Layer]]:
        """Yield the layers with their names in the model."""
        return zip(self._names, self.layers, strict=True)

    def arrays(self) -> dict[str, Tensor]:
        """Return the parameters by their canonical names ``layer/array``."""
        return {f"{name}/{array}": tensor for name, layer in self.named() for array, tensor in layer.named_parameters()}

    def statistics(self) -> dict[str, Tensor]:
        """Return the running statistics by their canonical names ``layer/array``."""
        normalizations = [(name, layer) for name, layer in self.named() if isinstance(layer, PaddleBatchNormalization)]
        return {
            f"{name}/{array}": getattr(layer, array) for name, layer in normalizations for array in ("mean", "variance")
        }


class PaddleConvolution(nn.Layer):
    """Convolution with padding that may differ from side to side."""

    def __init__(self, layer: layers.Convolution, node: Node) -> None:
        super().__init__()
        self._stride, self._padding = layer.stride, _sides(node)
        self.weights = self.create_parameter(list(node.parameters["weights"]))
        self.biases = None if layer.biases is None else self.create_parameter([layer.filters, 1], is_bias=True)

    def forward(self, images: Tensor) -> Tensor:
        value = F.conv2d(images, self.weights, stride=self._stride, padding=self._padding)
        if self.biases is None:
            return value
        # F.conv2d adds the biases to a 4-D tensor, which takes ten times as long: 3.5 instead of 0.35 ms for
        # 50 x 64 x 14 x 14 values, and 9.3 instead of 1.2 ms with the gradients.
        return (value.flatten(2) + self.biases).reshape(value.shape)


class PaddleMaxPool(nn.Layer):
    """Max-pooling with padding that may differ from side to side."""

    def __init__(self, layer: layers.MaxPool, node: Node) -> None:
        super().__init__()
        (top, bottom), (left, right) = node.pads
        native = top == left and top <= layer.size // 2
        self._padding = top if native else 0
        self._ceil_mode = native and _windows(layer, node, ceil=True) == node.output[1:]
        native = native and (self._ceil_mode or _windows(layer, node, ceil=False) == node.output[1:])
        self._explicit = None if native else [left, right, top, bottom]
        if not native:
            self._padding, self._ceil_mode = 0, False
        self._size, self._stride = layer.size, layer.stride

    def forward(self, images: Tensor) -> Tensor:
        if self._explicit:
            images = F.pad(images, self._explicit, value=-np.inf)
        # The kernel that also returns the positions has a faster gradient: 1.7 instead of 5.2 ms with the forward pass
        # for 50 x 32 x 28 x 28 values and windows of 2 x 2.
        pooled, _ = F.max_pool2d(
            images, self._size, self._stride, self._padding, return_mask=True, ceil_mode=self._ceil_mode
        )
        return pooled


class PaddleAveragePool(nn.Layer):
    """Mean of the cells of each window that lie inside the image."""

    def __init__(self, layer: layers.AveragePool, node: Node) -> None:
        super().__init__()
        self._size, self._stride, self._padding = layer.size, layer.stride, _sides(node)

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self._size, self._stride, self._padding, exclusive=True)


class PaddleGlobalAveragePool(nn.Layer):
    """Mean of each map."""

    def __init__(self, layer: layers.GlobalAveragePool, node: Node) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        return images.mean([2, 3], keepdim=True)


class PaddleDense(nn.Layer):
    """Dense layer that first flattens its input."""

    def __init__(self, layer: layers.Dense, node: Node) -> None:
        super().__init__()
        self.weights = self.create_parameter(list(node.parameters["weights"]))
        self.biases = self.create_parameter([layer.units], is_bias=True)

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(images.flatten(1), self.weights, self.biases)


class PaddleDropout(nn.Layer):
    """Dropout with random numbers from Paddle's default generator."""

    def __init__(self, layer: layers.Dropout, node: Node) -> None:
        super().__init__()
        self._share = 1 - layer.keep

    def forward(self, values: Tensor) -> Tensor:
        return F.dropout(values, self._share, training=self.training) if self._share else values


class PaddleLocalResponseNormalization(nn.Layer):
    """Normalization by the sum of squares of neighbouring maps."""

    def __init__(self, layer: layers.LocalResponseNormalization, node: Node) -> None:
        super().__init__()
        self._layer, maps = layer, np.arange(node.input[0])
        neighbours = (abs(maps[:, None] - maps) <= layer.radius).astype(np.float32)
        self.register_buffer("neighbours", paddle.to_tensor(neighbours), persistable=False)

    def forward(self, images: Tensor) -> Tensor:
        # F.local_response_norm pads its input and calls paddle.pow, which is slow. It takes 8 times as long for
        # 128 x 64 x 24 x 24 values.
        squares = images.flatten(2).square()
        sums = (self._layer.bias + self._layer.alpha * paddle.matmul(self.neighbours, squares)).reshape(images.shape)
        return images * paddle.exp(-self._layer.beta * paddle.log(sums))


class PaddleBatchNormalization(nn.Layer):
    """Batch normalization with unbiased running variances.

    The running variance of F.batch_norm averages biased variances; the shared procedure requires unbiased ones. In
    training, F.batch_norm therefore only stores the statistics of the batch. ``update`` changes the running statistics.
    """

    def __init__(self, layer: layers.BatchNormalization, node: Node) -> None:
        super().__init__()
        self._layer, maps = layer, node.input[0]
        self.gamma = self.create_parameter([maps]) if layer.scale else None
        self.beta = self.create_parameter([maps], is_bias=True)
        if not layer.scale:
            # With a gamma that requires no gradient, Paddle 3.3 computes a wrong gradient of beta.
            self.register_buffer("ones", paddle.ones([maps]), persistable=False)
            self.ones.stop_gradient = False
        self.register_buffer("mean", paddle.zeros([maps]))
        self.register_buffer("variance", paddle.ones([maps]))
        self.register_buffer("batch_mean", paddle.zeros([maps]), persistable=False)
        self.register_buffer("batch_variance", paddle.ones([maps]), persistable=False)
        self._cells = int(np.prod(node.input[1:]))

    def forward(self, images: Tensor) -> Tensor:
        gamma = self.ones if self.gamma is None else self.gamma
        if self.training:
            mean, variance, momentum = self.batch_mean, self.batch_variance, 0.0
        else:
            mean, variance, momentum = self.mean, self.variance, 1.0
        return F.batch_norm(images, mean, variance, gamma, self.beta, self.training, momentum, self._layer.epsilon)

    def update(self, batch_size: int) -> None:
        """Update the running statistics with those of the last batch."""
        count, share = batch_size * self._cells, 1 - self._layer.momentum
        self.mean.lerp_(self.batch_mean, share)
        self.variance.lerp_(self.batch_variance * (count / (count - 1)), share)
        if self.gamma is None:
            self.ones.clear_gradient(False)


class PaddleAdd(nn.Layer):
    """Sum of two outputs."""

    def __init__(self, layer: layers.Add, node: Node) -> None:
        super().__init__()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


LAYERS: dict[type[Layer], Callable[[Any, Node], nn.Layer]] = {
    layers.Convolution: PaddleConvolution,
    layers.MaxPool: PaddleMaxPool,
    layers.AveragePool: PaddleAveragePool,
    layers.GlobalAveragePool: PaddleGlobalAveragePool,
    layers.Dense: PaddleDense,
    layers.Dropout: PaddleDropout,
    layers.LocalResponseNormalization: PaddleLocalResponseNormalization,
    layers.BatchNormalization: PaddleBatchNormalization,
    layers.Add: PaddleAdd,
    layers.Relu: lambda layer, node: nn.ReLU(),
    layers.Tanh: lambda layer, node: nn.Tanh(),
}
"""Functions (layer, node) that create the Paddle layer."""


def _sides(node: Node) -> list[int]:
    """Return the padding as [top, bottom, left, right]."""
    return [side for pads in node.pads for side in pads]


def _windows(layer: layers.MaxPool, node: Node, ceil: bool) -> tuple[int, ...]:
    """Return height and width of the output of Paddle's pooling with the top padding on all sides."""
    top = node.pads[0][0]
    lengths = [length + 2 * top - layer.size for length in node.input[1:]]
    return tuple((-(-length // layer.stride) if ceil else length // layer.stride) + 1 for length in lengths)
