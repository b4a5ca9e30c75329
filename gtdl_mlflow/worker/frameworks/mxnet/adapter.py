"""MXNet adapter: a symbol that runs like a hybridized block of Gluon; options in ``conf/framework/mxnet.yaml``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

from ...initialization import Weights
from ...inputs import Batch
from ...job import Optimizer
from ...layers import BatchNormalization, Dropout
from ..base import Adapter, Setup
from .network import build_symbol, to_mxnet, to_numpy

AGGREGATE_NUM = 4
"""Parameters per call of a multi-tensor update operator: the default of Gluon's Trainer."""


class MXNet(Adapter):
    """Network in MXNet.

    Options: ``static`` (memory and shapes of the graph are planned once), ``multi_tensor`` (SGD updates several
    parameters per operator, as Gluon's Trainer does).
    """

    label_type = "int32"

    def __init__(self, setup: Setup) -> None:
        self._training, self._options = setup.training, setup.options
        self._step_seed = setup.step_seed
        self._dropout_layers = [
            (node.layer, node.output) for node in setup.network.nodes if isinstance(node.layer, Dropout)
        ]
        self._constants: dict[str, Any] = {}
        training_logits = build_symbol(setup.network, self._constants, training=True)
        log_likelihoods = mx.sym.pick(mx.sym.log_softmax(training_logits), mx.sym.var("labels"))
        logits = build_symbol(setup.network, self._constants, training=False)
        self._parameters = {name: to_mxnet(_to_native_layout(setup.weights[name])) for name in setup.network.parameters}
        # MXNet averages biased variances (divided by n), the other frameworks unbiased ones (divided by n - 1): MXNet's
        # state is the canonical state divided by n / (n - 1).
        counts = {
            f"{node.layer.name}/variance": setup.training.batch_size * math.prod(node.input[1:])
            for node in setup.network.nodes
            if isinstance(node.layer, BatchNormalization)
        }
        self._bias_correction = {name: count / (count - 1) for name, count in counts.items()}
        self._state = {
            name: to_mxnet(setup.weights[name] / self._bias_correction.get(name, 1)) for name in setup.network.state
        }
        self._weights = list(self._parameters.values())
        self._gradients = [mx.nd.zeros_like(weight) for weight in self._weights]
        # A masked weight starts at 0 and stays 0 without a gradient, so the weights themselves need no mask.
        gradients = dict(zip(self._parameters, self._gradients, strict=True))
        self._masked = [
            (gradients[name], to_mxnet(np.broadcast_to(mask, gradients[name].shape)))
            for name, mask in setup.masks.items()
        ]
        mx.autograd.mark_variables(self._weights, self._gradients)
        moments = {Optimizer.sgd: 1 if setup.training.momentum else 0, Optimizer.adam: 2}[setup.training.optimizer]
        self._moments = [[mx.nd.zeros_like(weight) for _ in range(moments)] for weight in self._weights]
        self._lr_multipliers = [setup.lr_multiplier(name) for name in self._parameters]
        self._decays = [setup.weight_decay(name) for name in self._parameters]
        self._steps = 0
        self._average = None
        if setup.training.ema_decay is not None:
            self._average = {name: array.copy() for name, array in self._parameters.items()}
        static = setup.options["static"]
        self._loss = _Graph(
            -mx.sym.mean(log_likelihoods, keepdims=True), {**self._parameters, **self._state, **self._constants}, static
        )
        # Canonical state for inference; shares the arrays that need no bias correction.
        self._canonical_state = {
            name: array.copy() if name in self._bias_correction else array for name, array in self._state.items()
        }
        self._logits = _Graph(logits, {**self._evaluated, **self._canonical_state, **self._constants}, static)

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        losses = []
        for rate, (images, labels) in zip(rates, batches, strict=False):
            arrays = {"images": images, "labels": labels, **self._dropout_factors(len(images))}
            inputs = {name: mx.nd.from_numpy(array) for name, array in arrays.items()}
            with mx.autograd.record():
                loss = self._loss(**inputs)
            loss.backward()
            for gradient, mask in self._masked:
                mx.nd.elemwise_mul(gradient, mask, out=gradient)
            self._steps += 1
            self._update(rate)
            if self._average is not None:
                self._update_average(self._training.ema_decay_at(self._steps))
            losses.append(loss)
        # MXNet executes asynchronously; wait for all queued operators.
        mx.nd.waitall()
        return np.asarray(mx.nd.concat(*losses, dim=0).asnumpy())

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        self._update_canonical_state()
        queued = [self._logits(images=mx.nd.from_numpy(images)) for images in batches]
        return np.concatenate([logits.asnumpy() for logits in queued])

    def weights(self) -> Weights:
        self._update_canonical_state()
        values = {**self._evaluated, **self._canonical_state}
        return {name: _to_canonical_layout(to_numpy(value)).copy() for name, value in values.items()}

    def save(self, folder: Path) -> None:
        self._logits.symbol.save(str(folder / "model-symbol.json"))
        self._update_canonical_state()
        arrays = {f"arg:{name}": array for name, array in {**self._evaluated, **self._constants}.items()}
        arrays |= {f"aux:{name}": array for name, array in self._canonical_state.items()}
        mx.nd.save(str(folder / "model-0000.params"), arrays)

    def load(self, folder: Path) -> None:
        saved = mx.nd.load(str(folder / "model-0000.params"))
        for name, array in self._evaluated.items():
            saved[f"arg:{name}"].copyto(array)
        for name, array in self._state.items():
            (saved[f"aux:{name}"] / self._bias_correction.get(name, 1)).copyto(array)

    def checkpoint(self, folder: Path) -> None:
        mx.nd.save(str(folder / "training.params"), self._checkpoint_arrays())

    def restore(self, folder: Path, step: int) -> None:
        for saved, array in zip(mx.nd.load(str(folder / "training.params")), self._checkpoint_arrays(), strict=True):
            saved.copyto(array)
        self._steps = step

    def _checkpoint_arrays(self) -> list[Any]:
        """Return all arrays that the next step depends on."""
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
            "threads": mx.base._LIB.omp_get_max_threads(),  # the OpenMP library that MXNet is linked to
            "onednn": features.is_enabled("MKLDNN"),
            "openblas": features.is_enabled("BLAS_OPEN"),
            "openmp": features.is_enabled("OPENMP"),
            **self._options,
        }

    @property
    def _evaluated(self) -> dict[str, Any]:
        """Parameters used for prediction and saved: with ``training.ema_decay`` the moving average."""
        return self._parameters if self._average is None else self._average

    def _update_canonical_state(self) -> None:
        for name, factor in self._bias_correction.items():
            mx.nd.broadcast_mul(self._state[name], mx.nd.array([factor]), out=self._canonical_state[name])

    def _update(self, rate: float) -> None:
        training, rates = self._training, [rate * multiplier for multiplier in self._lr_multipliers]
        if training.optimizer is Optimizer.adam:
            # MXNet adds epsilon before the bias correction of the second moment, so epsilon is corrected too.
            second = math.sqrt(1 - training.beta2**self._steps)
            correction, epsilon = second / (1 - training.beta1**self._steps), training.epsilon * second
            for weight, gradient, moments, own_rate, decay in zip(
                self._weights, self._gradients, self._moments, rates, self._decays, strict=True
            ):
                mx.nd.adam_update(
                    weight,
                    gradient,
                    *moments,
                    out=weight,
                    lr=own_rate * correction,
                    wd=decay,
                    beta1=training.beta1,
                    beta2=training.beta2,
                    epsilon=epsilon,
                )
        elif self._options["multi_tensor"]:
            self._update_several(rates)
        else:
            update, options = mx.nd.sgd_update, {}
            if training.momentum:
                update, options = mx.nd.sgd_mom_update, {"momentum": training.momentum}
            for weight, gradient, moments, own_rate, decay in zip(
                self._weights, self._gradients, self._moments, rates, self._decays, strict=True
            ):
                update(weight, gradient, *moments, out=weight, lr=own_rate, wd=decay, **options)

    def _update_several(self, rates: list[float]) -> None:
        update, options = mx.nd.multi_sgd_update, {}
        if self._training.momentum:
            update, options = mx.nd.multi_sgd_mom_update, {"momentum": self._training.momentum}
        for start in range(0, len(rates), AGGREGATE_NUM):
            part = slice(start, start + AGGREGATE_NUM)
            weights = self._weights[part]
            columns = zip(weights, self._gradients[part], self._moments[part], strict=True)
            arrays = [array for weight, gradient, moments in columns for array in (weight, gradient, *moments)]
            update(*arrays, out=weights, lrs=rates[part], wds=self._decays[part], num_weights=len(weights), **options)

    def _update_average(self, decay: float) -> None:
        assert self._average is not None
        for average, weight in zip(self._average.values(), self._weights, strict=True):
            # A <- A + (1 - decay) (W - A) in one pass over memory, by the operator for W <- W - lr (G + wd W).
            mx.nd.sgd_update(average, weight, out=average, lr=decay - 1, wd=-1)

    def _dropout_factors(self, images: int) -> dict[str, np.ndarray]:
        """Return the factors of each dropout layer in this step: 0, or 1 / keep.

        MXNet's dropout operator uses a thousand Mersenne Twister generators. Their state cannot be saved in a
        checkpoint, and seeding them in every step takes longer than generating the numbers here.
        """
        if not self._dropout_layers:
            return {}
        generator = np.random.default_rng(self._step_seed(self._steps))
        factors = {}
        for layer, shape in self._dropout_layers:
            keep = generator.random((images, *shape), dtype=np.float32) < layer.keep
            factors[f"{layer.name}/factors"] = keep * np.float32(1 / layer.keep)
        return factors


class _Graph:
    """Callable symbol whose arrays, except the inputs, are fixed; uses CachedOp like a hybridized block of Gluon."""

    def __init__(self, symbol: Any, arrays: dict[str, Any], static: bool) -> None:
        self.symbol = symbol
        names = symbol.list_inputs()
        self._arrays = [arrays.get(name) for name in names]
        self._positions = {name: position for position, name in enumerate(names) if name not in arrays}
        fixed = [position for position, name in enumerate(names) if name in arrays]
        flags = [("data_indices", list(self._positions.values())), ("param_indices", fixed)]
        self._run = mx.nd.CachedOp(symbol, [*flags, ("static_alloc", static), ("static_shape", static)])

    def __call__(self, **inputs: Any) -> Any:
        arrays = list(self._arrays)
        for name, array in inputs.items():
            arrays[self._positions[name]] = array
        return self._run(*arrays)


def _to_native_layout(value: np.ndarray) -> np.ndarray:
    """Convert from the canonical layout to MXNet's: transpose dense weights."""
    return np.ascontiguousarray(value.T if value.ndim == 2 else value)


def _to_canonical_layout(value: np.ndarray) -> np.ndarray:
    return value.T if value.ndim == 2 else value
