"""tinygrad adapter: TinyJit replays the kernels of a training step, or of a batch's logits; images are NHWC."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Device, Tensor, TinyJit
from tinygrad.helpers import getenv
from tinygrad.nn.state import safe_load, safe_save

from ...initialization import Weights
from ...inputs import Batch
from ...job import Optimizer
from ...layers import AveragePool
from ..base import Adapter, Setup, from_channels_last, to_channels_last
from .network import TinygradForward, logits

LARGEST_CHUNK = 100
"""Maximum number of images per call: the windows of a convolution take 25 times the memory of its input."""

Tensors = dict[str, Tensor]


class Tinygrad(Adapter):
    """Network in tinygrad. A training step assigns new values to the tensors of its state.

    tinygrad's kernels run on the CPU in the thread that calls them, so that their results can be read at once.
    """

    layout = "NHWC"
    label_type = "int32"

    def __init__(self, setup: Setup) -> None:
        self._setup, self._training = setup, setup.training
        nodes = setup.network.nodes
        self._nodes = {f"{node.layer.name}/{array}": node for node in nodes for array in node.parameters}
        values = {name: to_channels_last(node, setup.weights[name]) for name, node in self._nodes.items()}
        moments = 2 if setup.training.optimizer is Optimizer.adam else 1 if setup.training.momentum else 0
        self._parameters = _tensors(values)
        self._statistics = _tensors({name: setup.weights[name] for name in setup.network.state})
        self._moments = [_tensors({name: np.zeros_like(values[name]) for name in values}) for _ in range(moments)]
        self._average = _tensors({} if setup.training.ema_decay is None else values)
        # A masked weight starts at 0 and stays 0 without a gradient, so the weights themselves need no mask.
        self._masks = _tensors({name: mask.transpose(2, 3, 1, 0) for name, mask in setup.masks.items()})
        pools = [node for node in nodes if isinstance(node.layer, AveragePool)]
        self._cells = _tensors({node.layer.name: node.cells[..., None].astype(np.float32) for node in pools})
        self._steps = 0
        channels, height, width = nodes[0].input
        self._image_shape = (height, width, channels)
        size = setup.training.batch_size
        self._images = _tensor(np.zeros((size, *self._image_shape), np.float32))
        self._labels = _tensor(np.zeros(size, self.label_type))
        self._scalars, self._seed = _tensor(np.zeros(4, np.float32)), _tensor(np.zeros(2, np.uint32))
        self._step = TinyJit(self._train_step)
        self._classifiers: dict[int, Callable[[np.ndarray], np.ndarray]] = {}

    def compile(self) -> None:
        # TinyJit runs the function in its first call, records the kernels in its second, and then replays them.
        state = self._state()
        before = {name: _memory(tensor).copy() for name, tensor in state.items()}
        for _ in range(2):
            self._step(self._images, self._labels, self._scalars, self._seed)
        for name, tensor in state.items():
            _memory(tensor)[...] = before[name]
        self._classifier(min(self._training.test_batch_size, LARGEST_CHUNK))

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        losses = np.empty(len(rates), np.float32)
        inputs = self._images, self._labels, self._scalars, self._seed
        memory = [_memory(tensor) for tensor in inputs]
        # The rates come first, so that zip does not consume an unused batch.
        for number, (rate, (images, labels)) in enumerate(zip(rates, batches, strict=False)):
            values = images, labels, *self._arguments(self._steps, rate)
            for destination, value in zip(memory, values, strict=True):
                destination[...] = value
            losses[number] = _memory(self._step(*inputs))
            self._steps += 1
        return losses

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        # Kernels are compiled for one batch size, so a smaller chunk is padded to the largest size so far.
        size, outputs = 0, []
        for images in batches:
            size = max(size, min(len(images), LARGEST_CHUNK))
            classify = self._classifier(size)
            outputs += [classify(images[start : start + size]) for start in range(0, len(images), size)]
        return np.concatenate(outputs)

    def weights(self) -> Weights:
        values = {name: _memory(tensor).copy() for name, tensor in {**self._evaluated, **self._statistics}.items()}
        return values | {name: from_channels_last(self._nodes[name], values[name]) for name in self._evaluated}

    def save(self, folder: Path) -> None:
        safe_save({**self._evaluated, **self._statistics}, str(folder / "weights.safetensors"))

    def load(self, folder: Path) -> None:
        _load({**self._evaluated, **self._statistics}, folder / "weights.safetensors")

    def checkpoint(self, folder: Path) -> None:
        safe_save(self._state(), str(folder / "training.safetensors"))

    def restore(self, folder: Path, step: int) -> None:
        _load(self._state(), folder / "training.safetensors")
        self._steps = step  # dropout is seeded by the number of the step

    def describe(self) -> dict[str, Any]:
        device = Device[self._images.device]
        compiler = subprocess.run(
            [getenv("CC", "clang"), "--version"], capture_output=True, text=True, check=True
        ).stdout.partition("\n")[0]
        return {
            "version": importlib.metadata.version("tinygrad"),
            "device": device.device.lower(),
            "precision": self._setup.precision.value,
            "threads": max(len(device.workers), 1),  # without workers, the calling thread computes
            "renderer": type(device.renderer).__name__,
            "architecture": device.arch,
            "compiler": compiler,
        }

    @property
    def _evaluated(self) -> Tensors:
        """Parameters used for prediction and saved: with ``training.ema_decay`` the moving average."""
        return self._average or self._parameters

    def _state(self) -> Tensors:
        """Return all tensors that a training step changes."""
        groups = {"parameters": self._parameters, "statistics": self._statistics, "average": self._average}
        groups |= {f"moment{number}": moment for number, moment in enumerate(self._moments)}
        return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}

    def _arguments(self, step: int, rate: float) -> tuple[Any, Any]:
        """Return the scalars of a training step, and the dropout seed and step.

        The scalars are the learning rate, the bias corrections of Adam's two moments (1 - beta1^t, 1 - beta2^t for
        t = ``step`` + 1), and the decay of the moving average.
        """
        training, number = self._training, step + 1
        ema_decay = 1.0 if training.ema_decay is None else training.ema_decay_at(number)
        scalars = (rate, 1 - training.beta1**number, 1 - training.beta2**number, ema_decay)
        return scalars, (self._setup.seed, step)

    def _forward_pass(self, parameters: Tensors, seed: Tensor | None = None) -> TinygradForward:
        return TinygradForward(self._setup.network, parameters, self._statistics, self._cells, seed)

    def _classifier(self, size: int) -> Callable[[np.ndarray], np.ndarray]:
        """Return a compiled function that returns the logits of up to ``size`` images."""
        if size not in self._classifiers:
            images = _tensor(np.zeros((size, *self._image_shape), np.float32))
            jitted = TinyJit(lambda images: logits(images, self._forward_pass(self._evaluated)).realize())
            for _ in range(2):
                jitted(images)
            memory = _memory(images)

            def classify(batch: np.ndarray) -> np.ndarray:
                memory[: len(batch)] = batch
                return _memory(jitted(images))[: len(batch)].copy()

            self._classifiers[size] = classify
        return self._classifiers[size]

    def _train_step(self, images: Tensor, labels: Tensor, scalars: Tensor, seed: Tensor) -> Tensor:
        """Update the state by one training step, and return the loss before it."""
        forward = self._forward_pass(self._parameters, seed)
        loss = logits(images, forward).sparse_categorical_crossentropy(labels)
        for name, after in forward.new_statistics.items():
            self._statistics[name].assign(after)
        gradients = loss.gradient(*self._parameters.values())
        for (name, parameter), gradient in zip(self._parameters.items(), gradients, strict=True):
            if name in self._masks:
                gradient = gradient * self._masks[name]
            if decay := self._setup.weight_decay(name):
                gradient = gradient + decay * parameter
            rate = scalars[0] * self._setup.lr_multiplier(name)
            moments = [moment[name] for moment in self._moments]
            after = parameter - self._change(gradient, rate, moments, scalars)
            if name in self._average:
                average = self._average[name]
                average.assign(average + (1 - scalars[3]) * (after - average))
            parameter.assign(after)
        return loss.realize(*self._state().values())

    def _change(self, gradient: Tensor, rate: Tensor, moments: list[Tensor], scalars: Tensor) -> Tensor:
        """Update the moments of a parameter and return the value to subtract from the parameter."""
        training = self._training
        if training.optimizer is Optimizer.adam:
            first, second = moments
            first.assign(training.beta1 * first + (1 - training.beta1) * gradient)
            second.assign(training.beta2 * second + (1 - training.beta2) * gradient.square())
            return rate * (first / scalars[1]) / ((second / scalars[2]).sqrt() + training.epsilon)
        if training.momentum:
            [velocity] = moments
            return velocity.assign(training.momentum * velocity + rate * gradient)
        return rate * gradient


def _tensor(value: np.ndarray) -> Tensor:
    return Tensor(np.ascontiguousarray(value)).contiguous().realize()


def _tensors(values: Weights) -> Tensors:
    return {name: _tensor(value) for name, value in values.items()}


def _memory(tensor: Tensor) -> np.ndarray:
    """Return a NumPy view of a tensor's CPU memory. A replayed kernel uses the same memory in every call."""
    memory = tensor._buffer().as_memoryview(force_zero_copy=True, no_sync=True)
    return np.frombuffer(memory, tensor.dtype.fmt).reshape(tensor.shape)


def _load(tensors: Tensors, path: Path) -> None:
    saved = safe_load(str(path))
    for name, tensor in tensors.items():
        _memory(tensor)[...] = saved[name].numpy()
