"""Caffe: the network and the solver as prototxt, a step of Caffe's own solver per batch."""

from __future__ import annotations

import ctypes
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import caffe
import numpy as np
from caffe.proto import caffe_pb2

from .. import layers as vocabulary
from ..initial import Weights
from ..inputs import Batch
from ..job import Optimizer
from ..layers import Shape
from ..network import IMAGES as THE_IMAGES
from ..network import Network, Node
from .base import Adapter, Setup

LARGEST_EPSILON = 1e-6
"""Of Adam: Caffe has it in another place of the formula, the same only where it hardly counts."""

LARGEST_LOSS = -math.log(np.finfo(np.float32).tiny)
"""Of one image: Caffe's loss layer takes no probability for smaller. Its gradients are right all the same."""

LARGEST_BLOB = 2**31 - 1
"""Values; Caffe ends the process if there are more."""

SNAPSHOT = "training"
"""What the files of the solver's snapshots are called."""

# A symbol is looked for in the library's own dependencies too: this is the BLAS that Caffe calls.
_blas = ctypes.CDLL(caffe._caffe.__file__)
_blas.openblas_get_config.restype = ctypes.c_char_p
_blas.openblas_get_corename.restype = ctypes.c_char_p
_COUNT, _FACTOR, _ARRAY, _STRIDE = ctypes.c_int, ctypes.c_float, ctypes.c_void_p, ctypes.c_int
_blas.cblas_saxpy.argtypes = [_COUNT, _FACTOR, _ARRAY, _STRIDE, _ARRAY, _STRIDE]
_blas.cblas_saxpby.argtypes = [_COUNT, _FACTOR, _ARRAY, _STRIDE, _FACTOR, _ARRAY, _STRIDE]


