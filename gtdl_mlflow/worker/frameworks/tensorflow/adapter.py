"""TensorFlow: one graph that loops over training steps, one that loops over batches to classify; images NHWC."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config
from tensorflow.python.util import _pywrap_util_port

from ... import layers as vocabulary
from ...initialization import Weights
from ...inputs import ALIGNMENT, Batch, address, consecutive
from ...job import Optimizer
from ...layers import Pads
from ...network import IMAGES, Node
from ..base import Adapter, Setup


class TensorFlow(Adapter):
    """Options: ``fused`` (one kernel per parameter and update), ``bytes_per_call`` (of images handed over at once).

    Handing a graph to the executor costs as much as a small step, so one call does as many steps as have
    ``bytes_per_call`` of images, and at least one.
    """

    layout = "NHWC"

    def __init__(self, setup: Setup) -> None:
        _start(setup.device, setup.threads)
        self._setup, self._training = setup, setup.training
        nodes = setup.network.nodes
        self._nodes = {f"{node.layer.name}/{word}": node for node in nodes for word in node.parameters}
        self._variables = {name: tf.Variable(_native(node, setup.weights[name])) for name, node in self._nodes.items()}
        self._statistics = {name: tf.Variable(setup.weights[name]) for name in setup.network.state}
        # Where a weight starts at 0 and has no gradient it stays 0: no need to mask it whenever it is used.
        self._masks = {
            name: np.ascontiguousarray(np.broadcast_to(mask.transpose(2, 3, 1, 0), self._variables[name].shape))
            for name, mask in setup.masks.items()
        }
        self._average = None
        if setup.training.ema_decay is not None:
            self._average = {name: tf.Variable(value) for name, value in self._variables.items()}
        # Momentum is the first; Adam needs both.
        needed = 2 if setup.training.optimizer is Optimizer.adam else 1 if setup.training.momentum else 0
        self._states = {
            name: [tf.Variable(tf.zeros_like(value)) for _ in range(needed)] for name, value in self._variables.items()
        }
        self._steps = 0
        channels, height, width = nodes[0].input
        self._image = (height, width, channels)
        self._wait()
        if setup.device == "gpu":
            tf.config.experimental.reset_memory_stats("GPU:0")

    def compile(self) -> None:
        # TensorFlow optimizes a graph when it first runs it: here over no training step, and to classify one image.
        images = tf.zeros((0, self._training.batch_size, *self._image))
        labels, rows = tf.zeros(images.shape[:2], tf.int64), tf.zeros((0, 4))
        self._train(images, labels, rows, tf.constant(0, tf.int64))
        self._predict(tf.zeros((1, 1, *self._image)))
        self._wait()

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        feed, losses = iter(batches), []
        rows = self._rows(rates)
        place = 0
        while place < len(rates):
            first = next(feed)
            more = itertools.islice(feed, min(self._together(first[0]), len(rates) - place) - 1)
            images, labels = zip(first, *more, strict=True)
            stop = place + len(images)
            joined = tf.constant(np.concatenate(labels).reshape(len(labels), -1))
            begin = tf.constant(self._steps + place, tf.int64)
            losses.append(self._train(self._handed(images), joined, tf.constant(rows[place:stop]), begin))
            place = stop
        self._steps += len(rates)
        read = np.concatenate([some.numpy() for some in losses])
        self._wait()  # a loss can be read while the step's update is still being computed
        return read

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        logits: list[tf.Tensor] = []
        waiting: list[np.ndarray] = []
        for images in batches:
            if waiting and (len(images) != len(waiting[0]) or len(waiting) == self._together(images)):
                logits.append(self._predict(self._handed(waiting)))
                waiting = []
            waiting.append(images)
        logits.append(self._predict(self._handed(waiting)))
        read = np.concatenate([some.numpy().reshape(-1, some.shape[-1]) for some in logits])
        self._wait()
        return read

    def weights(self) -> Weights:
        parameters = {name: _canonical(self._nodes[name], value.numpy()) for name, value in self._tested.items()}
        return {**parameters, **{name: value.numpy() for name, value in self._statistics.items()}}

    def save(self, folder: Path) -> None:
        self._saved().write(str(folder / "checkpoint"))

    def load(self, folder: Path) -> None:
        self._saved().read(str(folder / "checkpoint")).assert_consumed()
        self._wait()

    def checkpoint(self, folder: Path) -> None:
        self._everything().write(str(folder / "training"))

    def restore(self, folder: Path, step: int) -> None:
        self._everything().read(str(folder / "training")).assert_consumed()
        self._steps = step  # dropout is drawn from the step's own number
        self._wait()

    def metrics(self) -> dict[str, float]:
        if self._setup.device == "cpu":
            return {}
        return {"worker/peak_gpu_memory_mb": tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6}

    def describe(self) -> dict[str, Any]:
        value = next(iter(self._variables.values()))
        facts = {
            "version": tf.__version__,
            "device": tf.DeviceSpec.from_string(value.device).device_type.lower(),
            "precision": value.dtype.name,
            "threads": tf.config.threading.get_intra_op_parallelism_threads(),
            "threads_between_operations": tf.config.threading.get_inter_op_parallelism_threads(),
            "onednn": _pywrap_util_port.IsMklEnabled(),
            **self._setup.options,
        }
        if facts["device"] == "gpu":
            build = tf.sysconfig.get_build_info()
            facts |= {
                "gpu": tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])[
                    "device_name"
                ],
                "cuda": build["cuda_version"],
                "cudnn": build["cudnn_version"],
                "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
                "op_determinism": config.is_op_determinism_enabled(),
            }
        return facts

    def _wait(self) -> None:
        """For the device, which is only told what to do if it is a GPU: before any clock is started or stopped."""
        if self._setup.device == "gpu":
            tf.test.experimental.sync_devices()

    @property
    def _tested(self) -> dict[str, tf.Variable]:
        """The variables that are tested and saved."""
        return self._variables if self._average is None else self._average

    def _saved(self) -> tf.train.Checkpoint:
        values = {**self._tested, **self._statistics}
        return tf.train.Checkpoint(**{name.replace("/", "_"): value for name, value in values.items()})

    def _everything(self) -> tf.train.Checkpoint:
        of_parameters = [self._variables, *([] if self._average is None else [self._average])]
        flat = [value for values in (*of_parameters, self._statistics) for value in values.values()]
        flat += itertools.chain.from_iterable(self._states.values())
        return tf.train.Checkpoint(**{f"value{place}": value for place, value in enumerate(flat)})

    def _together(self, images: np.ndarray) -> int:
        """How many batches like this one are handed over in one call."""
        limit: int = self._setup.options["bytes_per_call"]
        return max(1, limit // max(images.nbytes, 1))

    def _handed(self, arrays: Sequence[np.ndarray]) -> tf.Tensor:
        """Arrays of one shape as one (arrays, ...), by itself where they lie if possible: two copies of each image, one
        into a row and one into a tensor, took 5 % of testing caffe_cifar10.
        """
        whole = consecutive(arrays)
        if whole is None:
            return tf.constant(np.stack(arrays))
        usable = whole.flags.c_contiguous and whole.flags.writeable and address(whole) % ALIGNMENT == 0
        if self._setup.device == "gpu" or not usable:
            return tf.constant(whole)
        return tf.experimental.dlpack.from_dlpack(whole.__dlpack__())

    def _rows(self, rates: list[float]) -> np.ndarray:
        """Of each step: the rate, the powers of Adam's betas, and what an average keeps of itself. (steps, 4)"""
        training, first = self._training, self._steps + 1
        return np.array(
            [
                (
                    rate, training.beta1**step, training.beta2**step,
                    1.0 if training.ema_decay is None else training.ema_decay_at(step),
                )
                for step, rate in enumerate(rates, first)
            ],
            np.float32,
        )  # fmt: skip

    # Graphs. Called without tf.function's own dispatch, which takes a third of a millisecond to see that arguments are
    # what its signature says.

    @cached_property
    def _train(self) -> Any:
        images = tf.TensorSpec((None, None, *self._image), tf.float32)
        labels, rows = tf.TensorSpec((None, None), tf.int64), tf.TensorSpec((None, 4), tf.float32)
        return tf.function(self._loop).get_concrete_function(images, labels, rows, tf.TensorSpec((), tf.int64))

    @cached_property
    def _predict(self) -> Any:
        return tf.function(self._classify).get_concrete_function(tf.TensorSpec((None, None, *self._image), tf.float32))

    def _loop(self, images: tf.Tensor, labels: tf.Tensor, rows: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """The losses of one training step a batch."""
        count = tf.shape(rows)[0]
        losses = tf.TensorArray(tf.float32, count, element_shape=())
        for step in tf.range(count):
            loss = self._step(images[step], labels[step], rows[step], first + tf.cast(step, tf.int64))
            losses = losses.write(step, loss)
        return losses.stack()

    def _classify(self, images: tf.Tensor) -> tf.Tensor:
        """The logits of each batch."""
        count = tf.shape(images)[0]
        classes = self._setup.network.nodes[-1].output[0]
        logits = tf.TensorArray(tf.float32, count, element_shape=(None, classes))
        values = {name: value.read_value() for name, value in self._tested.items()}
        for batch in tf.range(count):
            logits = logits.write(batch, self._logits(images[batch], values))
        return logits.stack()

    def _step(self, images: tf.Tensor, labels: tf.Tensor, row: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        values = {name: value.read_value() for name, value in self._variables.items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            logits = self._logits(images, values, step)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        for name, gradient in tape.gradient(loss, values).items():
            if name in self._masks:
                gradient *= self._masks[name]
            decay = self._setup.weight_decay(name)
            self._update(name, gradient + decay * values[name] if decay else gradient, row)
        if self._average is not None:
            for name, average in self._average.items():
                average.assign_sub((1 - row[3]) * (average - self._variables[name]))
        return loss

    def _update(self, name: str, gradient: tf.Tensor, row: tf.Tensor) -> None:
        training, variable, states = self._training, self._variables[name], self._states[name]
        rate = row[0] * self._setup.lr_multiplier(name)
        fused = self._setup.options["fused"]
        if training.optimizer is Optimizer.adam:
            first, second = states
            # TensorFlow adds epsilon before it corrects the bias of the second moment, so epsilon is corrected too.
            corrected = tf.sqrt(1 - row[2])
            if fused:
                tf.raw_ops.ResourceApplyAdam(
                    var=variable.handle, m=first.handle, v=second.handle, beta1_power=row[1], beta2_power=row[2],
                    lr=rate, beta1=training.beta1, beta2=training.beta2, epsilon=training.epsilon * corrected,
                    grad=gradient,
                )  # fmt: skip
                return
            first.assign_add((gradient - first) * (1 - training.beta1))
            second.assign_add((tf.square(gradient) - second) * (1 - training.beta2))
            moved = first * (rate * corrected / (1 - row[1]))
            variable.assign_sub(moved / (tf.sqrt(second) + training.epsilon * corrected))
        elif training.momentum:
            [velocity] = states
            if fused:
                tf.raw_ops.ResourceApplyKerasMomentum(
                    var=variable.handle, accum=velocity.handle, lr=rate, grad=gradient, momentum=training.momentum
                )
                return
            velocity.assign(training.momentum * velocity - rate * gradient)
            variable.assign_add(velocity)
        elif fused:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
        else:
            variable.assign_sub(rate * gradient)

    def _logits(self, images: tf.Tensor, values: dict[str, tf.Tensor], step: tf.Tensor | None = None) -> tf.Tensor:
        """Of one batch of images; dropout and a batch's own statistics only where there is a training ``step``."""
        given = {IMAGES: images}
        for number, node in enumerate(self._setup.network.nodes):
            given[number] = self._layer(number, node, [given[source] for source in node.sources], values, step)
        return given[number]

    def _layer(
        self, number: int, node: Node, given: list[tf.Tensor], values: dict[str, tf.Tensor], step: tf.Tensor | None
    ) -> tf.Tensor:
        layer, value = node.layer, given[0]
        if isinstance(layer, vocabulary.Convolution):
            weights = values[f"{layer.name}/weights"]
            value = tf.nn.conv2d(value, weights, layer.stride, _native_padding(node) or _explicit(node.pads))
            return value if layer.biases is None else tf.nn.bias_add(value, values[f"{layer.name}/biases"])
        if isinstance(layer, vocabulary.MaxPool):
            native = _native_padding(node)
            if native is None:
                value = tf.pad(value, _explicit(node.pads), constant_values=value.dtype.min)
            return tf.nn.max_pool2d(value, layer.size, layer.stride, native or "VALID")
        if isinstance(layer, vocabulary.AveragePool):
            native = _native_padding(node)
            if native is not None:  # SAME leaves padding out of the mean
                return tf.nn.avg_pool2d(value, layer.size, layer.stride, native)
            value = tf.pad(value, _explicit(node.pads))
            # Cells of a window over those of them inside the image.
            share = np.asarray(layer.size**2 / node.cells, np.float32)[..., None]
            return tf.nn.avg_pool2d(value, layer.size, layer.stride, "VALID") * share
        if isinstance(layer, vocabulary.GlobalAveragePool):
            return tf.reduce_mean(value, (1, 2), keepdims=True)
        if isinstance(layer, vocabulary.Dense):
            value = tf.reshape(value, (-1, int(np.prod(node.input))))
            return tf.nn.bias_add(tf.matmul(value, values[f"{layer.name}/weights"]), values[f"{layer.name}/biases"])
        if isinstance(layer, vocabulary.Dropout):
            if step is None or layer.keep == 1:
                return value
            seed = tf.stack([tf.constant(self._setup.seed, tf.int64), step * 1000 + number])
            return tf.nn.experimental.stateless_dropout(value, 1 - layer.keep, seed)
        if isinstance(layer, vocabulary.LocalResponseNormalization):
            return tf.nn.local_response_normalization(value, layer.radius, layer.bias, layer.alpha, layer.beta)
        if isinstance(layer, vocabulary.BatchNormalization):
            return self._normalized(layer, value, values, training=step is not None)
        if isinstance(layer, vocabulary.Add):
            return given[0] + given[1]
        if isinstance(layer, vocabulary.Relu):
            return tf.nn.relu(value)
        if isinstance(layer, vocabulary.Tanh):
            return tf.tanh(value)
        raise NotImplementedError(f"framework=tensorflow has no {type(layer).__name__} (layer {layer.name})")

    def _normalized(
        self, layer: vocabulary.BatchNormalization, value: tf.Tensor, values: dict[str, tf.Tensor], training: bool
    ) -> tf.Tensor:
        beta = values[f"{layer.name}/beta"]
        gamma = values[f"{layer.name}/gamma"] if layer.scale else tf.ones_like(beta)
        running = [self._statistics[f"{layer.name}/{word}"] for word in ("mean", "variance")]
        if not training:
            return tf.raw_ops.FusedBatchNormV3(
                x=value, scale=gamma, offset=beta, mean=running[0], variance=running[1], epsilon=layer.epsilon,
                is_training=False,
            ).y  # fmt: skip
        # In training the operation gives the batch's mean and unbiased variance, and takes none.
        done = tf.raw_ops.FusedBatchNormV3(
            x=value, scale=gamma, offset=beta, mean=[], variance=[], epsilon=layer.epsilon, is_training=True
        )
        for statistic, seen in zip(running, (done.batch_mean, done.batch_variance), strict=True):
            statistic.assign_sub((1 - layer.momentum) * (statistic - seen))
        return done.y


def _start(device: str, threads: int) -> None:
    """Settings of the process; TensorFlow takes the same ones again, but no others once it has computed."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.get_visible_devices("GPU"):  # it would compute on the CPU, and not say so
        raise RuntimeError("framework=tensorflow finds no GPU that it can use; why not is in the lines above")
    for gpu in tf.config.get_visible_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    if device == "gpu":  # the same seed gives the same bits, as PyTorch's does there; the CPU's kernels do anyway
        tf.config.experimental.enable_op_determinism()


def _explicit(pads: Pads) -> list[list[int]]:
    return [[0, 0], *map(list, pads), [0, 0]]


def _native_padding(node: Node) -> str | None:
    """TensorFlow's word for the padding of a convolution or pool, if it has one."""
    layer = node.layer
    assert isinstance(layer, (vocabulary.Convolution, vocabulary.Pool))
    if not any(itertools.chain(*node.pads)):
        return "VALID"
    size = layer.kernel if isinstance(layer, vocabulary.Convolution) else layer.size
    same = []
    for length in node.input[1:]:
        total = max((-(-length // layer.stride) - 1) * layer.stride + size - length, 0)
        same.append((total // 2, total - total // 2))
    return "SAME" if tuple(same) == node.pads else None


def _native(node: Node, value: np.ndarray) -> np.ndarray:
    """From the canonical layout to TensorFlow's; a dense layer's inputs are flattened channels fastest here."""
    if value.ndim == 4:
        return np.ascontiguousarray(value.transpose(2, 3, 1, 0))
    if value.ndim == 2 and len(node.input) == 3:
        return value.reshape(*node.input, -1).transpose(1, 2, 0, 3).reshape(value.shape)
    return value


def _canonical(node: Node, value: np.ndarray) -> np.ndarray:
    """The way back, and a copy."""
    if value.ndim == 4:
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1))
    if value.ndim == 2 and len(node.input) == 3:
        channels, height, width = node.input
        return value.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(value.shape)
    return value.copy()
