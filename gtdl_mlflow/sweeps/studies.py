"""The conclusion of a sweep: how the frameworks scale with threads and batch size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from .. import console, files, tags
from ..reporting.intervals import summarize

SCALING_TABLE, SCALING_CHART = "scaling.csv", "scaling.svg"
"""Files of the study."""

SPEED = "train/steady_state_images_per_s"


@dataclass(frozen=True)
class StudyResult:
    """The result of a study: text, files and metrics of the parent run."""

    text: str
    artifacts: list[str] = field(default_factory=list)
    """Files in the sweep's folder."""
    metrics: dict[str, float] = field(default_factory=dict)
    series: dict[str, Sequence[float]] = field(default_factory=dict)
    """Metrics of the parent run with a value per step, from step 0."""


def scaling(runs: Iterable[Run], folder: Path) -> StudyResult | None:
    """Evaluate the finished runs of a sweep: training and testing throughput by threads and batch size.

    Writes the study's files to ``folder``; returns None if no run has finished.
    """
    rows = scaling_rows([run for run in runs if run.info.status == "FINISHED" and SPEED in run.data.metrics])
    if not rows:
        return None
    header = list(rows[0])
    files.write_csv(folder / SCALING_TABLE, header, [[_format(row[name]) for name in header] for row in rows])
    from .. import charts  # takes a second to import

    charts.scaling(rows, folder / SCALING_CHART)
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        key = row["framework"], row["threads"]
        if key not in best or row["train_images_per_s"] > best[key]["train_images_per_s"]:
            best[key] = row
    columns = ["framework", "threads", "batch_size", "train_images_per_s", "speed_up", "efficiency_percent"]
    table = console.aligned([columns, *([_format(row[name]) for name in columns] for row in best.values())])
    title = "fastest batch size for each framework and number of threads:"
    return StudyResult("\n".join([title, *table]), [SCALING_TABLE, SCALING_CHART])


def scaling_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row per framework, number of threads and batch size, with the medians of the repeats.

    ``speed_up`` is relative to one thread with the same batch size, and ``efficiency_percent`` is ``speed_up`` over the
    number of threads. Both are None if one thread was not measured.
    """
    groups: dict[tuple[str, int, int], list[Run]] = defaultdict(list)
    for run in runs:
        params = run.data.params
        key = run.data.tags[tags.FRAMEWORK], int(params["hardware.threads"]), int(params["training.batch_size"])
        groups[key].append(run)
    train = {key: _median(repeats, SPEED) for key, repeats in groups.items()}
    rows = []
    for key, repeats in sorted(groups.items()):
        framework, threads, batch_size = key
        one_thread = train.get((framework, 1, batch_size))
        speed_up = train[key] / one_thread if one_thread else None
        rows.append(
            {
                "framework": framework,
                "threads": threads,
                "batch_size": batch_size,
                "train_images_per_s": train[key],
                "test_images_per_s": _median(repeats, "test/images_per_s"),
                "speed_up": speed_up,
                "efficiency_percent": None if speed_up is None else 100 * speed_up / threads,
            }
        )
    return rows


def _median(runs: Iterable[Run], metric: str) -> float:
    return summarize([run.data.metrics[metric] for run in runs]).center


def _format(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
