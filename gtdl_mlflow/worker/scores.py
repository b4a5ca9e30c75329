"""Scores of a classification, in NumPy: the same code for every framework."""

from __future__ import annotations

import numpy as np


def accuracy(correct: np.ndarray, labels: np.ndarray, mean_per_class: bool) -> float:
    """Return the headline accuracy, 0 to 1.

    ``correct`` (N,) marks the images that are classified correctly. With ``mean_per_class``, the usual protocol of
    Caltech-101, the result is ``mean_class_accuracy``; otherwise it is the share of correct images.
    """
    return mean_class_accuracy(correct, labels) if mean_per_class else float(correct.mean())


def mean_class_accuracy(correct: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the per-class accuracies, 0 to 1, over the classes that occur in ``labels`` (N,).

    ``correct`` (N,) marks the images that are classified correctly.
    """
    counts = np.bincount(labels)
    shares = np.bincount(labels, weights=correct)[counts > 0] / counts[counts > 0]
    return float(shares.mean())


def top_accuracy(logits: np.ndarray, labels: np.ndarray, count: int) -> float:
    """Return the share of images whose class is among the ``count`` highest ``logits`` (N, classes), 0 to 1."""
    highest = np.argsort(-logits, axis=1)[:, :count]
    return float((highest == labels[:, None]).any(axis=1).mean())


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean softmax cross-entropy of ``logits`` (N, classes) and ``labels`` (N,) in nats, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> list[list[int]]:
    """Return the confusion matrix: the number of images by true class (rows) and predicted class (columns)."""
    cells = np.bincount(classes * labels.astype(np.intp) + predicted, minlength=classes**2)
    counts: list[list[int]] = cells.reshape(classes, classes).tolist()
    return counts
