"""The layer vocabulary: what a layer computes, its shapes, its parameters and its cost, before any framework sees it.

Shapes are (channels, height, width), or (units,) once a dense layer has flattened them (channels slowest, width
fastest). Weights have one canonical layout, float32: convolution (out, in, height, width), dense (in, out).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

Shape = tuple[int, ...]
Pads = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right))."""


class NetworkError(ValueError):
    """The layers make no network; the message names the layer."""


@dataclass(frozen=True)
class Initial:
    """How a parameter starts.

    ``constant``: ``value``. ``normal``: mean 0, ``stddev``. ``truncated_normal``: the same, redrawn beyond 2 of it.
    ``uniform_fan_in``: uniform in +-sqrt(``gain`` / fan_in); gain 3 is Caffe's "xavier", gain 1 Torch7's reset().
    ``uniform_fan_in_out``: uniform in +-sqrt(``gain`` / (fan_in + fan_out)); gain 6 is Glorot and Bengio's. With
    ``pool``, the side of the pooling window that follows, fan_out is divided by its cells (Theano's LeNet tutorial).
    ``normal_fan_in``: mean 0, standard deviation sqrt(``gain`` / fan_in); gain 2 is He's.
    """

    distribution: str
    value: float = 0.0
    stddev: float = 0.0
    gain: float = 0.0
    pool: int = 1

    USES: ClassVar[Mapping[str, str]] = {
        "constant": "value",
        "normal": "stddev",
        "truncated_normal": "stddev",
        "uniform_fan_in": "gain",
        "uniform_fan_in_out": "gain",
        "normal_fan_in": "gain",
    }

    @classmethod
    def parse(cls, where: str, given: Any) -> Initial:
        """From a mapping such as ``{distribution: normal, stddev: 0.1}``."""
        uses = cls.USES.get(str(given.get("distribution"))) if isinstance(given, dict) else None
        if uses is None:
            raise NetworkError(f"{where}={given}: expected {{distribution: {'|'.join(cls.USES)}, ...}}")
        pooled = {"pool"} if given["distribution"] == "uniform_fan_in_out" else set()
        if set(given) - pooled != {"distribution", uses}:
            raise NetworkError(f"{where}={given}: distribution {given['distribution']} takes {uses} and nothing else")
        if not isinstance(given[uses], (int, float)) or (uses != "value" and given[uses] <= 0):
            raise NetworkError(
                f"{where}.{uses}={given[uses]}: expected a {'' if uses == 'value' else 'positive '}number"
            )
        pool = given.get("pool", 1)
        if not isinstance(pool, int) or isinstance(pool, bool) or pool < 1:
            raise NetworkError(f"{where}.pool={pool}: expected a whole number of at least 1")
        return cls(given["distribution"], **{uses: float(given[uses])}, pool=pool)


@dataclass(frozen=True)
class Layer:
    """What every layer says of itself."""

    name: str

    def output(self, shape: Shape) -> Shape:
        """The shape that comes out when ``shape`` goes in."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        """Canonical shapes of the trainable arrays, by name."""
        return {}

    def state(self, shape: Shape) -> dict[str, Shape]:
        """Canonical shapes of the arrays that training moves by other means than gradients, by name."""
        return {}

    def initial(self, name: str) -> Initial:
        """How one of ``parameters`` or ``state`` starts."""
        how = getattr(self, name)
        assert isinstance(how, Initial)
        return how

    def fan_in(self, shape: Shape) -> int:
        """How many inputs one output reads."""
        return math.prod(shape)

    def fan_out(self, shape: Shape) -> int:
        """How many outputs one input reaches, borders aside."""
        return math.prod(self.output(shape))

    def flops(self, shape: Shape) -> int:
        """Floating-point operations of one image's forward pass: products and sums of the matrix product."""
        return 0


