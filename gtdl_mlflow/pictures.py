"""Pictures of a run, for MLflow's pages: learning curve, confusion matrix, roofline, inference by batch size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert
from mlflow.entities import Metric

from . import tables
from .peaks import Peak
from .report import charts

WIDTH = 480
"""Pixels of a picture."""

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
    header = ["true \\ predicted", *range(len(counts))]
    tables.write(table, header, ([true, *row] for true, row in enumerate(counts)))
    rows = [
        {"true": true, "predicted": predicted, "images": images, "share": images / (sum(row) or 1)}
        for true, row in enumerate(counts) for predicted, images in enumerate(row)
    ]  # fmt: skip
    _write(charts.confusion(rows, len(counts)), path)


def roofline(results: Mapping[str, float], peak: Peak, path: Path) -> None:
    """Where training and testing lie under what the machine can do."""
    points = [
        {"phase": phase, "intensity": results[f"{key}/flops_per_byte"], "gflops": results[f"{key}/gflops"],
         "share": results[f"{key}/peak_share_percent"]}
        for key, phase in (("train", "training"), ("test", "testing"))
    ]  # fmt: skip
    _write(charts.roofline(points, peak.flops_per_s / 1e9, peak.gb_per_s), path)


def inference(metrics: Sequence[Metric], framework: str, table: Path, path: Path) -> None:
    """Latency and throughput by the size of the batch that is classified, as CSV and as a picture."""
    sizes: dict[int, dict[str, float]] = {}
    for metric in metrics:
        if metric.key in INFERENCE:
            sizes.setdefault(metric.step, {})[metric.key.removeprefix("inference/")] = metric.value
    names = [key.removeprefix("inference/") for key in INFERENCE]
    written = ([size, *(f"{sizes[size][name]:.6g}" for name in names)] for size in sorted(sizes))
    tables.write(table, ["batch_size", *names], written)
    rows = [{"framework": framework, "batch": size, **sizes[size]} for size in sorted(sizes)]
    _write(charts.inference(rows), path)


def scaling(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Speed and efficiency by batch size and threads."""
    _write(charts.scaling(rows), path)


INFERENCE = tuple(f"inference/{name}" for name in ("p50_ms", "p90_ms", "p99_ms", "images_per_s", "samples"))
"""Metrics whose step is a batch size."""


def _write(specification: dict[str, Any], path: Path) -> None:
    """As SVG, which takes half as long to make as pixels do; black on white."""
    look = json.loads(json.dumps(specification).replace(f'"{charts.TEXT}"', f'"{INK}"'))
    look["config"]["background"] = "white"
    path.write_text(vl_convert.vegalite_to_svg({**look, "width": WIDTH}), encoding="utf-8")
