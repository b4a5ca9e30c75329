"""Scores of a classification, compared with their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gtdl_mlflow.worker import scores

LABELS = np.array([0, 0, 0, 0, 2, 2, 5], np.uint8)
CORRECT = np.array([1, 1, 1, 0, 1, 0, 1], bool)


def test_mean_class_accuracy_weights_every_class_equally() -> None:
    assert scores.mean_class_accuracy(CORRECT, LABELS) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)


def test_headline_accuracy_is_overall_or_mean_per_class() -> None:
    assert scores.accuracy(CORRECT, LABELS, mean_per_class=False) == pytest.approx(5 / 7)
    assert scores.accuracy(CORRECT, LABELS, mean_per_class=True) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)


def test_top_accuracy_counts_labels_among_the_highest_scores() -> None:
    logits = np.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
    assert scores.top_accuracy(logits, np.array([0, 1, 2]), 1) == pytest.approx(1 / 3)
    assert scores.top_accuracy(logits, np.array([0, 1, 2]), 2) == pytest.approx(2 / 3)


def test_confusion_matrix_has_true_classes_as_rows() -> None:
    counts = scores.confusion_matrix(np.array([0, 0, 1, 2], np.uint8), np.array([0, 2, 1, 2]), 3)
    assert counts == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]


def test_cross_entropy_equals_its_definition() -> None:
    logits = np.array([[1.0, 2, 3], [-1, 0, 0.5], [4, 4, 4]], np.float32)
    labels = np.array([2, 0, 1])
    each = [
        -math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row, label in zip(logits, labels, strict=True)
    ]
    assert scores.cross_entropy(logits, labels) == pytest.approx(sum(each) / 3, rel=1e-12)


def test_cross_entropy_of_large_logits_does_not_overflow() -> None:
    assert scores.cross_entropy(np.array([[1e4, 0]], np.float32), np.array([1])) == 1e4
    assert scores.cross_entropy(np.array([[1e30, -1e30]], np.float32), np.array([0])) == 0
