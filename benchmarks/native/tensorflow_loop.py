"""Hand-written TensorFlow loops of default networks, as an expert would write them: the baseline of native_speed.py.

They do not use gtdl_mlflow.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Run = Callable[[int], None]

CALL_STEPS = 25
CALL_STEPS_SMALL_BATCH = 500
"""Training steps, or batches to classify, in one call of the graph; more for batches of up to ten images."""

Forward = Callable[[tf.Tensor, bool], tf.Tensor]
Update = Callable[[list[tf.Tensor], tf.Tensor], None]


class Parameters(list[tf.Variable]):
    """Variables of a network, created by the functions that define its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[int, tf.Tensor] = {}
        """Masks of weights of which only some learn, by their index in this list."""

    def new(self, *shape: int, deviation: float = 0.05) -> tf.Variable:
        self.append(tf.Variable(tf.random.truncated_normal(shape, stddev=deviation)))
        return self[-1]

    def convolution(self, side: int, maps: int, filters: int, padding: Any, deviation: float = 0.05) -> Any:
        weights, biases = self.new(side, side, maps, filters, deviation=deviation), self.new(filters)
        return lambda x: tf.nn.bias_add(tf.nn.conv2d(x, weights, 1, padding), biases)

    def connected(self, side: int, maps: int, filters: int, read: int, deviation: float) -> Any:
        """Return a convolution whose output maps read ``read`` maps each; other weights are 0 and get no gradient."""
        chosen = [tf.reduce_sum(tf.one_hot(tf.random.shuffle(tf.range(maps))[:read], maps), 0) for _ in range(filters)]
        mask = tf.tile(tf.stack(chosen, 1)[None, None], (side, side, 1, 1))
        self.masks[len(self)] = mask
        layer = self.convolution(side, maps, filters, "VALID", deviation)
        weights = self[-2]
        weights.assign(weights * mask)
        return layer

    def dense(self, inputs: int, units: int, deviation: float = 0.05) -> Any:
        weights, biases = self.new(inputs, units, deviation=deviation), self.new(units)
        return lambda x: tf.nn.bias_add(tf.matmul(tf.reshape(x, (-1, inputs)), weights), biases)


def adam(parameters: Parameters, rate: float) -> Update:
    states = [(tf.Variable(tf.zeros_like(p)), tf.Variable(tf.zeros_like(p))) for p in parameters]

    def update(gradients: list[tf.Tensor], step: tf.Tensor) -> None:
        done = tf.cast(step + 1, tf.float32)
        for p, (m, v), g in zip(parameters, states, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=p.handle,
                m=m.handle,
                v=v.handle,
                beta1_power=0.9**done,
                beta2_power=0.999**done,
                lr=rate,
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-8,
                grad=g,
            )

    return update


def sgd(
    parameters: Parameters,
    rate: float,
    momentum: float = 0.0,
    decay: float = 0.0,
    biases: float = 1.0,
    gamma: float = 0.0,
    power: float = 1.0,
) -> Update:
    velocities = [tf.Variable(tf.zeros_like(p)) for p in parameters]

    def update(gradients: list[tf.Tensor], step: tf.Tensor) -> None:
        now = rate * (1 + gamma * tf.cast(step, tf.float32)) ** -power if gamma else rate
        for index, (p, v, g) in enumerate(zip(parameters, velocities, gradients, strict=True)):
            own = now * (biases if p.shape.rank == 1 else 1)
            slope = g * parameters.masks[index] if index in parameters.masks else g
            slope = slope + decay * p if decay else slope
            if momentum:
                tf.raw_ops.ResourceApplyKerasMomentum(
                    var=p.handle, accum=v.handle, lr=own, grad=slope, momentum=momentum
                )
            else:
                tf.raw_ops.ResourceApplyGradientDescent(var=p.handle, alpha=own, delta=slope)

    return update


def tensorflow_mnist(p: Parameters) -> tuple[Forward, Update, int]:
    conv1, conv2 = p.convolution(5, 1, 32, "SAME"), p.convolution(5, 32, 64, "SAME")
    dense1, dense2 = p.dense(3136, 1024), p.dense(1024, 10)

    def forward(x: tf.Tensor, training: bool) -> tf.Tensor:
        x = tf.nn.max_pool2d(tf.nn.relu(conv1(x)), 2, 2, "SAME")
        x = tf.nn.relu(dense1(tf.nn.max_pool2d(tf.nn.relu(conv2(x)), 2, 2, "SAME")))
        return dense2(tf.nn.dropout(x, 0.5) if training else x)

    return forward, adam(p, 1e-4), 50


def caffe_mnist(p: Parameters) -> tuple[Forward, Update, int]:
    conv1, conv2 = p.convolution(5, 1, 20, "VALID"), p.convolution(5, 20, 50, "VALID")
    dense1, dense2 = p.dense(800, 500), p.dense(500, 10)

    def forward(x: tf.Tensor, training: bool) -> tf.Tensor:
        x = tf.nn.max_pool2d(conv2(tf.nn.max_pool2d(conv1(x), 2, 2, "VALID")), 2, 2, "VALID")
        return dense2(tf.nn.relu(dense1(x)))

    return forward, sgd(p, 0.01, 0.9, 5e-4, 2, gamma=1e-4, power=0.75), 64


