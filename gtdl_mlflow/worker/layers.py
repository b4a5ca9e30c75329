"""Layer types, independent of any framework: their computation, shapes, parameters and cost.

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
    """The layers do not form a valid network; the message names the layer."""


@dataclass(frozen=True)
class Initializer:
    """The distribution of a parameter's initial values.

    * ``constant``: ``value``.
    * ``normal``: mean 0, ``stddev``.
    * ``truncated_normal``: the same, but values beyond two standard deviations are resampled.
    * ``normal_fan_in``: mean 0, standard deviation sqrt(``gain`` / fan_in); gain 2 is He's.
    * ``uniform_fan_in``: +-sqrt(``gain`` / fan_in); gain 3 is Caffe's "xavier", gain 1 Torch7's reset().
    * ``uniform_fan_in_out``: +-sqrt(``gain`` / (fan_in + fan_out)); gain 6 is Glorot and Bengio's. ``pool`` is the
      side of the pooling window that follows; fan_out is divided by its area (Theano's LeNet tutorial).
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
    def parse(cls, name: str, values: Any) -> Initializer:
        """Return the initializer of a mapping such as ``{distribution: normal, stddev: 0.1}``.

        Raises:
            NetworkError: the mapping is invalid; the message begins with ``name``.
        """
        uses = cls.USES.get(str(values.get("distribution"))) if isinstance(values, dict) else None
        if uses is None:
            raise NetworkError(f"{name}={values}: expected {{distribution: {'|'.join(cls.USES)}, ...}}")
        distribution, value, pool = values["distribution"], values.get(uses), values.get("pool", 1)
        optional = {"pool"} if distribution == "uniform_fan_in_out" else set()
        if set(values) - optional != {"distribution", uses}:
            raise NetworkError(f"{name}={values}: distribution {distribution} takes {uses} and nothing else")
        if not isinstance(value, (int, float)) or (uses != "value" and value <= 0):
            raise NetworkError(f"{name}.{uses}={value}: expected a {'' if uses == 'value' else 'positive '}number")
        if not isinstance(pool, int) or isinstance(pool, bool) or pool < 1:
            raise NetworkError(f"{name}.pool={pool}: expected a whole number of at least 1")
        return cls(distribution, **{uses: float(value)}, pool=pool)


@dataclass(frozen=True)
class Layer:
    """A layer: its name, shapes, parameters and cost."""

    name: str

    def output(self, shape: Shape) -> Shape:
        """Return the output shape for the input shape ``shape``."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        """Return the canonical shapes of the trainable arrays, by name."""
        return {}

    def state(self, shape: Shape) -> dict[str, Shape]:
        """Return the canonical shapes of the arrays that training changes without gradients, by name."""
        return {}

    def initializer(self, name: str) -> Initializer:
        """Return the initializer of one of ``parameters`` or ``state``."""
        initializer = getattr(self, name)
        assert isinstance(initializer, Initializer)
        return initializer

    def fan_in(self, shape: Shape) -> int:
        """Return the number of inputs that one output depends on."""
        return math.prod(shape)

    def fan_out(self, shape: Shape) -> int:
        """Return the number of outputs that one input affects, away from the borders."""
        return math.prod(self.output(shape))

    def flops(self, shape: Shape) -> int:
        """Return the number of floating-point operations of the forward pass of one image.

        Only the multiplications and additions of convolutions and dense layers count, without biases.
        """
        return 0


@dataclass(frozen=True)
class Convolution(Layer):
    """Cross-correlation with a square kernel, plus a bias per output map unless ``biases`` is null."""

    filters: int
    kernel: int
    weights: Initializer
    biases: Initializer | None
    stride: int = 1
    padding: int | str = "valid"
    """``valid`` (no padding), ``same`` (as in TensorFlow), or the number of zero cells on every side.

    With ``same``, output = ceil(input / stride).
    """
    connections: int | None = None
    """Number of input maps that each output map reads, chosen at random from the seed; None: all of them."""

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
            raise NetworkError(f"layer {self.name}: connections={self.connections}, but the input has {shape[0]} maps")
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
    """Base of maximum and average pooling; padding cells are never counted as values."""

    size: int
    stride: int
    padding: int | str = "valid"
    rounding: str = "floor"
    """``floor`` drops a last window that does not fit; ``ceil`` includes it, clipped at the border (Caffe)."""

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
    """Maximum of each window."""


@dataclass(frozen=True)
class AveragePool(Pool):
    """Mean of the cells of each window that lie inside the image."""


@dataclass(frozen=True)
class GlobalAveragePool(Layer):
    """Mean of each map: the output is (channels, 1, 1)."""

    def output(self, shape: Shape) -> Shape:
        return (shape[0], 1, 1)


@dataclass(frozen=True)
class Relu(Layer):
    """Rectified linear unit: max(x, 0)."""


@dataclass(frozen=True)
class Tanh(Layer):
    """Hyperbolic tangent."""


@dataclass(frozen=True)
class Dense(Layer):
    """Fully connected layer: x @ weights + biases on the flattened input."""

    units: int
    weights: Initializer
    biases: Initializer

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
    """Dropout: in training, a value is retained with probability ``keep`` and scaled by 1 / ``keep``, or set to 0."""

    keep: float

    def __post_init__(self) -> None:
        if not isinstance(self.keep, (int, float)) or not 0 < self.keep <= 1:
            raise NetworkError(f"layer {self.name}: keep={self.keep}: expected a probability above 0, at most 1")


@dataclass(frozen=True)
class LocalResponseNormalization(Layer):
    """x / (bias + alpha * sum of x**2 over channels c-radius .. c+radius) ** beta, with constants as in TensorFlow."""

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

    In training, mean and (biased) variance are those of the map in this batch. Inference uses the running averages
    ``mean`` and ``variance``, which start from 0 and 1: r <- ``momentum`` r + (1 - ``momentum``) b, where b is this
    batch's mean, or its unbiased variance (divided by n - 1, as in PyTorch, TensorFlow, Caffe and Theano; MXNet divides
    by n).
    """

    momentum: float
    epsilon: float
    scale: bool = True
    """Whether gamma is trained; otherwise it is 1."""

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

    def initializer(self, name: str) -> Initializer:
        return Initializer("constant", value=1.0 if name in ("gamma", "variance") else 0.0)


@dataclass(frozen=True)
class Add(Layer):
    """Sum of the input and the output of the layer ``to``."""

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
    """Return the padding on every side; a negative remainder (cells that no window covers) counts as 0."""
    padding = layer.padding
    if isinstance(padding, bool) or not (padding in ("valid", "same") or (isinstance(padding, int) and padding >= 0)):
        raise NetworkError(f"layer {layer.name}: padding={padding}: expected valid, same, or a whole number")
    pads = []
    for length in shape[1:]:
        if padding == "same":
            # TensorFlow: output = ceil(input / stride), an odd cell goes to the end.
            total = max((math.ceil(length / layer.stride) - 1) * layer.stride + size - length, 0)
            pads.append((total // 2, total - total // 2))
            continue
        before = 0 if padding == "valid" else int(padding)
        after = before
        if rounding == "ceil":
            # Caffe, pooling_layer.cpp: round up, but no window may start beyond the image. (Caffe checks this
            # only with padding; without it, a stride larger than the window could leave an empty last window.)
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