@dataclass(frozen=True)
class Convolution(Layer):
    """Cross-correlation with a square kernel, plus a bias per output map unless ``biases`` is null."""

    filters: int
    kernel: int
    weights: Initial
    biases: Initial | None
    stride: int = 1
    padding: int | str = "valid"
    """``valid`` (none), ``same`` (TensorFlow's: output = ceil(input / stride)), or cells of zeros on every side."""
    connections: int | None = None
    """How many input maps each output map reads, drawn once from the seed; all of them if not given."""

    def __post_init__(self) -> None:
        _positive(self, "filters", "kernel", "stride")
        if self.connections is not None:
            _positive(self, "connections")

    def pads(self, shape: Shape) -> Pads:
        return _pads(self, shape, self.kernel, "floor")

    def output(self, shape: Shape) -> Shape:
        pads = self.pads(shape)
        return (self.filters, *_windows(self, shape, pads, self.kernel))

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        if self.connections is not None and self.connections > shape[0]:
            raise NetworkError(f"layer {self.name}: connections={self.connections}, but only {shape[0]} maps come in")
        weights: dict[str, Shape] = {"weights": (self.filters, shape[0], self.kernel, self.kernel)}
        return weights if self.biases is None else {**weights, "biases": (self.filters,)}

    def fan_in(self, shape: Shape) -> int:
        return (self.connections or shape[0]) * self.kernel**2

    def fan_out(self, shape: Shape) -> int:
        return self.filters * self.kernel**2

    def flops(self, shape: Shape) -> int:
        return 2 * self.fan_in(shape) * math.prod(self.output(shape))


@dataclass(frozen=True)
class Pool(Layer):
    """What maximum and average pooling share; padding is never counted as a value."""

    size: int
    stride: int
    padding: int | str = "valid"
    rounding: str = "floor"
    """``floor`` drops a last window that does not fit; ``ceil`` keeps it, clipped at the border (Caffe)."""

    def __post_init__(self) -> None:
        _positive(self, "size", "stride")
        if self.rounding not in ("floor", "ceil"):
            raise NetworkError(f"layer {self.name}: rounding={self.rounding}: expected floor or ceil")
        if isinstance(self.padding, int) and self.padding >= self.size:
            raise NetworkError(f"layer {self.name}: padding={self.padding}: must be smaller than size={self.size}")

    def pads(self, shape: Shape) -> Pads:
        return _pads(self, shape, self.size, self.rounding)

    def output(self, shape: Shape) -> Shape:
        return (shape[0], *_windows(self, shape, self.pads(shape), self.size))


@dataclass(frozen=True)
class MaxPool(Pool):
    """The largest value of each window."""


@dataclass(frozen=True)
class AveragePool(Pool):
    """The mean of the cells of each window that lie inside the image."""


@dataclass(frozen=True)
class GlobalAveragePool(Layer):
    """The mean of each map, one cell."""

    def output(self, shape: Shape) -> Shape:
        return (shape[0], 1, 1)


@dataclass(frozen=True)
class Relu(Layer):
    """max(x, 0)."""


@dataclass(frozen=True)
class Tanh(Layer):
    """Hyperbolic tangent."""


@dataclass(frozen=True)
class Dense(Layer):
    """Flatten, then x @ weights + biases."""

    units: int
    weights: Initial
    biases: Initial

    def __post_init__(self) -> None:
        _positive(self, "units")

    def output(self, shape: Shape) -> Shape:
        return (self.units,)

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        return {"weights": (math.prod(shape), self.units), "biases": (self.units,)}

    def flops(self, shape: Shape) -> int:
        return 2 * math.prod(shape) * self.units


@dataclass(frozen=True)
class Dropout(Layer):
    """While training, keeps each value with probability ``keep`` and scales what is kept by 1 / ``keep``."""

    keep: float

    def __post_init__(self) -> None:
        if not isinstance(self.keep, (int, float)) or not 0 < self.keep <= 1:
            raise NetworkError(f"layer {self.name}: keep={self.keep}: expected a probability above 0, at most 1")


@dataclass(frozen=True)
class LocalResponseNormalization(Layer):
    """x / (bias + alpha * sum of x**2 over channels c-radius .. c+radius) ** beta: TensorFlow's constants."""

    radius: int
    bias: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        _positive(self, "radius")
        for name in ("bias", "alpha", "beta"):
            value = getattr(self, name)
            if not _number(value):
                raise NetworkError(f"layer {self.name}: {name}={value}: expected a number")


