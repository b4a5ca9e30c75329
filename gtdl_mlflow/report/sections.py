"""A section of the report: results of the frameworks under the same conditions, as sentences, tables and charts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlflow.tracking import MlflowClient

from .. import charts, config
from ..metrics import METRICS, PHASES
from .formats import format_number, one_line
from .ranking import Conditions, FrameworkResults, answers, remarks
from .runs import BenchmarkRun, LearningCurve, learning_curve
from .verdicts import QUESTIONS

OTHER = "other"
"""Label of the part of the worker's wall time that belongs to no phase."""

WALL_TIME = "worker/wall_s"

RESOURCES = ("system/system_memory_usage_megabytes", "system/cpu_utilization_percentage")
"""Metrics that are drawn over the time of a run."""

CHARTED = 24
"""Largest number of frameworks, or of versions, in the charts of a section. The tables have all."""

TYPICAL = "For each framework, the run with the median training time."
"""Note of charts that show one run per framework."""

TRAINING_TIME, ACCURACY = METRICS["training_time_s"].title, METRICS["accuracy_percent"].title


@dataclass(frozen=True)
class Table:
    """Header and rows of text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A chart and the table of its values."""

    title: str
    specification: dict[str, Any]
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Results of the frameworks under the same conditions."""

    title: str
    machine: str
    sentences: list[str]
    remarks: list[str]
    table: Table
    charts: list[Chart]


def section(conditions: Conditions, frameworks: list[FrameworkResults], client: MlflowClient) -> Section:
    """Build the section of some conditions; ``client`` reads the history of metrics."""
    finished = [each for each in frameworks if each.finished]
    header = ["framework", *(question.metric.title for question in QUESTIONS)]
    rows = [[each.label, *(_summary(each, question.name) for question in QUESTIONS)] for each in finished]
    return Section(
        conditions.text,
        conditions.machine,
        [answer.sentence for answer in answers(frameworks)],
        remarks(frameworks),
        Table(header, rows),
        section_charts(finished, target_accuracy(conditions.dataset), client),
    )


@cache
def target_accuracy(dataset: str) -> float:
    """Return ``dataset.target_accuracy_percent``; infinity for a data set that is not in ``conf/``."""
    if dataset not in config.choices("dataset"):
        return math.inf
    target: float = config.compose_part("dataset", dataset).target_accuracy_percent
    return target


def _summary(framework: FrameworkResults, metric: str) -> str:
    text = framework.sample(metric).text
    rule = one_line(framework.failed_quality)
    return f"({text}: {rule})" if text and rule and metric != "accuracy_percent" else text


def section_charts(frameworks: list[FrameworkResults], target: float, client: MlflowClient) -> list[Chart]:
    """Return the charts for which the runs have values.

    Args:
        frameworks: those with finished runs. Charts of times leave out those that failed the quality gate.
        target: accuracy in percent, for the time to target.
        client: reads the history of metrics.
    """
    if not frameworks:
        return []
    frameworks = frameworks[:CHARTED]
    timed = [each for each in frameworks if not each.failed_quality] or frameworks
    colors = {each.label: each.color for each in frameworks}
    runs = {each.label: typical(each) for each in frameworks}
    curves = {label: learning_curve(run, client) for label, run in runs.items()}
    drawn = [
        _repeats(timed, "training_time_s", colors),
        _repeats(timed, "testing_time_s", colors),
        _pareto(timed, colors),
        *_curves(curves, colors),
        _time_to_target(curves, target, colors),
        _repeats(timed, "train/images_per_s", colors),
        _repeats(timed, "test/images_per_s", colors),
        _phases(runs),
        *_resources(runs, client, colors),
    ]
    return [chart for chart in drawn if chart is not None]


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def _repeats(frameworks: list[FrameworkResults], name: str, colors: charts.Colors) -> Chart | None:
    metric = METRICS[name]
    rows: list[dict[str, Any]] = [
        {"framework": each.label, "seed": run.seed, "value": run.metrics[name]}
        for each in frameworks
        for run in each.finished
        if math.isfinite(run.metrics.get(name, math.nan))
    ]
    if not rows:
        return None
    table = Table(
        ["framework", f"{metric.title}: median [95 % interval of the mean], n"],
        [[each.label, text] for each in frameworks if (text := each.sample(name).text)],
    )
    chart = charts.repeats(rows, "value", metric.title, colors)
    return Chart(_capitalized(metric.label), chart, table, "Point: a run. Bar: the median.")


def _pareto(frameworks: list[FrameworkResults], colors: charts.Colors) -> Chart | None:
    names = ("training_time_s", "accuracy_percent")
    rows: list[dict[str, Any]] = []
    medians: list[dict[str, Any]] = []
    for each in frameworks:
        results: list[dict[str, Any]] = [
            {"framework": each.label, "seed": run.seed, **{name: run.metrics[name] for name in names}}
            for run in each.finished
            if all(math.isfinite(run.metrics[name]) for name in names)
        ]
        if results:
            rows += results
            middle = {name: statistics.median(row[name] for row in results) for name in names}
            medians.append({"framework": each.label, **middle})
    if not rows:
        return None
    front = pareto_front(medians)
    header = ["framework", f"median {TRAINING_TIME}", f"median {ACCURACY}", "on the front"]
    lines = [
        [row["framework"], *(format_number(row[name]) for name in names), "yes" if row in front else ""]
        for row in medians
    ]
    note = "Left and up is better. Dashed line: Pareto front of the medians."
    return Chart("Accuracy against training time", charts.pareto(rows, front, colors), Table(header, lines), note)


def pareto_front(medians: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows for which no other row is at least as fast and as accurate, and better in one; fastest first."""
    front, best = [], -math.inf
    for row in sorted(medians, key=lambda row: (row["training_time_s"], -row["accuracy_percent"])):
        if row["accuracy_percent"] > best:
            front.append(row)
            best = row["accuracy_percent"]
    return front


