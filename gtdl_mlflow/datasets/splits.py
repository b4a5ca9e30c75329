"""Which images are for training and which for testing where the publisher does not say; and fewer of either.

The split is random, but fixed by ``dataset.split_seed``, and even by class. Of each class, ``dataset.train_per_class`` are
for training, and of the rest at most ``dataset.test_per_class`` for testing. A class that has no more than ``train_per_class``
gives three fifths of them, rounded down, to training: of Caltech-101 with 25 images a category, 15 and 10.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from .base import Arrays, Split

Rows = npt.NDArray[np.intp]


def by_class(labels: npt.NDArray[np.uint8], dataset: Dataset) -> tuple[Rows, Rows]:
    """Rows of ``labels`` (N,) for training and for testing, each in mixed order; every class needs two images."""
    seed, train_per_class, test_per_class = dataset.split_seed, dataset.train_per_class, dataset.test_per_class
    assert seed is not None
    assert train_per_class is not None
    assert test_per_class is not None
    train, test = [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        # RandomState, not default_rng: NumPy's policy (NEP 19) freezes its stream, so every release draws the same.
        # One for each class, so that another copy of the data set differs only where its classes do.
        rows = np.random.RandomState([seed, label]).permutation(rows)
        count = train_per_class if len(rows) > train_per_class else len(rows) * 3 // 5
        train.append(rows[:count])
        test.append(rows[count : count + test_per_class])
    # Mixed, so that sequential training does not see class after class.
    mix = np.random.RandomState(seed)
    return mix.permutation(np.concatenate(train)), mix.permutation(np.concatenate(test))


def limited(arrays: Arrays, dataset: Dataset) -> Arrays:
    """No more than ``dataset.train_limit`` and ``dataset.test_limit`` images, in the same order."""
    if dataset.train_limit is None and dataset.test_limit is None:
        return arrays
    train, test = even(arrays.train_labels, dataset.train_limit), even(arrays.test_labels, dataset.test_limit)
    split = arrays.split and Split([arrays.split.train[row] for row in train], [arrays.split.test[row] for row in test])
    return Arrays(
        train_images=arrays.train_images[train],
        train_labels=arrays.train_labels[train],
        test_images=arrays.test_images[test],
        test_labels=arrays.test_labels[test],
        split=split,
    )


def even(labels: npt.NDArray[np.uint8], limit: int | None) -> Rows:
    """At most ``limit`` rows of ``labels`` (N,), rising: of each class its first ones, as many as of any other.

    Where that does not come out even, some have one more. A class that has fewer gives what it has, and the others make
    up for it. All rows if there is no limit.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    number_in_class = np.empty(len(labels), np.intp)
    number_in_class[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.sort(np.argsort(number_in_class, kind="stable")[:limit])