def torch_mnist(p: Parameters) -> tuple[Forward, Update, int]:
    conv1, conv2 = p.convolution(5, 1, 32, "VALID"), p.convolution(5, 32, 64, "VALID")
    dense1, dense2 = p.dense(576, 200), p.dense(200, 10)

    def forward(x: tf.Tensor, training: bool) -> tf.Tensor:
        x = tf.nn.max_pool2d(
            tf.pad(tf.tanh(conv1(x)), [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-2), 3, 3, "VALID"
        )
        return dense2(tf.tanh(dense1(tf.nn.max_pool2d(tf.tanh(conv2(x)), 2, 2, "VALID"))))

    return forward, sgd(p, 0.05, gamma=5e-7), 10


def torch_cifar10(p: Parameters) -> tuple[Forward, Update, int]:
    conv1, conv2 = p.connected(5, 3, 16, 1, 0.1), p.connected(5, 16, 256, 4, 0.05)
    dense1, dense2 = p.dense(6400, 128, 0.01), p.dense(128, 10)

    def forward(x: tf.Tensor, training: bool) -> tf.Tensor:
        x = tf.nn.max_pool2d(tf.tanh(conv1(x)), 2, 2, "VALID")
        return dense2(tf.tanh(dense1(tf.nn.max_pool2d(tf.tanh(conv2(x)), 2, 2, "VALID"))))

    return forward, sgd(p, 0.001, gamma=5e-7), 1


def caffe_cifar10(p: Parameters) -> tuple[Forward, Update, int]:
    conv1 = p.convolution(5, 3, 32, "SAME", 1e-4)
    conv2, conv3 = p.convolution(5, 32, 32, "SAME", 0.01), p.convolution(5, 32, 64, "SAME", 0.01)
    dense1, dense2 = p.dense(1024, 64), p.dense(64, 10)

    def forward(x: tf.Tensor, training: bool) -> tf.Tensor:
        x = tf.nn.relu(tf.nn.max_pool2d(conv1(x), 3, 2, "SAME"))  # the same windows as Caffe's here
        x = tf.nn.avg_pool2d(tf.nn.relu(conv2(x)), 3, 2, "SAME")
        return dense2(dense1(tf.nn.avg_pool2d(tf.nn.relu(conv3(x)), 3, 2, "SAME")))

    return forward, sgd(p, 0.001, 0.9, 0.004, 2), 100


MODES = ("graph", "graph_multi_step", "xla")


def loop(
    name: str, folder: Path, threads: int, test_batch: int, mode: str = "graph_multi_step"
) -> tuple[Run, Run, int]:
    """Return the training and testing of a network, and its batch size.

    The first does a number of further steps, the second classifies a number of images.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.random.set_seed(0)
    parameters = Parameters()
    forward, update, batch = globals()[name](parameters)
    call = CALL_STEPS if batch > 10 else CALL_STEPS_SMALL_BATCH

    def images(part: str) -> tf.Tensor:
        return tf.constant(np.load(folder / f"{part}_preprocessed.npy"))

    x, y = images("train"), tf.constant(np.load(folder / "train_labels.npy").astype(np.int64))
    x_test = images("test")

    @tf.function
    def train_steps(first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        loss = tf.constant(0.0)
        for step in tf.range(first, first + count):
            start = step * batch % (len(x) - batch)
            with tf.GradientTape() as tape:
                logits = forward(x[start : start + batch], True)
                loss = tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y[start : start + batch], logits=logits)
                )
            update(tape.gradient(loss, list(parameters)), step)
        return loss

    @tf.function
    def classify(first: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        logits = tf.TensorArray(tf.float32, (stop - first) // test_batch, element_shape=(test_batch, 10))
        for start in tf.range(first, stop, test_batch):
            logits = logits.write((start - first) // test_batch, forward(x_test[start : start + test_batch], False))
        return logits.concat()

    @tf.function(jit_compile=mode == "xla")
    def train_step(images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = forward(images, True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        update(tape.gradient(loss, list(parameters)), step)
        return loss

    @tf.function(jit_compile=mode == "xla")
    def classify_batch(images: tf.Tensor) -> tf.Tensor:
        return forward(images, False)

    done = 0

    def train(count: int) -> None:
        nonlocal done
        first, done = done, done + count
        if mode != "graph_multi_step":
            for step in range(first, done):
                start = step * batch % (len(x) - batch)
                loss = train_step(x[start : start + batch], y[start : start + batch], tf.constant(step))
            loss.numpy()
            return
        for start in range(first, first + count, call):
            train_steps(tf.constant(start), tf.constant(min(call, first + count - start))).numpy()

    def test(count: int) -> None:
        if mode != "graph_multi_step":
            batches = [x_test[start : start + test_batch] for start in range(0, count, test_batch)]
            tf.concat([classify_batch(images) for images in batches], 0).numpy()
            return
        images = call * test_batch
        stops = [(start, min(start + images, count)) for start in range(0, count, images)]
        tf.concat([classify(tf.constant(start), tf.constant(stop)) for start, stop in stops], 0).numpy()

    return train, test, batch
