"""A network and its solver as Caffe's prototxt, and what of their blobs is whose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from caffe.proto import caffe_pb2

from ... import layers as vocabulary
from ...initialization import Weights
from ...job import Optimizer, Schedule, Training
from ...layers import Shape
from ...network import IMAGES as THE_IMAGES
from ...network import Network, Node
from ..base import Setup

LARGEST_BLOB = 2**31 - 1
"""Values; Caffe ends the process if there are more."""


def solver_prototxt(setup: Setup) -> Any:
    """The solver's parameters; the rates of steps that are not ``solver_rates`` are set beside them, step by step."""
    training = setup.training
    common = {"base_lr": training.learning_rate, "lr_policy": "fixed", "weight_decay": training.weight_decay,
              "solver_mode": "CPU", "random_seed": setup.seed}  # fmt: skip
    if training.schedule.type is Schedule.inverse:
        common |= {"lr_policy": "inv", "gamma": training.schedule.gamma, "power": training.schedule.power}
    if training.optimizer is Optimizer.sgd:
        return caffe_pb2.SolverParameter(type="SGD", momentum=training.momentum, **common)
    # Caffe adds delta to the root of the second moment before the correction, so what counts is delta over
    # sqrt(1 - beta2^step), which falls to delta itself: from epsilon at the first step, and never more than that.
    delta = training.epsilon * math.sqrt(1 - training.beta2)
    moments = {"momentum": training.beta1, "momentum2": training.beta2, "delta": delta}
    return caffe_pb2.SolverParameter(type="Adam", **moments, **common)


def solver_rates(training: Training, start: int, stop: int) -> list[float]:
    """The learning rates of the steps ``start`` to ``stop`` by the solver's own schedule, which knows of no budget."""
    if training.schedule.type is Schedule.inverse:
        return training.rates(start, stop, budget=1)
    return [training.learning_rate] * (stop - start)


# Names that no layer of a user's can have.
BATCHES, IMAGES, LABELS, LOSS = "net/batches", "net/images", "net/labels", "net/loss"

FIXED = {"lr_mult": 0.0, "decay_mult": 0.0}
"""Of a blob that the solver shall leave alone."""


