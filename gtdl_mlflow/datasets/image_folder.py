"""Reader of image files in a folder for each class, the layout of torchvision's ImageFolder.

If the data set has a ``split_seed``, the folders of the classes are side by side, and ``splits.py`` divides the images.
Otherwise they are in the folders ``train`` and ``test``. An archive may contain the folders. Labels follow the sorted
names of the classes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from .archives import ArchiveEntry
from .base import Arrays, DatasetError, FilesNotFound, Split
from .images import decode_all, decode_image, read_contents
from .source_files import entries, find_source, image_counts
from .splits import Rows, split_by_class

Labels = npt.NDArray[np.uint8]

IMAGE_NAME = re.compile(r"((?:.*/)?)([^/]+)/([^/]+\.(?i:bmp|jpe?g|p[gp]m|png))")
"""Folder above the class, class and file. Classes may differ in capital letters only, such as ``a`` and ``A``."""

SIZE_LIMIT = 2**26
"""Bytes of an image."""


class Image(NamedTuple):
    """Path of an image below the data set's folder."""

    above: str
    """Path of the folder in which that of the class is, with a slash at the end, or empty."""
    category: str
    file: str


def read(dataset: Dataset, folder: Path) -> Arrays:
    """Return the images, stretched to ``dataset.image_shape``, of the training and of the test set.

    The order of each set is random, so that sequential training does not get one class after the other, and always
    the same.

    Raises:
        FilesNotFound: there is no image.
        DatasetError: an image cannot be decoded or is not in the folder of a class, or the number of classes or of
            images is not that of ``dataset``.
    """
    channels = dataset.image_shape[2]
    if channels not in (1, 3):
        raise DatasetError(f"dataset.image_shape={dataset.image_shape}: expected 1 (grey) or 3 (colour) channels")
    images = sorted(image for image, _ in _entries(dataset, folder))
    source = find_source(dataset, folder)
    if not images:
        raise FilesNotFound(f"{dataset.name}: no image in {source}: put the images there")
    categories = sorted({image.category for image in images})
    if len(categories) != dataset.classes:
        found = ", ".join(categories[:3]) + (", ..." if len(categories) > 3 else "")
        raise DatasetError(f"{source}: {len(categories)} classes ({found}), expected dataset.classes={dataset.classes}")
    labels = np.array([categories.index(image.category) for image in images], np.uint8)
    divide = _published_split if dataset.split_seed is None else _random_split
    rows = divide(dataset, images, labels, source)
    parts = [[images[row] for row in part] for part in rows]
    train, test = decode_all(
        _entries(dataset, folder),
        parts,
        lambda entry: decode_image(read_contents(entry, SIZE_LIMIT, "remove it"), entry.where, channels),
        dataset.image_shape,
        source,
    )
    split = Split(*([f"{image.above}{image.category}/{image.file}" for image in part] for part in parts))
    return Arrays(train, labels[rows[0]], test, labels[rows[1]], split)


def _entries(dataset: Dataset, folder: Path) -> Iterator[tuple[Image, ArchiveEntry]]:
    for match, entry in entries(dataset, folder, IMAGE_NAME):
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise DatasetError(f"{entry.where}: the name is not UTF-8; rename the file or the folder") from None
        yield Image(*match.groups()), entry


def _random_split(dataset: Dataset, images: list[Image], labels: Labels, source: Path) -> tuple[Rows, Rows]:
    above = sorted({image.above for image in images})
    if len(above) > 1:
        raise DatasetError(
            f"{source}: folders of classes in {', '.join(each or './' for each in above[:3])}, expected in one folder; "
            "for a split into train/ and test/, state dataset.train_images and dataset.test_images instead of "
            "dataset.split_seed, dataset.train_per_class and dataset.test_per_class"
        )
    category, count = min(Counter(image.category for image in images).items(), key=lambda each: each[1])
    if count < 2:
        raise DatasetError(
            f"{source}: 1 image of the class {category}, which needs one for training and one for testing"
        )
    return split_by_class(labels, dataset)


def _published_split(dataset: Dataset, images: list[Image], labels: Labels, source: Path) -> tuple[Rows, Rows]:
    above = sorted({image.above for image in images})
    root = above[0].removesuffix("test/")
    if above != [f"{root}test/", f"{root}train/"]:
        raise DatasetError(
            f"{source}: folders of classes in {', '.join(each or './' for each in above[:3])}, expected in train/ and "
            "test/; for a random split, set dataset.split_seed, dataset.train_per_class and dataset.test_per_class "
            "instead of dataset.train_images and dataset.test_images"
        )
    folders = np.array([image.above for image in images])
    test, train = (np.flatnonzero(folders == each) for each in above)
    found, expected = (len(train), len(test)), image_counts(dataset)
    if found != expected:
        raise DatasetError(
            f"{source}: {found[0]} images for training and {found[1]} for testing, expected "
            f"dataset.train_images={expected[0]} and dataset.test_images={expected[1]}"
        )
    if untrained := set(labels[test]) - set(labels[train]):
        category = next(image.category for image, label in zip(images, labels, strict=True) if label in untrained)
        raise DatasetError(f"{source}: no image of the class {category} in train/")
    shuffle = np.random.RandomState(0)
    return shuffle.permutation(train), shuffle.permutation(test)