@dataclass(frozen=True)
class BatchNormalization(Layer):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, for each map (Ioffe and Szegedy, 2015).

    While training, mean and (biased) variance are those of the map in this batch, and ``mean`` and ``variance`` follow
    them: r <- ``momentum`` r + (1 - ``momentum``) of this batch's mean, or of its unbiased variance (divided by n - 1,
    as PyTorch, TensorFlow, Caffe and Theano have it; MXNet divides by n). They start from 0 and 1, and classify.
    """

    momentum: float
    epsilon: float
    scale: bool = True
    """Whether there is a gamma; else it is 1."""

    def __post_init__(self) -> None:
        if not _number(self.momentum) or not 0 < self.momentum < 1:
            raise NetworkError(f"layer {self.name}: momentum={self.momentum}: expected a share above 0, below 1")
        if not _number(self.epsilon) or not self.epsilon > 0:
            raise NetworkError(f"layer {self.name}: epsilon={self.epsilon}: expected a number above 0")
        if not isinstance(self.scale, bool):
            raise NetworkError(f"layer {self.name}: scale={self.scale}: expected true or false")

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        return {**({"gamma": shape[:1]} if self.scale else {}), "beta": shape[:1]}

    def state(self, shape: Shape) -> dict[str, Shape]:
        return {"mean": shape[:1], "variance": shape[:1]}

    def initial(self, name: str) -> Initial:
        return Initial("constant", value=1.0 if name in ("gamma", "variance") else 0.0)


@dataclass(frozen=True)
class Add(Layer):
    """The sum of what it takes and what the layer ``to`` gives."""

    to: str


TYPES: dict[str, type[Layer]] = {
    "convolution": Convolution,
    "max_pool": MaxPool,
    "average_pool": AveragePool,
    "global_average_pool": GlobalAveragePool,
    "relu": Relu,
    "tanh": Tanh,
    "dense": Dense,
    "dropout": Dropout,
    "local_response_normalization": LocalResponseNormalization,
    "batch_normalization": BatchNormalization,
    "add": Add,
}

SPATIAL = (Convolution, Pool, GlobalAveragePool, LocalResponseNormalization, BatchNormalization)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(layer: Layer, *names: str) -> None:
    for name in names:
        value = getattr(layer, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise NetworkError(f"layer {layer.name}: {name}={value}: expected a whole number of at least 1")


def _pads(layer: Convolution | Pool, shape: Shape, size: int, rounding: str) -> Pads:
    """Cells to add on every side; a negative remainder (cells that no window reaches) counts as none."""
    padding = layer.padding
    if isinstance(padding, bool) or not (padding in ("valid", "same") or (isinstance(padding, int) and padding >= 0)):
        raise NetworkError(f"layer {layer.name}: padding={padding}: expected valid, same, or a whole number")
    pads = []
    for length in shape[1:]:
        if padding == "same":
            # TensorFlow: output = ceil(input / stride), the odd cell goes after.
            total = max((math.ceil(length / layer.stride) - 1) * layer.stride + size - length, 0)
            pads.append((total // 2, total - total // 2))
            continue
        before = 0 if padding == "valid" else int(padding)
        after = before
        if rounding == "ceil":
            # Caffe, pooling_layer.cpp: round up, but no window may start beyond the image. (Caffe looks only where
            # there is padding; without, a stride larger than the window could leave it a last window of no cells.)
            windows = math.ceil((length + 2 * before - size) / layer.stride) + 1
            if (windows - 1) * layer.stride >= length + before:
                windows -= 1
            after = (windows - 1) * layer.stride + size - length - before
        pads.append((before, max(after, 0)))
    return pads[0], pads[1]


def _windows(layer: Convolution | Pool, shape: Shape, pads: Pads, size: int) -> tuple[int, int]:
    sizes = []
    for length, (before, after) in zip(shape[1:], pads, strict=True):
        windows = (length + before + after - size) // layer.stride + 1
        if windows < 1:
            raise NetworkError(
                f"layer {layer.name}: a window of {size} does not fit an input of {shape[1]}x{shape[2]} "
                f"(padding {layer.padding})"
            )
        sizes.append(windows)
    return sizes[0], sizes[1]
