"""A network and its solver as Caffe's prototxt, and access to the arrays of the nets that Caffe builds from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from caffe.proto import caffe_pb2

from ... import layers
from ...initialization import Weights
from ...job import Optimizer, Schedule, Training
from ...layers import Layer, Shape
from ...network import IMAGES, Node
from ..base import Setup, Unsupported, implementation

LARGEST_BLOB = 2**31 - 1
"""Largest number of values in a blob; Caffe terminates the process if a blob is larger."""

# Names of blobs and layers that no layer of a model can have.
BATCH_LAYER, IMAGES_BLOB, LABELS_BLOB, LOSS_BLOB = "net/batches", "net/images", "net/labels", "net/loss"

FIXED = {"lr_mult": 0.0, "decay_mult": 0.0}
"""Parameter settings of an array that the solver must not change."""


def solver_prototxt(setup: Setup) -> Any:
    """Return the solver's parameters; the adapter corrects the steps whose rate differs from ``solver_rates``."""
    training = setup.training
    common = {
        "base_lr": training.learning_rate,
        "lr_policy": "fixed",
        "weight_decay": training.weight_decay,
        "solver_mode": "CPU",
        "random_seed": setup.seed,
    }
    if training.schedule.type is Schedule.inverse:
        common |= {"lr_policy": "inv", "gamma": training.schedule.gamma, "power": training.schedule.power}
    if training.optimizer is Optimizer.sgd:
        return caffe_pb2.SolverParameter(type="SGD", momentum=training.momentum, **common)
    # Caffe adds delta to the root of the second moment before the bias correction, so the effective epsilon is delta
    # over sqrt(1 - beta2^step). It falls from epsilon at the first step to delta and never exceeds epsilon.
    delta = training.epsilon * math.sqrt(1 - training.beta2)
    moments = {"momentum": training.beta1, "momentum2": training.beta2, "delta": delta}
    return caffe_pb2.SolverParameter(type="Adam", **moments, **common)


def solver_rates(training: Training, start: int, stop: int) -> list[float]:
    """Return the learning rates of steps ``start`` to ``stop`` by the solver's schedule, which ignores the budget."""
    if training.schedule.type is Schedule.inverse:
        return training.rates(start, stop, budget=1)
    return [training.learning_rate] * (stop - start)


