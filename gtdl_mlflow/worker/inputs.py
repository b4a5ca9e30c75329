"""Input treatment and batches: the same arrays, in the same order, for every framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .job import Order, Training

Batch = tuple[np.ndarray, np.ndarray]
"""Images, float32, in the adapter's layout; labels, in the adapter's type."""


class InputError(ValueError):
    """A treatment that does not exist or cannot be; the message names it."""


Statistics = dict[str, Any]
"""What a treatment took of a set of images: numbers and lists of numbers, by name."""


def _scale(images: np.ndarray, own: Statistics, train: Statistics, factor: float) -> np.ndarray:
    images *= np.float32(factor)
    return images


def _pad(images: np.ndarray, own: Statistics, train: Statistics, pixels: int) -> np.ndarray:
    return np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))


def _standardize(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # One mean and one standard deviation over all pixels of the set, as Torch7's demo does for each of its two sets.
    if not own:
        mean = _sum(images) / images.size
        own.update(mean=mean, std=float(np.sqrt(_sum(images, about=mean) / images.size)))
    images -= np.float32(own["mean"])
    images /= np.float32(own["std"])
    return images


def _subtract_mean(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # The mean image of the training set, from the test images as well, as Caffe's compute_image_mean has it.
    if not train:
        train["mean"] = images.mean(axis=0, dtype=np.float64).astype(np.float32).tolist()
    images -= np.array(train["mean"], np.float32)
    return images


def _sum(images: np.ndarray, about: float | None = None) -> float:
    """Of all values, or of their squared distances from ``about``."""
    # In float64, and not all at once: a float32 sum of 60 million pixels is wrong in the third digit, and a float64
    # copy of them takes half a gigabyte.
    total = 0.0
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000].astype(np.float64)
        total += float(part.sum() if about is None else np.square(part - about).sum())
    return total


TREATMENTS: dict[str, tuple[Callable[..., np.ndarray], dict[str, type]]] = {
    "scale": (_scale, {"factor": float}),
    "pad": (_pad, {"pixels": int}),
    "standardize": (_standardize, {}),
    "subtract_mean": (_subtract_mean, {}),
}
"""Name to function and the options it takes.

A function gets float32 images (N, H, W, C), which it may overwrite, the statistics of the set they are from, and those
of the training set; statistics that are empty are its to fill.
"""


class Treatment:
    """The treatments of ``training.inputs`` in their order, with the statistics they took of each set of images.

    Statistics are taken once, from the whole set, and kept by its name: the saved model treats a single image as the
    test set was treated. The set ``train`` is treated first.
    """

    def __init__(
        self, steps: Mapping[str, Mapping[str, Any]], statistics: dict[str, dict[str, Statistics]] | None = None
    ) -> None:
        check(steps)
        self._steps = {name: dict(options) for name, options in steps.items()}
        self.statistics: dict[str, dict[str, Statistics]] = statistics or {}

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(channels, height, width) that leave, for (height, width, channels) that enter."""
        height, width, channels = image_shape
        grown = 2 * sum(options["pixels"] for name, options in self._steps.items() if name == "pad")
        return channels, height + grown, width + grown

    def apply(self, part: str, images: np.ndarray, layout: str) -> np.ndarray:
        """uint8 images (N, H, W, C) of the set ``part``, treated: float32, contiguous, ``layout`` NHWC or NCHW."""
        treated = images.astype(np.float32)
        for name, options in self._steps.items():
            own, train = (self.statistics.setdefault(key, {}).setdefault(name, {}) for key in (part, "train"))
            treated = TREATMENTS[name][0](treated, own, train, **options)
        if layout == "NCHW":
            treated = treated.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(treated)


def check(steps: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InputError for an unknown treatment, a missing, unknown or impossible option."""
    for name, given in steps.items():
        if name not in TREATMENTS:
            raise InputError(f"training.inputs.{name}: no such treatment; there are {', '.join(TREATMENTS)}")
        takes = TREATMENTS[name][1]
        if set(given) != set(takes):
            raise InputError(
                f"training.inputs.{name}={dict(given)}: takes {', '.join(takes) or 'no options'}"
                f", given {', '.join(given) or 'none'}"
            )
        for key, kind in takes.items():
            value = given[key]
            what = "a number" if kind is float else "a whole number"
            number = isinstance(value, (int, float)) if kind is float else isinstance(value, int)
            if isinstance(value, bool) or not number or value < 0:
                raise InputError(f"training.inputs.{name}.{key}={value}: expected {what} of at least 0")


def split(images: int, training: Training) -> slice:
    """The training images that are trained on; the rest is held back for validation."""
    held = training.validation.count(images)
    return slice(held, images) if training.validation.take == "first" else slice(0, images - held)


def batches(
    images: np.ndarray, labels: np.ndarray, size: int, order: Order, seed: int, start: int = 0
) -> Iterator[Batch]:
    """Training batches without end, the first one that of iteration ``start``.

    Every batch is full: one that reaches the end of the data goes on with the next epoch's first images, as Caffe's
    data layer does. Sequential batches that do not wrap are views, not copies.
    """
    count, step = len(images), start
    permutations: dict[int, np.ndarray] = {}
    while True:
        first = step * size
        epoch, at = divmod(first, count)
        if order is Order.sequential and at + size <= count:
            yield images[at : at + size], labels[at : at + size]
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


def _permutation(count: int, order: Order, seed: int, epoch: int) -> np.ndarray:
    if order is Order.sequential:
        return np.arange(count)
    return np.random.RandomState([seed, 7, epoch]).permutation(count)


def test_batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """All images in order, ``size`` at a time, the last batch perhaps smaller."""
    for start in range(0, len(images), size):
        yield images[start : start + size]
