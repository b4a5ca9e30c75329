"""The quality gate: rules that a run must pass before its times count."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from mlflow.entities import Metric


def quality(metrics: Iterable[Metric], classes: int) -> str:
    """Return ``ok``, or the rule that the run failed. The times of a training that did not learn mean nothing."""
    every = list(metrics)
    losses = [metric.value for metric in every if metric.key == "train/loss"]
    accuracy = [metric.value for metric in every if metric.key == "accuracy_percent"][-1]
    if not np.isfinite(losses).all():
        return "the loss is not finite"
    if len(losses) > 1 and losses[-1] >= losses[0]:
        return "the loss does not fall"
    if accuracy <= 100 / classes:
        return "the accuracy is no better than chance"
    return "ok"
