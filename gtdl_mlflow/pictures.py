"""Two pictures of a run, for MLflow's pages: its learning curve and its confusion matrix."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vl_convert
from mlflow.entities import Metric

from .report import charts

WIDTH = 480
"""Pixels of a picture, before SCALE."""

SCALE = 2.0
"""So many real pixels for one: screens have them."""

INK = "#24292f"


def learning_curve(metrics: Sequence[Metric], framework: str, path: Path) -> None:
    """Test accuracy against training time: every look during training, and the end."""
    looks = {metric.step: metric.value for metric in metrics if metric.key == "eval/accuracy_percent"}
    times = {metric.step: metric.value for metric in metrics if metric.key == "train/elapsed_s"}
    last = {metric.key: metric.value for metric in metrics}
    points = [(times[step], looks[step]) for step in sorted(looks) if step in times]
    points.append((last["training_time_s"], last["accuracy_percent"]))
    rows = [{"framework": framework, "seconds": seconds, "accuracy": accuracy} for seconds, accuracy in points]
    _write(charts.curves(rows, "seconds", "training time, s", "accuracy", "test accuracy, %"), path)


def confusion_matrix(counts: Sequence[Sequence[int]], table: Path, path: Path) -> None:
    """Test images by their true class (rows) and the predicted one (columns), as CSV and as a picture."""
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *range(len(counts))])
        writer.writerows([true, *row] for true, row in enumerate(counts))
    rows = [
        {"true": true, "predicted": predicted, "images": images, "share": images / (sum(row) or 1)}
        for true, row in enumerate(counts) for predicted, images in enumerate(row)
    ]  # fmt: skip
    _write(charts.confusion(rows, len(counts)), path)


def _write(specification: dict[str, Any], path: Path) -> None:
    """As PNG on white, black on it."""
    look = json.loads(json.dumps(specification).replace(f'"{charts.TEXT}"', f'"{INK}"'))
    look["config"]["background"] = "white"
    path.write_bytes(vl_convert.vegalite_to_png({**look, "width": WIDTH}, scale=SCALE))
