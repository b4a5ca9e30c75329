"""MXNet: one symbol, run as Gluon runs a hybridised block, the settings of ``conf/framework/mxnet.yaml``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

from ... import layers as vocabulary
from ...initialization import Weights
from ...inputs import Batch
from ...job import Optimizer
from ...network import IMAGES, Node
from ..base import Adapter, Setup

TOGETHER = 4
"""Parameters that one operator updates when several are updated together: the default of Gluon's Trainer."""


class MXNet(Adapter):
    """Options: ``static`` (memory and shapes of the graph planned once), ``multi_tensor`` (SGD as Gluon's Trainer)."""

    label_type = "int32"

    def __init__(self, setup: Setup) -> None:
        self._training, self._options = setup.training, setup.options
        self._step_seed = setup.step_seed
        self._drops = [node for node in setup.network.nodes if isinstance(node.layer, vocabulary.Dropout)]
        self._constants: dict[str, Any] = {}
        picked = mx.sym.pick(mx.sym.log_softmax(self._network(setup, training=True)), mx.sym.var("labels"))
        logits = self._network(setup, training=False)
        self._parameters = {name: _array(_native(setup.weights[name])) for name in setup.network.parameters}
        # MXNet divides the variances that it averages by n: kept smaller by as much, they are what the others have.
        counts = {
            f"{node.layer.name}/variance": setup.training.batch_size * math.prod(node.input[1:])
            for node in setup.network.nodes
            if isinstance(node.layer, vocabulary.BatchNormalization)
        }
        self._unbiased = {name: count / (count - 1) for name, count in counts.items()}
        self._state = {name: _array(setup.weights[name] / self._unbiased.get(name, 1)) for name in setup.network.state}
        self._weights = list(self._parameters.values())
        self._gradients = [mx.nd.zeros_like(weight) for weight in self._weights]
        # Where a weight starts at 0 and has no gradient it stays 0: no need to mask it whenever it is used.
        gradients = dict(zip(self._parameters, self._gradients, strict=True))
        self._masked = [
            (gradients[name], _array(np.broadcast_to(mask, gradients[name].shape)))
            for name, mask in setup.masks.items()
        ]
        mx.autograd.mark_variables(self._weights, self._gradients)
        moments = {Optimizer.sgd: 1 if setup.training.momentum else 0, Optimizer.adam: 2}[setup.training.optimizer]
        self._moments = [[mx.nd.zeros_like(weight) for _ in range(moments)] for weight in self._weights]
        self._factors = [setup.lr_multiplier(name) for name in self._parameters]
        self._decays = [setup.weight_decay(name) for name in self._parameters]
        self._steps = 0
        self._average = (
            None if setup.training.ema_decay is None else {name: each.copy() for name, each in self._parameters.items()}
        )
        static = setup.options["static"]
        self._loss = _Graph(
            -mx.sym.mean(picked, keepdims=True), {**self._parameters, **self._state, **self._constants}, static
        )
        # To classify, with the state in true size: an array of its own where that is another one.
        self._true_state = {
            name: array.copy() if name in self._unbiased else array for name, array in self._state.items()
        }
        self._logits = _Graph(logits, {**self._tested, **self._true_state, **self._constants}, static)

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        losses = []
        for rate, (images, labels) in zip(rates, batches, strict=False):
            fed = {"images": images, "labels": labels, **self._dropout(len(images))}
            fed = {name: mx.nd.from_numpy(array) for name, array in fed.items()}
            with mx.autograd.record():
                loss = self._loss(**fed)
            loss.backward()
            for gradient, mask in self._masked:
                mx.nd.elemwise_mul(gradient, mask, out=gradient)
            self._steps += 1
            self._update(rate)
            if self._average is not None:
                self._move_average(self._training.ema_decay_at(self._steps))
            losses.append(loss)
        # MXNet only queues what it is told; this waits for all of it.
        mx.nd.waitall()
        return np.asarray(mx.nd.concat(*losses, dim=0).asnumpy())

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        self._renew_true_state()
        queued = [self._logits(images=mx.nd.from_numpy(images)) for images in batches]
        return np.concatenate([logits.asnumpy() for logits in queued])

    def weights(self) -> Weights:
        self._renew_true_state()
        values = {**self._tested, **self._true_state}
        return {name: _canonical(_numpy(value)).copy() for name, value in values.items()}

    def save(self, folder: Path) -> None:
        self._logits.symbol.save(str(folder / "model-symbol.json"))
        self._renew_true_state()
        arrays = {f"arg:{name}": array for name, array in {**self._tested, **self._constants}.items()}
        arrays |= {f"aux:{name}": array for name, array in self._true_state.items()}
        mx.nd.save(str(folder / "model-0000.params"), arrays)

    def load(self, folder: Path) -> None:
        saved = mx.nd.load(str(folder / "model-0000.params"))
        for name, array in self._tested.items():
            saved[f"arg:{name}"].copyto(array)
        for name, array in self._state.items():
            (saved[f"aux:{name}"] / self._unbiased.get(name, 1)).copyto(array)

    def checkpoint(self, folder: Path) -> None:
        mx.nd.save(str(folder / "training.params"), self._everything())

    def restore(self, folder: Path, step: int) -> None:
        for saved, array in zip(mx.nd.load(str(folder / "training.params")), self._everything(), strict=True):
            saved.copyto(array)
        self._steps = step

    def _everything(self) -> list[Any]:
        """All arrays that the next step depends on."""
        averages = [] if self._average is None else self._average.values()
        moments = [moment for moments in self._moments for moment in moments]
        return [*self._weights, *moments, *self._state.values(), *averages]

    def describe(self) -> dict[str, Any]:
        parameter = self._weights[0]
        features = mx.runtime.Features()
        return {
            "version": mx.__version__,
            "device": parameter.context.device_type,
            "precision": np.dtype(parameter.dtype).name,
            "threads": mx.base._LIB.omp_get_max_threads(),  # of the OpenMP library that MXNet is linked to
            "onednn": features.is_enabled("MKLDNN"),
            "openblas": features.is_enabled("BLAS_OPEN"),
            "openmp": features.is_enabled("OPENMP"),
            **self._options,
        }

    @property
    def _tested(self) -> dict[str, Any]:
        """The parameters that are tested and saved."""
        return self._parameters if self._average is None else self._average

    def _renew_true_state(self) -> None:
        for name, factor in self._unbiased.items():
            mx.nd.broadcast_mul(self._state[name], mx.nd.array([factor]), out=self._true_state[name])

    def _update(self, rate: float) -> None:
        training, rates = self._training, [rate * factor for factor in self._factors]
        if training.optimizer is Optimizer.adam:
            # MXNet adds epsilon before it corrects the bias of the second moment, so the correction goes into both.
            second = math.sqrt(1 - training.beta2**self._steps)
            correction, epsilon = second / (1 - training.beta1**self._steps), training.epsilon * second
            for weight, gradient, moments, own_rate, decay in zip(
                self._weights, self._gradients, self._moments, rates, self._decays, strict=True
            ):
                mx.nd.adam_update(
                    weight, gradient, *moments, out=weight, lr=own_rate * correction, wd=decay, beta1=training.beta1,
                    beta2=training.beta2, epsilon=epsilon,
                )  # fmt: skip
        elif self._options["multi_tensor"]:
            self._update_together(rates)
        else:
            update, more = mx.nd.sgd_update, {}
            if training.momentum:
                update, more = mx.nd.sgd_mom_update, {"momentum": training.momentum}
            for weight, gradient, moments, own_rate, decay in zip(
                self._weights, self._gradients, self._moments, rates, self._decays, strict=True
            ):
                update(weight, gradient, *moments, out=weight, lr=own_rate, wd=decay, **more)

    def _update_together(self, rates: list[float]) -> None:
        update, more = mx.nd.multi_sgd_update, {}
        if self._training.momentum:
            update, more = mx.nd.multi_sgd_mom_update, {"momentum": self._training.momentum}
        for start in range(0, len(rates), TOGETHER):
            some = slice(start, start + TOGETHER)
            weights = self._weights[some]
            columns = zip(weights, self._gradients[some], self._moments[some], strict=True)
            arrays = [array for weight, gradient, moments in columns for array in (weight, gradient, *moments)]
            update(*arrays, out=weights, lrs=rates[some], wds=self._decays[some], num_weights=len(weights), **more)

    def _move_average(self, kept: float) -> None:
        assert self._average is not None
        for average, weight in zip(self._average.values(), self._weights, strict=True):
            # The operator for W <- W - lr (G + wd W), in one pass over memory: A <- A + (1 - kept) (W - A).
            mx.nd.sgd_update(average, weight, out=average, lr=kept - 1, wd=-1)

    def _dropout(self, images: int) -> dict[str, np.ndarray]:
        """What each dropout layer multiplies with in this step: 0, or 1 / keep for what it keeps.

        MXNet's own operator draws from a thousand Mersenne twisters whose state cannot be had for a checkpoint, and
        to seed them anew in each step takes longer than to draw the numbers here.
        """
        if not self._drops:
            return {}
        generator = np.random.default_rng(self._step_seed(self._steps))
        factors = {}
        for node in self._drops:
            assert isinstance(node.layer, vocabulary.Dropout)
            kept = generator.random((images, *node.output), dtype=np.float32) < node.layer.keep
            factors[f"{node.layer.name}/factors"] = kept * np.float32(1 / node.layer.keep)
        return factors

    # The network as a symbol.

    def _network(self, setup: Setup, training: bool) -> Any:
        """The logits: to train, with dropout's factors as inputs; to test and to save, with MXNet's own operator."""
        values = {IMAGES: mx.sym.var("images")}
        for place, node in enumerate(setup.network.nodes):
            given = [values[source] for source in node.sources]
            if training and isinstance(node.layer, vocabulary.Dropout):
                values[place] = given[0] * mx.sym.var(f"{node.layer.name}/factors")
            else:
                values[place] = self._layer(node, given)
        return values[place]

    def _layer(self, node: Node, given: list[Any]) -> Any:
        layer, value = node.layer, given[0]
        if isinstance(layer, vocabulary.Convolution):
            weights, *biases = (mx.sym.var(f"{layer.name}/{name}") for name in node.parameters)
            (top, bottom), (left, right) = node.pads
            pad = (top, left)
            if (top, left) != (bottom, right):
                value, pad = _padded(node, value, 0.0), (0, 0)
            return mx.sym.Convolution(
                value, weights, *biases, num_filter=layer.filters, kernel=(layer.kernel,) * 2,
                stride=(layer.stride,) * 2, pad=pad, no_bias=not biases,
            )  # fmt: skip
        if isinstance(layer, vocabulary.MaxPool):
            return _pooled(node, value, float(np.finfo(np.float32).min), pool_type="max")
        if isinstance(layer, vocabulary.AveragePool):
            pooled = _pooled(node, value, 0.0, pool_type="avg", count_include_pad=False)
            if _rounding(node) is not None:
                return pooled
            # Zeros that were padded before count as the image's, so their share is put back.
            share = (layer.size**2 / node.cells)[None, None]
            return mx.sym.broadcast_mul(pooled, self._constant(f"{layer.name}/share", share))
        if isinstance(layer, vocabulary.GlobalAveragePool):
            return mx.sym.Pooling(value, global_pool=True, pool_type="avg", kernel=(1, 1))
        if isinstance(layer, vocabulary.Dense):
            weights, biases = (mx.sym.var(f"{layer.name}/{name}") for name in ("weights", "biases"))
            return mx.sym.FullyConnected(value, weights, biases, num_hidden=layer.units)
        if isinstance(layer, vocabulary.Dropout):
            return mx.sym.Dropout(value, p=1 - layer.keep)
        if isinstance(layer, vocabulary.LocalResponseNormalization):
            # MXNet divides alpha by the window; the vocabulary, like TensorFlow, does not.
            size = 2 * layer.radius + 1
            said = mx.sym.LRN(value, alpha=layer.alpha * size, beta=layer.beta, knorm=layer.bias, nsize=size)
            # A copy, as oneDNN's normalization misreads the gradient that a convolution after it hands back in its own
            # blocked layout (MXNet 1.9.1: wrong by 2 %); slicing works on the plain layout only.
            return mx.sym.slice_axis(said, axis=0, begin=0, end=None)
        if isinstance(layer, vocabulary.BatchNormalization):
            beta, mean, variance = (mx.sym.var(f"{layer.name}/{word}") for word in ("beta", "mean", "variance"))
            gamma = (
                mx.sym.var(f"{layer.name}/gamma")
                if layer.scale
                else self._constant(f"{layer.name}/gamma", np.ones(node.input[0]))
            )
            options = {"eps": layer.epsilon, "momentum": layer.momentum, "fix_gamma": not layer.scale}
            return mx.sym.BatchNorm(value, gamma, beta, mean, variance, **options)
        if isinstance(layer, vocabulary.Add):
            return mx.sym.elemwise_add(*given)
        if isinstance(layer, vocabulary.Relu):
            return mx.sym.Activation(value, act_type="relu")
        if isinstance(layer, vocabulary.Tanh):
            return mx.sym.Activation(value, act_type="tanh")  # oneDNN's; mx.sym.tanh is a scalar loop
        raise NotImplementedError(f"framework=mxnet has no {type(layer).__name__} (layer {layer.name})")

    def _constant(self, name: str, value: np.ndarray) -> Any:
        self._constants[name] = _array(value)
        return mx.sym.var(name)


