"""Caffe: the network and the solver as prototxt, steps of Caffe's own solver on the batches where they lie."""

from __future__ import annotations

import ctypes
import itertools
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import caffe
import numpy as np
from caffe.proto import caffe_pb2

from ... import layers as vocabulary
from ...initialization import Weights
from ...inputs import VIEWS, Batch, consecutive
from ...job import Optimizer
from ..base import Adapter, Setup
from .network import IMAGES, LABELS, LOSS, Prototxt, solver_prototxt, solver_rates, turned

LARGEST_EPSILON = 1e-6
"""Of Adam: Caffe has it in another place of the formula, the same only where it hardly counts."""

LARGEST_LOSS = -math.log(np.finfo(np.float32).tiny)
"""Of one image: Caffe's loss layer takes no probability for smaller. Its gradients are right all the same."""

SNAPSHOT = "training"
"""What the files of the solver's snapshots are called."""

# A symbol is looked for in the library's own dependencies too: this is the BLAS that Caffe calls.
_blas = ctypes.CDLL(caffe._caffe.__file__)
_blas.openblas_get_config.restype = ctypes.c_char_p
_blas.openblas_get_corename.restype = ctypes.c_char_p
_COUNT, _FACTOR, _ARRAY, _STRIDE = ctypes.c_int, ctypes.c_float, ctypes.c_void_p, ctypes.c_int
_blas.cblas_saxpy.argtypes = [_COUNT, _FACTOR, _ARRAY, _STRIDE, _ARRAY, _STRIDE]
_blas.cblas_saxpby.argtypes = [_COUNT, _FACTOR, _ARRAY, _STRIDE, _FACTOR, _ARRAY, _STRIDE]


AT_HAND = 2**18
"""Bytes of images that are taken ahead of their steps where they are copies, which shall stay in the caches."""


