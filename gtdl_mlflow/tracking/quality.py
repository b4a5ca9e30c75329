"""The quality gate: rules that a run must pass before its times count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from mlflow.entities import Metric

LOSS_MARGIN = 1.1
"""Multiple of the loss of guessing, ln(classes), above which the final training loss is a failure. A network that has
learned nothing yet fluctuates by a few percent around ln(classes).
"""

HUGE_LOSS = 10
"""Multiple of ln(classes) above which the last training loss or the test loss is a failure. An overfitted network
whose accuracy is good can have a test loss of two or three times ln(classes).
"""

SIGMAS = 3
"""Standard deviations by which the accuracy must exceed that of a constant answer. In the normal approximation of the
binomial distribution (NIST/SEMATECH e-Handbook of Statistical Methods, section 7.2.4), guessing exceeds them once in
740 runs.
"""


def quality(metrics: Iterable[Metric], confusion: Sequence[Sequence[int]]) -> str:
    """Return ``ok``, or the first rule that the run failed. The times of a training that did not learn mean nothing.

    ``confusion`` is the number of test images by true class (outer list) and predicted class (inner lists).
    """
    counts = np.array(confusion, dtype=np.int64)
    if counts.ndim != 2 or not counts.sum():
        return "no confusion matrix"
    every = list(metrics)
    return _loss_rule(every, math.log(max(len(counts), 2))) or _accuracy_rule(counts) or _finite_rule(every) or "ok"


def _loss_rule(metrics: list[Metric], guessing: float) -> str:
    """Return the rule that the losses break; empty if they break none. ``guessing`` is ln(classes)."""
    losses = [metric.value for metric in metrics if metric.key == "train/loss"]
    test_losses = [metric.value for metric in metrics if metric.key == "test/loss"]
    if not np.isfinite([*losses, *test_losses]).all():
        return "the loss is not finite"
    if max([*losses[-1:], *test_losses], default=0.0) > HUGE_LOSS * guessing:
        return f"the loss is more than {HUGE_LOSS} times that of guessing"
    # The only loss of a short training is a mean from its first step on. The test loss is that of the final model.
    final = losses[-1:] if len(losses) > 1 else [min([*losses, *test_losses])] if losses else []
    if final and final[0] > LOSS_MARGIN * guessing:
        return "the final loss is above that of guessing"
    if len(losses) > 1 and losses[-1] >= losses[0]:
        return "the loss does not fall"
    return ""


def _accuracy_rule(counts: np.ndarray) -> str:
    """Return the rule that the confusion matrix breaks; empty if it breaks none."""
    if np.count_nonzero(counts.sum(axis=0)) == 1:
        return "all test images are classified as the same class"
    total = counts.sum()
    largest = counts.sum(axis=1).max() / total
    chance = largest + SIGMAS * math.sqrt(largest * (1 - largest) / total)
    return "the accuracy is no better than chance" if np.trace(counts) / total <= chance else ""


def _finite_rule(metrics: list[Metric]) -> str:
    """Return the first metric of the worker that is NaN or infinite; empty if there is no such metric."""
    own = [metric for metric in metrics if not metric.key.startswith("system/")]
    return next((f"{metric.key} is not finite" for metric in own if not math.isfinite(metric.value)), "")
