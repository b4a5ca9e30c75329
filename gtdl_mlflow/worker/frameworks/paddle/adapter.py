"""PaddlePaddle adapter: Paddle layers, run eagerly or compiled to a graph, and an optimizer of Paddle."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.base import core

from ...initialization import Weights
from ...inputs import Batch
from ...job import Optimizer
from ...layers import Dropout
from ..base import Adapter, Setup
from .network import PaddleBatchNormalization, PaddleNetwork


class Paddle(Adapter):
    """Network in PaddlePaddle.

    Options: ``to_static`` (compile the forward pass with ``paddle.jit.to_static``; its gradient is compiled too).
    """

    def __init__(self, setup: Setup) -> None:
        _configure(setup)
        self._setup, self._training = setup, setup.training
        self._network = PaddleNetwork(setup.network)
        self._parameters, self._statistics = self._network.arrays(), self._network.statistics()
        self._normalizations = [each for _, each in self._network.named() if isinstance(each, PaddleBatchNormalization)]
        self._masks = [
            (self._parameters[name], paddle.to_tensor(np.broadcast_to(mask, setup.network.parameters[name]).copy()))
            for name, mask in setup.masks.items()
        ]
        self._drops = any(isinstance(node.layer, Dropout) and node.layer.keep < 1 for node in setup.network.nodes)
        self._tested = self._network
        if setup.training.ema_decay is not None:
            self._tested = PaddleNetwork(setup.network)
            self._tested.eval()
            for own, shared in zip(self._tested.named(), self._network.named(), strict=True):
                if isinstance(own[1], PaddleBatchNormalization):
                    own[1].mean, own[1].variance = shared[1].mean, shared[1].variance
        self._evaluated = self._tested.arrays()
        for arrays in (self._parameters, self._evaluated, self._statistics):
            _set(arrays, setup.weights)
        self._optimizer = self._create_optimizer()
        self._steps, self._last_rate = 0, 0.0
        # Another thread releases the inputs of a graph. It would wait forever for Python's GIL to release NumPy memory,
        # so a graph receives copies.
        self._to_tensor = paddle.to_tensor if setup.options["to_static"] else paddle.from_dlpack
        if setup.options["to_static"]:
            # The batch size is not specified, so that a smaller last batch does not require a second graph.
            spec = paddle.static.InputSpec([None, *setup.network.nodes[0].input], "float32")
            for network in {id(each): each for each in (self._network, self._tested)}.values():
                paddle.jit.to_static(network, [spec], full_graph=True)

    def compile(self) -> None:
        if not self._setup.options["to_static"]:
            return
        # There is no state to restore: parameters and running statistics change only in ``_update``.
        images, labels = self._blank_batch(self._training.batch_size)
        self._network.train()
        self._loss(images, labels).backward()
        self._optimizer.clear_grad()
        self.predict([self._blank_batch(self._training.test_batch_size)[0]])

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        losses = []
        self._network.train()
        # The rates come first, so that zip does not consume an unused batch.
        for rate, (images, labels) in zip(rates, batches, strict=False):
            losses.append(self._train_step(images, labels, rate))
        return np.asarray(paddle.stack(losses))

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        self._tested.eval()
        with paddle.no_grad():
            return np.asarray(paddle.concat([self._tested(self._to_tensor(images)) for images in batches]))

    def weights(self) -> Weights:
        shapes = self._setup.network.parameters
        parameters = {name: tensor.numpy().reshape(shapes[name]) for name, tensor in self._evaluated.items()}
        return {**parameters, **_copies(self._statistics)}

    def save(self, folder: Path) -> None:
        paddle.save({**self._evaluated, **self._statistics}, str(folder / "model.pdparams"))

    def load(self, folder: Path) -> None:
        saved = paddle.load(str(folder / "model.pdparams"), return_numpy=True)
        for arrays in (self._evaluated, self._statistics):
            _set(arrays, saved)

    def checkpoint(self, folder: Path) -> None:
        state = {
            "parameters": _copies(self._parameters),
            "evaluated": _copies(self._evaluated),
            "statistics": _copies(self._statistics),
            "optimizer": [tensor.numpy() for tensor in self._optimizer_state()],
            "last_rate": self._last_rate,
        }
        paddle.save(state, str(folder / "training.pdparams"))

    def restore(self, folder: Path, step: int) -> None:
        saved = paddle.load(str(folder / "training.pdparams"), return_numpy=True)
        # The first step creates the optimizer's state.
        self.train([self._blank_batch(self._training.batch_size)], [1.0])
        _set(self._parameters, saved["parameters"])
        _set(self._evaluated, saved["evaluated"])
        _set(self._statistics, saved["statistics"])
        for tensor, value in zip(self._optimizer_state(), saved["optimizer"], strict=True):
            tensor.set_value(value)
        self._last_rate, self._steps = saved["last_rate"], step  # dropout is seeded by the number of the step

    def describe(self) -> dict[str, Any]:
        parameter = next(iter(self._parameters.values()))
        return {
            "version": paddle.__version__,
            "commit": paddle.version.commit,
            "device": "cpu" if parameter.place.is_cpu_place() else str(parameter.place),
            "precision": str(parameter.dtype).removeprefix("paddle."),
            "threads": _openmp().omp_get_max_threads(),
            "mkl_cpu_type": os.environ.get("MKL_DEBUG_CPU_TYPE", ""),
            "onednn": core.is_compiled_with_mkldnn() and paddle.get_flags("FLAGS_use_mkldnn")["FLAGS_use_mkldnn"],
            "cinn": paddle.is_compiled_with_cinn(),
            "optimizer": type(self._optimizer).__name__,
            "to_static": isinstance(self._network.forward, paddle.jit.dy2static.program_translator.StaticFunction),
        }

    def _train_step(self, images: np.ndarray, labels: np.ndarray, rate: float) -> Tensor:
        """Do a training step and return the loss before it."""
        if self._drops:
            paddle.seed(self._setup.step_seed(self._steps))
        self._steps += 1
        loss = self._loss(images, labels)
        loss.backward()
        with paddle.no_grad():
            self._update(rate, len(images))
        return loss.detach()

    def _update(self, rate: float, batch_size: int) -> None:
        """Update parameters, running statistics and the moving average after a backward pass."""
        # A masked weight starts at 0 and stays 0 without a gradient, so the weights themselves need no mask.
        for weights, mask in self._masks:
            weights.grad.multiply_(mask)
        self._set_learning_rate(rate)
        self._optimizer.step()
        self._optimizer.clear_grad(set_to_zero=False)
        for layer in self._normalizations:
            layer.update(batch_size)
        if self._tested is not self._network:
            share = 1 - self._training.ema_decay_at(self._steps)
            for name, average in self._evaluated.items():
                average.lerp_(self._parameters[name], share)

    def _loss(self, images: np.ndarray, labels: np.ndarray) -> Tensor:
        return F.cross_entropy(self._network(self._to_tensor(images)), paddle.from_dlpack(labels))

    def _set_learning_rate(self, rate: float) -> None:
        self._optimizer.set_lr(rate)
        if momentum := self._training.momentum:
            # Paddle's velocity b is the classical velocity V divided by the learning rate, so the momentum must be
            # scaled when the rate changes: V = rate * b turns V' = momentum V + rate' g into
            # b' = (momentum rate / rate') b + g.
            self._optimizer._momentum = momentum * (self._last_rate / rate if self._last_rate else 1.0)
            self._last_rate = rate

    def _create_optimizer(self) -> paddle.optimizer.Optimizer:
        for name, parameter in self._parameters.items():
            parameter.optimize_attr["learning_rate"] = self._setup.lr_multiplier(name)
            if decay := self._setup.weight_decay(name):
                parameter.regularizer = paddle.regularizer.L2Decay(decay)
        training, parameters = self._training, list(self._parameters.values())
        if training.optimizer is Optimizer.adam:
            return paddle.optimizer.Adam(
                training.learning_rate, training.beta1, training.beta2, training.epsilon, parameters
            )
        if training.momentum:
            return paddle.optimizer.Momentum(training.learning_rate, training.momentum, parameters)
        return paddle.optimizer.SGD(training.learning_rate, parameters)

    def _optimizer_state(self) -> list[Tensor]:
        """Return the optimizer's tensors in a fixed order; their names differ between processes."""
        return [value for value in self._optimizer.state_dict().values() if isinstance(value, Tensor)]

    def _blank_batch(self, size: int) -> Batch:
        return np.zeros((size, *self._setup.network.nodes[0].input), np.float32), np.zeros(size, self.label_type)


