"""Theano adapter: one function for a training step and one to classify, compiled to C++ before the first step."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import theano
from theano import tensor
from theano.link.c.cmodule import GCC_compiler, gcc_version
from theano.misc import pkl_utils
from theano.sandbox.rng_mrg import MRG_RandomStream
from theano.tensor.nnet import crossentropy_softmax_1hot

from ...initialization import Weights
from ...inputs import Batch
from ...job import Optimizer
from ..base import Adapter, Setup
from . import BLAS, OPENMP
from .network import Symbol, TheanoForward, logits


class Theano(Adapter):
    """Network in Theano; the speed options are Theano's own flags."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._weights = {name: theano.shared(setup.weights[name], name) for name in setup.network.parameters}
        self._state = {name: theano.shared(setup.weights[name], name) for name in setup.network.state}
        self._average = None
        if setup.training.ema_decay is not None:
            self._average = {name: theano.shared(setup.weights[name], name) for name in self._weights}
        self._steps = 0
        self._step: Any = None
        self._predictor: Any = None
        OPENMP.omp_set_num_threads(setup.threads)
        BLAS.MKL_Set_Num_Threads(setup.threads)

    def compile(self) -> None:
        self._compile_step()
        self._compile_predictor()

    def _compile_step(self) -> None:
        if self._step is None:
            self._step = _compile_training_step(self._setup, self._weights, self._state, self._average)
            # The shared procedure guarantees types and shapes: skip the checks at every step.
            self._step.trust_input = True

    def _compile_predictor(self) -> None:
        if self._predictor is None:
            images = tensor.tensor4("images")
            forward = TheanoForward({**self._evaluated, **self._state})
            self._predictor = theano.function([images], logits(self._setup.network, images, forward))
            self._predictor.trust_input = True

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        self._compile_step()
        step, all_scalars = self._step, self._step_scalars(rates)
        losses = [step(*batch, *scalars) for scalars, batch in zip(all_scalars, batches, strict=False)]
        self._steps += len(losses)
        return np.array(losses, np.float32)

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        self._compile_predictor()
        return np.concatenate([self._predictor(images) for images in batches])

    def weights(self) -> Weights:
        return {name: variable.get_value() for name, variable in {**self._evaluated, **self._state}.items()}

    def save(self, folder: Path) -> None:
        with (folder / "weights.zip").open("wb") as file:
            pkl_utils.dump([*self._evaluated.values(), *self._state.values()], file)

    def load(self, folder: Path) -> None:
        variables = {**self._evaluated, **self._state}
        with (folder / "weights.zip").open("rb") as file:
            for saved in pkl_utils.load(file):
                variables[saved.name].set_value(saved.get_value())

    def checkpoint(self, folder: Path) -> None:
        self._compile_step()
        np.savez(folder / "training.npz", *[variable.get_value() for variable in self._step.get_shared()])

    def restore(self, folder: Path, step: int) -> None:
        self._compile_step()
        with np.load(folder / "training.npz") as saved:
            for number, variable in enumerate(self._step.get_shared()):
                variable.set_value(saved[f"arr_{number}"])
        self._steps = step

    def describe(self) -> dict[str, Any]:
        config, mkl = theano.config, ctypes.create_string_buffer(200)
        BLAS.MKL_Get_Version_String(mkl, len(mkl))
        march = [flag for flag in GCC_compiler.compile_args() if flag.startswith("-march=")]
        return {
            "version": theano.__version__,
            "device": config.device,
            "precision": next(iter(self._weights.values())).dtype,
            "threads": max(BLAS.MKL_Get_Max_Threads(), OPENMP.omp_get_max_threads() if config.openmp else 1),
            "openmp": config.openmp,
            "openmp_elemwise_minsize": config.openmp_elemwise_minsize,
            "allow_gc": config.allow_gc,
            "optimizer": config.optimizer,
            "blas": mkl.value.decode().strip(),
            "compiler": f"g++ {gcc_version()}",
            "compiler_flags": " ".join(march),
        }

    @property
    def _evaluated(self) -> dict[str, Symbol]:
        """Parameters used for prediction and saved: with ``training.ema_decay`` the moving average."""
        return self._weights if self._average is None else self._average

    def _step_scalars(self, rates: list[float]) -> list[tuple[np.ndarray, ...]]:
        """Return the scalars of each step, in the order of the inputs of ``_compile_training_step``'s function."""
        training = self._setup.training
        numbers = np.arange(self._steps + 1, self._steps + 1 + len(rates))
        columns = [np.array(rates)]
        if training.optimizer is Optimizer.adam:
            # Both bias corrections of Kingma and Ba are applied to the rate and epsilon, which avoids work per weight.
            second = np.sqrt(1 - training.beta2**numbers)
            columns = [columns[0] * second / (1 - training.beta1**numbers), training.epsilon * second]
        if self._average is not None:
            columns.append(np.array([1 - training.ema_decay_at(int(number)) for number in numbers]))
        return [tuple(map(np.asarray, row)) for row in np.stack(columns, axis=1).astype(np.float32)]


