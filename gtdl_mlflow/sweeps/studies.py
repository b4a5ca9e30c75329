"""What a sweep was made for, concluded at its end: how steady a machine is, how frameworks scale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from .. import console, files
from ..config import Study
from ..report.stats import Drift, Summary, drift, repeats_needed, summarize

DIFFERENCE = 0.02
"""Between two frameworks, that a study of stability says how many repeats can show."""

FIGURES = ("training_time_s", "testing_time_s")
"""Figures whose spread is of interest: they should not depend on the seed."""


@dataclass(frozen=True)
class StudyResult:
    """Of a study."""

    text: str
    """For a person."""
    artifacts: list[str] = field(default_factory=list)
    """Files in the sweep's folder."""
    metrics: dict[str, float] = field(default_factory=dict)


def conclude(study: Study, runs: Iterable[Run], folder: Path) -> StudyResult | None:
    """From the finished runs of a sweep, in the order in which they ran; None from too few."""
    done = [run for run in runs if run.info.status == "FINISHED" and "training_time_s" in run.data.metrics]
    ordered = sorted(done, key=lambda run: run.info.start_time)
    return {Study.stability: stability, Study.scaling: scaling}[study](ordered, folder)


# How steady.


@dataclass(frozen=True)
class Repeatability:
    """Of one figure over the repeats of one cell."""

    cell: str
    figure: str
    values: tuple[float, ...]

    @property
    def summary(self) -> Summary:
        return summarize(self.values)

    @property
    def spread_percent(self) -> float:
        """Standard deviation over the mean."""
        return 100 * self.summary.spread

    @property
    def range_percent(self) -> float:
        """From the smallest to the largest, of the smallest."""
        return 100 * (max(self.values) / min(self.values) - 1)

    @property
    def drift(self) -> Drift:
        return drift(self.values)

    @property
    def needed(self) -> int:
        return repeats_needed(self.summary.spread, DIFFERENCE)


def stability(runs: Sequence[Run], folder: Path) -> StudyResult | None:
    """The spread of the repeats of each cell, whether they drift, and how many would show a difference of 2 %."""
    cells: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.data.tags["gtdl.cell"]].append(run)
    found = [
        Repeatability(_label(some[0]), figure, tuple(run.data.metrics[figure] for run in some))
        for some in cells.values() if len(some) > 2 for figure in FIGURES
    ]  # fmt: skip
    if not found:
        return None
    header = ["cell", "figure", "n", "median", "spread %", "range %", "drift % a run", "drift p", "n for 2 %"]
    rows = [
        [each.cell, each.figure, str(len(each.values)), f"{each.summary.median:.4g}",
         f"{each.spread_percent:.2f}", f"{each.range_percent:.2f}", f"{each.drift.percent:+.2f}",
         f"{each.drift.p:.2f}", str(each.needed)] for each in found
    ]  # fmt: skip
    files.write_csv(folder / "stability.csv", header, rows)
    metrics: dict[str, float] = {}
    for each in found:
        place = f"stability/{each.cell.partition(' ')[0]}/{each.figure}"
        metrics |= {f"{place}/spread_percent": each.spread_percent, f"{place}/repeats_needed": each.needed}
    note = ("spread: standard deviation over the mean; n for 2 %: repeats of each of two frameworks that would show, "
            "four times in five, that one is 2 % slower")  # fmt: skip
    return StudyResult("\n".join([*console.aligned([header, *rows]), note]), ["stability.csv"], metrics)


# How they scale.


def scaling(runs: Sequence[Run], folder: Path) -> StudyResult | None:
    """Training and testing speed by threads and batch size: the speed-up over one thread, and its efficiency."""
    rows = scaled(runs)
    if not rows:
        return None
    header = list(rows[0])
    files.write_csv(folder / "scaling.csv", header, [[_figure(row[name]) for name in header] for row in rows])
    from .. import charts  # a second to import

    charts.scaling(rows, folder / "scaling.svg")
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        key = row["framework"], row["threads"]
        if key not in best or row["train_images_per_s"] > best[key]["train_images_per_s"]:
            best[key] = row
    short = ["framework", "threads", "batch_size", "train_images_per_s", "speed_up", "efficiency_percent"]
    fastest = console.aligned([short, *([_figure(row[name]) for name in short] for row in best.values())])
    return StudyResult("\n".join(["fastest batch size of each:", *fastest]), ["scaling.csv", "scaling.svg"])


def scaled(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each framework, number of threads and batch size; medians of repeats.

    ``speed_up`` is over one thread with the same batch, ``efficiency_percent`` that over the number of threads; both
    None where one thread was not measured.
    """
    groups: dict[tuple[str, int, int], list[Run]] = defaultdict(list)
    for run in runs:
        params = run.data.params
        key = run.data.tags["gtdl.framework"], int(params["hardware.threads"]), int(params["training.batch_size"])
        groups[key].append(run)
    speed = {key: [summarize([run.data.metrics[name] for run in some]).median
                   for name in ("train/steady_state_images_per_s", "test/images_per_s")]
             for key, some in groups.items()}  # fmt: skip
    rows = []
    for (framework, threads, batch), (train, test) in sorted(speed.items()):
        alone = speed.get((framework, 1, batch))
        speed_up = train / alone[0] if alone else None
        rows.append({
            "framework": framework, "threads": threads, "batch_size": batch, "train_images_per_s": train,
            "test_images_per_s": test, "speed_up": speed_up,
            "efficiency_percent": 100 * speed_up / threads if speed_up is not None else None,
        })  # fmt: skip
    return rows


def _label(run: Run) -> str:
    tags = run.data.tags
    return f"{tags['gtdl.framework']} {tags['gtdl.training']} on {tags['gtdl.dataset']}"


def _figure(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