class Prototxt:
    """The network in Caffe's own words, and the values that these cannot say."""

    def __init__(self, setup: Setup) -> None:
        self.net = caffe_pb2.NetParameter(name=setup.training.name)
        self._setup = setup
        self._constants: Weights = {}
        """Values of blobs that do not learn, by layer."""
        self._borders: dict[str, float] = {}
        """What inputs hold that frame images where Caffe cannot pad, by blob."""
        self._final = {IMAGES}
        """Blobs that must not be overwritten in place: backpropagation reads them."""
        nodes = setup.network.nodes
        shape = nodes[0].input
        self._largest = (math.prod(shape), nodes[0].layer.name)
        # Batches to train on are read where they lie, several in a row; the layer that does it has to be the first.
        own = dict(zip(("batch_size", "channels", "height", "width"), (setup.training.batch_size, *shape), strict=True))
        only_training, only_testing = [{"phase": "TRAIN"}], [{"phase": "TEST"}]
        self.net.layer.add(
            type="MemoryData", name=BATCHES, top=[IMAGES, LABELS], memory_data_param=own, include=only_training
        )
        tops = {THE_IMAGES: self._input(IMAGES, shape, include=only_testing)}
        taken = [source for node in nodes for source in node.sources]
        for place, node in enumerate(nodes):
            tops[place] = self._add_node(node, [tops[source] for source in node.sources])
            if taken.count(place) > 1:
                self._final.add(tops[place])
            self._largest = max(self._largest, (math.prod(node.output), node.layer.name))
        top = self.logits = tops[place]
        self._add("SoftmaxWithLoss", LOSS, [top, LABELS], LOSS, include=only_training)
        values, layer = self._largest
        self.most_images = LARGEST_BLOB // values
        if setup.training.batch_size > self.most_images:
            raise NotImplementedError(
                f"framework=caffe takes training.batch_size of at most {self.most_images} for layer {layer}"
            )

    def blobs(self, net: Any) -> dict[str, Any]:
        """What learns, by canonical name."""
        network: Network = self._setup.network
        return {
            f"{node.layer.name}/{word}": net.params[node.layer.name][index]
            for node in network.nodes
            for index, word in enumerate(node.parameters)
        }

    def state(self, net: Any) -> Weights:
        """The running statistics, in true size."""
        return {
            f"{node.layer.name}/{word}": blob.data / net.params[_normal(node)][2].data
            for node in self._normalized
            for word, blob in zip(node.state, net.params[_normal(node)], strict=False)
        }

    def copy_state(self, source: Any, target: Any) -> None:
        """From one net to another."""
        for node in self._normalized:
            for one, other in zip(source.params[_normal(node)], target.params[_normal(node)], strict=True):
                other.data[...] = one.data

    @property
    def _normalized(self) -> list[Node]:
        return [node for node in self._setup.network.nodes if node.state]

    def set_weights(self, net: Any, weights: Weights) -> None:
        for name, blob in self.blobs(net).items():
            blob.data[...] = turned(weights[name])
        for node in self._normalized:
            assert isinstance(node.layer, vocabulary.BatchNormalization)
            mean, variance, size = net.params[_normal(node)]
            size.data[...] = _size(node.layer)
            mean.data[...] = weights[f"{node.layer.name}/mean"] * size.data
            variance.data[...] = weights[f"{node.layer.name}/variance"] * size.data
        for layer, values in self._constants.items():
            net.params[layer][0].data[...] = values

    def sizes(self, net: Any) -> list[tuple[np.ndarray, float]]:
        """Where the sizes of the statistics' sums are, and what they are."""
        return [
            (net.params[_normal(node)][2].data, _size(node.layer))
            for node in self._normalized
            if isinstance(node.layer, vocabulary.BatchNormalization)
        ]

    def set_borders(self, net: Any) -> None:
        for name, value in self._borders.items():
            net.blobs[name].data[...] = value

    def reshape(self, net: Any, images: int) -> None:
        """For so many images at a time."""
        for name in (IMAGES, *self._borders):
            blob = net.blobs[name]
            blob.reshape(images, *blob.shape[1:])
        self.set_borders(net)

    def _add(self, type: str, name: str, bottoms: list[str], top: str, **parameters: Any) -> str:
        self.net.layer.add(type=type, name=name, bottom=bottoms, top=[top], **parameters)
        return top

    def _input(self, name: str, shape: Shape, **parameters: Any) -> str:
        shapes = [{"dim": [self._setup.training.batch_size, *shape]}]
        return self._add("Input", name, [], name, input_param={"shape": shapes}, **parameters)

    def _add_node(self, node: Node, bottoms: list[str]) -> str:
        layer, bottom = node.layer, bottoms[0]
        if isinstance(layer, vocabulary.Convolution):
            return self._convolution(node, bottom)
        if isinstance(layer, vocabulary.Pool):
            return self._pool(node, bottom)
        if isinstance(layer, vocabulary.Dense):
            own: dict[str, Any] = {"num_output": layer.units}
            return self._add(
                "InnerProduct", layer.name, [bottom], layer.name, inner_product_param=own, param=self._rules(node)
            )
        if isinstance(layer, vocabulary.LocalResponseNormalization):
            # Caffe divides alpha by the window; the vocabulary, like TensorFlow, does not.
            size = 2 * layer.radius + 1
            own = {"local_size": size, "alpha": layer.alpha * size, "beta": layer.beta, "k": layer.bias}
            self._final.add(layer.name)
            return self._add("LRN", layer.name, [bottom], layer.name, lrn_param=own)
        if isinstance(layer, vocabulary.BatchNormalization):
            return self._batch_normalization(node, bottom)
        if isinstance(layer, vocabulary.GlobalAveragePool):
            own = {"pool": "AVE", "global_pooling": True}
            return self._add("Pooling", layer.name, [bottom], layer.name, pooling_param=own)
        if isinstance(layer, vocabulary.Add):
            return self._add("Eltwise", layer.name, bottoms, layer.name, eltwise_param={"operation": "SUM"})
        if isinstance(layer, vocabulary.Dropout):
            if layer.keep == 1:
                return bottom
            own = {"dropout_ratio": 1 - layer.keep}
            return self._add("Dropout", layer.name, [bottom], self._place(layer.name, bottom), dropout_param=own)
        if isinstance(layer, vocabulary.Relu):
            return self._add("ReLU", layer.name, [bottom], self._place(layer.name, bottom))
        if isinstance(layer, vocabulary.Tanh):
            top = self._add("TanH", layer.name, [bottom], self._place(layer.name, bottom))
            self._final.add(top)
            return top
        raise NotImplementedError(f"framework=caffe has no {type(layer).__name__} (layer {layer.name})")

    def _place(self, name: str, bottom: str) -> str:
        """Where an elementwise layer writes."""
        return name if bottom in self._final else bottom

    def _rules(self, node: Node) -> list[dict[str, float]]:
        setup = self._setup
        names = [f"{node.layer.name}/{word}" for word in node.parameters]
        return [
            {"lr_mult": setup.lr_multiplier(name), "decay_mult": float(setup.weight_decay(name) > 0)} for name in names
        ]

    def _convolution(self, node: Node, bottom: str) -> str:
        layer = node.layer
        assert isinstance(layer, vocabulary.Convolution)
        own: dict[str, Any] = {"num_output": layer.filters, "kernel_size": [layer.kernel], "stride": [layer.stride],
                               "bias_term": layer.biases is not None}  # fmt: skip
        (top, after), (left, right) = node.pads
        if (top, left) == (after, right):
            own["pad"] = [top, left]
        else:
            bottom = self._framed(node, bottom, 0.0)
        return self._add(
            "Convolution", layer.name, [bottom], layer.name, convolution_param=own, param=self._rules(node)
        )

    def _batch_normalization(self, node: Node, bottom: str) -> str:
        """Caffe has it in two layers: its BatchNorm has neither gamma nor beta."""
        layer = node.layer
        assert isinstance(layer, vocabulary.BatchNormalization)
        own = {"moving_average_fraction": layer.momentum, "eps": layer.epsilon}
        # Weight decay must not get at the statistics. But where all three blobs have rules, this Caffe takes the file
        # for one of an older version and drops them: the third, the sums' size, is put back after each step.
        normal = self._add("BatchNorm", _normal(node), [bottom], _normal(node), batch_norm_param=own, param=[FIXED] * 2)
        if layer.scale:
            then: dict[str, Any] = {"type": "Scale", "scale_param": {"bias_term": True}}
        else:
            then = {"type": "Bias"}
        return self._add(name=layer.name, bottoms=[normal], top=layer.name, param=self._rules(node), **then)

    def _pool(self, node: Node, bottom: str) -> str:
        layer = node.layer
        assert isinstance(layer, vocabulary.Pool)
        largest = isinstance(layer, vocabulary.MaxPool)
        own: dict[str, Any] = {"pool": "MAX" if largest else "AVE", "kernel_size": layer.size, "stride": layer.stride}
        (top, _), (left, _) = node.pads
        ceil = next((ceil for ceil in (True, False) if _pooled(node, (top, left), ceil) == node.output[1:]), None)
        framed = ceil is None
        if framed:
            bottom = self._framed(node, bottom, float(np.finfo(np.float32).min) if largest else 0.0)
        elif top or left:
            own |= {"pad_h": top, "pad_w": left}
        if not ceil:
            own["ceil_mode"] = False
        pooled = self._add("Pooling", layer.name, [bottom], layer.name, pooling_param=own)
        share = np.ones(()) if largest else _uncounted(node, framed)
        if (share == 1).all():
            return pooled
        # Caffe counts padding as values: each mean is put right by what it was divided by too much.
        name = f"{layer.name}/share"
        self._constants[name] = share
        return self._add("Scale", name, [pooled], name, scale_param={"axis": 2, "num_axes": 2}, param=[FIXED])

    def _framed(self, node: Node, bottom: str, value: float) -> str:
        """The images in a frame of ``value``: Caffe pads both sides alike, with zeros that it may count."""
        shape = list(node.input)
        for axis, sides in zip((1, 2), node.pads, strict=True):
            parts = [bottom]
            for side, cells in zip(("before", "after"), sides, strict=True):
                if not cells:
                    continue
                name = f"{node.layer.name}/{side}{axis}"
                self._borders[name] = value
                self._input(name, tuple(cells if index == axis else length for index, length in enumerate(shape)))
                parts.insert(0 if side == "before" else len(parts), name)
            shape[axis] += sum(sides)
            if len(parts) > 1:
                name = f"{node.layer.name}/axis{axis}"
                bottom = self._add("Concat", name, parts, name, concat_param={"axis": axis + 1})
        self._largest = max(self._largest, (math.prod(shape), node.layer.name))
        return bottom


