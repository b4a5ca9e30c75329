"""Networks as data: layers with their inputs and shapes.

A layer reads the output of the layer before it, or of the layer that its ``input`` names. ``{type: block, layers:
{...}}`` groups layers; inside it, ``input`` refers to the block's input. With ``times: N`` the block is repeated N
times in sequence.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .layers import SPATIAL, TYPES, Add, Convolution, Initializer, Layer, NetworkError, Pads, Pool, Shape

IMAGES = -1
"""Entry in a node's ``sources`` that stands for the input images."""


@dataclass(frozen=True)
class Node:
    """A layer of a network, with the shapes of its input, output, parameters and state."""

    layer: Layer
    input: Shape
    output: Shape
    parameters: Mapping[str, Shape]
    state: Mapping[str, Shape]
    sources: tuple[int, ...]
    """Positions of the nodes whose outputs the layer reads, or ``IMAGES``; two for an addition."""

    @property
    def pads(self) -> Pads:
        """The padding of this convolution or pool, including that of a last window that extends beyond the image."""
        assert isinstance(self.layer, (Convolution, Pool))
        return self.layer.pads(self.input)

    @property
    def padding_name(self) -> str | None:
        """``valid`` or ``same`` if the padding of this convolution or pool is equal to one of these, even if it was
        specified as a number; None for any other padding."""
        assert isinstance(self.layer, (Convolution, Pool))
        if not any(itertools.chain(*self.pads)):
            return "valid"
        same = dataclasses.replace(self.layer, padding="same").pads(self.input)
        return "same" if self.pads == same else None

    @property
    def cells(self) -> np.ndarray:
        """Number of cells inside the image that each window of this pool covers: (height, width)."""
        assert isinstance(self.layer, Pool)
        covered = []
        for length, (before, _), windows in zip(self.input[1:], self.pads, self.output[1:], strict=True):
            starts = np.arange(windows) * self.layer.stride - before
            covered.append(np.minimum(starts + self.layer.size, length) - np.maximum(starts, 0))
        return np.outer(*covered)


@dataclass(frozen=True)
class Network:
    """Layers that are applied in order to images of one shape; the output of the last one is the logits."""

    nodes: tuple[Node, ...]

    @property
    def parameters(self) -> dict[str, Shape]:
        """Canonical shape of every trainable array, by ``layer/array``."""
        return {f"{node.layer.name}/{name}": shape for node in self.nodes for name, shape in node.parameters.items()}

    @property
    def state(self) -> dict[str, Shape]:
        """Canonical shape of every array that training changes without gradients, by ``layer/array``."""
        return {f"{node.layer.name}/{name}": shape for node in self.nodes for name, shape in node.state.items()}

    @property
    def parameter_count(self) -> int:
        """Number of trainable values; a masked convolution counts only its connected weights."""
        count = sum(math.prod(shape) for shape in self.parameters.values())
        for node in self.nodes:
            if isinstance(node.layer, Convolution) and node.layer.connections is not None:
                maps, kernel = node.layer.filters, node.layer.kernel
                count -= maps * (node.input[0] - node.layer.connections) * kernel**2
        return count

    @property
    def flops_per_image(self) -> int:
        """Floating-point operations of one forward pass; a training step costs about three times as much."""
        return sum(node.layer.flops(node.input) for node in self.nodes)


def build(layers: Mapping[str, Mapping[str, Any]], shape: Shape, classes: int) -> Network:
    """Return the network of ``layers`` (name to ``{type: ..., ...}``, as in ``conf/model``) on images of ``shape``.

    A dense layer's ``units: classes`` becomes the data set's number of classes.

    Raises:
        NetworkError: an unknown type or key, an invalid value, or a layer that does not fit its input.
    """
    nodes: list[Node] = []
    positions: dict[str, int] = {}
    for name, values in expand_blocks(layers).items():
        layer = _layer(name, values, classes)
        source = _position(name, "input", values["input"], positions) if "input" in values else len(nodes) - 1
        sources = (source, _position(name, "to", layer.to, positions)) if isinstance(layer, Add) else (source,)
        inputs = [nodes[source].output if source != IMAGES else shape for source in sources]
        if isinstance(layer, SPATIAL) and len(inputs[0]) != 3:
            raise NetworkError(f"layer {name}: a {values['type']} cannot follow a dense layer")
        if isinstance(layer, Add) and inputs[0] != inputs[1]:
            raise NetworkError(f"layer {name}: cannot add {inputs[1]} (to={layer.to}) to {inputs[0]}")
        entry = inputs[0]
        positions[name] = len(nodes)
        nodes.append(Node(layer, entry, layer.output(entry), layer.parameters(entry), layer.state(entry), sources))
    if not nodes:
        raise NetworkError("a network needs at least one layer")
    if nodes[-1].output != (classes,):
        raise NetworkError(
            f"layer {nodes[-1].layer.name}: gives {nodes[-1].output}, but the data set has {classes} classes"
        )
    return Network(tuple(nodes))


def expand_blocks(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``layers`` with every block replaced by its layers.

    A layer of a block is named ``BLOCK_LAYER``. In a block with ``times``, it is named ``BLOCK_NUMBER_LAYER``, with
    numbers from 1.

    Raises:
        NetworkError: a block is invalid.
    """
    flat: dict[str, Any] = {}
    for name, values in layers.items():
        if not isinstance(values, Mapping) or values.get("type") != "block":
            flat[name] = values
            continue
        times, inner = values.get("times"), values.get("layers")
        if set(values) - {"type", "times", "layers"} or not isinstance(inner, Mapping) or not inner:
            raise NetworkError(f"layer {name}: a block takes layers, and times if it is repeated")
        if times is not None and (not isinstance(times, int) or isinstance(times, bool) or times < 0):
            raise NetworkError(f"layer {name}: times={times}: expected a whole number of at least 0")
        for prefix in [name] if times is None else [f"{name}_{number}" for number in range(1, times + 1)]:
            before = next(reversed(flat), None)
            for own, layer in inner.items():
                flat[f"{prefix}_{own}"] = _prefixed(prefix, name, layer, set(inner), before)
    return flat


def _prefixed(prefix: str, block: str, layer: Any, siblings: set[str], before: str | None) -> Any:
    """Return a layer of a block, with the layer names in its ``input`` and ``to`` replaced by full names."""
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


def _position(layer: str, key: str, name: Any, positions: Mapping[str, int]) -> int:
    if not isinstance(name, str) or name not in positions:
        raise NetworkError(f"layer {layer}: {key}={name}: expected the name of a layer before it")
    return positions[name]


def _layer(name: str, description: Mapping[str, Any], classes: int) -> Layer:
    if not name.isidentifier():
        raise NetworkError(
            f"layer {name}: a name consists of letters, digits and _ and does not start with a digit, "
            "because frameworks use it as an identifier"
        )
    if not isinstance(description, Mapping):
        raise NetworkError(f"layer {name}={description}: expected {{type: {'|'.join(TYPES)}, ...}}")
    values = {key: value for key, value in description.items() if key != "input"}
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
            values[key] = Initializer.parse(f"layer {name}: {key}", values[key])
    if values.get("units") == "classes":
        values["units"] = classes
    return TYPES[kind](name, **values)
