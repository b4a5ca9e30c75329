"""Preprocessed images and batches: the same arrays, in the same order, for every framework."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .job import BatchOrder, HeldOut, Training
from .preprocessing import OPERATIONS, PreprocessingError, Statistics, check
from .random_streams import Use, stream

Batch = tuple[Any, Any]
"""(images, labels): float32 images in the adapter's layout and labels of the adapter's type.

Both are NumPy arrays or native arrays of the framework.
"""

VIEWS = 64
"""Number of batches that are created at a time.

Creating one batch per step is slower, because the code that creates it has left the processor's caches since the last
step. At batch size 1, creating one batch at a time took 43 us of a step of 3.5 ms; 64 at a time, 12 us of a step of
5.9 ms.
"""

ALIGNMENT = 64
"""Alignment of arrays in bytes: the size of a cache line and of the widest registers.

A framework may use an array with this alignment without a copy.
"""


class Preprocessing:
    """The operations of ``training.preprocessing``, in order, with their statistics of each set of images.

    Statistics are computed once, from the whole set, and stored by the set's name, so that the saved model preprocesses
    a single image like the test set. The set ``train`` must be preprocessed first.
    """

    def __init__(
        self, steps: Mapping[str, Mapping[str, Any]], statistics: dict[str, dict[str, Statistics]] | None = None
    ) -> None:
        check(steps)
        self._steps = {name: dict(options) for name, options in steps.items()}
        random = [number for number, name in enumerate(steps) if OPERATIONS[name].random]
        self._first_random = random[0] if random else len(steps)
        self.statistics: dict[str, dict[str, Statistics]] = statistics or {}

    @property
    def augments(self) -> bool:
        """Whether training images are augmented: a random operation is applied to each batch (``augment``)."""
        return self._first_random < len(self._steps)

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return (channels, height, width) after preprocessing of images of (height, width, channels).

        Raises:
            PreprocessingError: the images are too small for an operation.
        """
        sides, channels = image_shape[:2], image_shape[2]
        for name, options in self._steps.items():
            try:
                sides = OPERATIONS[name].sides(sides, **options)
            except PreprocessingError as error:
                raise PreprocessingError(f"training.preprocessing.{name}.{error}") from error
        return channels, *sides

    def apply(self, part: str, images: np.ndarray, layout: str) -> np.ndarray:
        """Preprocess the uint8 images (N, H, W, C) of the set ``part``.

        Return them as float32, ``aligned``, in ``layout`` NHWC or NCHW. If training images are augmented, only the
        operations before the first random one are applied to them, and they are returned as NHWC. If no operation
        precedes the first random one, they are returned unchanged, as uint8.
        """
        complete = part != "train" or not self.augments
        if not complete and self._first_random == 0:
            return images
        result = images.astype(np.float32, subok=False)
        for name, options in list(self._steps.items())[: None if complete else self._first_random]:
            own, train = (self.statistics.setdefault(key, {}).setdefault(name, {}) for key in (part, "train"))
            result = OPERATIONS[name].fixed(result, own, train, **options)
        return aligned(to_layout(result, layout if complete else "NHWC"))

    def augment(self, images: np.ndarray, random: np.random.RandomState, layout: str) -> np.ndarray:
        """Apply the remaining operations to a training batch of images from ``apply`` and return the result."""
        images = images.astype(np.float32, subok=False)  # a copy: a batch may be a view of the data set
        for name, options in list(self._steps.items())[self._first_random :]:
            operation = OPERATIONS[name]
            images = (
                operation.random(images, random, **options)
                if operation.random
                else operation.fixed(images, {}, {}, **options)
            )
        return np.ascontiguousarray(to_layout(images, layout))


def to_layout(images: np.ndarray, layout: str) -> np.ndarray:
    """Return a view of images (N, H, W, C) in ``layout`` NHWC or NCHW."""
    return images.transpose(0, 3, 1, 2) if layout == "NCHW" else images


