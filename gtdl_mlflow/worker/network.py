"""The layer vocabulary: what a network is, its shapes, its parameters and its cost, before any framework sees it.

Shapes are (channels, height, width), or (units,) once a dense layer has flattened them (channels slowest, width
fastest). Weights have one canonical layout, float32: convolution (out, in, height, width), dense (in, out).

A layer takes what the one before it gives, or the layer that its ``input`` names. Layers can be written together as
``{type: block, layers: {...}}``, in which ``input`` is the name of what the block takes; with ``times: N`` the block
stands N times in a row, one after another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

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

IMAGES = -1
"""In a node's ``sources``: the images themselves."""


@dataclass(frozen=True)
class Node:
    """A layer in its place."""

    layer: Layer
    input: Shape
    output: Shape
    parameters: Mapping[str, Shape]
    state: Mapping[str, Shape]
    sources: tuple[int, ...]
    """Positions of the nodes whose outputs it takes, or ``IMAGES``: the one before it, and what an addition adds."""

    @property
    def pads(self) -> Pads:
        """The padding of a convolution or a pool here, an overhanging last window included."""
        assert isinstance(self.layer, (Convolution, Pool))
        return self.layer.pads(self.input)

    @property
    def cells(self) -> np.ndarray:
        """How many cells inside the image each window of a pool covers: (height, width)."""
        assert isinstance(self.layer, Pool)
        covered = []
        for length, (before, _), windows in zip(self.input[1:], self.pads, self.output[1:], strict=True):
            starts = np.arange(windows) * self.layer.stride - before
            covered.append(np.minimum(starts + self.layer.size, length) - np.maximum(starts, 0))
        return np.outer(*covered)


@dataclass(frozen=True)
class Network:
    """Layers applied in order to images of one shape; the last one's output are the logits."""

    nodes: tuple[Node, ...]

    @property
    def parameters(self) -> dict[str, Shape]:
        """Canonical shape of every trainable array, by ``layer/array``."""
        return {f"{node.layer.name}/{name}": shape for node in self.nodes for name, shape in node.parameters.items()}

    @property
    def state(self) -> dict[str, Shape]:
        """Canonical shape of every array that training moves by other means than gradients, by ``layer/array``."""
        return {f"{node.layer.name}/{name}": shape for node in self.nodes for name, shape in node.state.items()}

    @property
    def parameter_count(self) -> int:
        """Trainable numbers; of a masked convolution only the connected weights."""
        count = sum(math.prod(shape) for shape in self.parameters.values())
        for node in self.nodes:
            if isinstance(node.layer, Convolution) and node.layer.connections is not None:
                maps, kernel = node.layer.filters, node.layer.kernel
                count -= maps * (node.input[0] - node.layer.connections) * kernel**2
        return count

    @property
    def flops_per_image(self) -> int:
        """Of one forward pass; a training step costs about three times as much."""
        return sum(node.layer.flops(node.input) for node in self.nodes)


def build(layers: Mapping[str, Mapping[str, Any]], shape: Shape, classes: int) -> Network:
    """The network of ``layers`` (name to ``{type: ..., ...}``, as in ``conf/model``) on images of ``shape``.

    A dense layer's ``units: classes`` becomes the data set's number of classes.

    Raises:
        NetworkError: an unknown type or key, a value that cannot be, or a layer that does not fit what comes in.
    """
    nodes: list[Node] = []
    places: dict[str, int] = {}
    for name, given in expanded(layers).items():
        layer = _layer(name, given, classes)
        source = _place(name, "input", given["input"], places) if "input" in given else len(nodes) - 1
        sources = (source, _place(name, "to", layer.to, places)) if isinstance(layer, Add) else (source,)
        inputs = [nodes[source].output if source != IMAGES else shape for source in sources]
        if isinstance(layer, SPATIAL) and len(inputs[0]) != 3:
            raise NetworkError(f"layer {name}: a {given['type']} cannot follow a dense layer")
        if isinstance(layer, Add) and inputs[0] != inputs[1]:
            raise NetworkError(f"layer {name}: cannot add {inputs[1]} (to={layer.to}) to {inputs[0]}")
        takes_in = inputs[0]
        output, parameters, state = layer.output(takes_in), layer.parameters(takes_in), layer.state(takes_in)
        places[name] = len(nodes)
        nodes.append(Node(layer, takes_in, output, parameters, state, sources))
    if not nodes:
        raise NetworkError("a network needs at least one layer")
    if nodes[-1].output != (classes,):
        raise NetworkError(
            f"layer {nodes[-1].layer.name}: gives {nodes[-1].output}, but the data set has {classes} classes"
        )
    return Network(tuple(nodes))


