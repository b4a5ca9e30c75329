"""JAX adapter: one compiled function does a training step, another classifies a batch; images are NHWC."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...initialization import Weights
from ...inputs import Batch
from ...job import Optimizer, Precision
from ..base import Adapter, Setup, from_channels_last, to_channels_last
from .network import JaxForward, logits

MATMUL_PRECISION = {
    Precision.float32: "highest",
    Precision.tf32: "tensorfloat32",
    Precision.bfloat16: "default",
}

State = dict[str, dict[str, Any]]
"""Training state: ``parameters``, ``statistics``, ``moments`` and ``average``, each by canonical name."""


class Jax(Adapter):
    """Network in JAX. A training step takes the training state and returns the next state in the same memory."""

    layout = "NHWC"
    label_type = "int32"

    def __init__(self, setup: Setup) -> None:
        configure(setup)
        self._setup, self._training = setup, setup.training
        self._compute_type = jnp.bfloat16 if setup.precision == Precision.bfloat16 else jnp.float32
        nodes = setup.network.nodes
        self._nodes = {f"{node.layer.name}/{array}": node for node in nodes for array in node.parameters}
        values = {name: to_channels_last(node, setup.weights[name]) for name, node in self._nodes.items()}
        moments = 2 if setup.training.optimizer is Optimizer.adam else 1 if setup.training.momentum else 0
        self._state: State = _on_device(
            {
                "parameters": values,
                "statistics": {name: setup.weights[name] for name in setup.network.state},
                "moments": {name: [np.zeros_like(value)] * moments for name, value in values.items()},
                "average": {} if setup.training.ema_decay is None else values,
            }
        )
        # A masked weight starts at 0 and stays 0 without a gradient, so the weights themselves need no mask. Masks
        # depend on the seed, so they are arguments: constants would be compiled into the function.
        self._masks = _on_device({name: mask.transpose(2, 3, 1, 0) for name, mask in setup.masks.items()})
        self._steps = 0
        channels, height, width = nodes[0].input
        self._image_shape = (height, width, channels)
        options = {}
        if setup.device == "gpu" and setup.deterministic:  # CPU kernels are deterministic anyway
            # Autotuning times kernels and may select others in the next run, which changes the last bits of results.
            options = {"xla_gpu_exclude_nondeterministic_ops": True, "xla_gpu_autotune_level": 0}
        self._step = jax.jit(self._train_step, donate_argnums=0, compiler_options=options)
        self._predict = jax.jit(self._classify, compiler_options=options)

    def compile(self) -> None:
        # The first call compiles a function for the shapes of its arguments.
        training = self._training
        images, tested = (
            np.zeros((size, *self._image_shape), np.float32) for size in (training.batch_size, training.test_batch_size)
        )
        copy = _on_device(self._state)
        labels = np.zeros(len(images), self.label_type)
        jax.block_until_ready(self._step(copy, self._masks, images, labels, *self._arguments(0, 0.0)))
        jax.block_until_ready(self._predict(self._evaluated, self._state["statistics"], tested))

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        losses = []
        # The rates come first, so that zip does not consume an unused batch.
        for rate, (images, labels) in zip(rates, batches, strict=False):
            arguments = self._arguments(self._steps, rate)
            self._state, loss = self._step(self._state, self._masks, images, labels, *arguments)
            losses.append(loss)
            self._steps += 1
        values = np.array(jax.device_get(losses))
        self._synchronize()  # a loss can be read while the step's update is still being computed
        return values

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        # XLA compiles for each batch size, so a smaller batch is padded to the largest size so far.
        evaluated, statistics = self._evaluated, self._state["statistics"]
        size, outputs, counts = 0, [], []
        for images in batches:
            counts.append(len(images))
            size = max(len(images), size)
            if len(images) < size:
                padding = np.zeros((size - len(images), *self._image_shape), np.float32)
                images = np.concatenate([images, padding])
            outputs.append(self._predict(evaluated, statistics, images))
        host = jax.device_get(outputs)
        values = np.concatenate([part[:count] for part, count in zip(host, counts, strict=True)])
        self._synchronize()
        return values

    def weights(self) -> Weights:
        parameters, statistics = jax.device_get((self._evaluated, self._state["statistics"]))
        canonical = {name: from_channels_last(self._nodes[name], value) for name, value in parameters.items()}
        return {**canonical, **{name: value.copy() for name, value in statistics.items()}}

    def save(self, folder: Path) -> None:
        jnp.savez(folder / "weights.npz", **self._evaluated, **self._state["statistics"])

    def load(self, folder: Path) -> None:
        saved = np.load(folder / "weights.npz")
        for values in (self._evaluated, self._state["statistics"]):
            values.update(_on_device({name: saved[name] for name in values}))
        self._synchronize()

    def checkpoint(self, folder: Path) -> None:
        jnp.savez(folder / "training.npz", *jax.tree.leaves(self._state))

    def restore(self, folder: Path, step: int) -> None:
        saved = np.load(folder / "training.npz")
        leaves = [saved[f"arr_{number}"] for number in range(len(saved.files))]
        self._state = _on_device(jax.tree.unflatten(jax.tree.structure(self._state), leaves))
        self._steps = step  # dropout is seeded by the number of the step
        self._synchronize()

    def metrics(self) -> dict[str, float]:
        if self._setup.device == "cpu":
            return {}
        return {"worker/peak_gpu_memory_mb": self._device.memory_stats()["peak_bytes_in_use"] / 1e6}

    def describe(self) -> dict[str, Any]:
        return {
            "version": jax.__version__,
            "precision": self._setup.precision.value,
            **describe_build(self._device),
        }

    @property
    def _device(self) -> Any:
        return next(iter(self._state["parameters"].values())).device

    def _synchronize(self) -> None:
        """Wait for the device, which computes asynchronously; called before a time measurement starts or ends."""
        jax.block_until_ready(self._state)

    @property
    def _evaluated(self) -> dict[str, Array]:
        """Parameters used for prediction and saved: with ``training.ema_decay`` the moving average."""
        return self._state["average"] or self._state["parameters"]

    def _arguments(self, step: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the scalars of a training step, float32 (4,), and the dropout seed and step, uint32 (2,).

        The scalars are the learning rate, the bias corrections of Adam's two moments (1 - beta1^t, 1 - beta2^t for
        t = ``step`` + 1), and the decay of the moving average.
        """
        training, number = self._training, step + 1
        ema_decay = 1.0 if training.ema_decay is None else training.ema_decay_at(number)
        scalars = (rate, 1 - training.beta1**number, 1 - training.beta2**number, ema_decay)
        return np.array(scalars, np.float32), np.array((self._setup.seed, step), np.uint32)

    # Functions that jax.jit compiles.

    def _classify(self, parameters: dict[str, Array], statistics: dict[str, Array], images: Array) -> Array:
        return logits(images, self._forward_pass(parameters, statistics))

    def _forward_pass(
        self, values: dict[str, Array], statistics: dict[str, Array], key: Array | None = None
    ) -> JaxForward:
        """Return a forward pass in the configured precision; the parameters of batch normalization stay float32."""
        parameters = {
            name: value if name.endswith(("/beta", "/gamma")) else value.astype(self._compute_type)
            for name, value in values.items()
        }
        return JaxForward(self._setup.network, parameters, statistics, self._compute_type, key)

    def _train_step(
        self, state: State, masks: dict[str, Array], images: Array, labels: Array, scalars: Array, seed: Array
    ) -> tuple[State, Array]:
        """Return the state after one training step, and the loss before it."""

        def loss(parameters: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
            key = jax.random.fold_in(jax.random.key(seed[0]), seed[1])
            forward = self._forward_pass(parameters, state["statistics"], key)
            log_probabilities = jax.nn.log_softmax(logits(images, forward))
            return -jnp.take_along_axis(log_probabilities, labels[:, None], 1).mean(), forward.new_statistics

        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(state["parameters"])
        parameters, moments = {}, {}
        for name, gradient in gradients.items():
            before = state["parameters"][name]
            if name in masks:
                gradient *= masks[name]
            if decay := self._setup.weight_decay(name):
                gradient += decay * before
            rate = scalars[0] * self._setup.lr_multiplier(name)
            change, moments[name] = self._change(gradient, rate, state["moments"][name], scalars)
            parameters[name] = before - change
        average = {
            name: before + (1 - scalars[3]) * (parameters[name] - before) for name, before in state["average"].items()
        }
        after = {"parameters": parameters, "statistics": statistics, "moments": moments, "average": average}
        return after, value

    def _change(self, gradient: Array, rate: Array, moments: list[Array], scalars: Array) -> tuple[Array, list[Array]]:
        """Return the value to subtract from a parameter, and the parameter's moments after the step."""
        training = self._training
        if training.optimizer is Optimizer.adam:
            first = training.beta1 * moments[0] + (1 - training.beta1) * gradient
            second = training.beta2 * moments[1] + (1 - training.beta2) * jnp.square(gradient)
            change = rate * (first / scalars[1]) / (jnp.sqrt(second / scalars[2]) + training.epsilon)
            return change, [first, second]
        if training.momentum:
            velocity = training.momentum * moments[0] + rate * gradient
            return velocity, [velocity]
        return rate * gradient, []


def configure(setup: Setup) -> None:
    """Set threads, devices and precision of the process; JAX reads most settings when it first uses a device."""
    os.environ["NPROC"] = str(setup.threads)  # the size of XLA's thread pools
    jax.config.update("jax_platforms", "cpu" if setup.device == "cpu" else "cuda,cpu")
    jax.config.update("jax_default_matmul_precision", MATMUL_PRECISION[setup.precision])
    if setup.device == "gpu":
        try:
            jax.devices("gpu")
        except RuntimeError as error:
            raise RuntimeError(f"no GPU that JAX can use: {error}") from error


def describe_build(device: Any) -> dict[str, Any]:
    """Return metadata of the device, the number of threads and the build."""
    metadata = {"device": device.platform, "threads": _threads()}
    if metadata["device"] == "gpu":
        metadata |= {
            "gpu": device.device_kind,
            "platform": device.client.platform_version,
            "tf32": jax.config.jax_default_matmul_precision == "tensorfloat32",
        }
    return metadata


def _threads() -> int:
    """Return the number of threads in XLA's compute pool."""
    names = (path.read_text() for path in Path("/proc/self/task").glob("*/comm"))
    return sum(name.startswith("tf_XLAEigen") for name in names)


def _on_device(values: Any) -> Any:
    """Copy arrays to the device: a step overwrites its state, which must not share memory with NumPy arrays."""
    return jax.tree.map(lambda value: jnp.array(np.asarray(value)), values)
