"""Caffe adapter: network and solver as prototxt; Caffe's own solver reads the batches without a copy."""

from __future__ import annotations

import ctypes
import errno
import itertools
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import caffe
import numpy as np
from caffe.proto import caffe_pb2

from ...initialization import Weights
from ...inputs import VIEWS, Batch, consecutive
from ...job import Optimizer
from ...layers import Dropout, MaxPool
from ..base import Adapter, Setup, Unsupported
from .network import IMAGES_BLOB, LABELS_BLOB, LOSS_BLOB, NetPrototxt, solver_prototxt, solver_rates, transposed

LARGEST_EPSILON = 1e-6
"""Largest epsilon of Adam. Caffe adds it before the bias correction, which is equivalent only for a small epsilon."""

LARGEST_LOSS = -math.log(np.finfo(np.float32).tiny)
"""Largest loss per image that Caffe's loss layer reports, which clips small probabilities. Gradients are correct."""

SNAPSHOT = "training"
"""Name of the files of the solver's snapshots, without suffix."""

COPIES_BYTES = 2**18
"""Maximum size in bytes of image copies that are read before their steps; small enough for the CPU caches."""

# The symbol lookup includes the library's dependencies, so these functions belong to the BLAS that Caffe calls.
_blas = ctypes.CDLL(caffe._caffe.__file__)
_blas.openblas_get_config.restype = ctypes.c_char_p
_blas.openblas_get_corename.restype = ctypes.c_char_p
_COUNT, _FACTOR, _ARRAY, _STRIDE = ctypes.c_int, ctypes.c_float, ctypes.c_void_p, ctypes.c_int
_blas.cblas_saxpy.argtypes = [_COUNT, _FACTOR, _ARRAY, _STRIDE, _ARRAY, _STRIDE]
_blas.cblas_saxpby.argtypes = [_COUNT, _FACTOR, _ARRAY, _STRIDE, _FACTOR, _ARRAY, _STRIDE]


