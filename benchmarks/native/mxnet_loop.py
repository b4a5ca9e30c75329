"""A hand-written MXNet loop of a default network, as an expert would write it: what the harness is held against.

    python mxnet_loop.py NETWORK FOLDER_OF_PREPARED_DATA STEPS THREADS TEST_BATCH CLOCK

Knows nothing of gtdl_mlflow. Prints one JSON object: training and testing images/s, warm-up left out. The number of
threads is OpenMP's, set by OMP_NUM_THREADS before MXNet starts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon import nn

WARM_UP_STEPS = 15

clock = getattr(time, sys.argv[6])
"""``perf_counter``, or ``process_time`` beside another process on the same core."""


class SGD(mx.optimizer.SGD):
    """One operator per parameter: MXNet's own takes the one for several parameters, which is slower on a CPU."""

    def update(self, index: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray, state: mx.nd.NDArray | None) -> None:
        self._update_count(index)
        rates = {"lr": self._get_lr(index), "wd": self._get_wd(index)}
        if state is None:
            mx.nd.sgd_update(weight, grad, out=weight, **rates)
        else:
            mx.nd.sgd_mom_update(weight, grad, state, out=weight, momentum=self.momentum, **rates)


class Inverse(mx.lr_scheduler.LRScheduler):
    def __call__(self, num_update: int) -> float:
        return self.base_lr / (1 + 5e-7 * num_update)


MASKED = {"torch_cifar10": {0: 1, 2: 4}}
"""Of how many input maps each output map of a convolution, by its place, reads."""


def mask(weight: mx.nd.NDArray, read: int) -> mx.nd.NDArray:
    """0 for what an output map does not read: weights that start at 0 and get no gradient."""
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
    return net, SGD(learning_rate=0.01, momentum=0.9, wd=5e-4), 64


def torch_mnist() -> tuple[nn.HybridSequential, mx.optimizer.Optimizer, int]:
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(32, 5, activation="tanh"), nn.MaxPool2D(3, 3, 1),
        nn.Conv2D(64, 5, activation="tanh"), nn.MaxPool2D(2, 2),
        nn.Dense(200, activation="tanh"), nn.Dense(10),
    )  # fmt: skip
    return net, SGD(learning_rate=0.05, lr_scheduler=Inverse()), 10


def torch_cifar10() -> tuple[nn.HybridSequential, mx.optimizer.Optimizer, int]:
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(16, 5, activation="tanh"), nn.MaxPool2D(2, 2),
        nn.Conv2D(256, 5, activation="tanh"), nn.MaxPool2D(2, 2),
        nn.Dense(128, activation="tanh"), nn.Dense(10),
    )  # fmt: skip
    return net, SGD(learning_rate=0.001, lr_scheduler=Inverse()), 1


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
    """The network and its mean loss in one graph."""

    def __init__(self, net: nn.HybridSequential) -> None:
        super().__init__()
        self.net = net

    def hybrid_forward(self, F, images, labels):
        return -F.mean(F.pick(F.log_softmax(self.net(images)), labels), keepdims=True)


def main() -> None:
    name, folder, steps, test_batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[5])
    mx.random.seed(0)
    net, optimizer, batch = globals()[name]()
    net.initialize(mx.init.Xavier())
    graph = Loss(net)
    for block in (graph, net):
        block.hybridize(static_alloc=True, static_shape=True)

    def images(part: str) -> np.ndarray:
        return np.ascontiguousarray(np.load(folder / f"{part}_treated.npy").transpose(0, 3, 1, 2))

    x, y = images("train"), np.load(folder / "train_labels.npy").astype(np.int32)
    x_test = images("test")
    starts = [(step * batch) % (len(x) - batch) for step in range(WARM_UP_STEPS + steps)]
    net(mx.nd.from_numpy(x_test[:1]))  # Gluon learns the shapes from the first images
    parameters = list(net.collect_params().values())
    arrays = [(parameter.data(), parameter.list_grad()[0]) for parameter in parameters]
    optimizer.set_lr_mult({place: 2.0 for place, each in enumerate(parameters) if name.startswith("caffe")
                           and each.name.endswith("bias")})  # fmt: skip
    masked = [
        (net[place].weight.data(), net[place].weight.list_grad()[0], mask(net[place].weight.data(), read))
        for place, read in MASKED.get(name, {}).items()
    ]
    for weight, _, chosen in masked:
        weight *= chosen
    states = [optimizer.create_state(place, data) for place, (data, _) in enumerate(arrays)]

    def train(chosen: list[int]) -> float:
        began = clock()
        for start in chosen:
            part = slice(start, start + batch)
            with mx.autograd.record():
                loss = graph(mx.nd.from_numpy(x[part]), mx.nd.from_numpy(y[part]))
            loss.backward()
            for _, gradient, chosen_weights in masked:
                mx.nd.elemwise_mul(gradient, chosen_weights, out=gradient)
            for place, (data, gradient) in enumerate(arrays):
                optimizer.update(place, data, gradient, states[place])
        mx.nd.waitall()
        return clock() - began

    def test(images: np.ndarray) -> float:
        began = clock()
        starts = range(0, len(images), test_batch)
        queued = [net(mx.nd.from_numpy(images[start : start + test_batch])) for start in starts]
        np.concatenate([logits.asnumpy() for logits in queued])
        return clock() - began

    train(starts[:WARM_UP_STEPS])
    training_s = train(starts[WARM_UP_STEPS:])
    test(x_test[:test_batch])  # one batch outside the clock, as the harness has it
    testing_s = test(x_test)
    print(json.dumps({"train": steps * batch / training_s, "test": len(x_test) / testing_s}))


if __name__ == "__main__":
    main()
