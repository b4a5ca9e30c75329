"""Hand-written PaddlePaddle loops of default networks, as an expert would write them: the baseline of native_speed.py.

They do not use gtdl_mlflow.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.base import core
from paddle.regularizer import L2Decay

Run = Callable[[int], None]

MODES = ("dygraph", "to_static")

SCHEDULES = {"torch_mnist": (5e-7, 1.0), "torch_cifar10": (5e-7, 1.0), "caffe_mnist": (1e-4, 0.75)}
"""Gamma and power of learning rates that fall with every step: rate (1 + gamma step)^-power."""


class Conv(nn.Conv2D):
    """Convolution that adds its biases to three dimensions, which takes a tenth of the time of four."""

    def forward(self, x: Any) -> Any:
        x = F.conv2d(x, self.weight, padding=self._padding)
        return (x.flatten(2) + self.bias.unsqueeze(-1)).reshape(x.shape)


class MaxPool(nn.MaxPool2D):
    """Max-pooling by the kernel that returns the positions too, whose gradient is faster."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, return_mask=True, **options)

    def forward(self, x: Any) -> Any:
        return super().forward(x)[0]


def tensorflow_mnist() -> tuple[nn.Layer, Any, int]:
    net = nn.Sequential(
        Conv(1, 32, 5, padding=2), nn.ReLU(), MaxPool(2, 2),
        Conv(32, 64, 5, padding=2), nn.ReLU(), MaxPool(2, 2),
        nn.Flatten(), nn.Linear(3136, 1024), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1024, 10),
    )  # fmt: skip
    return net, paddle.optimizer.Adam(1e-4, parameters=net.parameters()), 50


def caffe_mnist() -> tuple[nn.Layer, Any, int]:
    net = nn.Sequential(
        Conv(1, 20, 5), MaxPool(2, 2), Conv(20, 50, 5), MaxPool(2, 2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip
    return net, momentum(net, 0.01, 5e-4), 64


def torch_mnist() -> tuple[nn.Layer, Any, int]:
    net = nn.Sequential(
        Conv(1, 32, 5), nn.Tanh(), MaxPool(3, 3, 1), Conv(32, 64, 5), nn.Tanh(), MaxPool(2, 2),
        nn.Flatten(), nn.Linear(576, 200), nn.Tanh(), nn.Linear(200, 10),
    )  # fmt: skip
    return net, paddle.optimizer.SGD(0.05, net.parameters()), 10


def torch_cifar10() -> tuple[nn.Layer, Any, int]:
    net = nn.Sequential(
        Conv(3, 16, 5), nn.Tanh(), MaxPool(2, 2), Conv(16, 256, 5), nn.Tanh(), MaxPool(2, 2),
        nn.Flatten(), nn.Linear(6400, 128), nn.Tanh(), nn.Linear(128, 10),
    )  # fmt: skip
    return net, paddle.optimizer.SGD(0.001, net.parameters()), 1


def caffe_cifar10() -> tuple[nn.Layer, Any, int]:
    net = nn.Sequential(
        Conv(3, 32, 5, padding=2), MaxPool(3, 2, ceil_mode=True), nn.ReLU(),
        Conv(32, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2D(3, 2, ceil_mode=True),
        Conv(32, 64, 5, padding=2), nn.ReLU(), nn.AvgPool2D(3, 2, ceil_mode=True),
        nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10),
    )  # fmt: skip
    return net, momentum(net, 0.001, 0.004), 100


def momentum(net: nn.Layer, rate: float, decay: float) -> Any:
    """Return SGD with momentum and weight decay; biases have twice the learning rate."""
    for name, parameter in net.named_parameters():
        parameter.optimize_attr["learning_rate"] = 2.0 if name.endswith("bias") else 1.0
    return paddle.optimizer.Momentum(rate, 0.9, net.parameters(), weight_decay=L2Decay(decay))


def loop(name: str, folder: Path, threads: int, test_batch: int, mode: str = "dygraph") -> tuple[Run, Run, int]:
    """Return the training and testing of a network, and its batch size.

    The first does a number of further steps, the second classifies a number of images.
    """
    cpu = Path("/proc/cpuinfo").read_text()
    if "AuthenticAMD" in cpu:  # otherwise Paddle's MKL uses narrow instructions there
        os.environ["MKL_DEBUG_CPU_TYPE"] = "7" if " avx512vl" in cpu else "5"
    core.set_num_threads(threads)
    paddle.seed(0)
    net, optimizer, batch = globals()[name]()
    to_tensor = paddle.from_dlpack

    def images(part: str) -> np.ndarray:
        return np.ascontiguousarray(np.load(folder / f"{part}_preprocessed.npy").transpose(0, 3, 1, 2))

    x, y = images("train"), np.load(folder / "train_labels.npy").astype(np.int64)
    x_test = images("test")
    if mode == "to_static":
        paddle.jit.to_static(net, [paddle.static.InputSpec([None, *x.shape[1:]], "float32")], full_graph=True)
        to_tensor = paddle.to_tensor  # from_dlpack can block for ever: another thread releases a graph's inputs
    masked = []
    layers = [layer for layer in net if isinstance(layer, (nn.Conv2D, nn.Linear))]
    with np.load(folder / "start.npz") as start:
        names = [key.removesuffix("/weights") for key in start if key.endswith("/weights")]
        for layer, key in zip(layers, names, strict=True):
            layer.weight.set_value(start[f"{key}/weights"])
            layer.bias.set_value(start[f"{key}/biases"])
            if f"{key}/weights mask" in start:
                mask = np.broadcast_to(start[f"{key}/weights mask"], layer.weight.shape).copy()
                masked.append((layer.weight, paddle.to_tensor(mask)))
    rate, (gamma, power) = optimizer.get_lr(), SCHEDULES.get(name, (0.0, 0.0))
    numbers = itertools.count()

    def train(count: int) -> None:
        net.train()
        for step in itertools.islice(numbers, count):
            start = step * batch % (len(x) - batch)
            logits = net(to_tensor(x[start : start + batch]))
            loss = F.cross_entropy(logits, paddle.from_dlpack(y[start : start + batch]))
            loss.backward()
            with paddle.no_grad():
                for weight, mask in masked:
                    weight.grad.multiply_(mask)
            if gamma:
                optimizer.set_lr(rate * (1 + gamma * step) ** -power)
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)

    def test(count: int) -> None:
        net.eval()
        with paddle.no_grad():
            starts = range(0, count, test_batch)
            paddle.concat([net(to_tensor(x_test[at : at + test_batch])) for at in starts]).numpy()

    return train, test, batch
