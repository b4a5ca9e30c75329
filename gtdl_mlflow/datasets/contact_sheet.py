"""A picture of a data set: a few training images of every class."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from .prepare import PreparedDataset

FEW_CLASSES = 20
"""Up to so many a class has a row of its own."""


def write(data: PreparedDataset, path: Path) -> None:
    """A PNG of the first training images of each class, class after class: each a strip of 10 or of 4."""
    images = np.load(data.folder / "train_images.npy", mmap_mode="r")
    labels = np.load(data.folder / "train_labels.npy", mmap_mode="r")
    height, width, channels = data.image_shape
    each, across = (10, 1) if data.classes <= FEW_CLASSES else (4, 4)
    down = math.ceil(data.classes / across)
    # A line of one pixel between images, a wider one between the strips of a row.
    strip = each * (width + 1) + 4
    sheet = np.full((down * (height + 1), across * strip, channels), 255, np.uint8)
    for label in range(data.classes):
        top, left = label % down * (height + 1), label // down * strip
        for place, index in enumerate(np.flatnonzero(labels == label)[:each]):
            start = left + place * (width + 1)
            sheet[top : top + height, start : start + width] = images[index]
    Image.fromarray(sheet.squeeze()).save(path)