class Caffe(Adapter):
    """The solver's net, and one without a loss that is tested and saved; both read the same weights."""

    label_type = "float32"

    def __init__(self, setup: Setup) -> None:
        training = setup.training
        if training.optimizer is Optimizer.adam and training.epsilon > LARGEST_EPSILON:
            raise NotImplementedError(
                f"framework=caffe trains by adam with training.epsilon of at most {LARGEST_EPSILON:g}"
            )
        self._training = training
        self._prototxt = _Prototxt(setup)
        self._solver_prototxt = _solver_prototxt(setup)
        caffe.set_mode_cpu()
        _blas.openblas_set_num_threads(setup.threads)
        self._snapshots = tempfile.TemporaryDirectory(prefix="gtdl-caffe-")
        self._solver_prototxt.snapshot_prefix = str(Path(self._snapshots.name) / SNAPSHOT)
        with tempfile.TemporaryDirectory() as place:
            net, solver = self._write_prototxts(Path(place), Path(place) / "net.prototxt")
            self._solver = (caffe.AdamSolver if training.optimizer is Optimizer.adam else caffe.SGDSolver)(solver)
            self._tested = caffe.Net(net, caffe.TEST)
        self._trained = self._solver.net
        if training.average is None:
            self._tested.share_with(self._trained)
        for net in (self._trained, self._tested):
            self._prototxt.set_weights(net, setup.weights)
            self._prototxt.set_borders(net)
        self._batch = training.batch_size
        """Images at a time that the tested net is shaped for."""

        # Views of Caffe's own memory: it stays where it is as long as the shapes do.
        self._images, self._labels = (self._trained.blobs[name].data for name in (IMAGES, LABELS))
        self._train_logits = self._trained.blobs[self._prototxt.logits].data
        self._loss = self._trained.blobs[LOSS].data
        self._loss_weight = self._trained.blobs[LOSS].diff
        blobs = self._prototxt.blobs(self._trained)
        self._updated = [
            (blob.count, setup.weight_decay(name), blob.data.ctypes.data, blob.diff.ctypes.data)
            for name, blob in blobs.items()
        ]
        self._masked = [
            (blobs[name].data, np.broadcast_to(mask, blobs[name].data.shape).copy())
            for name, mask in setup.masks.items()
        ]
        self._sizes = self._prototxt.sizes(self._trained)
        self._averaged = [
            (blob.count, blob.data.ctypes.data, average.data.ctypes.data)
            for blob, average in zip(blobs.values(), self._prototxt.blobs(self._tested).values(), strict=True)
        ]
        layers = [node.layer for node in setup.network.nodes]
        self._max_pools = any(isinstance(layer, vocabulary.MaxPool) for layer in layers)
        drops = any(isinstance(layer, vocabulary.Dropout) for layer in layers)
        self._step_seed = setup.step_seed if drops else None
        self._share = 1.0
        """The learning rate, as a multiple of the solver's."""
        self._steps = 0
        if training.optimizer is Optimizer.sgd and training.weight_decay:
            # The solver never lets go of its callbacks: one that held this object would keep it alive for good.
            rescale = weakref.WeakMethod(self._rescale_decay)
            self._solver.add_callback(lambda: None, lambda: rescale()())  # type: ignore[misc]

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        losses = np.empty(len(rates), np.float32)
        sgd = self._training.optimizer is Optimizer.sgd
        for step, (rate, (images, labels)) in enumerate(zip(rates, batches, strict=False)):
            self._images[...] = images
            self._labels[...] = labels
            self._share = rate / self._training.learning_rate
            if sgd:
                # The solver's rate is fixed for good, but what the loss weighs scales all gradients at no cost.
                self._loss_weight[...] = self._share
            if self._step_seed is not None:
                # All nets of a process share one generator: started anew, it does not tell what the others did.
                caffe.set_random_seed(self._step_seed(self._steps))
            self._solver.step(1)
            self._steps += 1
            losses[step] = loss = self._loss[()]
            if loss * len(labels) >= LARGEST_LOSS:  # else no image can have come that far
                losses[step] = self._cross_entropy(labels)
            if self._max_pools and not math.isfinite(loss):
                raise FloatingPointError(
                    f"framework=caffe: the loss is {loss} at a learning rate of {rate:g}, and Caffe's max-pooling "
                    "writes outside its memory when it is given what is not a number"
                )
            if not sgd and self._share != 1:
                self._rescale_update()
            for size, value in self._sizes:
                size[...] = value
            for weights, mask in self._masked:
                np.multiply(weights, mask, out=weights)
            if self._training.average is not None:
                self._move_average()
        return losses

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        self._hand_state_over()
        most = self._prototxt.most_images
        return np.concatenate(
            [self._logits(images[start : start + most]) for images in batches for start in range(0, len(images), most)]
        )

    def weights(self) -> Weights:
        values = {name: _turned(blob.data).copy() for name, blob in self._prototxt.blobs(self._tested).items()}
        return {**values, **self._prototxt.state(self._trained)}

    def save(self, folder: Path) -> None:
        self._hand_state_over()
        self._write_prototxts(folder, Path("net.prototxt"))
        self._tested.save(str(folder / "model.caffemodel"))

    def load(self, folder: Path) -> None:
        path = folder / "model.caffemodel"
        if not path.is_file():  # Caffe itself would end the process
            raise FileNotFoundError(path)
        self._tested.copy_from(str(path))
        self._prototxt.copy_state(self._tested, self._trained)

    def checkpoint(self, folder: Path) -> None:
        self._solver.snapshot()
        [model] = Path(self._snapshots.name).glob("*.caffemodel")
        [snapshot] = Path(self._snapshots.name).glob("*.solverstate")
        state = caffe_pb2.SolverState.FromString(snapshot.read_bytes())
        state.ClearField("learned_net")  # the path of the model, which moves
        snapshot.unlink()
        (folder / f"{SNAPSHOT}.solverstate").write_bytes(state.SerializeToString())
        shutil.move(model, folder / f"{SNAPSHOT}.caffemodel")
        if self._training.average is not None:
            self._tested.save(str(folder / "average.caffemodel"))

    def restore(self, folder: Path, step: int) -> None:
        self._trained.copy_from(str(folder / f"{SNAPSHOT}.caffemodel"))
        self._solver.restore(str(folder / f"{SNAPSHOT}.solverstate"))
        if self._training.average is not None:
            self._tested.copy_from(str(folder / "average.caffemodel"))
        self._steps = step

    def describe(self) -> dict[str, Any]:
        return {
            "version": caffe.__version__,
            "device": "cpu",  # pycaffe does not tell; its GPU mode is never switched on
            "precision": str(self._images.dtype),
            "threads": _blas.openblas_get_num_threads(),
            "blas": _blas.openblas_get_config().decode(),
            "blas_kernels": _blas.openblas_get_corename().decode(),
            "solver": type(self._solver).__name__,
        }

    def _hand_state_over(self) -> None:
        """To the tested net, where it does not share all with the trained one."""
        if self._training.average is not None:
            self._prototxt.copy_state(self._trained, self._tested)

    def _logits(self, images: np.ndarray) -> np.ndarray:
        if len(images) != self._batch:
            self._prototxt.reshape(self._tested, len(images))
            self._batch = len(images)
        self._tested.blobs[IMAGES].data[...] = images
        logits: np.ndarray = self._tested.forward()[self._prototxt.logits].copy()
        return logits

    def _cross_entropy(self, labels: np.ndarray) -> float:
        """Of the batch just trained on, however large."""
        shifted = self._train_logits - self._train_logits.max(axis=1, keepdims=True)
        wanted = shifted[np.arange(len(labels)), labels.astype(np.intp)]
        return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - wanted))

    def _rescale_decay(self) -> None:
        """Between the gradients, which have the learning rate already, and the solver, which will add the decay."""
        if self._share != 1:
            for count, decay, values, gradient in self._updated:
                if decay:
                    _blas.cblas_saxpy(count, (self._share - 1) * decay, values, 1, gradient, 1)

    def _rescale_update(self) -> None:
        """After the solver took away an update of Adam's, which is as large as the rate."""
        for count, _, values, update in self._updated:
            _blas.cblas_saxpy(count, 1 - self._share, update, 1, values, 1)

    def _move_average(self) -> None:
        kept = self._training.average_decay(self._steps)
        for count, values, average in self._averaged:
            _blas.cblas_saxpby(count, 1 - kept, values, 1, kept, average, 1)

    def _write_prototxts(self, folder: Path, named: Path) -> tuple[str, str]:
        """``net.prototxt`` and ``solver.prototxt``, which says that the net is the file ``named``."""
        net, solver = folder / "net.prototxt", folder / "solver.prototxt"
        net.write_text(str(self._prototxt.net))
        self._solver_prototxt.net = str(named)
        solver.write_text(str(self._solver_prototxt))
        return str(net), str(solver)