def typical(framework: FrameworkResults) -> BenchmarkRun:
    """Return the run with the median training time; the faster one of two in the middle.

    Times that are not finite count only if all are.
    """
    times = {run.run_id: run.metrics["training_time_s"] for run in framework.finished}
    finite = [run for run in framework.finished if math.isfinite(times[run.run_id])] or framework.finished
    ordered = sorted(finite, key=lambda run: times[run.run_id])
    return ordered[(len(ordered) - 1) // 2]


def _curves(curves: dict[str, LearningCurve], colors: charts.Colors) -> list[Chart]:
    """Return the learning curves against time and against iterations."""
    if max((len(each.accuracy) for each in curves.values()), default=0) < 2:
        return []
    rows: list[dict[str, Any]] = [
        {"framework": label, "seconds": seconds, "iterations": iterations, "accuracy": accuracy}
        for label, each in curves.items()
        for iterations, seconds, accuracy in zip(each.iterations, each.seconds, each.accuracy, strict=True)
    ]
    lines = [
        [label, f"{iterations:,.0f}", format_number(seconds), format_number(accuracy)]
        for label, each in curves.items()
        for iterations, seconds, accuracy in zip(each.iterations, each.seconds, each.accuracy, strict=True)
    ]
    table = Table(["framework", "iterations", TRAINING_TIME, ACCURACY], lines)
    axes = (
        ("Learning curve against time", "seconds", TRAINING_TIME),
        ("Learning curve against iterations", "iterations", "iterations"),
    )
    return [
        Chart(title, charts.curves(rows, x, axis, "accuracy", ACCURACY, colors), table, TYPICAL)
        for title, x, axis in axes
    ]


def _time_to_target(curves: dict[str, LearningCurve], target: float, colors: charts.Colors) -> Chart | None:
    times = {label: time_to_target(each, target) for label, each in curves.items()}
    reached = [{"framework": label, "seconds": seconds} for label, seconds in times.items() if seconds is not None]
    if not reached:
        return None
    title = f"training time to {target:g} %, s"
    table = Table(
        ["framework", title],
        [[label, "not reached" if seconds is None else format_number(seconds)] for label, seconds in times.items()],
    )
    missed = [label for label, seconds in times.items() if seconds is None]
    note = f"{TYPICAL} The target is {target:g} % (dataset.target_accuracy_percent)."
    note += f" Not reached: {', '.join(missed)}." if missed else ""
    return Chart("Time to target", charts.bars(reached, "seconds", title, colors), table, note)


def time_to_target(curve: LearningCurve, target: float) -> float | None:
    """Return the training time at the first evaluation that reached ``target`` percent; None if none did."""
    points = zip(curve.seconds, curve.accuracy, strict=True)
    return next((seconds for seconds, accuracy in points if accuracy >= target), None)


def _phases(runs: dict[str, BenchmarkRun]) -> Chart | None:
    times = {label: phase_times(run) for label, run in runs.items()}
    rows: list[dict[str, Any]] = [
        {"framework": label, "part": part, "seconds": seconds}
        for label, parts in times.items()
        for part, seconds in parts.items()
        if seconds > 0
    ]
    if not rows:
        return None
    present = {row["part"] for row in rows}
    order = [part for part in (*(metric.phase for metric in PHASES), OTHER) if part in present]
    table = Table(
        ["framework", *(f"{part}, s" for part in order)],
        [[label, *(format_number(parts.get(part, 0.0)) for part in order)] for label, parts in times.items()],
    )
    note = f"Wall time of the worker, from its start to its end. {TYPICAL}"
    return Chart("Time by phase", charts.stacked_bars(rows, order), table, note)


def phase_times(run: BenchmarkRun) -> dict[str, float]:
    """Return the seconds of the worker's wall time by phase."""
    known = {name: value for name, value in run.metrics.items() if math.isfinite(value)}
    times = {metric.phase: known[metric.name] for metric in PHASES if metric.name in known}
    if WALL_TIME in known:
        times[OTHER] = max(0.0, known[WALL_TIME] - sum(times.values()))
    return times


def _resources(runs: dict[str, BenchmarkRun], client: MlflowClient, colors: charts.Colors) -> list[Chart]:
    """Return memory and CPU use of the machine over the time of each run, as MLflow samples them."""
    drawn = []
    for metric in (METRICS[name] for name in RESOURCES):
        rows: list[dict[str, Any]] = []
        lines = []
        for label, run in runs.items():
            if metric.name not in run.metrics:
                continue
            samples = client.get_metric_history(run.run_id, metric.name)
            samples = [sample for sample in samples if math.isfinite(sample.value)]
            if not samples:
                continue
            values = [sample.value for sample in samples]
            rows += [
                {"framework": label, "seconds": (sample.timestamp - run.started_ms) / 1000, "value": sample.value}
                for sample in samples
            ]
            extremes = min(values), statistics.median(values), max(values)
            lines.append([label, str(len(values)), *map(format_number, extremes)])
        if rows:
            chart = charts.curves(rows, "seconds", "time since the start of the run, s", "value", metric.title, colors)
            table = Table(["framework", "samples", "lowest", "median", "highest"], lines)
            drawn.append(Chart(_capitalized(metric.label), chart, table, TYPICAL))
    return drawn
