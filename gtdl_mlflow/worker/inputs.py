"""Input treatment and batches: the same arrays, in the same order, for every framework."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .job import BatchOrder, Training
from .preprocessing import OPERATIONS, PreprocessingError, Statistics, check

Batch = tuple[Any, Any]
"""Images, float32, in the adapter's layout; labels, in the adapter's type: as NumPy's arrays, or as the adapter adopted
them."""

VIEWS = 64
"""Of a data set that are made at a time: what makes them has left the processor's caches when the next batch is asked
for. Made one at a time they took 43 us of a step of 3.5 ms at batch 1; so, 12 us of one of 5.9 ms.
"""

ALIGNMENT = 64
"""Bytes, of a cache line and of the widest registers: what begins there a framework may use where it lies, uncopied."""


class Preprocessing:
    """The treatments of ``training.preprocessing`` in their order, with the statistics they took of each set of images.

    Statistics are taken once, from the whole set, and kept by its name: the saved model treats a single image as the
    test set was treated. The set ``train`` is treated first.
    """

    def __init__(
        self, steps: Mapping[str, Mapping[str, Any]], statistics: dict[str, dict[str, Statistics]] | None = None
    ) -> None:
        check(steps)
        self._steps = {name: dict(options) for name, options in steps.items()}
        drawn = [number for number, name in enumerate(steps) if OPERATIONS[name].random]
        self._first_drawn = drawn[0] if drawn else len(steps)
        self.statistics: dict[str, dict[str, Statistics]] = statistics or {}

    @property
    def draws(self) -> bool:
        """Whether training images are treated anew for each batch, by ``draw``."""
        return self._first_drawn < len(self._steps)

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(channels, height, width) that leave, for (height, width, channels) that enter.

        Raises:
            InputError: the images are too small for a treatment.
        """
        sides, channels = image_shape[:2], image_shape[2]
        for name, options in self._steps.items():
            try:
                sides = OPERATIONS[name].sides(sides, **options)
            except PreprocessingError as error:
                raise PreprocessingError(f"training.preprocessing.{name}.{error}") from error
        return channels, *sides

    def apply(self, part: str, images: np.ndarray, layout: str) -> np.ndarray:
        """uint8 images (N, H, W, C) of the set ``part``, treated: float32, ``aligned``, ``layout`` NHWC or NCHW.

        Of training images that are drawn anew for each batch, only what comes before that is done: they stay NHWC, and
        uint8 if nothing comes before.
        """
        whole = part != "train" or not self.draws
        if not whole and self._first_drawn == 0:
            return images
        treated = images.astype(np.float32, subok=False)
        for name, options in list(self._steps.items())[: None if whole else self._first_drawn]:
            own, train = (self.statistics.setdefault(key, {}).setdefault(name, {}) for key in (part, "train"))
            treated = OPERATIONS[name].fixed(treated, own, train, **options)
        return aligned(to_layout(treated, layout if whole else "NHWC"))

    def draw(self, images: np.ndarray, random: np.random.RandomState, layout: str) -> np.ndarray:
        """A training batch of what ``apply`` gave, with the rest of the treatments."""
        images = images.astype(np.float32, subok=False)  # a copy: a batch may be a view of the data set
        for name, options in list(self._steps.items())[self._first_drawn :]:
            operation = OPERATIONS[name]
            images = (
                operation.random(images, random, **options)
                if operation.random
                else operation.fixed(images, {}, {}, **options)
            )
        return np.ascontiguousarray(to_layout(images, layout))


def to_layout(images: np.ndarray, layout: str) -> np.ndarray:
    """Images (N, H, W, C) in ``layout``, a view of them."""
    return images.transpose(0, 3, 1, 2) if layout == "NCHW" else images


def aligned(array: np.ndarray) -> np.ndarray:
    """The array, contiguous and from a multiple of ``ALIGNMENT`` bytes on; a copy if it is not."""
    if array.flags.c_contiguous and address(array) % ALIGNMENT == 0:
        return array
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    first = -address(room) % ALIGNMENT
    copy = room[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def consecutive(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """Views of one array that lie one after another, as one view (views, ...); None if they are anything else."""
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
    """Where in memory its first element is."""
    return int(array.__array_interface__["data"][0])


def split(images: int, training: Training) -> tuple[slice, slice]:
    """The training images that are trained on, and those held back for validation."""
    held = training.validation.count(images)
    if training.validation.take == "first":
        return slice(held, images), slice(0, held)
    return slice(0, images - held), slice(images - held, images)


def batches(
    images: Any, labels: Any, size: int, order: BatchOrder, seed: int, start: int = 0
) -> Generator[Batch, None, None]:
    """Training batches without end, the first one that of iteration ``start``.

    Every batch is full: one that reaches the end of the data goes on with the next epoch's first images, as Caffe's
    data layer does. Sequential batches that do not wrap are views, not copies.
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
            # Joined only where an epoch ends within the batch: a copy of 60,000 indices takes longer than the batch.
            whole = [permutations[key] for key in range(epoch, last + 1)]
            drawn = (whole[0] if epoch == last else np.concatenate(whole))[at : at + size]
            yield images[drawn], labels[drawn]
            step += 1


def augmented(
    feed: Iterable[Batch], treatment: Preprocessing, layout: str, seed: int, start: int = 0
) -> Generator[Batch, None, None]:
    """The batches of ``feed``, from iteration ``start`` on, treated anew; each iteration has a stream of its own."""
    for step, (images, labels) in enumerate(feed, start):
        yield treatment.draw(images, np.random.RandomState([seed, 13, step]), layout), labels


def prefetched(feed: Iterable[Batch], depth: int = 2) -> Generator[Batch, None, None]:
    """The batches of an endless ``feed``, made by a thread of their own while the ones before are computed on."""
    made: queue.Queue[Batch | BaseException] = queue.Queue(depth)
    stopped = threading.Event()

    def make() -> None:
        try:
            for batch in feed:
                made.put(batch)
                if stopped.is_set():
                    return
        except BaseException as error:  # it belongs to whoever asks for the next batch
            made.put(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            batch = made.get()
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        stopped.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                made.get(timeout=0.01)


def _permutation(count: int, order: BatchOrder, seed: int, epoch: int) -> np.ndarray:
    if order is BatchOrder.sequential:
        return np.arange(count)
    return np.random.RandomState([seed, 7, epoch]).permutation(count)


def test_batches(images: Any, size: int) -> Iterator[Any]:
    """All images in order, ``size`` at a time, the last batch perhaps smaller."""
    starts = range(0, len(images), size)
    for first in range(0, len(starts), VIEWS):
        yield from [images[start : start + size] for start in starts[first : first + VIEWS]]