def _solver_prototxt(setup: Setup) -> Any:
    training = setup.training
    common = {"base_lr": training.learning_rate, "lr_policy": "fixed", "weight_decay": training.weight_decay,
              "solver_mode": "CPU", "random_seed": setup.seed}  # fmt: skip
    if training.optimizer is Optimizer.sgd:
        return caffe_pb2.SolverParameter(type="SGD", momentum=training.momentum, **common)
    # Caffe adds delta to the root of the second moment before the correction, so what counts is delta over
    # sqrt(1 - beta2^step), which falls to delta itself: from epsilon at the first step, and never more than that.
    delta = training.epsilon * math.sqrt(1 - training.beta2)
    moments = {"momentum": training.beta1, "momentum2": training.beta2, "delta": delta}
    return caffe_pb2.SolverParameter(type="Adam", **moments, **common)


# Names that no layer of a user's can have.
IMAGES, LABELS, LOSS = "net/images", "net/labels", "net/loss"

FIXED = {"lr_mult": 0.0, "decay_mult": 0.0}
"""Of a blob that the solver shall leave alone."""


class _Prototxt:
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
        tops = {THE_IMAGES: self._input(IMAGES, shape)}
        taken = [source for node in nodes for source in node.sources]
        for place, node in enumerate(nodes):
            tops[place] = self._add_node(node, [tops[source] for source in node.sources])
            if taken.count(place) > 1:
                self._final.add(tops[place])
            self._largest = max(self._largest, (math.prod(node.output), node.layer.name))
        top = self.logits = tops[place]
        only_training = [{"phase": "TRAIN"}]
        self._input(LABELS, (), include=only_training)
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
            blob.data[...] = _turned(weights[name])
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
            {"lr_mult": setup.rate_factor(name), "decay_mult": float(setup.weight_decay(name) > 0)} for name in names
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


def _turned(values: np.ndarray) -> np.ndarray:
    """Between Caffe's layout and the canonical one, either way: only a dense layer's (out, in) is turned."""
    return values.T if values.ndim == 2 else values
