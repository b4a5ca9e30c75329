"""Theano (its last form, Theano-PyMC): graphs compiled to C++ before the first step."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ... import layers as vocabulary
from ...initialization import Weights
from ...inputs import Batch
from ...job import Optimizer
from ...network import IMAGES, Network, Node
from ..base import Adapter, Setup


def _demand_compiler() -> None:
    """Without one Theano falls silently back to a Python many times slower."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    lacking = [*([] if shutil.which("g++") else ["no g++ on the PATH"]), *([] if header.exists() else [f"no {header}"])]
    if lacking:
        raise RuntimeError(
            f"framework=theano compiles C++ while it runs, but there is {' and '.join(lacking)};"
            " on Debian: apt-get install g++ python3-dev"
        )


def _mkl() -> Path:
    """The mkl wheel's library, which it puts where no linker looks."""
    return next((Path(sys.prefix) / "lib").glob("libmkl_rt.so.*"))


_demand_compiler()
# Theano looks for a BLAS where NumPy 1.22 and later do not say any more, and fails at that. So it is told: the linker
# finds this one by LIBRARY_PATH, and what was linked finds it loaded.
_BLAS = ctypes.CDLL(str(_mkl()), ctypes.RTLD_GLOBAL)
_OPENMP = ctypes.CDLL("libgomp.so.1")  # GCC's, in which Theano's C++ runs
os.environ["LIBRARY_PATH"] = str(_mkl().parent)
# Read once, when Theano is imported. The speed settings are in it already.
os.environ["THEANO_FLAGS"] = ",".join(
    [
        *filter(None, [os.environ.get("THEANO_FLAGS")]),
        "floatX=float32",
        f'base_compiledir="{Path(sys.prefix) / "theano"}"',  # goes when the environment goes
        f"blas__ldflags=-l:{_mkl().name}",
    ]
)

import theano  # noqa: E402
from theano import tensor  # noqa: E402
from theano.link.c.cmodule import GCC_compiler, gcc_version  # noqa: E402
from theano.misc import pkl_utils  # noqa: E402
from theano.sandbox.rng_mrg import MRG_RandomStream  # noqa: E402
from theano.tensor.elemwise import Elemwise  # noqa: E402
from theano.tensor.nnet import conv2d, crossentropy_softmax_1hot  # noqa: E402
from theano.tensor.nnet.bn import batch_normalization_test, batch_normalization_train  # noqa: E402
from theano.tensor.signal.pool import Pool, pool_2d  # noqa: E402


def _compiled() -> int:
    """How many operations have been compiled on this machine so far: those of the cache."""
    return sum(1 for _ in Path(theano.config.compiledir).glob("tmp*/key.pkl"))


def _repaired(self: Any, *arguments: Any) -> tuple[str, ...]:
    """The C++ of an elementwise operation, with a number where Theano-PyMC 1.1.2 left out the f of an f-string.

    Without it nothing elementwise compiles under OpenMP (tensor/elemwise.py, line 1181).
    """
    least = str(theano.config.openmp_elemwise_minsize)
    return tuple(part.replace("{int(config.openmp_elemwise_minsize)}", least) for part in _unrepaired(self, *arguments))


_unrepaired = Elemwise._c_all
Elemwise._c_all = _repaired

LEAST_EPSILON = 1e-5
"""Of batch normalization: Theano refuses a smaller one, as cuDNN did."""

Symbol = Any
"""A node of Theano's graph: Theano has no types that mypy could read."""


