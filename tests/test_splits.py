"""Splits and limits by class, compared with slow, simple implementations."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.data_files import configured

from gtdl_mlflow.datasets.splits import balanced_rows, split_by_class


@pytest.mark.parametrize(
    ("images", "train", "test"),
    [(2, 1, 1), (3, 1, 2), (5, 3, 2), (25, 15, 10), (30, 18, 12), (31, 30, 1), (80, 30, 50), (800, 30, 50)],
)
def test_classes_are_divided_by_the_configured_numbers(images: int, train: int, test: int) -> None:
    labels = np.repeat(np.array([0, 1], np.uint8), [images, 40])
    rows = split_by_class(labels, configured("caltech101"))
    assert [int((labels[part] == 0).sum()) for part in rows] == [train, test]
    assert [int((labels[part] == 1).sum()) for part in rows] == [30, 10]
    assert len(np.unique(np.concatenate(rows))) == train + test + 40


def test_split_of_a_class_does_not_depend_on_other_classes() -> None:
    dataset = configured("caltech101")
    few, many = (np.repeat(np.array([3, 7], np.uint8), [25, count]) for count in (25, 60))
    for part in (0, 1):
        with_few, with_many = (split_by_class(labels, dataset)[part] for labels in (few, many))
        assert sorted(with_few[with_few < 25]) == sorted(with_many[with_many < 25])


def test_split_is_random() -> None:
    train, _ = split_by_class(np.zeros(1000, np.uint8), configured("caltech101"))
    assert train.max() > 800
    assert train.min() < 200


@pytest.mark.parametrize("limit", [1, 2, 3, 40, 100, 299, 300, 301])
def test_limit_takes_equally_many_images_per_class(limit: int) -> None:
    labels = np.random.RandomState(1).choice(np.array([0, 1, 1, 1, 5], np.uint8), 300)
    expected: list[int] = []
    remaining = {label: [row for row in range(300) if labels[row] == label] for label in np.unique(labels)}
    while len(expected) < min(limit, 300):
        turn = [rows.pop(0) for rows in remaining.values() if rows]
        # In the last turn, the first ones of the data set.
        expected += sorted(turn)[: limit - len(expected)]
    assert balanced_rows(labels, limit).tolist() == sorted(expected)


def test_all_images_are_used_without_a_limit() -> None:
    assert balanced_rows(np.array([1, 1, 0], np.uint8), None).tolist() == [0, 1, 2]