def aligned(array: np.ndarray) -> np.ndarray:
    """Return the array, or a copy if it is not contiguous or does not start at a multiple of ``ALIGNMENT`` bytes."""
    if array.flags.c_contiguous and address(array) % ALIGNMENT == 0:
        return array
    buffer = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    first = -address(buffer) % ALIGNMENT
    copy = buffer[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def consecutive(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return one view (views, ...) of views that are adjacent in the memory of one array, or None for other arrays."""
    first, *others = arrays
    if not others:
        return first[None]
    begin, size, whole = address(first), first.nbytes, first.base
    if whole is None or not first.flags.c_contiguous:
        return None
    for number, other in enumerate(others, 1):
        if other.base is not whole or address(other) != begin + number * size:
            return None
    return np.lib.stride_tricks.as_strided(first, (len(arrays), *first.shape), (size, *first.strides))


def address(array: np.ndarray) -> int:
    """Return the memory address of the first element."""
    return int(array.__array_interface__["data"][0])


def split(images: int, training: Training) -> tuple[slice, slice]:
    """Return two slices of the training images: those used for training and those held out for validation."""
    held_out = training.validation.count(images)
    if training.validation.take == HeldOut.first:
        return slice(held_out, images), slice(0, held_out)
    return slice(0, images - held_out), slice(images - held_out, images)


def batches(
    images: Any, labels: Any, size: int, order: BatchOrder, seed: int, start: int = 0
) -> Generator[Batch, None, None]:
    """Yield an endless sequence of training batches, starting with iteration ``start``.

    Every batch is full: a batch that reaches the end of the data continues with the first images of the next epoch, as
    in Caffe's data layer. Sequential batches that do not wrap around are views, not copies.
    """
    count, step = len(images), start
    permutations: dict[int, np.ndarray] = {}
    while True:
        first = step * size
        epoch, at = divmod(first, count)
        if order is BatchOrder.sequential and at + size <= count:
            starts = range(at, count - size + 1, size)[:VIEWS]
            yield from [(images[begin : begin + size], labels[begin : begin + size]) for begin in starts]
            step += len(starts)
        else:
            last = (first + size - 1) // count
            for needed in range(epoch, last + 1):
                if needed not in permutations:
                    permutations[needed] = _permutation(count, order, seed, needed)
            for done in [key for key in permutations if key < epoch]:
                del permutations[done]
            # Concatenate only if an epoch ends within the batch: a copy of 60,000 indices takes longer than the batch.
            needed_orders = [permutations[key] for key in range(epoch, last + 1)]
            indices = (needed_orders[0] if epoch == last else np.concatenate(needed_orders))[at : at + size]
            yield images[indices], labels[indices]
            step += 1


def augmented(
    source: Iterable[Batch], preprocessing: Preprocessing, layout: str, seed: int, start: int = 0
) -> Generator[Batch, None, None]:
    """Augment and yield the batches of ``source``, whose first batch is that of iteration ``start``.

    Each iteration has a separate random stream.
    """
    for step, (images, labels) in enumerate(source, start):
        yield preprocessing.augment(images, stream(Use.AUGMENTATION, seed, step), layout), labels


def prefetched(source: Iterable[Batch], depth: int = 2) -> Generator[Batch, None, None]:
    """Yield the batches of an endless ``source``. A thread computes up to ``depth`` batches ahead."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(depth)
    stopped = threading.Event()

    def produce() -> None:
        try:
            for batch in source:
                ready.put(batch)
                if stopped.is_set():
                    return
        except BaseException as error:  # raised in the consumer's thread
            ready.put(error)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            batch = ready.get()
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        stopped.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                ready.get(timeout=0.01)


def _permutation(count: int, order: BatchOrder, seed: int, epoch: int) -> np.ndarray:
    if order is BatchOrder.sequential:
        return np.arange(count)
    return stream(Use.BATCH_ORDER, seed, epoch).permutation(count)


def test_batches(images: Any, size: int) -> Iterator[Any]:
    """Yield all images in order, ``size`` at a time; the last batch may be smaller."""
    starts = range(0, len(images), size)
    for first in range(0, len(starts), VIEWS):
        yield from [images[start : start + size] for start in starts[first : first + VIEWS]]