def expanded(layers: Mapping[str, Any]) -> dict[str, Any]:
    """``layers`` with every block replaced by its layers, called ``BLOCK_LAYER``, or ``BLOCK_NUMBER_LAYER`` from 1.

    Raises:
        NetworkError: a block that is none.
    """
    flat: dict[str, Any] = {}
    for name, given in layers.items():
        if not isinstance(given, Mapping) or given.get("type") != "block":
            flat[name] = given
            continue
        times, inner = given.get("times"), given.get("layers")
        if set(given) - {"type", "times", "layers"} or not isinstance(inner, Mapping) or not inner:
            raise NetworkError(f"layer {name}: a block takes layers, and times if it stands there more than once")
        if times is not None and (not isinstance(times, int) or isinstance(times, bool) or times < 0):
            raise NetworkError(f"layer {name}: times={times}: expected a whole number of at least 0")
        for prefix in [name] if times is None else [f"{name}_{number}" for number in range(1, times + 1)]:
            before = next(reversed(flat), None)
            for own, layer in inner.items():
                flat[f"{prefix}_{own}"] = _prefixed(prefix, name, layer, set(inner), before)
    return flat


def _prefixed(prefix: str, block: str, layer: Any, siblings: set[str], before: str | None) -> Any:
    """A layer of a block, the names it refers to being those they have outside."""
    if not isinstance(layer, Mapping):
        return layer
    changed = dict(layer)
    for key in ("input", "to"):
        if key not in layer:
            continue
        if layer[key] == "input":
            if before is None:
                raise NetworkError(f"layer {block}: a block at the start of a network has no input to refer to")
            changed[key] = before
        elif layer[key] in siblings:
            changed[key] = f"{prefix}_{layer[key]}"
    return changed


def _place(name: str, key: str, wanted: Any, places: Mapping[str, int]) -> int:
    if not isinstance(wanted, str) or wanted not in places:
        raise NetworkError(f"layer {name}: {key}={wanted}: expected the name of a layer before it")
    return places[wanted]


def _layer(name: str, given: Mapping[str, Any], classes: int) -> Layer:
    if not name.isidentifier():
        raise NetworkError(
            f"layer {name}: a name is letters, digits and _, no digit first: frameworks use it as theirs"
        )
    if not isinstance(given, Mapping):
        raise NetworkError(f"layer {name}={given}: expected {{type: {'|'.join(TYPES)}, ...}}")
    values = {key: value for key, value in given.items() if key != "input"}
    kind = values.pop("type", None)
    if not isinstance(kind, str) or kind not in TYPES:
        raise NetworkError(f"layer {name}: type={kind}: expected one of {', '.join(TYPES)}")
    fields = {field.name: field for field in dataclasses.fields(TYPES[kind]) if field.name != "name"}
    if unknown := set(values) - set(fields):
        raise NetworkError(f"layer {name}: {kind} has no {sorted(unknown)[0]}; it takes {', '.join(fields)}")
    required = {key for key, field in fields.items() if field.default is dataclasses.MISSING}
    if missing := required - set(values):
        raise NetworkError(f"layer {name}: {kind} needs {', '.join(sorted(missing))}")
    for key in ("weights", "biases"):
        if key in values and not (kind == "convolution" and key == "biases" and values[key] is None):
            values[key] = Initial.parse(f"layer {name}: {key}", values[key])
    if values.get("units") == "classes":
        values["units"] = classes
    return TYPES[kind](name, **values)


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