class _Graph:
    """A symbol as an operator of the arrays it is fed, the others given: what Gluon makes of a hybridised block."""

    def __init__(self, symbol: Any, arrays: dict[str, Any], static: bool) -> None:
        self.symbol = symbol
        names = symbol.list_inputs()
        self._inputs = [arrays.get(name) for name in names]
        self._fed = {name: place for place, name in enumerate(names) if name not in arrays}
        kept = [place for place, name in enumerate(names) if name in arrays]
        flags = [("data_indices", list(self._fed.values())), ("param_indices", kept)]
        self._run = mx.nd.CachedOp(symbol, [*flags, ("static_alloc", static), ("static_shape", static)])

    def __call__(self, **arrays: Any) -> Any:
        inputs = list(self._inputs)
        for name, array in arrays.items():
            inputs[self._fed[name]] = array
        return self._run(*inputs)


# MXNet's own ``mx.nd.array`` and ``asnumpy`` copy a large array in the calling thread, on an OpenMP team of its own.
# From then on OpenMP counts more threads than there are cores and lets them sleep between any two operators: training
# with tensorflow_mnist's network took 15 % longer. Copied by MXNet's engine, there is one team.


def _array(value: np.ndarray) -> Any:
    """A float32 array of MXNet's own."""
    return mx.nd.from_numpy(np.array(value, np.float32)).copy()