class Theano(Adapter):
    """One compiled function for a training step, one for classifying; their speed settings are Theano's own flags."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._weights = {name: theano.shared(setup.weights[name], name) for name in setup.network.parameters}
        self._state = {name: theano.shared(setup.weights[name], name) for name in setup.network.state}
        self._average = None
        if setup.training.ema_decay is not None:
            self._average = {name: theano.shared(setup.weights[name], name) for name in self._weights}
        self._compiled = _compiled()
        self._steps = 0
        self._step: Any = None
        self._predictor: Any = None
        _OPENMP.omp_set_num_threads(setup.threads)
        _BLAS.MKL_Set_Num_Threads(setup.threads)

    def compile(self) -> None:
        self._compile_step()
        self._compile_predictor()

    def _compile_step(self) -> None:
        if self._step is None:
            self._step = _step(self._setup, self._weights, self._state, self._average)
            # Types and shapes are the procedure's: no need to look at them at every step.
            self._step.trust_input = True

    def _compile_predictor(self) -> None:
        if self._predictor is None:
            images = tensor.tensor4("images")
            logits, _ = _logits(self._setup.network, {**self._tested, **self._state}, images)
            self._predictor = theano.function([images], logits)
            self._predictor.trust_input = True

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        self._compile_step()
        step, scalars = self._step, self._scalars(rates)
        losses = [step(*batch, *given) for given, batch in zip(scalars, batches, strict=False)]
        self._steps += len(losses)
        return np.array(losses, np.float32)

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        self._compile_predictor()
        return np.concatenate([self._predictor(images) for images in batches])

    def weights(self) -> Weights:
        return {name: variable.get_value() for name, variable in {**self._tested, **self._state}.items()}

    def save(self, folder: Path) -> None:
        with (folder / "weights.zip").open("wb") as file:
            pkl_utils.dump([*self._tested.values(), *self._state.values()], file)

    def load(self, folder: Path) -> None:
        own = {**self._tested, **self._state}
        with (folder / "weights.zip").open("rb") as file:
            for variable in pkl_utils.load(file):
                own[variable.name].set_value(variable.get_value())

    def checkpoint(self, folder: Path) -> None:
        self._compile_step()
        np.savez(folder / "training.npz", *[variable.get_value() for variable in self._step.get_shared()])

    def restore(self, folder: Path, step: int) -> None:
        self._compile_step()
        with np.load(folder / "training.npz") as saved:
            for place, variable in enumerate(self._step.get_shared()):
                variable.set_value(saved[f"arr_{place}"])
        self._steps = step

    def describe(self) -> dict[str, Any]:
        config, mkl = theano.config, ctypes.create_string_buffer(200)
        _BLAS.MKL_Get_Version_String(mkl, len(mkl))
        march = [flag for flag in GCC_compiler.compile_args() if flag.startswith("-march=")]
        return {
            "version": theano.__version__,
            "device": config.device,
            "precision": next(iter(self._weights.values())).dtype,
            "threads": max(_BLAS.MKL_Get_Max_Threads(), _OPENMP.omp_get_max_threads() if config.openmp else 1),
            "openmp": config.openmp,
            "openmp_elemwise_minsize": config.openmp_elemwise_minsize,
            "allow_gc": config.allow_gc,
            "optimizer": config.optimizer,
            "blas": mkl.value.decode().strip(),
            "compiler": f"g++ {gcc_version()}",
            "compiler_flags": " ".join(march),
            "compile_cache": "warm" if _compiled() == self._compiled else "cold",
        }

    @property
    def _tested(self) -> dict[str, Symbol]:
        """The variables that are tested and saved."""
        return self._weights if self._average is None else self._average

    def _scalars(self, rates: list[float]) -> list[tuple[np.ndarray, ...]]:
        """What changes from step to step, in the order of ``_step``'s inputs."""
        training = self._setup.training
        numbers = np.arange(self._steps + 1, self._steps + 1 + len(rates))
        columns = [np.array(rates)]
        if training.optimizer is Optimizer.adam:
            # Both corrections of Kingma and Ba's moments, moved into the rate and epsilon: no work for each weight.
            second = np.sqrt(1 - training.beta2**numbers)
            columns = [columns[0] * second / (1 - training.beta1**numbers), training.epsilon * second]
        if self._average is not None:
            columns.append(np.array([1 - training.ema_decay_at(int(number)) for number in numbers]))
        return [tuple(map(np.asarray, row)) for row in np.stack(columns, axis=1).astype(np.float32)]


