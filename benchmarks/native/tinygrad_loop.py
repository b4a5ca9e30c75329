"""Hand-written tinygrad loops of default networks, as an expert would write them: the baseline of native_speed.py.

They do not use gtdl_mlflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor, TinyJit, dtypes
from trainings import TRAININGS

Run = Callable[[int], None]


def own(x: Tensor) -> Tensor:
    """Give a value, and its gradient, memory of its own: tinygrad would fuse it into the next kernel."""
    return x.contiguous().contiguous_backward()


def convolution(x: Tensor, weights: Tensor, biases: Tensor, padding: int = 0) -> Tensor:
    """Return the product of windows and weights: Tensor.conv2d takes twice as long on a CPU."""
    count, size, filters = len(x), weights.shape[0], weights.shape[3]
    x = x.pad(((0, 0), (padding, padding), (padding, padding), (0, 0)))
    x = x.unfold(1, size, 1).unfold(2, size, 1)
    rows, columns = x.shape[1:3]
    x = x.permute(0, 1, 2, 4, 5, 3).reshape(count, rows * columns, -1)
    weights = weights.reshape(-1, filters)
    x = own(x.pad(((0, 0), (0, 0), (0, -x.shape[2] % 4))))  # tiles of 4 x 4
    weights = own(weights.pad(((0, -weights.shape[0] % 4), (0, -filters % 4))))
    weights = weights.expand(count, *weights.shape).contiguous_backward()
    return own(x @ weights)[..., :filters].reshape(count, rows, columns, filters) + biases


def dense(x: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    return own(x.flatten(1)) @ weights + biases


def tiles(x: Tensor, size: int = 2) -> Tensor:
    """Return the windows of a pooling without overlap: its axes 2 and 4."""
    count, height, width, channels = x.shape
    return x.reshape(count, height // size, size, width // size, size, channels)


def overlapping_max_pool(x: Tensor) -> Tensor:
    """Return the maxima of windows of 3 x 3 with a stride of 2, the last of which overhang: rows, then columns."""
    x = own(x.pad(((0, 0), (0, 1), (0, 1), (0, 0)), value=-math.inf)).permute(0, 3, 1, 2)
    x = own(x.max_pool2d((3, 1), (2, 1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return own(x.max_pool2d((1, 3), (1, 2)).permute(0, 2, 3, 1))


def average_pool(x: Tensor, inside: Tensor) -> Tensor:
    """Return the means of windows of 3 x 3 with a stride of 2, the last of which overhang by one cell."""
    x = own(x.pad(((0, 0), (0, 1), (0, 1), (0, 0)))).permute(0, 3, 1, 2)
    x = own(x.avg_pool2d((3, 1), (2, 1)).permute(0, 2, 3, 1) * 3).permute(0, 3, 1, 2)
    return own(x.avg_pool2d((1, 3), (1, 2)).permute(0, 2, 3, 1) * 3) / inside


def inside(windows: int) -> Tensor:
    """Return the number of cells of each window of ``average_pool`` that lie inside the image."""
    lengths = np.full(windows, 3, np.float32)
    lengths[-1] = 2
    return Tensor(np.outer(lengths, lengths)[..., None]).realize()


INSIDE = {windows: inside(windows) for windows in (8, 4)}


def tensorflow_mnist(p: list[Any], x: Tensor, seed: Tensor | None) -> Tensor:
    x = tiles(convolution(x, *p[0], 2).relu()).max((2, 4))
    x = tiles(convolution(x, *p[1], 2).relu()).max((2, 4))
    x = dense(x, *p[2]).relu()
    if seed is not None:
        bits = Tensor.random_bits(seed, Tensor.full((2,), 0, dtype=dtypes.uint32), x.numel()).reshape(x.shape)
        x = (bits < 2**31).contiguous().where(x / 0.5, 0)
    return dense(x, *p[3])


def caffe_mnist(p: list[Any], x: Tensor, seed: Tensor | None) -> Tensor:
    x = tiles(convolution(x, *p[0])).max((2, 4))
    x = tiles(convolution(x, *p[1])).max((2, 4))
    return dense(dense(x, *p[2]).relu(), *p[3])


def torch_mnist(p: list[Any], x: Tensor, seed: Tensor | None) -> Tensor:
    x = convolution(x, *p[0]).tanh().pad(((0, 0), (1, 1), (1, 1), (0, 0)), value=-math.inf)
    x = tiles(x, 3).max((2, 4))
    x = tiles(convolution(x, *p[1]).tanh()).max((2, 4))
    return dense(dense(x, *p[2]).tanh(), *p[3])


def torch_cifar10(p: list[Any], x: Tensor, seed: Tensor | None) -> Tensor:
    x = tiles(convolution(x, *p[0]).tanh()).max((2, 4))
    x = tiles(convolution(x, *p[1]).tanh()).max((2, 4))
    return dense(dense(x, *p[2]).tanh(), *p[3])


def caffe_cifar10(p: list[Any], x: Tensor, seed: Tensor | None) -> Tensor:
    x = overlapping_max_pool(convolution(x, *p[0], 2)).relu()
    x = average_pool(convolution(x, *p[1], 2).relu(), INSIDE[8])
    x = average_pool(convolution(x, *p[2], 2).relu(), INSIDE[4])
    return dense(dense(x, *p[3]), *p[4])


NETWORKS: dict[str, Any] = {
    "tensorflow_mnist": tensorflow_mnist,
    "caffe_mnist": caffe_mnist,
    "torch_mnist": torch_mnist,
    "caffe_cifar10": caffe_cifar10,
    "torch_cifar10": torch_cifar10,
}
"""Forward pass of each network."""


def tensor(value: Any) -> Tensor:
    return Tensor(np.ascontiguousarray(value)).contiguous().realize()


def memory(x: Tensor) -> np.ndarray:
    """Return the memory of a tensor on the CPU, which a recorded kernel reads and writes in every call."""
    return np.frombuffer(x._buffer().as_memoryview(force_zero_copy=True), x.dtype.fmt).reshape(x.shape)


def start(folder: Path) -> tuple[list[Any], list[Any]]:
    """Return the initial [weights, biases] of each layer, and the masks of weights that only partly learn, or None."""
    with np.load(folder / "start.npz") as saved:
        layers = [name.removesuffix("/weights") for name in saved if name.endswith("/weights")]
        parameters, masks = [], []
        for layer in layers:
            weights, mask = saved[f"{layer}/weights"], saved.get(f"{layer}/weights mask")
            is_convolution = weights.ndim == 4
            parameters.append(
                [
                    tensor(weights.transpose(2, 3, 1, 0) if is_convolution else weights),
                    tensor(saved[f"{layer}/biases"]),
                ]
            )
            masks += [None if mask is None else tensor(mask.transpose(2, 3, 1, 0)), None]
    return parameters, masks


def loop(name: str, folder: Path, threads: int, test_batch: int) -> tuple[Run, Run, int]:
    """Return the training and testing of a network, and its batch size.

    The first does a number of further steps, the second classifies a number of images. tinygrad computes with one
    thread.
    """
    forward, (optimizer, batch) = NETWORKS[name], TRAININGS[name]
    layers, masks = start(folder)
    parameters = [parameter for layer in layers for parameter in layer]
    multiples = [1.0, optimizer.biases] * len(layers)
    needed = 2 if optimizer.adam else 1 if optimizer.momentum else 0
    moments = [[tensor(np.zeros(p.shape, np.float32)) for _ in range(needed)] for p in parameters]

    def change(g: Tensor, moments: list[Tensor], rate: Tensor, scalars: Tensor) -> Tensor:
        if optimizer.adam:
            m, v = moments
            m.assign(0.9 * m + 0.1 * g)
            v.assign(0.999 * v + 0.001 * g * g)
            return rate * (m / scalars[1]) / ((v / scalars[2]).sqrt() + 1e-8)
        if optimizer.momentum:
            return moments[0].assign(optimizer.momentum * moments[0] + rate * g)
        return rate * g

    @TinyJit
    def train_step(x: Tensor, y: Tensor, scalars: Tensor, seed: Tensor) -> Tensor:
        loss = forward(layers, x, seed).sparse_categorical_crossentropy(y)
        gradients = loss.gradient(*parameters)
        for p, g, own_moments, mask, multiple in zip(parameters, gradients, moments, masks, multiples, strict=True):
            g = g if mask is None else g * mask
            g = g + optimizer.decay * p if optimizer.decay else g
            p.assign(p - change(g, own_moments, scalars[0] * multiple, scalars))
        return loss.realize(*parameters, *(moment for own_moments in moments for moment in own_moments))

    @TinyJit
    def classify(x: Tensor) -> Tensor:
        return forward(layers, x, None).realize()

    images, labels = np.load(folder / "train_preprocessed.npy"), np.load(folder / "train_labels.npy").astype(np.int32)
    test_images = np.load(folder / "test_preprocessed.npy")
    inputs = [
        tensor(np.zeros(shape, dtype))
        for shape, dtype in (((batch, *images.shape[1:]), "f"), (batch, "i"), (3, "f"), (2, "I"))
    ]
    tested = tensor(np.zeros((test_batch, *images.shape[1:]), np.float32))
    x, y, scalars, seed = map(memory, inputs)
    test_x = memory(tested)
    done = 0

    def train(count: int) -> None:
        nonlocal done
        for step in range(done, done + count):
            first = step * batch % (len(images) - batch)
            x[...], y[...] = images[first : first + batch], labels[first : first + batch]
            rate = optimizer.rate * (1 + optimizer.gamma * step) ** -optimizer.power
            scalars[...] = rate, 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
            seed[...] = 0, step
            train_step(*inputs)
        done += count

    def test(count: int) -> None:
        logits = []
        for at in range(0, count, test_batch):
            test_x[: min(test_batch, count - at)] = test_images[at : min(at + test_batch, count)]
            logits.append(memory(classify(tested)).copy())
        np.concatenate(logits)

    train(2)  # TinyJit records the kernels in the second call
    test(2 * test_batch)
    return train, test, batch
