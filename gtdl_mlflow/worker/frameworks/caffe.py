"""Caffe: the network and the solver as prototxt, a step of Caffe's own solver per batch."""

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

from .. import layers as vocabulary
from ..initial import Weights
from ..inputs import Batch
from ..job import Optimizer
from .base import Adapter, Setup
from .caffe_prototxt import IMAGES, LABELS, LOSS, Prototxt, solver_prototxt, solver_rates, turned

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
"""Bytes of images that are taken ahead of their steps."""


class Caffe(Adapter):
    """The solver's net, and one without a loss that is tested and saved; both read the same weights."""

    label_type = "float32"

    def __init__(self, setup: Setup) -> None:
        training = setup.training
        if training.optimizer is Optimizer.adam and training.epsilon > LARGEST_EPSILON:
            raise NotImplementedError(
                f"framework=caffe trains by adam with training.epsilon of at most {LARGEST_EPSILON:g}"
            )
        self._training = training
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
        if training.average is None:
            self._tested.share_with(self._trained)
        for net in (self._trained, self._tested):
            self._prototxt.set_weights(net, setup.weights)
            self._prototxt.set_borders(net)
        self._batch = training.batch_size
        """Images at a time that the tested net is shaped for."""

        # Views of Caffe's own memory: it stays where it is as long as the shapes do.
        self._images, self._labels = (self._trained.blobs[name].data for name in (IMAGES, LABELS))
        self._train_logits = self._trained.blobs[self._prototxt.logits].data
        self._loss = self._trained.blobs[LOSS].data
        self._loss_weight = self._trained.blobs[LOSS].diff
        blobs = self._prototxt.blobs(self._trained)
        self._updated = [
            (blob.count, setup.weight_decay(name), blob.data.ctypes.data, blob.diff.ctypes.data)
            for name, blob in blobs.items()
        ]
        self._masked = [
            (blobs[name].data, np.broadcast_to(mask, blobs[name].data.shape).copy())
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
        self._step_seed = setup.step_seed if drops else None
        self._share = 1.0
        """The learning rate, as a multiple of the solver's."""
        self._steps = 0
        if training.optimizer is Optimizer.sgd and training.weight_decay:
            # The solver never lets go of its callbacks: one that held this object would keep it alive for good.
            rescale = weakref.WeakMethod(self._rescale_decay)
            self._solver.add_callback(lambda: None, lambda: rescale()())  # type: ignore[misc]

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        losses = np.empty(len(rates), np.float32)
        sgd = self._training.optimizer is Optimizer.sgd
        own_rates = solver_rates(self._training, self._steps, self._steps + len(rates))
        largest = LARGEST_LOSS / self._training.batch_size
        # A step of Caffe's leaves little of Python in the processor's caches: by local names, and with the next few
        # batches at hand, there is less of it to find again.
        take, once, read = _few(batches, len(rates)).__next__, self._solver.step, self._loss.item
        images, labels, loss_weight = self._images, self._labels, self._loss_weight
        sizes, masked, step_seed, average = self._sizes, self._masked, self._step_seed, self._training.average
        for step, (rate, own_rate) in enumerate(zip(rates, own_rates, strict=True)):
            images[...], labels[...] = take()
            self._share = share = rate / own_rate
            if sgd:
                # The solver's schedule is fixed for good, but what the loss weighs scales all gradients at no cost.
                loss_weight[...] = share
            if step_seed is not None:
                # All nets of a process share one generator: started anew, it does not tell what the others did.
                caffe.set_random_seed(step_seed(self._steps))
            once(1)
            self._steps += 1
            losses[step] = loss = read()
            if not loss < largest:
                self._look_at(loss, rate)
                losses[step] = self._cross_entropy(labels)
            if not sgd and share != 1:
                self._rescale_update()
            for size, value in sizes:
                size[...] = value
            for weights, mask in masked:
                np.multiply(weights, mask, out=weights)
            if average is not None:
                self._move_average()
        return losses

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
        if self._training.average is not None:
            self._tested.save(str(folder / "average.caffemodel"))

    def restore(self, folder: Path, step: int) -> None:
        self._trained.copy_from(str(folder / f"{SNAPSHOT}.caffemodel"))
        self._solver.restore(str(folder / f"{SNAPSHOT}.solverstate"))
        if self._training.average is not None:
            self._tested.copy_from(str(folder / "average.caffemodel"))
        self._steps = step

    def describe(self) -> dict[str, Any]:
        return {
            "version": caffe.__version__,
            "device": "cpu",  # pycaffe does not tell; its GPU mode is never switched on
            "precision": str(self._images.dtype),
            "threads": _blas.openblas_get_num_threads(),
            "blas": _blas.openblas_get_config().decode(),
            "blas_kernels": _blas.openblas_get_corename().decode(),
            "solver": type(self._solver).__name__,
        }

    def _hand_state_over(self) -> None:
        """To the tested net, where it does not share all with the trained one."""
        if self._training.average is not None:
            self._prototxt.copy_state(self._trained, self._tested)

    def _logits(self, images: np.ndarray) -> np.ndarray:
        if len(images) != self._batch:
            self._prototxt.reshape(self._tested, len(images))
            self._batch = len(images)
        self._tested.blobs[IMAGES].data[...] = images
        logits: np.ndarray = self._tested.forward()[self._prototxt.logits].copy()
        return logits

    def _look_at(self, loss: float, rate: float) -> None:
        if self._max_pools and not math.isfinite(loss):
            raise FloatingPointError(
                f"framework=caffe: the loss is {loss} at a learning rate of {rate:g}, and Caffe's max-pooling "
                "writes outside its memory when it is given what is not a number"
            )

    def _cross_entropy(self, labels: np.ndarray) -> float:
        """Of the batch just trained on, however large."""
        shifted = self._train_logits - self._train_logits.max(axis=1, keepdims=True)
        wanted = shifted[np.arange(len(labels)), labels.astype(np.intp)]
        return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - wanted))

    def _rescale_decay(self) -> None:
        """Between the gradients, which have the learning rate already, and the solver, which will add the decay."""
        if self._share != 1:
            for count, decay, values, gradient in self._updated:
                if decay:
                    _blas.cblas_saxpy(count, (self._share - 1) * decay, values, 1, gradient, 1)

    def _rescale_update(self) -> None:
        """After the solver took away an update of Adam's, which is as large as the rate."""
        for count, _, values, update in self._updated:
            _blas.cblas_saxpy(count, 1 - self._share, update, 1, values, 1)

    def _move_average(self) -> None:
        kept = self._training.average_decay(self._steps)
        for count, values, average in self._averaged:
            _blas.cblas_saxpby(count, 1 - kept, values, 1, kept, average, 1)

    def _write_prototxts(self, folder: Path, named: Path) -> tuple[str, str]:
        """``net.prototxt`` and ``solver.prototxt``, which says that the net is the file ``named``."""
        net, solver = folder / "net.prototxt", folder / "solver.prototxt"
        net.write_text(str(self._prototxt.net))
        self.solver_prototxt.net = str(named)
        solver.write_text(str(self.solver_prototxt))
        return str(net), str(solver)


def _few(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """The next ``count`` of the batches, ``AT_HAND`` of images taken at a time, and at least a batch."""
    feed = iter(batches)
    while count:
        first = next(feed)
        some = [first, *itertools.islice(feed, min(count, max(1, AT_HAND // first[0].nbytes)) - 1)]
        yield from some
        count -= len(some)
