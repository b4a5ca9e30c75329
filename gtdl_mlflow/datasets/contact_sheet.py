"""Draw sample images of a data set."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from .prepared import PreparedDataset

FEW_CLASSES = 20
"""Largest number of classes for which each class has a row of its own."""


def write(data: PreparedDataset, path: Path) -> None:
    """Write a PNG with the first training images of each class, in the order of the classes.

    Each class is a strip of 10 images; with more than ``FEW_CLASSES`` classes, of 4, and a row has 4 strips.
    """
    images = np.load(data.folder / "train_images.npy", mmap_mode="r")
    labels = np.load(data.folder / "train_labels.npy", mmap_mode="r")
    height, width, channels = data.image_shape
    per_class, strips = (10, 1) if data.classes <= FEW_CLASSES else (4, 4)
    rows = math.ceil(data.classes / strips)
    # One pixel between images, four more between the strips of a row.
    strip_width = per_class * (width + 1) + 4
    sheet = np.full((rows * (height + 1), strips * strip_width, channels), 255, np.uint8)
    for label in range(data.classes):
        top, left = label % rows * (height + 1), label // rows * strip_width
        for position, index in enumerate(np.flatnonzero(labels == label)[:per_class]):
            start = left + position * (width + 1)
            sheet[top : top + height, start : start + width] = images[index]
    Image.fromarray(sheet.squeeze()).save(path)