def _size(layer: vocabulary.BatchNormalization) -> float:
    """Of the sums that Caffe keeps instead of running averages, and that fade: it grows from 0 to this, its limit.

    From there on it stays, and the sums over it are the running averages of everybody else.
    """
    return 1 / (1 - layer.momentum)


def _normal(node: Node) -> str:
    """The layer that brings a map to mean 0 and variance 1."""
    return f"{node.layer.name}/normal"


def _pooled(node: Node, pads: tuple[int, int], ceil: bool) -> Shape:
    """Height and width that Caffe's pooling gives with ``pads`` on both sides."""
    layer = node.layer
    assert isinstance(layer, vocabulary.Pool)
    sizes = []
    for length, pad in zip(node.input[1:], pads, strict=True):
        steps, rest = divmod(length + 2 * pad - layer.size, layer.stride)
        windows = steps + 1 + (ceil and rest > 0)
        if any(pads) and (windows - 1) * layer.stride >= length + pad:
            windows -= 1
        sizes.append(windows)
    return tuple(sizes)


def _uncounted(node: Node, framed: bool) -> np.ndarray:
    """How many cells Caffe's average counts, over how many lie inside the image, for every window."""
    layer = node.layer
    assert isinstance(layer, vocabulary.Pool)
    shares = []
    for length, windows, (before, _) in zip(node.input[1:], node.output[1:], node.pads, strict=True):
        starts = np.arange(windows) * layer.stride - before
        ends = starts + layer.size
        counted = ends - starts if framed else np.minimum(ends, length + before) - starts
        shares.append(counted / (np.minimum(ends, length) - np.maximum(starts, 0)))
    return np.outer(*shares)


def turned(values: np.ndarray) -> np.ndarray:
    """Between Caffe's layout and the canonical one, either way: only a dense layer's (out, in) is turned."""
    return values.T if values.ndim == 2 else values
