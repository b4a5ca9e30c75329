"""Preprocessing operations on images, in NumPy: the same for every framework.

An operation receives float32 images (N, height, width, channels) with pixel values from 0 to 255, and may overwrite
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Statistics = dict[str, Any]
"""Statistics of a set of images that an operation needs: numbers and lists of numbers, by name."""

Sides = tuple[int, int]
"""Height and width."""


class PreprocessingError(ValueError):
    """The preprocessing is invalid; the message names the operation."""


@dataclass(frozen=True)
class Operation:
    """A preprocessing operation."""

    fixed: Callable[..., np.ndarray]
    """Function ``(images, own, train, **options)`` for a whole set.

    ``own`` has the set's statistics and ``train`` those of the training set; the operation fills them if they are
    empty.
    """
    random: Callable[..., np.ndarray] | None = None
    """Function ``(images, random, **options)`` that replaces ``fixed`` for training batches; None: not random."""
    options: Mapping[str, type] = field(default_factory=dict)
    """Options and their types; all are required, and numbers of at least 0."""
    sides: Callable[..., Sides] = lambda sides, **options: sides
    """Function ``(sides, **options)`` that returns height and width of the result."""
    of_set: bool = False
    """Whether the operation needs statistics of a whole set, so that it cannot follow a random operation."""
    positive: frozenset[str] = frozenset()
    """Options that must be above 0."""


def _scale(images: np.ndarray, own: Statistics, train: Statistics, factor: float) -> np.ndarray:
    images *= np.float32(factor)
    return images


def _normalize(images: np.ndarray, own: Statistics, train: Statistics, mean: float, deviation: float) -> np.ndarray:
    images -= np.float32(mean)
    images /= np.float32(deviation)
    return images


def _pad(images: np.ndarray, own: Statistics, train: Statistics, pixels: int) -> np.ndarray:
    return np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))


def _padded_sides(sides: Sides, pixels: int) -> Sides:
    return sides[0] + 2 * pixels, sides[1] + 2 * pixels


def _standardize(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # One mean and one standard deviation over all pixels of the set, as Torch7's demo does for each of its two sets.
    if not own:
        own["mean"], own["std"] = _moments(images)
    images -= np.float32(own["mean"])
    images /= np.float32(own["std"] or 1)  # the deviation of a set of one colour is 0
    return images


def _subtract_mean(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # The mean image of the training set is subtracted from test images too, as with Caffe's compute_image_mean.
    if not train:
        train["mean"] = images.mean(axis=0, dtype=np.float64).astype(np.float32).tolist()
    images -= np.array(train["mean"], np.float32)
    return images


def _standardize_image(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # tf.image.per_image_standardization: the bound prevents a division by 0 for an image of one colour.
    flat = images.reshape(len(images), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    deviations = np.sqrt(np.einsum("ij,ij->i", flat, flat) / np.float32(flat.shape[1]))
    flat /= np.maximum(deviations, np.float32(1 / math.sqrt(flat.shape[1])))[:, None]
    return flat.reshape(images.shape)


def _central_crop(images: np.ndarray, own: Statistics, train: Statistics, pixels: int, padding: int = 0) -> np.ndarray:
    # The padding of random crops is equal on all sides, so it does not change the central crop.
    top, left = ((side - pixels) // 2 for side in images.shape[1:3])
    return images[:, top : top + pixels, left : left + pixels]


def _random_crop(images: np.ndarray, random: np.random.RandomState, pixels: int, padding: int) -> np.ndarray:
    if padding:
        images = _pad(images, {}, {}, padding)
    count, height, width, channels = images.shape
    tops = random.randint(0, height - pixels + 1, count)
    lefts = random.randint(0, width - pixels + 1, count)
    # A cropped row is contiguous in memory: gathering rows takes half as long as gathering pixels.
    rows = np.lib.stride_tricks.sliding_window_view(images.reshape(count, height, -1), pixels * channels, axis=2)
    cropped: np.ndarray = rows[
        np.arange(count)[:, None], tops[:, None] + np.arange(pixels), (lefts * channels)[:, None]
    ]
    return cropped.reshape(count, pixels, pixels, channels)


def _cropped_sides(sides: Sides, pixels: int, padding: int = 0) -> Sides:
    if not 0 < pixels <= min(sides):
        raise PreprocessingError(f"pixels={pixels}: expected 1 to {min(sides)}, the images are {sides[0]}x{sides[1]}")
    return pixels, pixels


def _identity(images: np.ndarray, own: Statistics, train: Statistics, **options: float) -> np.ndarray:
    return images


def _random_flip(images: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    chosen = random.randint(0, 2, len(images)) == 1
    images[chosen] = images[chosen, :, ::-1]
    return images


def _random_brightness(images: np.ndarray, random: np.random.RandomState, delta: float) -> np.ndarray:
    images += random.uniform(-delta, delta, (len(images), 1, 1, 1)).astype(np.float32)
    return images


def _random_contrast(images: np.ndarray, random: np.random.RandomState, lower: float, upper: float) -> np.ndarray:
    # tf.image.random_contrast: scales the difference from the mean of each channel of each image.
    factors = random.uniform(lower, upper, (len(images), 1, 1, 1)).astype(np.float32)
    means = images.mean(axis=(1, 2), keepdims=True)
    images -= means
    images *= factors
    images += means
    return images


def _yuv(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # Torch7's image.rgb2yuv. A grey image has only the Y channel.
    if images.shape[3] == 1:
        return images
    matrix = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]], np.float32)
    yuv: np.ndarray = images @ matrix.T
    return yuv


def _contrastive_normalization(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # Torch7's demo: Y by nn.SpatialContrastiveNormalization(1, image.gaussian1D(7)); U and V by the mean and minus the
    # standard deviation of the training set (the sign is as in the demo).
    for start in range(0, len(images), 1000):  # in parts, because several copies of all images would take gigabytes
        images[start : start + 1000, :, :, 0] = _locally_normalized(images[start : start + 1000, :, :, 0])
    for channel in range(1, images.shape[3]):
        name = "YUV"[channel]
        if f"{name}_mean" not in train:
            train[f"{name}_mean"], train[f"{name}_std"] = _moments(images[..., channel])
        images[..., channel] -= np.float32(train[f"{name}_mean"])
        images[..., channel] /= -np.float32(train[f"{name}_std"] or 1)
    return images


def _locally_normalized(planes: np.ndarray) -> np.ndarray:
    """Return planes (N, height, width) minus the local weighted mean, divided by the local deviation.

    Deviations below 1e-4 are replaced by 1e-4.
    """
    # image.gaussian1D(7): its standard deviation is 0.25 of its size; the module divides it by its sum.
    kernel = np.exp(-0.5 * (np.arange(-3, 4) / (0.25 * 7)) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    # Zeros surround the image; this is the share of the kernel that lies inside.
    inside = _smooth(np.ones((1, *planes.shape[1:]), np.float32), kernel)
    centred = planes - _smooth(planes, kernel) / inside
    deviations = np.sqrt(_smooth(centred**2, kernel)) / inside
    normalized: np.ndarray = centred / np.where(deviations > 1e-4, deviations, np.float32(1e-4))
    return normalized


def _smooth(planes: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return planes correlated with ``kernel`` vertically and horizontally, with zero padding."""
    margin = len(kernel) // 2
    for axis in (1, 2):
        padded = np.pad(planes, [(margin, margin) if each == axis else (0, 0) for each in range(3)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis)
        planes = windows @ kernel
    return planes


def _moments(images: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of all values."""
    mean = _sum(images) / images.size
    return mean, math.sqrt(_sum(images, about=mean) / images.size)


def _sum(images: np.ndarray, about: float | None = None) -> float:
    """Return the sum of all values, or of their squared differences from ``about``."""
    # In float64 and in parts: a float32 sum of 60 million pixels is wrong in the third digit, and a float64 copy of
    # them takes half a gigabyte.
    total = 0.0
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000].astype(np.float64)
        total += float(part.sum() if about is None else np.square(part - about).sum())
    return total


PIXELS = {"pixels": int}

OPERATIONS: dict[str, Operation] = {
    "scale": Operation(_scale, options={"factor": float}),
    "pad": Operation(_pad, options=PIXELS, sides=_padded_sides),
    "standardize": Operation(_standardize, of_set=True),
    "subtract_mean": Operation(_subtract_mean, of_set=True),
    "standardize_image": Operation(_standardize_image),
    "normalize": Operation(_normalize, options={"mean": float, "deviation": float}, positive=frozenset({"deviation"})),
    "central_crop": Operation(_central_crop, options=PIXELS, sides=_cropped_sides),
    "random_crop": Operation(_central_crop, _random_crop, {**PIXELS, "padding": int}, _cropped_sides),
    "random_flip": Operation(_identity, _random_flip),
    "random_brightness": Operation(_identity, _random_brightness, {"delta": float}),
    "random_contrast": Operation(_identity, _random_contrast, {"lower": float, "upper": float}),
    "yuv": Operation(_yuv),
    "contrastive_normalization": Operation(_contrastive_normalization, of_set=True),
}


def check(steps: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the operations of ``training.preprocessing``, their order and their options.

    Raises:
        PreprocessingError: an unknown operation, an invalid order, or a missing, unknown or invalid option.
    """
    first_random = ""
    for name, options in steps.items():
        key = f"training.preprocessing.{name}"
        if name not in OPERATIONS:
            raise PreprocessingError(f"{key}: unknown operation; available: {', '.join(OPERATIONS)}")
        operation = OPERATIONS[name]
        if first_random and operation.of_set:
            raise PreprocessingError(f"{key}: needs statistics of the whole set, so it must precede {first_random}")
        first_random = first_random or (name if operation.random else "")
        if set(options) != set(operation.options):
            expected = ", ".join(operation.options) or "no options"
            raise PreprocessingError(
                f"{key}={dict(options)}: expected {expected}, given {', '.join(options) or 'none'}"
            )
        for option, kind in operation.options.items():
            value = options[option]
            valid_type = isinstance(value, (int, float)) if kind is float else isinstance(value, int)
            positive = option in operation.positive
            if isinstance(value, bool) or not valid_type or value < 0 or (positive and value == 0):
                number = "a number" if kind is float else "a whole number"
                limit = "above 0" if positive else "of at least 0"
                raise PreprocessingError(f"{key}.{option}={value}: expected {number} {limit}")
