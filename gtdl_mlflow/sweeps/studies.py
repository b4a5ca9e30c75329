"""The conclusion of a sweep: how repeatable a machine's times are, and how the frameworks scale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from .. import console, files, tags
from ..config import Study
from ..report.stats import Drift, Summary, drift, repeats_needed, summarize

DIFFERENCE = 0.02
"""Difference between two frameworks for which a stability study computes the number of repeats."""

STABILITY_TABLE, SCALING_TABLE, SCALING_CHART = "stability.csv", "scaling.csv", "scaling.svg"
"""Files of the studies."""

REPEATED = ("training_time_s", "testing_time_s")
"""Metrics of a stability study: they should not depend on the seed."""


@dataclass(frozen=True)
class StudyResult:
    """The result of a study: text, files and metrics of the parent run."""

    text: str
    artifacts: list[str] = field(default_factory=list)
    """Files in the sweep's folder."""
    metrics: dict[str, float] = field(default_factory=dict)


def conclude(study: Study, runs: Iterable[Run], folder: Path) -> StudyResult | None:
    """Evaluate the finished runs of a sweep and write the study's files to ``folder``; None if there are too few."""
    finished = [run for run in runs if run.info.status == "FINISHED" and "training_time_s" in run.data.metrics]
    ordered = sorted(finished, key=lambda run: run.info.start_time)
    return {Study.stability: stability, Study.scaling: scaling}[study](ordered, folder)


# Stability.


@dataclass(frozen=True)
class Repeatability:
    """One metric over the repeats of one cell."""

    framework: str
    cell: str
    """Label of the cell."""
    metric: str
    values: tuple[float, ...]
    """In the order of the runs."""

    @property
    def summary(self) -> Summary:
        return summarize(self.values)

    @property
    def spread_percent(self) -> float:
        """Standard deviation over the mean."""
        return 100 * self.summary.spread

    @property
    def range_percent(self) -> float:
        """Difference between the largest and the smallest value, relative to the smallest."""
        return 100 * (max(self.values) / min(self.values) - 1)

    @property
    def drift(self) -> Drift:
        return drift(self.values)

    @property
    def repeats_needed(self) -> int:
        """Repeats of each of two frameworks that show a difference of ``DIFFERENCE``."""
        return repeats_needed(self.summary.spread, DIFFERENCE)


def stability(runs: Sequence[Run], folder: Path) -> StudyResult | None:
    """Measure the spread and the drift of the repeats of each cell. ``runs`` are in the order in which they ran."""
    cells: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.data.tags[tags.CELL]].append(run)
    measured = [
        Repeatability(
            repeats[0].data.tags[tags.FRAMEWORK],
            _label(repeats[0]),
            metric,
            tuple(run.data.metrics[metric] for run in repeats),
        )
        for repeats in cells.values()
        if len(repeats) > 2
        for metric in REPEATED
    ]
    if not measured:
        return None
    needed = f"n for {100 * DIFFERENCE:g} %"
    header = ["cell", "metric", "n", "median", "spread %", "range %", "drift % per run", "drift p", needed]
    rows = [
        [
            each.cell,
            each.metric,
            str(len(each.values)),
            f"{each.summary.median:.4g}",
            f"{each.spread_percent:.2f}",
            f"{each.range_percent:.2f}",
            f"{each.drift.percent:+.2f}",
            f"{each.drift.p:.2f}",
            str(each.repeats_needed),
        ]
        for each in measured
    ]
    files.write_csv(folder / STABILITY_TABLE, header, rows)
    metrics: dict[str, float] = {}
    for each in measured:
        prefix = f"stability/{each.framework}/{each.metric}"
        metrics |= {f"{prefix}/spread_percent": each.spread_percent, f"{prefix}/repeats_needed": each.repeats_needed}
    note = (
        f"spread: standard deviation over the mean. {needed}: repeats of each of two frameworks that show a difference "
        f"of {100 * DIFFERENCE:g} % with a probability of 80 %."
    )
    return StudyResult("\n".join([*console.aligned([header, *rows]), note]), [STABILITY_TABLE], metrics)


# Scaling.


def scaling(runs: Sequence[Run], folder: Path) -> StudyResult | None:
    """Measure training and testing throughput by threads and batch size."""
    rows = scaling_rows(runs)
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
    train = {key: _median(repeats, "train/steady_state_images_per_s") for key, repeats in groups.items()}
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
    return summarize([run.data.metrics[metric] for run in runs]).median


def _label(run: Run) -> str:
    run_tags = run.data.tags
    return f"{run_tags[tags.FRAMEWORK]} {run_tags[tags.TRAINING]} on {run_tags[tags.DATASET]}"


def _format(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