def _numpy(array: Any) -> np.ndarray:
    """What is in an array of MXNet's."""
    value = np.empty(array.shape, array.dtype)
    array.copyto(mx.nd.from_numpy(value)).wait_to_read()
    return value


def _padded(node: Node, value: Any, filling: float) -> Any:
    (top, bottom), (left, right) = node.pads
    width = (0, 0, 0, 0, top, bottom, left, right)
    return mx.sym.pad(value, mode="constant", pad_width=width, constant_value=filling)


def _pooled(node: Node, value: Any, filling: float, **options: Any) -> Any:
    layer, ((top, _), (left, _)) = node.layer, node.pads
    assert isinstance(layer, vocabulary.Pool)
    window = {"kernel": (layer.size,) * 2, "stride": (layer.stride,) * 2}
    rounding = _rounding(node)
    if rounding is None:
        return mx.sym.Pooling(_padded(node, value, filling), **window, **options)
    return mx.sym.Pooling(value, pad=(top, left), pooling_convention=rounding, **window, **options)


def _rounding(node: Node) -> str | None:
    """The convention by which MXNet's pooling makes these windows itself, the image unpadded; None if neither does."""
    layer, pads = node.layer, node.pads
    assert isinstance(layer, vocabulary.Pool)
    if all(before == after for before, after in pads):
        return "valid"
    full = tuple(
        math.ceil((length + 2 * before - layer.size) / layer.stride) + 1
        for length, (before, _) in zip(node.input[1:], pads, strict=True)
    )
    return "full" if full == node.output[1:] else None


def _native(value: np.ndarray) -> np.ndarray:
    """From the canonical layout to MXNet's: only a dense layer's (in, out) is turned."""
    return np.ascontiguousarray(value.T if value.ndim == 2 else value)


def _canonical(value: np.ndarray) -> np.ndarray:
    return value.T if value.ndim == 2 else value