class NetPrototxt:
    """Definition of the net, the values that prototxt cannot express, and access to the arrays of the nets."""

    def __init__(self, setup: Setup) -> None:
        self.net = caffe_pb2.NetParameter(name=setup.training.name)
        self._setup = setup
        self._constants: Weights = {}
        """Values of constant arrays, by layer."""
        self._borders: dict[str, float] = {}
        """Values, by blob, of the inputs that pad images where Caffe's layers do not support the padding."""
        self._protected = {IMAGES_BLOB}
        """Blobs that must not be overwritten in place, because backpropagation or another layer reads them."""
        nodes = setup.network.nodes
        shape, batch_size = nodes[0].input, setup.training.batch_size
        self._largest = (math.prod(shape), nodes[0].layer.name)
        only_training, only_testing = [{"phase": "TRAIN"}], [{"phase": "TEST"}]
        # This layer reads several consecutive training batches without a copy. It must be the first layer.
        dimensions = dict(zip(("batch_size", "channels", "height", "width"), (batch_size, *shape), strict=True))
        self.net.layer.add(
            type="MemoryData",
            name=BATCH_LAYER,
            top=[IMAGES_BLOB, LABELS_BLOB],
            memory_data_param=dimensions,
            include=only_training,
        )
        tops = {IMAGES: self.add_input(IMAGES_BLOB, shape, include=only_testing)}
        sources = [source for node in nodes for source in node.sources]
        for position, node in enumerate(nodes):
            bottoms = [tops[source] for source in node.sources]
            tops[position] = implementation("caffe", LAYERS, node.layer)(self, node.layer, node, bottoms)
            if sources.count(position) > 1:
                self.protect(tops[position])
            self.note_size(node.output, node)
        self.logits = tops[position]
        self.add("SoftmaxWithLoss", LOSS_BLOB, [self.logits, LABELS_BLOB], LOSS_BLOB, include=only_training)
        values, layer = self._largest
        self.max_images = LARGEST_BLOB // values
        if batch_size > self.max_images:
            raise Unsupported(
                f"framework=caffe requires training.batch_size of at most {self.max_images}, not {batch_size}, "
                f"for layer {layer}"
            )

    def parameters(self, net: Any) -> dict[str, Any]:
        """Return the blobs of the trainable arrays, by canonical name."""
        return {
            f"{node.layer.name}/{array}": net.params[node.layer.name][index]
            for node in self._setup.network.nodes
            for index, array in enumerate(node.parameters)
        }

    def state(self, net: Any) -> Weights:
        """Return the running statistics, by canonical name; Caffe stores weighted sums and the sum of the weights."""
        return {
            f"{node.layer.name}/{array}": blob.data / net.params[_normalize_name(node)][2].data
            for node in self._normalized
            for array, blob in zip(node.state, net.params[_normalize_name(node)], strict=False)
        }

    def copy_state(self, source: Any, target: Any) -> None:
        """Copy the running statistics from one net to another."""
        for node in self._normalized:
            name = _normalize_name(node)
            for from_blob, to_blob in zip(source.params[name], target.params[name], strict=True):
                to_blob.data[...] = from_blob.data

    @property
    def _normalized(self) -> list[Node]:
        """Batch normalization nodes."""
        return [node for node in self._setup.network.nodes if node.state]

    def set_weights(self, net: Any, weights: Weights) -> None:
        """Set parameters, running statistics and constants of a net."""
        for name, blob in self.parameters(net).items():
            blob.data[...] = transposed(weights[name])
        for node in self._normalized:
            mean, variance, total_weight = net.params[_normalize_name(node)]
            total_weight.data[...] = _total_weight(node)
            mean.data[...] = weights[f"{node.layer.name}/mean"] * total_weight.data
            variance.data[...] = weights[f"{node.layer.name}/variance"] * total_weight.data
        for layer, values in self._constants.items():
            net.params[layer][0].data[...] = values

    def total_weights(self, net: Any) -> list[tuple[np.ndarray, float]]:
        """Return the arrays that hold the total weight of the statistics' sums, each with its constant value."""
        return [(net.params[_normalize_name(node)][2].data, _total_weight(node)) for node in self._normalized]

    def set_borders(self, net: Any) -> None:
        """Fill the inputs that pad images."""
        for name, value in self._borders.items():
            net.blobs[name].data[...] = value

    def reshape(self, net: Any, images: int) -> None:
        """Change the number of images per batch."""
        for name in (IMAGES_BLOB, *self._borders):
            blob = net.blobs[name]
            blob.reshape(images, *blob.shape[1:])
        self.set_borders(net)

    # Building blocks of the layers; those that add a layer return the name of its output blob.

    def add(self, type: str, name: str, bottoms: list[str], top: str, **parameters: Any) -> str:
        """Add a layer."""
        self.net.layer.add(type=type, name=name, bottom=bottoms, top=[top], **parameters)
        return top

    def add_input(self, name: str, shape: Shape, **parameters: Any) -> str:
        """Add an input of one batch."""
        shapes = [{"dim": [self._setup.training.batch_size, *shape]}]
        return self.add("Input", name, [], name, input_param={"shape": shapes}, **parameters)

    def add_elementwise(self, type: str, name: str, bottom: str, **parameters: Any) -> str:
        """Add a layer that works in place unless its input must not be overwritten."""
        return self.add(type, name, [bottom], name if bottom in self._protected else bottom, **parameters)

    def add_scale(self, name: str, bottom: str, factors: np.ndarray) -> str:
        """Add a multiplication of every map by constant factors (height, width)."""
        self._constants[name] = factors
        return self.add("Scale", name, [bottom], name, scale_param={"axis": 2, "num_axes": 2}, param=[FIXED])

    def add_padding(self, node: Node, bottom: str, value: float) -> str:
        """Pad the input with ``value``; Caffe's layers support only zeros and equal padding on both sides."""
        shape = list(node.input)
        for axis, sides in zip((1, 2), node.pads, strict=True):
            parts = [bottom]
            for side, cells in zip(("before", "after"), sides, strict=True):
                if not cells:
                    continue
                name = f"{node.layer.name}/{side}{axis}"
                self._borders[name] = value
                self.add_input(name, tuple(cells if index == axis else length for index, length in enumerate(shape)))
                parts.insert(0 if side == "before" else len(parts), name)
            shape[axis] += sum(sides)
            if len(parts) > 1:
                name = f"{node.layer.name}/axis{axis}"
                bottom = self.add("Concat", name, parts, name, concat_param={"axis": axis + 1})
        self.note_size(tuple(shape), node)
        return bottom

    def protect(self, blob: str) -> None:
        """Forbid later layers to overwrite a blob in place."""
        self._protected.add(blob)

    def note_size(self, shape: Shape, node: Node) -> None:
        """Record the size of a blob, to limit the number of images per batch."""
        self._largest = max(self._largest, (math.prod(shape), node.layer.name))

    def parameter_settings(self, node: Node) -> list[dict[str, float]]:
        """Return the learning-rate and decay multipliers of a layer's parameters."""
        names = [f"{node.layer.name}/{array}" for array in node.parameters]
        return [
            {
                "lr_mult": self._setup.lr_multiplier(name),
                "decay_mult": float(self._setup.weight_decay(name) > 0),
            }
            for name in names
        ]