def _compile_training_step(
    setup: Setup, weights: dict[str, Symbol], state: dict[str, Symbol], average: dict[str, Symbol] | None
) -> Any:
    """Return the function (images, labels, scalars of ``Theano._step_scalars``) -> loss of one training step."""
    training = setup.training
    images, labels, rate = tensor.tensor4("images"), tensor.lvector("labels"), tensor.fscalar("rate")
    scalars = [rate]
    seeds = np.random.RandomState(setup.seed).randint(1, 2**31 - 2**18, 6)  # below both of the generator's moduli
    random = MRG_RandomStream([int(seed) for seed in seeds])
    forward = TheanoForward({**weights, **state}, random, training.batch_size)
    loss = crossentropy_softmax_1hot(logits(setup.network, images, forward), labels)[0].mean()
    if training.optimizer is Optimizer.adam:
        scalars.append(tensor.fscalar("epsilon"))
    updates, new_weights = [(state[name], value) for name, value in forward.new_state.items()], {}
    for (name, variable), gradient in zip(weights.items(), tensor.grad(loss, list(weights.values())), strict=True):
        if name in setup.masks:
            # The mask has full shape: one short loop per filter would take longer than reading 25 times as much data.
            gradient *= tensor.constant(np.broadcast_to(setup.masks[name], setup.weights[name].shape).copy())
        if decay := setup.weight_decay(name):
            gradient += np.float32(decay) * variable
        multiplier = setup.lr_multiplier(name)
        own_rate = rate if multiplier == 1 else rate * np.float32(multiplier)
        if training.optimizer is Optimizer.adam:
            first, second = _zeros(variable), _zeros(variable)
            mean = _blend(first, gradient, training.beta1)
            square = _blend(second, tensor.sqr(gradient), training.beta2)
            updates += [(first, mean), (second, square)]
            change = own_rate * mean / (tensor.sqrt(square) + scalars[1])
        elif training.momentum:
            velocity = _zeros(variable)
            change = np.float32(training.momentum) * velocity + own_rate * gradient
            updates.append((velocity, change))
        else:
            change = own_rate * gradient
        new_weights[name] = variable - change
        updates.append((variable, new_weights[name]))
    if average is not None:
        share = tensor.fscalar("share")
        scalars.append(share)
        updates += [(variable, variable + share * (new_weights[name] - variable)) for name, variable in average.items()]
    return theano.function([images, labels, *scalars], loss, updates=updates)


def _zeros(variable: Symbol) -> Symbol:
    return theano.shared(np.zeros_like(variable.get_value(borrow=True)))


def _blend(old: Symbol, new: Symbol, share_of_old: float) -> Symbol:
    return np.float32(share_of_old) * old + np.float32(1 - share_of_old) * new
