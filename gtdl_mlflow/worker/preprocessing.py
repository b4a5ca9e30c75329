"""Input treatments, in NumPy: what is done to images before a network sees them, the same for every framework.

A treatment gets float32 images (N, height, width, channels) with the pixels' values, 0 to 255, which it may overwrite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Statistics = dict[str, Any]
"""What a treatment took of a set of images: numbers and lists of numbers, by name."""

Sides = tuple[int, int]
"""Height and width."""


class PreprocessingError(ValueError):
    """A treatment that does not exist or cannot be; the message names it."""


@dataclass(frozen=True)
class Operation:
    """One kind of treatment."""

    fixed: Callable[..., np.ndarray]
    """``(images, own, train, **options)``: for a whole set; ``own`` are its statistics and ``train`` those of the
    training set, and what is empty is the treatment's to fill."""
    random: Callable[..., np.ndarray] | None = None
    """``(images, random, **options)``: for a training batch, instead of ``fixed``, drawn anew each time."""
    options: Mapping[str, type] = field(default_factory=dict)
    """Those it takes, all of them numbers of at least 0."""
    sides: Callable[..., Sides] = lambda sides, **options: sides
    """``(sides, **options)``: how large the images leave."""
    of_set: bool = False
    """Whether it needs statistics of a whole set, and so cannot follow what is drawn anew for each batch."""


def _scale(images: np.ndarray, own: Statistics, train: Statistics, factor: float) -> np.ndarray:
    images *= np.float32(factor)
    return images


def _pad(images: np.ndarray, own: Statistics, train: Statistics, pixels: int) -> np.ndarray:
    return np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))


def _padded(sides: Sides, pixels: int) -> Sides:
    return sides[0] + 2 * pixels, sides[1] + 2 * pixels


