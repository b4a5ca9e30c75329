"""The quality gate: a training that did not learn is recognized, and the reason is true."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.project import Command, runs
from mlflow.entities import Metric

from gtdl_mlflow.tracking.quality import quality

BALANCED = [1000] * 10
GOOD = np.diag(BALANCED)


def constant(sizes: list[int], predicted: int) -> np.ndarray:
    """Return the confusion matrix of a model that answers ``predicted`` for every image."""
    counts = np.zeros((len(sizes), len(sizes)), int)
    counts[:, predicted] = sizes
    return counts


def correct(sizes: list[int], shares: float | list[float]) -> np.ndarray:
    """Return a confusion matrix with these shares of correct answers per class; the others are the next class."""
    right = np.rint(np.array(sizes) * shares).astype(int)
    return np.diag(right) + np.roll(np.diag(sizes - right), 1, axis=1)


def judged(losses: list[float], confusion: np.ndarray = GOOD, **others: float) -> str:
    metrics = [Metric("train/loss", loss, 0, step) for step, loss in enumerate(losses)]
    metrics += [Metric(name.replace("__", "/"), value, 0, 0) for name, value in others.items()]
    return quality(metrics, confusion.tolist())


@pytest.mark.parametrize(
    ("losses", "test_loss", "result"),
    [
        ([2.0, 1.0], 0.5, "ok"),
        ([0.5], 0.5, "ok"),
        ([], 0.5, "ok"),  # early stopping may end a training at an evaluation
        ([2.0, math.nan], 0.5, "the loss is not finite"),
        ([math.inf, 0.5], 0.5, "the loss is not finite"),
        ([math.nan], 0.5, "the loss is not finite"),
        ([0.5], math.nan, "the loss is not finite"),
        ([1.0, 2.0], 0.5, "the loss does not fall"),
        ([1.0, 1.0], 0.5, "the loss does not fall"),
        ([9.0, 2.6], 0.5, "the final loss is above that of guessing"),  # ln(10) is 2.303
        ([9.0, 2.4], 0.5, "ok"),
        ([2.6], 2.6, "the final loss is above that of guessing"),
        ([2.6], 0.5, "ok"),  # a mean from the first step on, and a model that has learned
        ([0.5], 4.0, "ok"),  # overfitted
        ([1e30], 0.5, "the loss is more than 10 times that of guessing"),
        ([2e5], 3e5, "the loss is more than 10 times that of guessing"),
        ([2.0, 1.0], 24.0, "the loss is more than 10 times that of guessing"),
    ],
)
def test_losses_are_judged(losses: list[float], test_loss: float, result: str) -> None:
    assert judged(losses, test__loss=test_loss) == result


def test_loss_of_guessing_depends_on_the_number_of_classes() -> None:
    confusion = np.diag([10] * 100)
    assert judged([9.0, 4.9], confusion) == "ok"  # ln(100) is 4.605
    assert judged([9.0, 5.2], confusion) == "the final loss is above that of guessing"


MNIST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize("sizes", [MNIST, BALANCED, [2] * 40])
def test_model_with_one_answer_fails_whatever_the_answer_is(sizes: list[int]) -> None:
    for answer in range(len(sizes)):
        counts = constant(sizes, answer)
        assert judged([0.7, 0.6], counts) == "all test images are classified as the same class"


@pytest.mark.parametrize(
    ("sizes", "shares", "result"),
    [
        (MNIST, 0.10, "chance"),
        (MNIST, 0.118, "chance"),  # the largest class has 11.35 %; three standard deviations are 0.95 %
        (MNIST, 0.125, "ok"),
        (BALANCED, 0.105, "chance"),
        (BALANCED, 0.11, "ok"),  # 10 % + 0.9 %
        ([900, 100], 0.91, "chance"),
        ([900, 100], 0.94, "ok"),
        ([5] * 4, 0.4, "chance"),  # 20 images: three standard deviations are 29 %
        ([5] * 4, 0.6, "ok"),
    ],
)
def test_accuracy_must_exceed_the_largest_class_by_the_sampling_error(
    sizes: list[int], shares: float, result: str
) -> None:
    expected = {"ok": "ok", "chance": "the accuracy is no better than chance"}
    assert judged([0.7, 0.6], correct(sizes, shares)) == expected[result]


def test_metric_that_is_not_a_number_is_named() -> None:
    assert judged([2.0, 1.0], training_time_s=math.nan) == "training_time_s is not finite"
    assert judged([2.0, 1.0], worker__peak_gpu_memory_mb=math.inf) == "worker/peak_gpu_memory_mb is not finite"
    assert judged([2.0, 1.0], system__gpu_0_power_usage_watts=math.nan) == "ok"  # not the run's own value


def test_run_without_a_confusion_matrix_does_not_pass() -> None:
    assert quality([Metric("train/loss", 1.0, 0, 0)], []) == "no confusion matrix"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_training_that_diverges_does_not_pass(gtdl: Command, store: str, seed: int) -> None:
    done = gtdl("framework=reference", "training.epochs=1", "training.learning_rate=1000", f"seed={seed}")
    assert done.returncode == 0, done.stderr
    (run,) = runs(store)
    assert run.data.tags["gtdl.quality"] == "the loss is more than 10 times that of guessing"