def _step(setup: Setup, weights: dict[str, Symbol], state: dict[str, Symbol], average: dict[str, Symbol] | None) -> Any:
    """One training step: takes images, labels and the scalars of ``Theano._scalars``, gives the loss before it."""
    training = setup.training
    images, labels, rate = tensor.tensor4("images"), tensor.lvector("labels"), tensor.fscalar("rate")
    scalars = [rate]
    seeds = np.random.RandomState(setup.seed).randint(1, 2**31 - 2**18, 6)  # below both of the generator's moduli
    random = MRG_RandomStream([int(seed) for seed in seeds])
    logits, followed = _logits(setup.network, {**weights, **state}, images, random, training.batch_size)
    loss = crossentropy_softmax_1hot(logits, labels)[0].mean()
    if training.optimizer is Optimizer.adam:
        scalars.append(tensor.fscalar("epsilon"))
    updates, after = [(state[name], value) for name, value in followed.items()], {}
    for (name, variable), slope in zip(weights.items(), tensor.grad(loss, list(weights.values())), strict=True):
        if name in setup.masks:
            # Whole: one short loop a filter would take longer than reading 25 times as much.
            slope *= tensor.constant(np.broadcast_to(setup.masks[name], setup.weights[name].shape).copy())
        if decay := setup.weight_decay(name):
            slope += np.float32(decay) * variable
        own_rate = rate if setup.lr_multiplier(name) == 1 else rate * np.float32(setup.lr_multiplier(name))
        if training.optimizer is Optimizer.adam:
            first, second = _zeros(variable), _zeros(variable)
            mean = _blend(first, slope, training.beta1)
            square = _blend(second, tensor.sqr(slope), training.beta2)
            updates += [(first, mean), (second, square)]
            move = own_rate * mean / (tensor.sqrt(square) + scalars[1])
        elif training.momentum:
            velocity = _zeros(variable)
            move = np.float32(training.momentum) * velocity + own_rate * slope
            updates.append((velocity, move))
        else:
            move = own_rate * slope
        after[name] = variable - move
        updates.append((variable, after[name]))
    if average is not None:
        share = tensor.fscalar("share")
        scalars.append(share)
        updates += [(variable, variable + share * (after[name] - variable)) for name, variable in average.items()]
    return theano.function([images, labels, *scalars], loss, updates=updates)


def _zeros(variable: Symbol) -> Symbol:
    return theano.shared(np.zeros_like(variable.get_value(borrow=True)))


def _blend(old: Symbol, new: Symbol, kept: float) -> Symbol:
    return np.float32(kept) * old + np.float32(1 - kept) * new


def _logits(
    network: Network,
    weights: dict[str, Symbol],
    images: Symbol,
    random: MRG_RandomStream | None = None,
    batch_size: int | None = None,
) -> tuple[Symbol, dict[str, Symbol]]:
    """What the network says of ``images``; with ``random``, in training: ``batch_size`` of them.

    And, in training, what the network's state becomes.
    """
    values, followed = {IMAGES: images}, {}
    for place, node in enumerate(network.nodes):
        given = [values[source] for source in node.sources]
        if isinstance(node.layer, vocabulary.BatchNormalization):
            values[place], becomes = _batch_normalized(node, given[0], weights, training=random is not None)
            followed.update(becomes)
        else:
            values[place] = _layer(node, given, weights, random, batch_size)
    return values[place], followed


def _layer(
    node: Node,
    given: list[Symbol],
    weights: dict[str, Symbol],
    random: MRG_RandomStream | None,
    batch_size: int | None,
) -> Symbol:
    layer, value = node.layer, given[0]
    if isinstance(layer, vocabulary.Convolution):
        value = _convolution(node, value, weights[f"{layer.name}/weights"], batch_size)
        return value if layer.biases is None else value + weights[f"{layer.name}/biases"].dimshuffle("x", 0, "x", "x")
    if isinstance(layer, vocabulary.MaxPool):
        return _max_pool(node, value)
    if isinstance(layer, vocabulary.AveragePool):
        return _average_pool(node, value)
    if isinstance(layer, vocabulary.GlobalAveragePool):
        return value.mean(axis=(2, 3), keepdims=True)
    if isinstance(layer, vocabulary.Dense):
        return tensor.dot(_flat(node, value), weights[f"{layer.name}/weights"]) + weights[f"{layer.name}/biases"]
    if isinstance(layer, vocabulary.Relu):
        # Theano's own relu, (x + |x|) / 2, has a slope of a half at 0, where the definition has none; a switch
        # is a branch for each value, several times slower than a product.
        return value * (value > 0)
    if isinstance(layer, vocabulary.Tanh):
        return tensor.tanh(value)
    if isinstance(layer, vocabulary.LocalResponseNormalization):
        return _normalized(node, value)
    if isinstance(layer, vocabulary.Add):
        return given[0] + given[1]
    if isinstance(layer, vocabulary.Dropout):
        if random is None or layer.keep == 1:
            return value
        kept = random.binomial((batch_size, *node.input), p=layer.keep, dtype="float32")
        return value * kept * np.float32(1 / layer.keep)
    raise NotImplementedError(f"framework=theano has no {type(layer).__name__} (layer {layer.name})")


