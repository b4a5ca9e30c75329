"""Caltech-101: a folder of JPEG images for each category; the folder BACKGROUND_Google is none, and is left out.

It comes in copies of different sizes: the publisher's has 31 to 800 images a category. What all of them must have is
the 101 categories. They are labelled in the order of their names, capital letters first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from .base import REMEDY, Arrays, DatasetError, Split
from .images import jpeg, resized
from .source_files import entries, place
from .splits import by_class

WANTED = re.compile(r"(?:.*/)?101_ObjectCategories/(?!BACKGROUND_Google/)([\w-]+)/(?:([\w-]+)\.jpg)?", re.ASCII)
"""A category's folder, or an image in it."""

SIZE_LIMIT = 8 * 2**20
"""Bytes of an image; they have about 15,000."""

Image = tuple[str, str]
"""Its category and its name."""


def read(dataset: Dataset, folder: Path) -> Arrays:
    """The images in the size of ``dataset.image_shape``, stretched to it, split by category."""
    if dataset.image_shape[2] != 3:
        raise DatasetError(f"dataset.image_shape={dataset.image_shape}: images of {dataset.name} have 3 channels")
    images, labels = _listed(dataset, folder)
    train, test = by_class(labels, dataset)
    chosen = {images[row]: (array, at) for array, rows in enumerate((train, test)) for at, row in enumerate(rows)}
    pixels = tuple(np.empty((len(rows), *dataset.image_shape), np.uint8) for rows in (train, test))
    _decode(dataset, folder, chosen, pixels)
    train_names, test_names = (["/".join(images[row]) + ".jpg" for row in rows] for rows in (train, test))
    return Arrays(pixels[0], labels[train], pixels[1], labels[test], Split(train_names, test_names))


def _listed(dataset: Dataset, folder: Path) -> tuple[list[Image], npt.NDArray[np.uint8]]:
    """All images in the order of their names, and their labels."""
    categories: dict[str, list[Image]] = {}
    for match, _ in entries(dataset, folder, WANTED):
        found = categories.setdefault(match[1], [])
        if match[2]:
            found.append((match[1], match[2]))
    where = place(dataset, folder)
    if len(categories) != dataset.classes:
        raise DatasetError(f"{where}: {len(categories)} categories, expected {dataset.classes}; {REMEDY}")
    for category, found in sorted(categories.items()):
        if len(found) < 2:
            raise DatasetError(
                f"{where}: {len(found)} image(s) in the category {category}, which needs one for training and one for "
                f"testing; {REMEDY}"
            )
    images = [image for category in sorted(categories) for image in sorted(categories[category])]
    labels = [label for label, category in enumerate(sorted(categories)) for _ in categories[category]]
    return images, np.array(labels, np.uint8)


def _decode(
    dataset: Dataset,
    folder: Path,
    chosen: dict[Image, tuple[int, int]],
    pixels: Sequence[npt.NDArray[np.uint8]],
) -> None:
    """Put each chosen image into its array, at its place; the others are not even unpacked where that can be helped."""
    height, width, _ = dataset.image_shape
    for match, entry in entries(dataset, folder, WANTED):
        if (match[1], match[2]) in chosen:
            array, at = chosen.pop((match[1], match[2]))
            content = entry.read(SIZE_LIMIT)
            if len(content) > SIZE_LIMIT:
                raise DatasetError(f"{entry.where}: more than {SIZE_LIMIT:,} bytes for one image; {REMEDY}")
            pixels[array][at] = resized(jpeg(content, entry.where), height, width)
    if chosen:
        raise DatasetError(f"{place(dataset, folder)}: changed while it was read")
