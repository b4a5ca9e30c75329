"""TensorFlow adapter: one graph loops over training steps, another over batches to classify; images are NHWC."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config
from tensorflow.python.util import _pywrap_util_port

from ...initialization import Weights
from ...inputs import ALIGNMENT, Batch, address, consecutive
from ...job import Optimizer, Precision
from ..base import Adapter, Setup, from_channels_last, to_channels_last
from .network import TensorFlowForward, logits


class TensorFlow(Adapter):
    """Network in TensorFlow.

    Options: ``bytes_per_call`` (bytes of images per call of a graph), ``xla`` (XLA compiles the graphs). Starting a
    graph costs as much as a small step, so one call does as many steps as fit into ``bytes_per_call``, at least one.
    With ``xla`` it does exactly one, because XLA compiles for fixed shapes.
    """

    layout = "NHWC"

    def __init__(self, setup: Setup) -> None:
        configure(setup)
        self._setup, self._training = setup, setup.training
        self._xla: bool = setup.options["xla"]
        self._compute_type = tf.bfloat16 if setup.precision == Precision.bfloat16 else tf.float32
        nodes = setup.network.nodes
        self._nodes = {f"{node.layer.name}/{array}": node for node in nodes for array in node.parameters}
        self._variables = {
            name: tf.Variable(to_channels_last(node, setup.weights[name])) for name, node in self._nodes.items()
        }
        self._statistics = {name: tf.Variable(setup.weights[name]) for name in setup.network.state}
        # A masked weight starts at 0 and stays 0 without a gradient, so the weights themselves need no mask. Masks
        # depend on the seed, so they are variables: XLA would compile a graph again for other constants.
        self._masks = {
            name: tf.Variable(np.broadcast_to(mask.transpose(2, 3, 1, 0), self._variables[name].shape))
            for name, mask in setup.masks.items()
        }
        self._average = None
        if setup.training.ema_decay is not None:
            self._average = {name: tf.Variable(value) for name, value in self._variables.items()}
        moments = 2 if setup.training.optimizer is Optimizer.adam else 1 if setup.training.momentum else 0
        self._moments = {
            name: [tf.Variable(tf.zeros_like(value)) for _ in range(moments)] for name, value in self._variables.items()
        }
        self._steps = 0
        channels, height, width = nodes[0].input
        self._image_shape = (height, width, channels)
        self._synchronize()
        if setup.device == "gpu":
            tf.config.experimental.reset_memory_stats("GPU:0")

    def compile(self) -> None:
        # TensorFlow optimizes a graph in its first run, here with zero training steps and with one image to classify.
        # XLA compiles a graph for the shapes of its first run, here one training step, which is undone, and one test
        # batch.
        steps, tested = (1, self._training.test_batch_size) if self._xla else (0, 1)
        images = tf.zeros((steps, self._training.batch_size, *self._image_shape))
        labels, rows = tf.zeros(images.shape[:2], tf.int64), tf.zeros((steps, 4))
        before = [value.numpy() for value in self._training_state]
        self._train(images, labels, rows, self._seed(0))
        for value, initial in zip(self._training_state, before, strict=True):
            value.assign(initial)
        self._predict(tf.zeros((1, tested, *self._image_shape)))
        self._synchronize()

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        feed, losses = iter(batches), []
        rows = self._step_scalars(rates)
        start = 0
        while start < len(rates):
            first = next(feed)
            more = itertools.islice(feed, min(self._batches_per_call(first[0]), len(rates) - start) - 1)
            images, labels = zip(first, *more, strict=True)
            stop = start + len(images)
            joined_labels = tf.constant(np.concatenate(labels).reshape(len(labels), -1))
            scalars = tf.constant(rows[start:stop])
            losses.append(self._train(self._stacked(images), joined_labels, scalars, self._seed(self._steps + start)))
            start = stop
        self._steps += len(rates)
        values = np.concatenate([part.numpy() for part in losses])
        self._synchronize()  # a loss can be read while the step's update is still being computed
        return values

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        outputs = list(self._predict_padded(batches) if self._xla else self._predict_joined(batches))
        values = np.concatenate([part.numpy().reshape(-1, part.shape[-1]) for part in outputs])
        self._synchronize()
        return values

    def _predict_joined(self, batches: Iterable[np.ndarray]) -> Iterator[tf.Tensor]:
        """Yield the logits (batches, images, classes) of each call, which classifies several batches of one size."""
        pending: list[np.ndarray] = []
        for images in batches:
            if pending and (len(images) != len(pending[0]) or len(pending) == self._batches_per_call(images)):
                yield self._predict(self._stacked(pending))
                pending = []
            pending.append(images)
        yield self._predict(self._stacked(pending))

    def _predict_padded(self, batches: Iterable[np.ndarray]) -> Iterator[tf.Tensor]:
        """Yield the logits (1, images, classes) of each batch.

        XLA compiles for each batch size, so a smaller batch is padded to the largest size so far.
        """
        size = 0
        for images in batches:
            count, size = len(images), max(len(images), size)
            if count == size:
                yield self._predict(self._stacked([images]))
            else:
                padding = np.zeros((size - count, *self._image_shape), np.float32)
                yield self._predict(self._stacked([np.concatenate([images, padding])]))[:, :count]

    def weights(self) -> Weights:
        parameters = {
            name: from_channels_last(self._nodes[name], value.numpy()) for name, value in self._evaluated.items()
        }
        return {**parameters, **{name: value.numpy() for name, value in self._statistics.items()}}

    def save(self, folder: Path) -> None:
        self._model_checkpoint().write(str(folder / "checkpoint"))

    def load(self, folder: Path) -> None:
        self._model_checkpoint().read(str(folder / "checkpoint")).assert_consumed()
        self._synchronize()

    def checkpoint(self, folder: Path) -> None:
        self._training_checkpoint().write(str(folder / "training"))

    def restore(self, folder: Path, step: int) -> None:
        self._training_checkpoint().read(str(folder / "training")).assert_consumed()
        self._steps = step  # dropout is seeded by the number of the step
        self._synchronize()

    def metrics(self) -> dict[str, float]:
        if self._setup.device == "cpu":
            return {}
        return {"worker/peak_gpu_memory_mb": tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6}

    def describe(self) -> dict[str, Any]:
        return {
            "version": tf.__version__,
            "precision": self._setup.precision.value,
            **describe_build(next(iter(self._variables.values()))),
            **self._setup.options,
        }

    def _synchronize(self) -> None:
        """Wait for the GPU, which computes asynchronously; called before a time measurement starts or ends."""
        if self._setup.device == "gpu":
            tf.test.experimental.sync_devices()

    @property
    def _evaluated(self) -> dict[str, tf.Variable]:
        """Parameters used for prediction and saved: with ``training.ema_decay`` the moving average."""
        return self._variables if self._average is None else self._average

    def _model_checkpoint(self) -> tf.train.Checkpoint:
        values = {**self._evaluated, **self._statistics}
        return tf.train.Checkpoint(**{name.replace("/", "_"): value for name, value in values.items()})

    @property
    def _training_state(self) -> list[tf.Variable]:
        """All variables that a training step changes."""
        parameters = [self._variables, *([] if self._average is None else [self._average])]
        flat = [value for values in (*parameters, self._statistics) for value in values.values()]
        return [*flat, *itertools.chain.from_iterable(self._moments.values())]

    def _training_checkpoint(self) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(**{f"value{number}": value for number, value in enumerate(self._training_state)})

    def _batches_per_call(self, images: np.ndarray) -> int:
        """Return the number of batches of this size per call of a graph."""
        limit: int = self._setup.options["bytes_per_call"]
        return max(1, limit // max(images.nbytes, 1))

    def _stacked(self, arrays: Sequence[np.ndarray]) -> tf.Tensor:
        """Stack arrays of one shape into a tensor (arrays, ...), without a copy if possible.

        Copying each image twice, to stack the arrays and to create a tensor, took 5 % of the evaluation time of
        caffe_cifar10.
        """
        view = consecutive(arrays)
        if view is None:
            return tf.constant(np.stack(arrays))
        usable = view.flags.c_contiguous and view.flags.writeable and address(view) % ALIGNMENT == 0
        if self._setup.device == "gpu" or not usable:
            return tf.constant(view)
        return tf.experimental.dlpack.from_dlpack(view.__dlpack__())

    def _step_scalars(self, rates: list[float]) -> np.ndarray:
        """Return learning rate, powers of Adam's betas and decay of the moving average of each step: (steps, 4)."""
        training, rows = self._training, []
        for step, rate in enumerate(rates, self._steps + 1):
            ema_decay = 1.0 if training.ema_decay is None else training.ema_decay_at(step)
            rows.append((rate, training.beta1**step, training.beta2**step, ema_decay))
        return np.array(rows, np.float32)

    def _seed(self, step: int) -> tf.Tensor:
        """Return the dropout seed and the step, int64 (2,), as an argument: constants would be compiled."""
        return tf.constant((self._setup.seed, step), tf.int64)

    # The graphs are called without tf.function's dispatch, which takes a third of a millisecond to compare arguments
    # with the signature.

    @cached_property
    def _train(self) -> Any:
        steps, size = (1, self._training.batch_size) if self._xla else (None, None)
        images = tf.TensorSpec((steps, size, *self._image_shape), tf.float32)
        labels, rows = tf.TensorSpec((steps, size), tf.int64), tf.TensorSpec((steps, 4), tf.float32)
        return self._graph(self._loop, images, labels, rows, tf.TensorSpec((2,), tf.int64))

    @cached_property
    def _predict(self) -> Any:
        calls = 1 if self._xla else None
        return self._graph(self._classify, tf.TensorSpec((calls, None, *self._image_shape), tf.float32))

    def _graph(self, function: Callable[..., tf.Tensor], *signature: tf.TensorSpec) -> Any:
        return tf.function(function, jit_compile=self._xla or None).get_concrete_function(*signature)

    def _loop(self, images: tf.Tensor, labels: tf.Tensor, rows: tf.Tensor, first_seed: tf.Tensor) -> tf.Tensor:
        """Do one training step on each batch and return the losses."""
        if self._xla:  # no loop: XLA's convolutions take ten times as long in a loop
            return tf.expand_dims(self._step(images[0], labels[0], rows[0], first_seed), 0)
        count = tf.shape(rows)[0]
        losses = tf.TensorArray(tf.float32, count, element_shape=())
        for step in tf.range(count):
            seed = first_seed + tf.stack([0, tf.cast(step, tf.int64)])
            losses = losses.write(step, self._step(images[step], labels[step], rows[step], seed))
        return losses.stack()

    def _classify(self, images: tf.Tensor) -> tf.Tensor:
        """Return the logits, (batches, images, classes), of all batches."""
        forward = self._forward_pass({name: value.read_value() for name, value in self._evaluated.items()})
        if self._xla:
            return tf.expand_dims(logits(images[0], forward), 0)
        count = tf.shape(images)[0]
        classes = self._setup.network.nodes[-1].output[0]
        outputs = tf.TensorArray(tf.float32, count, element_shape=(None, classes))
        for batch in tf.range(count):
            outputs = outputs.write(batch, logits(images[batch], forward))
        return outputs.stack()

    def _forward_pass(self, values: dict[str, tf.Tensor], seed: tf.Tensor | None = None) -> TensorFlowForward:
        """Return a forward pass in the configured precision; the parameters of batch normalization stay float32."""
        parameters = {
            name: value if name.endswith(("/beta", "/gamma")) else tf.cast(value, self._compute_type)
            for name, value in values.items()
        }
        return TensorFlowForward(self._setup.network, parameters, self._statistics, self._compute_type, seed)

    def _step(self, images: tf.Tensor, labels: tf.Tensor, scalars: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        values = {name: value.read_value() for name, value in self._variables.items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            outputs = logits(images, self._forward_pass(values, seed))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=outputs))
        for name, gradient in tape.gradient(loss, values).items():
            if name in self._masks:
                gradient *= self._masks[name]
            decay = self._setup.weight_decay(name)
            self._update(name, gradient + decay * values[name] if decay else gradient, scalars)
        if self._average is not None:
            for name, average in self._average.items():
                average.assign_sub((1 - scalars[3]) * (average - self._variables[name]))
        return loss

    def _update(self, name: str, gradient: tf.Tensor, scalars: tf.Tensor) -> None:
        """Update a parameter and its moments with one kernel."""
        training, variable, moments = self._training, self._variables[name], self._moments[name]
        rate = scalars[0] * self._setup.lr_multiplier(name)
        if training.optimizer is Optimizer.adam:
            first, second = moments
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=scalars[1],
                beta2_power=scalars[2],
                lr=rate,
                beta1=training.beta1,
                beta2=training.beta2,
                # TensorFlow adds epsilon before the bias correction of the second moment, so epsilon is corrected too.
                epsilon=training.epsilon * tf.sqrt(1 - scalars[2]),
                grad=gradient,
            )
        elif training.momentum:
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=variable.handle, accum=moments[0].handle, lr=rate, grad=gradient, momentum=training.momentum
            )
        else:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)


