"""Hand-written MXNet loops of default networks, as an expert would write them: the baseline of native_speed.py.

They do not use gtdl_mlflow. The number of threads is OpenMP's, set by OMP_NUM_THREADS before MXNet starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon import nn

Run = Callable[[int], None]


class SGD(mx.optimizer.SGD):
    """SGD with one operator per parameter; MXNet's own updates several per operator, which is slower on a CPU."""

    one_by_one = True

    def update(self, index: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray, state: mx.nd.NDArray | None) -> None:
        if not self.one_by_one:
            super().update(index, weight, grad, state)
            return
        self._update_count(index)
        rates = {"lr": self._get_lr(index), "wd": self._get_wd(index)}
        if state is None:
            mx.nd.sgd_update(weight, grad, out=weight, **rates)
        else:
            mx.nd.sgd_mom_update(weight, grad, state, out=weight, momentum=self.momentum, **rates)


class Inverse(mx.lr_scheduler.LRScheduler):
    def __init__(self, gamma: float, power: float) -> None:
        super().__init__()
        self.gamma, self.power = gamma, power

    def __call__(self, num_update: int) -> float:
        return self.base_lr * (1 + self.gamma * num_update) ** -self.power


MASKED = {"torch_cifar10": {0: 1, 2: 4}}
"""Number of input maps that each output map reads, by the position of the convolution."""


def mask(weight: mx.nd.NDArray, read: int) -> mx.nd.NDArray:
    """Return a mask with 0 for the weights that are 0 and get no gradient."""
    chosen = np.zeros(weight.shape, np.float32)
    for row in chosen:
        row[np.random.permutation(len(row))[:read]] = 1
    return mx.nd.from_numpy(chosen).copy()


def tensorflow_mnist() -> tuple[nn.HybridSequential, mx.optimizer.Optimizer, int]:
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(32, 5, padding=2, activation="relu"), nn.MaxPool2D(2, 2),
        nn.Conv2D(64, 5, padding=2, activation="relu"), nn.MaxPool2D(2, 2),
        nn.Dense(1024, activation="relu"), nn.Dropout(0.5), nn.Dense(10),
    )  # fmt: skip
    return net, mx.optimizer.Adam(learning_rate=1e-4), 50


def caffe_mnist() -> tuple[nn.HybridSequential, mx.optimizer.Optimizer, int]:
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(20, 5), nn.MaxPool2D(2, 2), nn.Conv2D(50, 5), nn.MaxPool2D(2, 2),
        nn.Dense(500, activation="relu"), nn.Dense(10),
    )  # fmt: skip
    return net, SGD(learning_rate=0.01, momentum=0.9, wd=5e-4, lr_scheduler=Inverse(1e-4, 0.75)), 64


def torch_mnist() -> tuple[nn.HybridSequential, mx.optimizer.Optimizer, int]:
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(32, 5, activation="tanh"), nn.MaxPool2D(3, 3, 1),
        nn.Conv2D(64, 5, activation="tanh"), nn.MaxPool2D(2, 2),
        nn.Dense(200, activation="tanh"), nn.Dense(10),
    )  # fmt: skip
    return net, SGD(learning_rate=0.05, lr_scheduler=Inverse(5e-7, 1.0)), 10


def torch_cifar10() -> tuple[nn.HybridSequential, mx.optimizer.Optimizer, int]:
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(16, 5, activation="tanh"), nn.MaxPool2D(2, 2),
        nn.Conv2D(256, 5, activation="tanh"), nn.MaxPool2D(2, 2),
        nn.Dense(128, activation="tanh"), nn.Dense(10),
    )  # fmt: skip
    return net, SGD(learning_rate=0.001, lr_scheduler=Inverse(5e-7, 1.0)), 1