def _configure(setup: Setup) -> None:
    """Set the device, the number of threads and the CPU type for MKL."""
    paddle.set_device("cpu")
    if cpu_type := _mkl_cpu_type(Path("/proc/cpuinfo")):
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", cpu_type)  # read by the first operation
    core.set_num_threads(setup.threads)


def _mkl_cpu_type(cpuinfo: Path) -> str:
    """Return the MKL_DEBUG_CPU_TYPE for the widest instructions of this CPU; empty for MKL's default, as on Intel.

    Paddle 3.3 includes MKL 2019.0.5, which uses narrow instructions on CPUs of other manufacturers: a convolution took
    35 instead of 15 ms on an AMD EPYC with AVX-512.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return ""
    lines = dict(line.replace("\t", "").split(":", 1) for line in text.splitlines() if ":" in line)
    flags = lines.get("flags", "").split()
    if "GenuineIntel" in lines.get("vendor_id", "GenuineIntel"):
        return ""
    if {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"} <= set(flags):
        return "7"
    return "5" if {"avx2", "fma"} <= set(flags) else ""


def _openmp() -> Any:
    """Return the OpenMP library that Paddle has loaded."""
    return ctypes.CDLL(str(Path(paddle.__file__).parent / "libs" / "libiomp5.so"))


def _set(tensors: dict[str, Tensor], values: Any) -> None:
    """Set tensors to the values of the same names."""
    for name, tensor in tensors.items():
        tensor.set_value(np.asarray(values[name]).reshape(tensor.shape))


def _copies(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
