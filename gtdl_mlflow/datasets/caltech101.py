"""Reader of Caltech-101: a folder of JPEG images per category. The folder BACKGROUND_Google is no category.

Copies of different sizes are in use; the publisher's has 31 to 800 images per category. All must have the 101
categories. Labels follow the order of the category names, capital letters first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from .base import REMEDY, Arrays, DatasetError, Split
from .images import decode_jpeg, resize
from .source_files import entries, find_source
from .splits import split_by_class

ENTRY_NAME = re.compile(r"(?:.*/)?101_ObjectCategories/(?!BACKGROUND_Google/)([\w-]+)/(?:([\w-]+)\.jpg)?", re.ASCII)
"""Folder of a category, or an image in it."""

SIZE_LIMIT = 8 * 2**20
"""Bytes of an image; they have about 15,000."""

ImageName = tuple[str, str]
"""Category and file name without ``.jpg``."""


def read(dataset: Dataset, folder: Path) -> Arrays:
    """Return the images, stretched to ``dataset.image_shape`` and split by category."""
    if dataset.image_shape[2] != 3:
        raise DatasetError(f"dataset.image_shape={dataset.image_shape}: images of {dataset.name} have 3 channels")
    images, labels = _list_images(dataset, folder)
    train, test = split_by_class(labels, dataset)
    positions = {images[row]: (array, at) for array, rows in enumerate((train, test)) for at, row in enumerate(rows)}
    pixels = tuple(np.empty((len(rows), *dataset.image_shape), np.uint8) for rows in (train, test))
    _decode(dataset, folder, positions, pixels)
    train_names, test_names = (["/".join(images[row]) + ".jpg" for row in rows] for rows in (train, test))
    return Arrays(pixels[0], labels[train], pixels[1], labels[test], Split(train_names, test_names))


def _list_images(dataset: Dataset, folder: Path) -> tuple[list[ImageName], npt.NDArray[np.uint8]]:
    """Return all images sorted by category and name, and their labels (N,)."""
    categories: dict[str, list[ImageName]] = {}
    for match, _ in entries(dataset, folder, ENTRY_NAME):
        names = categories.setdefault(match[1], [])
        if match[2]:
            names.append((match[1], match[2]))
    source = find_source(dataset, folder)
    if len(categories) != dataset.classes:
        raise DatasetError(f"{source}: {len(categories)} categories, expected {dataset.classes}; {REMEDY}")
    for category, names in sorted(categories.items()):
        if len(names) < 2:
            raise DatasetError(
                f"{source}: {len(names)} image(s) in the category {category}, which needs one for training and one for "
                f"testing; {REMEDY}"
            )
    images = [image for category in sorted(categories) for image in sorted(categories[category])]
    labels = [label for label, category in enumerate(sorted(categories)) for _ in categories[category]]
    return images, np.array(labels, np.uint8)


def _decode(
    dataset: Dataset,
    folder: Path,
    positions: dict[ImageName, tuple[int, int]],
    pixels: Sequence[npt.NDArray[np.uint8]],
) -> None:
    """Decode each image in ``positions``, an index of ``pixels`` and a row of that array, into that row."""
    height, width, _ = dataset.image_shape
    for match, entry in entries(dataset, folder, ENTRY_NAME):
        if (match[1], match[2]) in positions:
            array, row = positions.pop((match[1], match[2]))
            contents = entry.read(SIZE_LIMIT)
            if len(contents) > SIZE_LIMIT:
                raise DatasetError(f"{entry.where}: more than {SIZE_LIMIT:,} bytes for one image; {REMEDY}")
            pixels[array][row] = resize(decode_jpeg(contents, entry.where), height, width)
    if positions:
        raise DatasetError(f"{find_source(dataset, folder)}: changed while it was read; run the command again")
