"""What a network is: layers of the vocabulary, each with what it takes and how large that is.

A layer takes what the one before it gives, or the layer that its ``input`` names. Layers can be written together as
``{type: block, layers: {...}}``, in which ``input`` is the name of what the block takes; with ``times: N`` the block
stands N times in a row, one after another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .layers import SPATIAL, TYPES, Add, Convolution, Initial, Layer, NetworkError, Pads, Pool, Shape

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
    for name, given in expand_blocks(layers).items():
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


def expand_blocks(layers: Mapping[str, Any]) -> dict[str, Any]:
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