def _convolution(net: NetPrototxt, layer: layers.Convolution, node: Node, bottoms: list[str]) -> str:
    options: dict[str, Any] = {
        "num_output": layer.filters,
        "kernel_size": [layer.kernel],
        "stride": [layer.stride],
        "bias_term": layer.biases is not None,
    }
    [bottom], ((top, bottom_cells), (left, right)) = bottoms, node.pads
    if (top, left) == (bottom_cells, right):
        options["pad"] = [top, left]
    else:
        bottom = net.add_padding(node, bottom, 0.0)
    settings = net.parameter_settings(node)
    return net.add("Convolution", layer.name, [bottom], layer.name, convolution_param=options, param=settings)


def _max_pool(net: NetPrototxt, layer: layers.MaxPool, node: Node, bottoms: list[str]) -> str:
    pooled, _ = _pool(net, layer, node, bottoms[0], "MAX", float(np.finfo(np.float32).min))
    return pooled


def _average_pool(net: NetPrototxt, layer: layers.AveragePool, node: Node, bottoms: list[str]) -> str:
    pooled, padded = _pool(net, layer, node, bottoms[0], "AVE", 0.0)
    # Caffe's mean includes padding. Scale each mean to the cells inside the image.
    factors = _mean_correction(layer, node, padded)
    return pooled if (factors == 1).all() else net.add_scale(f"{layer.name}/share", pooled, factors)


def _pool(
    net: NetPrototxt, layer: layers.Pool, node: Node, bottom: str, method: str, padding: float
) -> tuple[str, bool]:
    """Add a pooling layer; return its output and whether ``add_padding`` pads the image instead of Caffe's pooling."""
    options: dict[str, Any] = {"pool": method, "kernel_size": layer.size, "stride": layer.stride}
    (top, _), (left, _) = node.pads
    fitting = [ceil for ceil in (True, False) if _pooled_size(layer, node, (top, left), ceil) == node.output[1:]]
    if not fitting:
        bottom = net.add_padding(node, bottom, padding)
    elif top or left:
        options |= {"pad_h": top, "pad_w": left}
    if not fitting or not fitting[0]:
        options["ceil_mode"] = False
    return net.add("Pooling", layer.name, [bottom], layer.name, pooling_param=options), not fitting


def _global_average_pool(net: NetPrototxt, layer: layers.GlobalAveragePool, node: Node, bottoms: list[str]) -> str:
    options = {"pool": "AVE", "global_pooling": True}
    return net.add("Pooling", layer.name, bottoms, layer.name, pooling_param=options)


def _dense(net: NetPrototxt, layer: layers.Dense, node: Node, bottoms: list[str]) -> str:
    options, settings = {"num_output": layer.units}, net.parameter_settings(node)
    return net.add("InnerProduct", layer.name, bottoms, layer.name, inner_product_param=options, param=settings)


def _dropout(net: NetPrototxt, layer: layers.Dropout, node: Node, bottoms: list[str]) -> str:
    if layer.keep == 1:
        return bottoms[0]
    return net.add_elementwise("Dropout", layer.name, bottoms[0], dropout_param={"dropout_ratio": 1 - layer.keep})


