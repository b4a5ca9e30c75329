"""Hand-written Theano loops of default networks, as an expert would write them: the baseline of native_speed.py.

They do not use gtdl_mlflow. The number of threads is OpenMP's, set by OMP_NUM_THREADS before Theano starts.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Theano compiles against the BLAS in its flags, which it reads on import: here the mkl wheel's in the environment.
MKL = next((Path(sys.prefix) / "lib").glob("libmkl_rt.so.*"))
LINK = f"-L{MKL.parent} -l:{MKL.name}"
os.environ["THEANO_FLAGS"] = (
    f"{os.environ.get('THEANO_FLAGS', '')},floatX=float32,base_compiledir={sys.prefix}/theano_loop,blas__ldflags={LINK}"
)

import theano  # noqa: E402
import theano.tensor as T  # noqa: E402
from theano.sandbox.rng_mrg import MRG_RandomStream  # noqa: E402
from theano.tensor.elemwise import Elemwise  # noqa: E402
from theano.tensor.nnet import conv2d, crossentropy_softmax_1hot  # noqa: E402
from theano.tensor.signal.pool import pool_2d  # noqa: E402

Run = Callable[[int], None]


def fixed_c_all(self: Any, *arguments: Any, original: Any = Elemwise._c_all) -> Any:
    """Add the value that Theano-PyMC 1.1.2 leaves out of its OpenMP code: an f-string lacks the f."""
    least = str(theano.config.openmp_elemwise_minsize)
    code = original(self, *arguments)
    return [part.replace("{int(config.openmp_elemwise_minsize)}", least) for part in code]


Elemwise._c_all = fixed_c_all

# Weights and images are the harness's: Theano's max pooling branches on values, and with others the loop is 4 % faster
# on caffe_mnist.
parameters: list[Any] = []


def parameter(shape: tuple[int, ...]) -> Any:
    parameters.append(theano.shared(np.zeros(shape, np.float32)))
    return parameters[-1]


class Conv:
    def __init__(self, inputs: int, filters: int, side: int, pad: int = 0) -> None:
        self.w, self.b = parameter((filters, inputs, 5, 5)), parameter((filters,))
        self.side, self.pad, self.shape = side, pad, (filters, inputs, 5, 5)

    def __call__(self, x: Any, batch: int | None) -> Any:
        shape = (batch, self.shape[1], self.side, self.side)
        return conv2d(x, self.w, shape, self.shape, self.pad, filter_flip=False) + self.b.dimshuffle("x", 0, "x", "x")


masks: dict[Any, np.ndarray] = {}
"""Masks by weights of which only some learn; the others are 0 and get no gradient."""


class Dense:
    def __init__(self, inputs: int, units: int) -> None:
        self.w, self.b, self.inputs = parameter((inputs, units)), parameter((units,)), inputs

    def __call__(self, x: Any, batch: int | None) -> Any:
        return T.dot(x if x.ndim == 2 else x.reshape((-1, self.inputs)), self.w) + self.b


class Pool:
    def __init__(self, size: int, stride: int, pad: int = 0, ignore_border: bool = True, mode: str = "max") -> None:
        self.arguments = (size, size), ignore_border, (stride, stride), (pad, pad), mode

    def __call__(self, x: Any, batch: int | None) -> Any:
        return pool_2d(x, *self.arguments)


def relu(x: Any, batch: int | None) -> Any:
    return x * (x > 0)  # faster than T.nnet.relu and than T.switch


def tanh(x: Any, batch: int | None) -> Any:
    return T.tanh(x)


def dropout(x: Any, batch: int | None) -> Any:
    if batch is None:
        return x
    return x * MRG_RandomStream(1).binomial((batch, 1024), p=0.5, dtype="float32") * np.float32(2)


def adam(gradients: list[Any]) -> list[tuple[Any, Any]]:
    one, step = np.float32(1), theano.shared(np.float32(0))
    now = step + one
    first, second, epsilon = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
    rate = np.float32(1e-4) * T.sqrt(one - second**now) / (one - first**now)
    updates = [(step, now)]
    for p, g in zip(parameters, gradients, strict=True):
        m, v = theano.shared(p.get_value() * 0), theano.shared(p.get_value() * 0)
        mean = first * m + (one - first) * g
        square = second * v + (one - second) * T.sqr(g)
        updates += [(m, mean), (v, square), (p, p - rate * mean / (T.sqrt(square) + epsilon))]
    return updates


def momentum(rate: Any, decay: float) -> Callable[[list[Any]], list[tuple[Any, Any]]]:
    def update(gradients: list[Any]) -> list[tuple[Any, Any]]:
        updates = []
        for p, g in zip(parameters, gradients, strict=True):
            v = theano.shared(p.get_value() * 0)
            own_rate = np.float32(2) * rate if p.ndim == 1 else rate
            velocity = np.float32(0.9) * v + own_rate * (g + np.float32(decay) * p)
            updates += [(v, velocity), (p, p - velocity)]
        return updates

    return update


def sgd(rate: Any) -> Callable[[list[Any]], list[tuple[Any, Any]]]:
    return lambda gradients: [
        (p, p - rate * (g * masks[p] if p in masks else g)) for p, g in zip(parameters, gradients, strict=True)
    ]


scheduled = T.fscalar("rate")
"""Input of the networks whose learning rate falls with every step."""
RATES = {"torch_mnist": (0.05, 5e-7, 1.0), "torch_cifar10": (0.001, 5e-7, 1.0), "caffe_mnist": (0.01, 1e-4, 0.75)}
"""Rate, gamma and power: rate (1 + gamma step)^-power."""


def tensorflow_mnist() -> tuple[list[Any], Any, int]:
    layers = [
        Conv(1, 32, 28, 2), relu, Pool(2, 2), Conv(32, 64, 14, 2), relu, Pool(2, 2),
        Dense(3136, 1024), relu, dropout, Dense(1024, 10),
    ]  # fmt: skip
    return layers, adam, 50


def caffe_mnist() -> tuple[list[Any], Any, int]:
    layers = [Conv(1, 20, 28), Pool(2, 2), Conv(20, 50, 12), Pool(2, 2), Dense(800, 500), relu, Dense(500, 10)]
    return layers, momentum(scheduled, 5e-4), 64


def torch_mnist() -> tuple[list[Any], Any, int]:
    layers = [
        Conv(1, 32, 32), tanh, Pool(3, 3, 1), Conv(32, 64, 10), tanh, Pool(2, 2),
        Dense(576, 200), tanh, Dense(200, 10),
    ]  # fmt: skip
    return layers, sgd(scheduled), 10


def torch_cifar10() -> tuple[list[Any], Any, int]:
    layers = [
        Conv(3, 16, 32), tanh, Pool(2, 2), Conv(16, 256, 14), tanh, Pool(2, 2),
        Dense(6400, 128), tanh, Dense(128, 10),
    ]  # fmt: skip
    return layers, sgd(scheduled), 1


def caffe_cifar10() -> tuple[list[Any], Any, int]:
    average = Pool(3, 2, ignore_border=False, mode="average_exc_pad")
    layers = [
        Conv(3, 32, 32, 2), Pool(3, 2, ignore_border=False), relu, Conv(32, 32, 16, 2), relu, average,
        Conv(32, 64, 8, 2), relu, average, Dense(1024, 64), Dense(64, 10),
    ]  # fmt: skip
    return layers, momentum(np.float32(0.001), 0.004), 100


def loop(name: str, folder: Path, threads: int, test_batch: int) -> tuple[Run, Run, int]:
    """Return the training and testing of a network, and its batch size.

    The first does a number of further steps, the second classifies a number of images.
    """
    layers, optimizer, batch = globals()[name]()

    start = np.load(folder / "start.npz")
    for shared, key in zip(parameters, (key for key in start.files if not key.endswith(" mask")), strict=True):
        weights = start[key]
        if f"{key} mask" in start.files:
            masks[shared] = np.broadcast_to(start[f"{key} mask"], weights.shape).copy()
            weights = weights * masks[shared]
        shared.set_value(weights)

    def network(x: Any, size: int | None) -> Any:
        for layer in layers:
            x = layer(x, size)
        return x

    x, y = T.tensor4(), T.lvector()
    loss = crossentropy_softmax_1hot(network(x, batch), y)[0].mean()
    more = [scheduled] if name in RATES else []
    step = theano.function([x, y, *more], loss, updates=optimizer(T.grad(loss, parameters)))
    logits = theano.function([x], network(x, None))
    step.trust_input = logits.trust_input = True

    def images(part: str) -> np.ndarray:
        return np.ascontiguousarray(np.load(folder / f"{part}_preprocessed.npy").transpose(0, 3, 1, 2))

    x_train, y_train = images("train"), np.load(folder / "train_labels.npy").astype(np.int64)
    x_test = images("test")
    numbers = itertools.count()
    rate, gamma, power = RATES.get(name, (0.0, 0.0, 1.0))

    def train(count: int) -> None:
        chosen = list(itertools.islice(numbers, count))
        starts = [(number * batch) % (len(x_train) - batch) for number in chosen]
        rates = [np.asarray(rate * (1 + gamma * number) ** -power, np.float32) for number in chosen]
        inputs = [(start, (rate,) if more else ()) for start, rate in zip(starts, rates, strict=True)]
        for first, extra in inputs:
            step(x_train[first : first + batch], y_train[first : first + batch], *extra)

    def test(count: int) -> None:
        np.concatenate([logits(x_test[start : start + test_batch]) for start in range(0, count, test_batch)])

    return train, test, batch