def configure(setup: Setup) -> None:
    """Set threads, devices and precision of the process; TensorFlow accepts few settings after its first operation."""
    tf.config.threading.set_intra_op_parallelism_threads(setup.threads)
    tf.config.threading.set_inter_op_parallelism_threads(setup.threads)
    tf.config.experimental.enable_tensor_float_32_execution(setup.precision == Precision.tf32)
    if setup.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.get_visible_devices("GPU"):  # TensorFlow would compute on the CPU without an error
        raise RuntimeError("no GPU that TensorFlow can use; its log above has the reason")
    for gpu in tf.config.get_visible_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    if setup.device == "gpu" and setup.deterministic:  # CPU kernels are deterministic anyway
        # Select cuDNN's kernels by its heuristics. Autotuning times them in the first step and may select others in the
        # next run, which changes the last bits of the results.
        os.environ["TF_CUDNN_USE_AUTOTUNE"] = "0"
        tf.config.experimental.enable_op_determinism()


def describe_build(variable: tf.Variable) -> dict[str, Any]:
    """Return metadata of the variable's device, the number of threads and the build."""
    metadata = {
        "device": tf.DeviceSpec.from_string(variable.device).device_type.lower(),
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "threads_between_operations": tf.config.threading.get_inter_op_parallelism_threads(),
        "onednn": _pywrap_util_port.IsMklEnabled(),
    }
    if metadata["device"] == "gpu":
        build = tf.sysconfig.get_build_info()
        gpu = tf.config.list_physical_devices("GPU")[0]
        metadata |= {
            "gpu": tf.config.experimental.get_device_details(gpu)["device_name"],
            "cuda": build["cuda_version"],
            "cudnn": build["cudnn_version"],
            "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
            "op_determinism": config.is_op_determinism_enabled(),
        }
    return metadata
