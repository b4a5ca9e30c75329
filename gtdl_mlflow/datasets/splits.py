"""Divide images into training and test images where the publisher does not, and reduce their numbers.

The split is random and fixed by ``dataset.split_seed``. In each class, ``dataset.train_per_class`` images are for
training and at most ``dataset.test_per_class`` of the others for testing. A class with ``train_per_class`` images or
fewer uses three fifths of them, rounded down, for training (for example 15 of 25 images).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from .base import Arrays, Split

Rows = npt.NDArray[np.intp]


def split_by_class(labels: npt.NDArray[np.uint8], dataset: Dataset) -> tuple[Rows, Rows]:
    """Return the rows of ``labels`` (N,) for training and for testing, shuffled. Each class needs two images."""
    seed, train_per_class, test_per_class = dataset.split_seed, dataset.train_per_class, dataset.test_per_class
    assert seed is not None
    assert train_per_class is not None
    assert test_per_class is not None
    train, test = [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        # RandomState, not default_rng: NumPy's policy (NEP 19) freezes its stream, so every release draws the same.
        # One stream per class, so that another copy of the data set differs only where its classes do.
        rows = np.random.RandomState([seed, label]).permutation(rows)
        count = train_per_class if len(rows) > train_per_class else len(rows) * 3 // 5
        train.append(rows[:count])
        test.append(rows[count : count + test_per_class])
    # Shuffled, so that sequential training does not get one class after the other.
    shuffle = np.random.RandomState(seed)
    return shuffle.permutation(np.concatenate(train)), shuffle.permutation(np.concatenate(test))


def limit_images(arrays: Arrays, dataset: Dataset) -> Arrays:
    """Return at most ``dataset.train_limit`` and ``dataset.test_limit`` images, in the same order."""
    if dataset.train_limit is None and dataset.test_limit is None:
        return arrays
    train = balanced_rows(arrays.train_labels, dataset.train_limit)
    test = balanced_rows(arrays.test_labels, dataset.test_limit)
    split = arrays.split and Split([arrays.split.train[row] for row in train], [arrays.split.test[row] for row in test])
    return Arrays(
        train_images=arrays.train_images[train],
        train_labels=arrays.train_labels[train],
        test_images=arrays.test_images[test],
        test_labels=arrays.test_labels[test],
        split=split,
    )


def balanced_rows(labels: npt.NDArray[np.uint8], limit: int | None) -> Rows:
    """Return at most ``limit`` rows of ``labels`` (N,), ascending: the first ones of each class, equally many.

    The numbers differ by one if ``limit`` is not a multiple of the number of classes. If a class has too few rows, the
    others give more. Without a limit, all rows are returned.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    number_in_class = np.empty(len(labels), np.intp)
    number_in_class[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.sort(np.argsort(number_in_class, kind="stable")[:limit])