def _standardize(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # One mean and one standard deviation over all pixels of the set, as Torch7's demo does for each of its two sets.
    if not own:
        own["mean"], own["std"] = _moments(images)
    images -= np.float32(own["mean"])
    images /= np.float32(own["std"] or 1)  # a set of one colour has no deviation
    return images


def _subtract_mean(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # The mean image of the training set, from the test images as well, as Caffe's compute_image_mean has it.
    if not train:
        train["mean"] = images.mean(axis=0, dtype=np.float64).astype(np.float32).tolist()
    images -= np.array(train["mean"], np.float32)
    return images


def _standardize_image(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # tf.image.per_image_standardization: the bound keeps an image of one colour from being divided by 0.
    flat = images.reshape(len(images), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    deviations = np.sqrt(np.einsum("ij,ij->i", flat, flat) / np.float32(flat.shape[1]))
    flat /= np.maximum(deviations, np.float32(1 / math.sqrt(flat.shape[1])))[:, None]
    return flat.reshape(images.shape)


def _central_crop(images: np.ndarray, own: Statistics, train: Statistics, pixels: int, padding: int = 0) -> np.ndarray:
    # Padding, alike on all sides, is for random crops; it leaves the centre where it is.
    top, left = ((side - pixels) // 2 for side in images.shape[1:3])
    return images[:, top : top + pixels, left : left + pixels]


def _random_crop(images: np.ndarray, random: np.random.RandomState, pixels: int, padding: int) -> np.ndarray:
    if padding:
        images = _pad(images, {}, {}, padding)
    count, height, width, channels = images.shape
    tops = random.randint(0, height - pixels + 1, count)
    lefts = random.randint(0, width - pixels + 1, count)
    # A cropped row is one stretch of memory: gathered as such, it costs half of what a gather by pixels does.
    rows = np.lib.stride_tricks.sliding_window_view(images.reshape(count, height, -1), pixels * channels, axis=2)
    taken: np.ndarray = rows[np.arange(count)[:, None], tops[:, None] + np.arange(pixels), (lefts * channels)[:, None]]
    return taken.reshape(count, pixels, pixels, channels)


def _cropped(sides: Sides, pixels: int, padding: int = 0) -> Sides:
    if not 0 < pixels <= min(sides):
        raise PreprocessingError(f"pixels={pixels}: expected 1 to {min(sides)}, the images are {sides[0]}x{sides[1]}")
    return pixels, pixels


def _as_it_is(images: np.ndarray, own: Statistics, train: Statistics, **options: float) -> np.ndarray:
    return images


def _random_flip(images: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    chosen = random.randint(0, 2, len(images)) == 1
    images[chosen] = images[chosen, :, ::-1]
    return images


def _random_brightness(images: np.ndarray, random: np.random.RandomState, delta: float) -> np.ndarray:
    images += random.uniform(-delta, delta, (len(images), 1, 1, 1)).astype(np.float32)
    return images


def _random_contrast(images: np.ndarray, random: np.random.RandomState, lower: float, upper: float) -> np.ndarray:
    # tf.image.random_contrast: away from, or towards, the mean of each channel of each image.
    factors = random.uniform(lower, upper, (len(images), 1, 1, 1)).astype(np.float32)
    means = images.mean(axis=(1, 2), keepdims=True)
    images -= means
    images *= factors
    images += means
    return images


def _yuv(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    # Torch7's image.rgb2yuv; a grey image is its own Y.
    if images.shape[3] == 1:
        return images
    turn = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]], np.float32)
    turned: np.ndarray = images @ turn.T
    return turned


def _contrastive_normalization(images: np.ndarray, own: Statistics, train: Statistics) -> np.ndarray:
    """Torch7's demo: of Y, ``nn.SpatialContrastiveNormalization(1, image.gaussian1D(7))``; of U and V, the mean and
    minus the deviation of the training set (the sign is the original's)."""
    for start in range(0, len(images), 1000):  # in parts, as several copies of all would take gigabytes
        images[start : start + 1000, :, :, 0] = _locally_normalized(images[start : start + 1000, :, :, 0])
    for channel in range(1, images.shape[3]):
        name = "YUV"[channel]
        if f"{name}_mean" not in train:
            train[f"{name}_mean"], train[f"{name}_std"] = _moments(images[..., channel])
        images[..., channel] -= np.float32(train[f"{name}_mean"])
        images[..., channel] /= -np.float32(train[f"{name}_std"] or 1)
    return images


def _locally_normalized(planes: np.ndarray) -> np.ndarray:
    """Planes (N, height, width) less their weighted neighbourhood's mean, divided by its deviation if above 1e-4."""
    # image.gaussian1D(7): deviation 0.25 of its size; the module divides it by its sum.
    kernel = np.exp(-0.5 * (np.arange(-3, 4) / (0.25 * 7)) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    # Zeros surround the image, and this is how much of the kernel lies inside it.
    inside = _smooth(np.ones((1, *planes.shape[1:]), np.float32), kernel)
    centred = planes - _smooth(planes, kernel) / inside
    deviations = np.sqrt(_smooth(centred**2, kernel)) / inside
    normalized: np.ndarray = centred / np.where(deviations > 1e-4, deviations, np.float32(1e-4))
    return normalized


def _smooth(planes: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Planes correlated with ``kernel`` down and across, zeros around them."""
    reach = len(kernel) // 2
    for axis in (1, 2):
        framed = np.pad(planes, [(reach, reach) if each == axis else (0, 0) for each in range(3)])
        windows = np.lib.stride_tricks.sliding_window_view(framed, len(kernel), axis)
        planes = windows @ kernel
    return planes


def _moments(images: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all values."""
    mean = _sum(images) / images.size
    return mean, math.sqrt(_sum(images, about=mean) / images.size)


def _sum(images: np.ndarray, about: float | None = None) -> float:
    """Of all values, or of their squared distances from ``about``."""
    # In float64, and not all at once: a float32 sum of 60 million pixels is wrong in the third digit, and a float64
    # copy of them takes half a gigabyte.
    total = 0.0
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000].astype(np.float64)
        total += float(part.sum() if about is None else np.square(part - about).sum())
    return total


PIXELS = {"pixels": int}

OPERATIONS: dict[str, Operation] = {
    "scale": Operation(_scale, options={"factor": float}),
    "pad": Operation(_pad, options=PIXELS, sides=_padded),
    "standardize": Operation(_standardize, of_set=True),
    "subtract_mean": Operation(_subtract_mean, of_set=True),
    "standardize_image": Operation(_standardize_image),
    "central_crop": Operation(_central_crop, options=PIXELS, sides=_cropped),
    "random_crop": Operation(_central_crop, _random_crop, {**PIXELS, "padding": int}, _cropped),
    "random_flip": Operation(_as_it_is, _random_flip),
    "random_brightness": Operation(_as_it_is, _random_brightness, {"delta": float}),
    "random_contrast": Operation(_as_it_is, _random_contrast, {"lower": float, "upper": float}),
    "yuv": Operation(_yuv),
    "contrastive_normalization": Operation(_contrastive_normalization, of_set=True),
}


def check(steps: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InputError for an unknown treatment, an impossible order, a missing, unknown or impossible option."""
    drawn = ""
    for name, given in steps.items():
        if name not in OPERATIONS:
            raise PreprocessingError(
                f"training.preprocessing.{name}: no such treatment; there are {', '.join(OPERATIONS)}"
            )
        if drawn and OPERATIONS[name].of_set:
            raise PreprocessingError(
                f"training.preprocessing.{name}: takes statistics of the whole set, so it must stand before {drawn}"
            )
        drawn = drawn or (name if OPERATIONS[name].random else "")
        takes = OPERATIONS[name].options
        if set(given) != set(takes):
            raise PreprocessingError(
                f"training.preprocessing.{name}={dict(given)}: takes {', '.join(takes) or 'no options'}"
                f", given {', '.join(given) or 'none'}"
            )
        for key, kind in takes.items():
            value = given[key]
            what = "a number" if kind is float else "a whole number"
            number = isinstance(value, (int, float)) if kind is float else isinstance(value, int)
            if isinstance(value, bool) or not number or value < 0:
                raise PreprocessingError(f"training.preprocessing.{name}.{key}={value}: expected {what} of at least 0")