def caffe_cifar10() -> tuple[nn.HybridSequential, mx.optimizer.Optimizer, int]:
    def average() -> nn.AvgPool2D:
        return nn.AvgPool2D(3, 2, ceil_mode=True, count_include_pad=False)

    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(32, 5, padding=2, weight_initializer=mx.init.Normal(1e-4)), nn.MaxPool2D(3, 2, ceil_mode=True),
        nn.Activation("relu"),
        nn.Conv2D(32, 5, padding=2, activation="relu", weight_initializer=mx.init.Normal(0.01)), average(),
        nn.Conv2D(64, 5, padding=2, activation="relu", weight_initializer=mx.init.Normal(0.01)), average(),
        nn.Dense(64, weight_initializer=mx.init.Normal(0.1)), nn.Dense(10, weight_initializer=mx.init.Normal(0.1)),
    )  # fmt: skip
    return net, SGD(learning_rate=0.001, momentum=0.9, wd=0.004), 100


class Loss(gluon.HybridBlock):
    """Network and mean loss in one graph."""

    def __init__(self, net: nn.HybridSequential) -> None:
        super().__init__()
        self.net = net

    def hybrid_forward(self, F, images, labels):
        return -F.mean(F.pick(F.log_softmax(self.net(images)), labels), keepdims=True)


MODES = ("hybrid", "hybrid_static")


def loop(name: str, folder: Path, threads: int, test_batch: int, mode: str = "hybrid_static") -> tuple[Run, Run, int]:
    """Return the training and testing of a network, and its batch size.

    The first does a number of further steps, the second classifies a number of images. ``hybrid`` is the tutorial's
    loop with a Trainer.
    """
    mx.random.seed(0)
    net, optimizer, batch = globals()[name]()
    net.initialize(mx.init.Xavier())
    graph = Loss(net)
    for block in (graph, net):
        block.hybridize(static_alloc=mode == "hybrid_static", static_shape=mode == "hybrid_static")

    def images(part: str) -> np.ndarray:
        return np.ascontiguousarray(np.load(folder / f"{part}_preprocessed.npy").transpose(0, 3, 1, 2))

    x, y = images("train"), np.load(folder / "train_labels.npy").astype(np.int32)
    x_test = images("test")
    numbers = itertools.count()
    net(mx.nd.from_numpy(x_test[:1]))  # Gluon infers the shapes from the first images
    parameters = list(net.collect_params().values())
    arrays = [(parameter.data(), parameter.list_grad()[0]) for parameter in parameters]
    if name.startswith("caffe"):
        optimizer.set_lr_mult({index: 2.0 for index, each in enumerate(parameters) if each.name.endswith("bias")})
    masked = [
        (net[index].weight.data(), net[index].weight.list_grad()[0], mask(net[index].weight.data(), read))
        for index, read in MASKED.get(name, {}).items()
    ]
    for weight, _, chosen in masked:
        weight *= chosen
    optimizer.one_by_one = mode == "hybrid_static"
    trainer = gluon.Trainer(net.collect_params(), optimizer) if mode == "hybrid" else None
    states = [optimizer.create_state(index, data) for index, (data, _) in enumerate(arrays)]

    def train(count: int) -> None:
        starts = [(step * batch) % (len(x) - batch) for step in itertools.islice(numbers, count)]
        for start in starts:
            part = slice(start, start + batch)
            with mx.autograd.record():
                loss = graph(mx.nd.from_numpy(x[part]), mx.nd.from_numpy(y[part]))
            loss.backward()
            for _, gradient, chosen_weights in masked:
                mx.nd.elemwise_mul(gradient, chosen_weights, out=gradient)
            if trainer:
                trainer.step(1)
                continue
            for index, (data, gradient) in enumerate(arrays):
                optimizer.update(index, data, gradient, states[index])
        mx.nd.waitall()

    def test(count: int) -> None:
        queued = [net(mx.nd.from_numpy(x_test[start : start + test_batch])) for start in range(0, count, test_batch)]
        np.concatenate([logits.asnumpy() for logits in queued])

    return train, test, batch