def _local_response_normalization(
    net: NetPrototxt, layer: layers.LocalResponseNormalization, node: Node, bottoms: list[str]
) -> str:
    # Caffe divides alpha by the window size; our definition, like TensorFlow's, does not.
    size = 2 * layer.radius + 1
    options = {"local_size": size, "alpha": layer.alpha * size, "beta": layer.beta, "k": layer.bias}
    net.protect(layer.name)
    return net.add("LRN", layer.name, bottoms, layer.name, lrn_param=options)


def _batch_normalization(net: NetPrototxt, layer: layers.BatchNormalization, node: Node, bottoms: list[str]) -> str:
    # Caffe's BatchNorm has neither gamma nor beta. A second layer adds them.
    name = _normalize_name(node)
    options = {"moving_average_fraction": layer.momentum, "eps": layer.epsilon}
    # Weight decay must not change the statistics. If there are settings for all three arrays, this version of Caffe
    # treats the file as one of an older version and drops the settings. The adapter therefore resets the third array,
    # the total weight, after each step.
    net.add("BatchNorm", name, bottoms, name, batch_norm_param=options, param=[FIXED] * 2)
    settings = net.parameter_settings(node)
    if layer.scale:
        return net.add("Scale", layer.name, [name], layer.name, param=settings, scale_param={"bias_term": True})
    return net.add("Bias", layer.name, [name], layer.name, param=settings)


def _tanh(net: NetPrototxt, layer: layers.Tanh, node: Node, bottoms: list[str]) -> str:
    top = net.add_elementwise("TanH", layer.name, bottoms[0])
    net.protect(top)
    return top


LAYERS: dict[type[Layer], Callable[[NetPrototxt, Any, Node, list[str]], str]] = {
    layers.Convolution: _convolution,
    layers.MaxPool: _max_pool,
    layers.AveragePool: _average_pool,
    layers.GlobalAveragePool: _global_average_pool,
    layers.Dense: _dense,
    layers.Dropout: _dropout,
    layers.LocalResponseNormalization: _local_response_normalization,
    layers.BatchNormalization: _batch_normalization,
    layers.Add: lambda net, layer, node, bottoms: net.add(
        "Eltwise", layer.name, bottoms, layer.name, eltwise_param={"operation": "SUM"}
    ),
    layers.Relu: lambda net, layer, node, bottoms: net.add_elementwise("ReLU", layer.name, bottoms[0]),
    layers.Tanh: _tanh,
}
"""Functions (net, layer, node, input blobs) that add a layer to the net and return its output blob."""


def _total_weight(node: Node) -> float:
    """Return the total weight of the decaying sums that Caffe stores instead of running averages.

    Caffe's total weight grows from 0 to this limit. At the limit it is constant, and the sums divided by it are the
    running averages of the other frameworks.
    """
    assert isinstance(node.layer, layers.BatchNormalization)
    return 1 / (1 - node.layer.momentum)


def _normalize_name(node: Node) -> str:
    """Return the name of the layer that scales a map to mean 0 and variance 1."""
    return f"{node.layer.name}/normal"


def _pooled_size(layer: layers.Pool, node: Node, pads: tuple[int, int], ceil: bool) -> Shape:
    """Return height and width of the output of Caffe's pooling with ``pads`` on both sides."""
    sizes = []
    for length, pad in zip(node.input[1:], pads, strict=True):
        steps, remainder = divmod(length + 2 * pad - layer.size, layer.stride)
        windows = steps + 1 + (ceil and remainder > 0)
        if any(pads) and (windows - 1) * layer.stride >= length + pad:
            windows -= 1
        sizes.append(windows)
    return tuple(sizes)


def _mean_correction(layer: layers.Pool, node: Node, padded: bool) -> np.ndarray:
    """Return the number of cells in Caffe's mean divided by the number inside the image, per window (height, width)."""
    ratios = []
    for length, windows, (before, _) in zip(node.input[1:], node.output[1:], node.pads, strict=True):
        starts = np.arange(windows) * layer.stride - before
        ends = starts + layer.size
        counted = ends - starts if padded else np.minimum(ends, length + before) - starts
        ratios.append(counted / (np.minimum(ends, length) - np.maximum(starts, 0)))
    return np.outer(*ratios)


def transposed(values: np.ndarray) -> np.ndarray:
    """Convert between Caffe's and the canonical layout, in either direction: transpose dense weights."""
    return values.T if values.ndim == 2 else values