def _batch_normalized(
    node: Node, value: Symbol, weights: dict[str, Symbol], training: bool
) -> tuple[Symbol, dict[str, Symbol]]:
    layer = node.layer
    assert isinstance(layer, vocabulary.BatchNormalization)
    if layer.epsilon < LEAST_EPSILON:
        raise NotImplementedError(f"framework=theano takes an epsilon of at least {LEAST_EPSILON} (layer {layer.name})")
    beta, mean, variance = (weights[f"{layer.name}/{word}"] for word in ("beta", "mean", "variance"))
    gamma = weights[f"{layer.name}/gamma"] if layer.scale else tensor.ones_like(beta)
    if not training:
        return batch_normalization_test(value, gamma, beta, mean, variance, "spatial", layer.epsilon), {}
    done, _, _, new_mean, new_variance = batch_normalization_train(
        value, gamma, beta, "spatial", layer.epsilon, 1 - layer.momentum, mean, variance
    )
    return done, {f"{layer.name}/mean": new_mean, f"{layer.name}/variance": new_variance}


def _flat(node: Node, value: Symbol) -> Symbol:
    return value.reshape((-1, int(np.prod(node.input)))) if value.ndim > 2 else value


def _convolution(node: Node, images: Symbol, filters: Symbol, batch_size: int | None) -> Symbol:
    layer = node.layer
    assert isinstance(layer, vocabulary.Convolution)
    # Known shapes spare the compiled function working them out at every step.
    shapes, stride = ((batch_size, *node.input), node.parameters["weights"]), (layer.stride, layer.stride)
    return conv2d(images, filters, *shapes, border_mode=node.pads, subsample=stride, filter_flip=False)


def _max_pool(node: Node, images: Symbol) -> Symbol:
    if how := _pooling(node):
        return _cropped(node, pool_2d(images, *how))
    return _pool(node, _padded(node, images, -np.inf))


def _average_pool(node: Node, images: Symbol) -> Symbol:
    """The mean of the cells inside the image; Theano has no gradient of its own such mean where there is padding."""
    how = _pooling(node)
    if how and how[-1] == (0, 0):
        return _cropped(node, pool_2d(images, *how, mode="average_exc_pad"))
    sums = _cropped(node, pool_2d(images, *how, mode="sum")) if how else _pool(node, _padded(node, images, 0), "sum")
    return sums * tensor.constant((1 / node.cells)[None, None].astype(np.float32))


def _pooling(node: Node) -> tuple[Any, ...] | None:
    """Window, ignore_border, stride and padding of ``pool_2d`` if it has the windows wanted, and perhaps some more.

    It pads both sides alike, and then only with ignore_border; without, a last window is clipped at the border.
    """
    layer, ((top, bottom), (left, right)) = node.layer, node.pads
    assert isinstance(layer, vocabulary.Pool)
    window, stride = (layer.size, layer.size), (layer.stride, layer.stride)
    if top >= bottom and left >= right:
        return window, True, stride, (top, left)
    if top == left == 0 and tuple(Pool.out_shape(node.input, window, False, stride))[1:] == node.output[1:]:
        return window, False, stride, (0, 0)
    return None


def _pool(node: Node, padded: Symbol, mode: str = "max") -> Symbol:
    """Of images that bring their padding."""
    layer = node.layer
    assert isinstance(layer, vocabulary.Pool)
    return pool_2d(padded, (layer.size, layer.size), True, (layer.stride, layer.stride), mode=mode)


def _cropped(node: Node, pooled: Symbol) -> Symbol:
    """Without the windows that a padding as wide below as above adds."""
    if all(before <= after for before, after in node.pads):
        return pooled
    return pooled[:, :, : node.output[1], : node.output[2]]


def _padded(node: Node, images: Symbol, value: float) -> Symbol:
    (top, bottom), (left, right) = node.pads
    channels, height, width = node.input
    frame = tensor.alloc(np.float32(value), images.shape[0], channels, top + height + bottom, left + width + right)
    return tensor.set_subtensor(frame[:, :, top : top + height, left : left + width], images)


def _normalized(node: Node, images: Symbol) -> Symbol:
    """Theano has no such layer; the sums over neighbouring channels are a 1x1 convolution with a band of ones."""
    layer, channels = node.layer, node.input[0]
    assert isinstance(layer, vocabulary.LocalResponseNormalization)
    distances = np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
    band = (distances <= layer.radius).astype(np.float32)[:, :, None, None]
    near = conv2d(tensor.sqr(images), tensor.constant(band), (None, *node.input), band.shape, filter_flip=False)
    return images * (np.float32(layer.bias) + np.float32(layer.alpha) * near) ** np.float32(-layer.beta)