class Caffe(Adapter):
    """Network in Caffe.

    The solver trains one net. A second net without a loss is used for prediction and saving. It shares the weights of
    the first net or, with ``training.ema_decay``, holds their moving average.
    """

    label_type = "float32"

    def __init__(self, setup: Setup) -> None:
        training = setup.training
        if training.optimizer is Optimizer.adam and training.epsilon > LARGEST_EPSILON:
            raise Unsupported(
                f"framework=caffe trains by adam with training.epsilon of at most {LARGEST_EPSILON:g}, "
                f"not {training.epsilon:g}"
            )
        self._setup, self._training = setup, training
        self._largest_loss = LARGEST_LOSS / training.batch_size
        self._prototxt = NetPrototxt(setup)
        self.solver_prototxt = solver_prototxt(setup)
        caffe.set_mode_cpu()
        _blas.openblas_set_num_threads(setup.threads)
        self._snapshots = tempfile.TemporaryDirectory(prefix="gtdl-caffe-")
        self.solver_prototxt.snapshot_prefix = str(Path(self._snapshots.name) / SNAPSHOT)
        with tempfile.TemporaryDirectory() as folder:
            net, solver = self._write_prototxts(Path(folder), Path(folder) / "net.prototxt")
            self._solver = (caffe.AdamSolver if training.optimizer is Optimizer.adam else caffe.SGDSolver)(solver)
            self._test_net = caffe.Net(net, caffe.TEST)
        self._train_net = self._solver.net
        if training.ema_decay is None:
            self._test_net.share_with(self._train_net)
        for net in (self._train_net, self._test_net):
            self._prototxt.set_weights(net, setup.weights)
            self._prototxt.set_borders(net)
        self._test_batch_size = training.batch_size
        """Current batch size of the test net."""

        # Views of Caffe's memory, which Caffe reallocates only when shapes change.
        self._train_logits = self._train_net.blobs[self._prototxt.logits].data
        self._loss = self._train_net.blobs[LOSS_BLOB].data
        self._loss_weight = self._train_net.blobs[LOSS_BLOB].diff
        blobs = self._prototxt.parameters(self._train_net)
        self._parameters = [
            (blob.count, setup.weight_decay(name), blob.data.ctypes.data, blob.diff.ctypes.data)
            for name, blob in blobs.items()
        ]
        # A masked weight starts at 0 and stays 0 without a gradient, so the weights themselves need no mask.
        self._masked = [
            (blobs[name].diff, np.broadcast_to(mask, blobs[name].diff.shape).copy())
            for name, mask in setup.masks.items()
        ]
        self._total_weights = self._prototxt.total_weights(self._train_net)
        self._averaged = [
            (blob.count, blob.data.ctypes.data, average.data.ctypes.data)
            for blob, average in zip(blobs.values(), self._prototxt.parameters(self._test_net).values(), strict=True)
        ]
        layers = [node.layer for node in setup.network.nodes]
        self._has_max_pool = any(isinstance(layer, MaxPool) for layer in layers)
        has_dropout = any(isinstance(layer, Dropout) for layer in layers)
        self._share = 1.0
        """Ratio of the learning rate to the solver's learning rate."""
        self._steps = 0
        self._losses: list[float] = []
        """Losses of the steps in one call of ``train``."""
        # The solver never releases its callbacks. Weak references allow Python to release this object.
        on_start, on_gradients = weakref.WeakMethod(self._on_start), weakref.WeakMethod(self._on_gradients)
        self._solver.add_callback(
            (lambda: on_start()()) if has_dropout else _do_nothing,  # type: ignore[misc]
            lambda: on_gradients()(),  # type: ignore[misc]
        )

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        own_rates = solver_rates(self._training, self._steps, self._steps + len(rates))
        shares = [rate / own_rate for rate, own_rate in zip(rates, own_rates, strict=True)]
        feed, self._losses = iter(batches), []
        for share, group in itertools.groupby(shares):
            self._set_share(share)
            for taken in _take(feed, len(list(group))):
                for images, labels in _joined(taken):
                    self._do_steps(images, labels)
        return np.array(self._losses, np.float32)

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        self._update_test_state()
        size = self._prototxt.max_images
        return np.concatenate(
            [self._logits(images[start : start + size]) for images in batches for start in range(0, len(images), size)]
        )

    def weights(self) -> Weights:
        values = {
            name: transposed(blob.data).copy() for name, blob in self._prototxt.parameters(self._test_net).items()
        }
        return {**values, **self._prototxt.state(self._train_net)}

    def save(self, folder: Path) -> None:
        self._update_test_state()
        self._write_prototxts(folder, Path("net.prototxt"))
        self._require_space(folder)
        self._test_net.save(str(folder / "model.caffemodel"))

    def load(self, folder: Path) -> None:
        path = folder / "model.caffemodel"
        if not path.is_file():  # Caffe would terminate the process
            raise FileNotFoundError(path)
        self._test_net.copy_from(str(path))
        self._prototxt.copy_state(self._test_net, self._train_net)

    def checkpoint(self, folder: Path) -> None:
        snapshots = Path(self._snapshots.name)
        for left in snapshots.iterdir():  # left by an earlier checkpoint that failed
            left.unlink()
        self._require_space(folder, snapshots)
        self._solver.snapshot()
        [model] = snapshots.glob("*.caffemodel")
        [snapshot] = snapshots.glob("*.solverstate")
        state = caffe_pb2.SolverState.FromString(snapshot.read_bytes())
        state.ClearField("learned_net")  # the model's path, which is only valid until the file is moved
        snapshot.unlink()
        (folder / f"{SNAPSHOT}.solverstate").write_bytes(state.SerializeToString())
        shutil.move(model, folder / f"{SNAPSHOT}.caffemodel")
        if self._training.ema_decay is not None:
            self._test_net.save(str(folder / "average.caffemodel"))

    def _require_space(self, *folders: Path) -> None:
        """Raise OSError if a folder has no space for all parameters and moments; Caffe would terminate the process."""
        size = 4 * sum(blob.data.nbytes for blobs in self._train_net.params.values() for blob in blobs)
        for folder in folders:
            if shutil.disk_usage(folder).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    def restore(self, folder: Path, step: int) -> None:
        self._train_net.copy_from(str(folder / f"{SNAPSHOT}.caffemodel"))
        self._solver.restore(str(folder / f"{SNAPSHOT}.solverstate"))
        if self._training.ema_decay is not None:
            self._test_net.copy_from(str(folder / "average.caffemodel"))
        self._steps = step

    def describe(self) -> dict[str, Any]:
        return {
            "version": caffe.__version__,
            "device": "cpu",  # pycaffe does not report it; its GPU mode is never switched on
            "precision": str(self._train_logits.dtype),
            "threads": _blas.openblas_get_num_threads(),
            "blas": _blas.openblas_get_config().decode(),
            "blas_kernels": _blas.openblas_get_corename().decode(),
            "solver": type(self._solver).__name__,
        }

    def _update_test_state(self) -> None:
        """Copy the running statistics to the test net, unless the two nets share all arrays."""
        if self._training.ema_decay is not None:
            self._prototxt.copy_state(self._train_net, self._test_net)

    def _logits(self, images: np.ndarray) -> np.ndarray:
        if len(images) != self._test_batch_size:
            self._prototxt.reshape(self._test_net, len(images))
            self._test_batch_size = len(images)
        self._test_net.blobs[IMAGES_BLOB].data[...] = images
        logits: np.ndarray = self._test_net.forward()[self._prototxt.logits].copy()
        return logits

    def _do_steps(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Do one step on each of several consecutive batches."""
        # A pycaffe net object keeps references to all arrays it received. Each access to ``solver.net`` creates a new
        # object.
        self._solver.net.set_input_arrays(images, labels)
        count = len(images) // self._training.batch_size
        if not self._acts_between_steps:
            # One call for all steps: a return to Python between steps cost 1 to 3 % of a step, because the caches hold
            # Caffe's data then.
            self._solver.step(count)
            return
        for _ in range(count):
            self._solver.step(1)
            self._finish_step()

    def _set_share(self, share: float) -> None:
        """Set the ratio of the learning rate to the solver's, because the solver's schedule cannot be changed."""
        self._share = share
        sgd = self._training.optimizer is Optimizer.sgd
        if sgd:
            # The weight of the loss scales all gradients at no cost.
            self._loss_weight[...] = share
        averages = self._training.ema_decay is not None
        self._acts_between_steps = bool(self._total_weights) or averages or not (sgd or share == 1)

    def _on_start(self) -> None:
        """Seed dropout; Caffe calls this at the start of a step."""
        # All nets of a process share one generator. With one seed per step, they do not influence each other.
        caffe.set_random_seed(self._setup.step_seed(self._steps))

    def _on_gradients(self) -> None:
        """Record the loss and adapt the gradients; Caffe calls this before the solver uses them."""
        loss = self._loss.item()
        if not loss < self._largest_loss:
            self._check_finite(loss)
            loss = self._cross_entropy()
        self._losses.append(loss)
        self._steps += 1
        for gradient, mask in self._masked:
            np.multiply(gradient, mask, out=gradient)
        if self._share != 1 and self._training.optimizer is Optimizer.sgd:
            # The weight of the loss has already scaled the gradients. Scale also the decay that the solver adds later.
            for count, decay, values, gradient in self._parameters:
                if decay:
                    _blas.cblas_saxpy(count, (self._share - 1) * decay, values, 1, gradient, 1)

    def _finish_step(self) -> None:
        if self._share != 1 and self._training.optimizer is Optimizer.adam:
            # The solver's update is proportional to the solver's rate. Scale the update to the learning rate.
            for count, _, values, update in self._parameters:
                _blas.cblas_saxpy(count, 1 - self._share, update, 1, values, 1)
        for total_weight, value in self._total_weights:
            total_weight[...] = value
        if self._training.ema_decay is not None:
            decay = self._training.ema_decay_at(self._steps)
            for count, values, average in self._averaged:
                _blas.cblas_saxpby(count, 1 - decay, values, 1, decay, average, 1)

    def _check_finite(self, loss: float) -> None:
        if self._has_max_pool and not math.isfinite(loss):
            rate = self._share * solver_rates(self._training, self._steps, self._steps + 1)[0]
            raise FloatingPointError(
                f"framework=caffe: the loss is {loss} at a learning rate of {rate:g}; stopped, because Caffe's "
                "max-pooling writes outside its memory for values that are not numbers; lower training.learning_rate"
            )

    def _cross_entropy(self) -> float:
        """Return the loss of the last training batch without Caffe's lower limit on probabilities."""
        labels = self._train_net.blobs[LABELS_BLOB].data.ravel()
        shifted = self._train_logits - self._train_logits.max(axis=1, keepdims=True)
        correct = shifted[np.arange(len(labels)), labels.astype(np.intp)]
        return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - correct))

    def _write_prototxts(self, folder: Path, net_path: Path) -> tuple[str, str]:
        """Write ``net.prototxt`` and ``solver.prototxt``, which names the net ``net_path``, and return their paths."""
        net, solver = folder / "net.prototxt", folder / "solver.prototxt"
        net.write_text(str(self._prototxt.net))
        self.solver_prototxt.net = str(net_path)
        solver.write_text(str(self.solver_prototxt))
        return str(net), str(solver)


def _do_nothing() -> None:
    pass


def _take(batches: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """Yield the next ``count`` batches in groups of up to ``VIEWS`` views or ``COPIES_BYTES`` of copies."""
    feed = iter(batches)
    while count:
        first = next(feed)
        images, base = first[0], first[0].base
        views = isinstance(base, np.ndarray) and base.nbytes > images.nbytes
        limit = VIEWS if views else max(1, COPIES_BYTES // images.nbytes)
        group = [first, *itertools.islice(feed, min(count, limit) - 1)]
        yield group
        count -= len(group)


def _joined(batches: list[Batch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield contiguous images and labels, joining batches that are consecutive in memory."""
    images, labels = (consecutive(list(arrays)) for arrays in zip(*batches, strict=True))
    if images is not None and labels is not None:
        first = batches[0][0]
        yield np.ascontiguousarray(images.reshape(-1, *first.shape[1:])), np.ascontiguousarray(labels.reshape(-1))
    else:
        half = len(batches) // 2
        yield from itertools.chain(_joined(batches[:half]), _joined(batches[half:]))