class Caffe(Adapter):
    """The solver's net, and one without a loss that is tested and saved; both read the same weights."""

    label_type = "float32"

    def __init__(self, setup: Setup) -> None:
        training = setup.training
        if training.optimizer is Optimizer.adam and training.epsilon > LARGEST_EPSILON:
            raise NotImplementedError(
                f"framework=caffe trains by adam with training.epsilon of at most {LARGEST_EPSILON:g}"
            )
        self._setup, self._training = setup, training
        self._largest_loss = LARGEST_LOSS / training.batch_size
        self._prototxt = Prototxt(setup)
        self.solver_prototxt = solver_prototxt(setup)
        caffe.set_mode_cpu()
        _blas.openblas_set_num_threads(setup.threads)
        self._snapshots = tempfile.TemporaryDirectory(prefix="gtdl-caffe-")
        self.solver_prototxt.snapshot_prefix = str(Path(self._snapshots.name) / SNAPSHOT)
        with tempfile.TemporaryDirectory() as place:
            net, solver = self._write_prototxts(Path(place), Path(place) / "net.prototxt")
            self._solver = (caffe.AdamSolver if training.optimizer is Optimizer.adam else caffe.SGDSolver)(solver)
            self._tested = caffe.Net(net, caffe.TEST)
        self._trained = self._solver.net
        if training.ema_decay is None:
            self._tested.share_with(self._trained)
        for net in (self._trained, self._tested):
            self._prototxt.set_weights(net, setup.weights)
            self._prototxt.set_borders(net)
        self._batch = training.batch_size
        """Images at a time that the tested net is shaped for."""

        # Views of Caffe's own memory: it stays where it is as long as the shapes do.
        self._train_logits = self._trained.blobs[self._prototxt.logits].data
        self._loss = self._trained.blobs[LOSS].data
        self._loss_weight = self._trained.blobs[LOSS].diff
        blobs = self._prototxt.blobs(self._trained)
        self._updated = [
            (blob.count, setup.weight_decay(name), blob.data.ctypes.data, blob.diff.ctypes.data)
            for name, blob in blobs.items()
        ]
        # Where a weight starts at 0 and has no gradient it stays 0: no need to mask it whenever it is used.
        self._masked = [
            (blobs[name].diff, np.broadcast_to(mask, blobs[name].diff.shape).copy())
            for name, mask in setup.masks.items()
        ]
        self._sizes = self._prototxt.sizes(self._trained)
        self._averaged = [
            (blob.count, blob.data.ctypes.data, average.data.ctypes.data)
            for blob, average in zip(blobs.values(), self._prototxt.blobs(self._tested).values(), strict=True)
        ]
        layers = [node.layer for node in setup.network.nodes]
        self._max_pools = any(isinstance(layer, vocabulary.MaxPool) for layer in layers)
        drops = any(isinstance(layer, vocabulary.Dropout) for layer in layers)
        self._share = 1.0
        """The learning rate, as a multiple of the solver's."""
        self._steps = 0
        self._losses: list[float] = []
        """Of the steps of one call of ``train``."""
        # The solver never lets go of its callbacks: one that held this object would keep it alive for good.
        begun, done = weakref.WeakMethod(self._begin_step), weakref.WeakMethod(self._take_gradients)
        self._solver.add_callback((lambda: begun()()) if drops else _nothing, lambda: done()())  # type: ignore[misc]

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        own_rates = solver_rates(self._training, self._steps, self._steps + len(rates))
        shares = [rate / own_rate for rate, own_rate in zip(rates, own_rates, strict=True)]
        feed, self._losses = iter(batches), []
        for share, group in itertools.groupby(shares):
            self._set_share(share)
            for some in _few(feed, len(list(group))):
                for images, labels in _rows(some):
                    self._step(images, labels)
        return np.array(self._losses, np.float32)

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        self._hand_state_over()
        most = self._prototxt.most_images
        return np.concatenate(
            [self._logits(images[start : start + most]) for images in batches for start in range(0, len(images), most)]
        )

    def weights(self) -> Weights:
        values = {name: turned(blob.data).copy() for name, blob in self._prototxt.blobs(self._tested).items()}
        return {**values, **self._prototxt.state(self._trained)}

    def save(self, folder: Path) -> None:
        self._hand_state_over()
        self._write_prototxts(folder, Path("net.prototxt"))
        self._tested.save(str(folder / "model.caffemodel"))

    def load(self, folder: Path) -> None:
        path = folder / "model.caffemodel"
        if not path.is_file():  # Caffe itself would end the process
            raise FileNotFoundError(path)
        self._tested.copy_from(str(path))
        self._prototxt.copy_state(self._tested, self._trained)

    def checkpoint(self, folder: Path) -> None:
        self._solver.snapshot()
        [model] = Path(self._snapshots.name).glob("*.caffemodel")
        [snapshot] = Path(self._snapshots.name).glob("*.solverstate")
        state = caffe_pb2.SolverState.FromString(snapshot.read_bytes())
        state.ClearField("learned_net")  # the path of the model, which moves
        snapshot.unlink()
        (folder / f"{SNAPSHOT}.solverstate").write_bytes(state.SerializeToString())
        shutil.move(model, folder / f"{SNAPSHOT}.caffemodel")
        if self._training.ema_decay is not None:
            self._tested.save(str(folder / "average.caffemodel"))

    def restore(self, folder: Path, step: int) -> None:
        self._trained.copy_from(str(folder / f"{SNAPSHOT}.caffemodel"))
        self._solver.restore(str(folder / f"{SNAPSHOT}.solverstate"))
        if self._training.ema_decay is not None:
            self._tested.copy_from(str(folder / "average.caffemodel"))
        self._steps = step

    def describe(self) -> dict[str, Any]:
        return {
            "version": caffe.__version__,
            "device": "cpu",  # pycaffe does not tell; its GPU mode is never switched on
            "precision": str(self._train_logits.dtype),
            "threads": _blas.openblas_get_num_threads(),
            "blas": _blas.openblas_get_config().decode(),
            "blas_kernels": _blas.openblas_get_corename().decode(),
            "solver": type(self._solver).__name__,
        }

    def _hand_state_over(self) -> None:
        """To the tested net, where it does not share all with the trained one."""
        if self._training.ema_decay is not None:
            self._prototxt.copy_state(self._trained, self._tested)

    def _logits(self, images: np.ndarray) -> np.ndarray:
        if len(images) != self._batch:
            self._prototxt.reshape(self._tested, len(images))
            self._batch = len(images)
        self._tested.blobs[IMAGES].data[...] = images
        logits: np.ndarray = self._tested.forward()[self._prototxt.logits].copy()
        return logits

    def _step(self, images: np.ndarray, labels: np.ndarray) -> None:
        """On each of some batches in a row."""
        # Through the net as it is given anew each time: such an object keeps alive all that it was ever handed.
        self._solver.net.set_input_arrays(images, labels)
        count = len(images) // self._training.batch_size
        if not self._acts_between_steps:
            # One call: what Python does between two of them cost 1 to 3 % of a step, the caches being Caffe's by then.
            self._solver.step(count)
            return
        for _ in range(count):
            self._solver.step(1)
            self._finish_step()

    def _set_share(self, share: float) -> None:
        self._share = share
        sgd = self._training.optimizer is Optimizer.sgd
        if sgd:
            # The solver's schedule is fixed for good, but what the loss weighs scales all gradients at no cost.
            self._loss_weight[...] = share
        averages = self._training.ema_decay is not None
        self._acts_between_steps = bool(self._sizes) or averages or not (sgd or share == 1)

    def _begin_step(self) -> None:
        # All nets of a process share one generator: started anew, it does not tell what the others did.
        caffe.set_random_seed(self._setup.step_seed(self._steps))

    def _take_gradients(self) -> None:
        """When they are there and the solver has not used them yet."""
        loss = self._loss.item()
        if not loss < self._largest_loss:
            self._look_at(loss)
            loss = self._cross_entropy()
        self._losses.append(loss)
        self._steps += 1
        for gradient, mask in self._masked:
            np.multiply(gradient, mask, out=gradient)
        if self._share != 1 and self._training.optimizer is Optimizer.sgd:
            # They have the learning rate already, and the solver will add the decay.
            for count, decay, values, gradient in self._updated:
                if decay:
                    _blas.cblas_saxpy(count, (self._share - 1) * decay, values, 1, gradient, 1)

    def _finish_step(self) -> None:
        if self._share != 1 and self._training.optimizer is Optimizer.adam:
            # The solver took away an update, which is as large as the rate.
            for count, _, values, update in self._updated:
                _blas.cblas_saxpy(count, 1 - self._share, update, 1, values, 1)
        for size, value in self._sizes:
            size[...] = value
        if self._training.ema_decay is not None:
            kept = self._training.ema_decay_at(self._steps)
            for count, values, average in self._averaged:
                _blas.cblas_saxpby(count, 1 - kept, values, 1, kept, average, 1)

    def _look_at(self, loss: float) -> None:
        if self._max_pools and not math.isfinite(loss):
            rate = self._share * solver_rates(self._training, self._steps, self._steps + 1)[0]
            raise FloatingPointError(
                f"framework=caffe: the loss is {loss} at a learning rate of {rate:g}, and Caffe's max-pooling "
                "writes outside its memory when it is given what is not a number"
            )

    def _cross_entropy(self) -> float:
        """Of the batch just trained on, however large."""
        labels = self._trained.blobs[LABELS].data.ravel()
        shifted = self._train_logits - self._train_logits.max(axis=1, keepdims=True)
        wanted = shifted[np.arange(len(labels)), labels.astype(np.intp)]
        return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - wanted))

    def _write_prototxts(self, folder: Path, named: Path) -> tuple[str, str]:
        """``net.prototxt`` and ``solver.prototxt``, which says that the net is the file ``named``."""
        net, solver = folder / "net.prototxt", folder / "solver.prototxt"
        net.write_text(str(self._prototxt.net))
        self.solver_prototxt.net = str(named)
        solver.write_text(str(self.solver_prototxt))
        return str(net), str(solver)


def _nothing() -> None:
    pass


def _few(batches: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """The next ``count`` of the batches, some at a time: of what are views as many as were made at a time."""
    feed = iter(batches)
    while count:
        first = next(feed)
        images, whole = first[0], first[0].base
        views = isinstance(whole, np.ndarray) and whole.nbytes > images.nbytes
        most = VIEWS if views else max(1, AT_HAND // images.nbytes)
        some = [first, *itertools.islice(feed, min(count, most) - 1)]
        yield some
        count -= len(some)


def _rows(batches: list[Batch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of those that lie one after another, as one; contiguous."""
    images, labels = (consecutive(list(arrays)) for arrays in zip(*batches, strict=True))
    if images is not None and labels is not None:
        first = batches[0][0]
        yield np.ascontiguousarray(images.reshape(-1, *first.shape[1:])), np.ascontiguousarray(labels.reshape(-1))
    else:
        half = len(batches) // 2
        yield from itertools.chain(_rows(batches[:half]), _rows(batches[half:]))
