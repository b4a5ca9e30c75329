"""A section of the report: results of the frameworks under the same conditions, as tables, sentences and charts."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from .. import charts, config, tags
from ..config import display
from ..metrics import METRICS, OTHER, PHASES, phase_times
from . import ratios
from .formats import format_number
from .intervals import EQUAL_POINTS, LEVEL, Verdict
from .ranking import Answer, Conditions, FrameworkResults, answers, group_by_conditions, remarks
from .runs import OWN, BenchmarkRun, LearningCurve, LoadedRuns, MetricHistories, learning_curve
from .tables import (
    SAMPLE,
    Paired,
    Table,
    abstraction_table,
    modes_table,
    paired_rankings,
    paired_table,
    paired_values,
    ranking_table,
)
from .verdicts import QUESTIONS, TIMES

SHORT_PHASE = 0.02
"""Share of the worker's wall time below which a phase is drawn as ``OTHER``."""

CHARTED = 24
"""Largest number of frameworks, or of versions, in the charts of a section. The tables have all."""

TYPICAL = "For each framework, the run with the median training time."
"""Note of charts that show one run per framework."""

CLOCKS = {**ratios.CLOCKS, ratios.CPU: "CPU time of one thread"}
"""Names of the clocks in sentences."""

Compared = list[tuple[Conditions, list[FrameworkResults]]]
"""The frameworks under each of some conditions."""

TRAINING_TIME, ACCURACY = METRICS["training_time_s"].title, METRICS["accuracy_percent"].title


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

    conditions: Conditions
    labels: list[str]
    """Labels of the frameworks with any run."""
    paired: list[Table]
    """Ranking of each paired measurement, the newest first."""
    ranking: Table
    abstraction: Table | None
    """Times of frameworks relative to those of the frameworks that they run on; None if no two belong together."""
    modes: Table | None
    """How the candidates of ``mode=best`` compare; None if no framework had a choice."""
    same: list[str]
    """What is the same for all frameworks in the ranking, such as the number of runs."""
    sentences: list[str]
    remarks: list[str]
    charts: list[Chart]


def section(
    conditions: Conditions, frameworks: list[FrameworkResults], paired: list[Paired], client: MetricHistories | None
) -> Section:
    """Build the section of some conditions.

    Args:
        conditions: what the frameworks have in common.
        frameworks: the runs of each.
        paired: ratios of each paired measurement of these frameworks, the newest first.
        client: reads the history of metrics for the charts. None: no charts.
    """
    found = answers(frameworks)
    labels = [each.label for each in frameworks]
    if on_one_thread(frameworks):
        paired = [_without_wall_clock(each) for each in paired]
    measured = [rankings for each in paired if (rankings := paired_rankings(each, labels))]
    by_turns = [
        each for rankings in measured for each in rankings if all(some.ratio.has_interval for some in each.frameworks)
    ]
    answered = {
        answer.question.name for answer in found if any(_replaces(each, answer, frameworks) for each in by_turns)
    }
    of_runs = [answer for answer in found if answer.question.name not in answered]
    sentences = [f"Paired measurement, {CLOCKS[each.clock]}: {ratios.sentence(each)}" for each in by_turns]
    finished = [each for each in frameworks if each.finished]
    ranking, same = ranking_table(frameworks, found, answered).without_constant_columns(1 + len(QUESTIONS))
    return Section(
        conditions,
        labels,
        [paired_table(rankings) for rankings in measured],
        ranking,
        abstraction_table(frameworks, {name: each for some in reversed(paired) for name, each in some.items()}),
        modes_table(frameworks),
        same,
        sentences + [answer.sentence for answer in of_runs] + in_development(frameworks, of_runs),
        remarks(frameworks, answered),
        section_charts(finished, by_turns, answered, target_accuracy(conditions.dataset), client) if client else [],
    )


def compare_groups(groups: dict[Conditions, list[FrameworkResults]], paired: Collection[Conditions]) -> Compared:
    """Return the conditions that have a finished run and at least two frameworks, those in ``paired`` first.

    If there are none, return all conditions that have a finished run, except those under ``OWN``.
    """
    finished = {conditions: some for conditions, some in groups.items() if any(each.finished for each in some)}
    several = [(conditions, some) for conditions, some in finished.items() if len(some) > 1]
    compared = several or [(conditions, some) for conditions, some in finished.items() if conditions.setting != OWN]
    return sorted(compared, key=lambda each: each[0] not in paired)


def paired_by_conditions(loaded: LoadedRuns) -> dict[Conditions, dict[str, Paired]]:
    """Return the ratios of the paired measurements under each of the conditions, by the ID of the sweep's parent run.

    The newest is the first. A measurement is left out if newer ones have all of its frameworks. A sweep measures each
    framework once, with its first configuration.
    """
    found: dict[Conditions, dict[str, Paired]] = defaultdict(dict)
    known: dict[Conditions, set[str]] = defaultdict(set)
    for parent_id, metrics in loaded.paired.items():
        first: dict[str, BenchmarkRun] = {}
        sweep_id = loaded.sweep_ids.get(parent_id) or parent_id
        ours = (run for run in loaded.runs if parent_id == run.parent_id or sweep_id == run.tags.get(tags.SWEEP_ID))
        for run in sorted(ours, key=_position):
            first.setdefault(run.key.label, run)
        for conditions, frameworks in group_by_conditions(first.values()).items():
            if len(frameworks) == len(first) and not first.keys() <= known[conditions]:
                found[conditions][parent_id] = paired_values(metrics)
                known[conditions] |= first.keys()
    return dict(found)


def _position(run: BenchmarkRun) -> tuple[int, str]:
    position = run.tags.get(tags.SWEEP_POSITION, "")
    return len(position), position


@cache
def target_accuracy(dataset: str) -> float:
    """Return ``dataset.target_accuracy_percent``; infinity for a data set that is not in ``conf/``."""
    if dataset not in config.choices("dataset"):
        return math.inf
    target: float = config.compose_part("dataset", dataset).target_accuracy_percent
    return target


def _without_wall_clock(paired: Paired) -> Paired:
    """Return the values without those of the wall clock that have one by CPU time beside them.

    With one thread, both clocks measure the same work, and CPU time is less noisy.
    """
    wall, cpu = f"{ratios.WALL}/", f"{ratios.CPU}/"
    return {
        name: each
        for name, each in paired.items()
        if not (name.startswith(wall) and name.replace(wall, cpu, 1) in paired)
    }


def _replaces(ranking: ratios.Ranking, answer: Answer, frameworks: Iterable[FrameworkResults]) -> bool:
    """Return whether a paired ranking replaces the answer of whole runs: the same metric, frameworks and threads."""
    ranked = {each.framework for each in ranking.frameworks}
    return (
        ratios.RUN_METRICS.get(ranking.activity) == answer.question.name
        and ranked == {each.label for each in answer.ranking}
        and (ranking.clock == ratios.WALL or on_one_thread(frameworks))
    )


def on_one_thread(frameworks: Iterable[FrameworkResults]) -> bool:
    """Return whether all finished runs of the frameworks computed with one thread."""
    return {run.key.threads for each in frameworks for run in each.finished} == {"1"}


def in_development(frameworks: Sequence[FrameworkResults], every: Iterable[Answer]) -> list[str]:
    """Return the answers for the frameworks that are still developed, where another one is or may be better.

    Answers without any verdict are left out.

    Args:
        frameworks: all frameworks of the section.
        every: the answers for all of them.
    """
    current = [each for each in frameworks if display.last_release(each.framework) is None]
    labels = {each.label for each in current}
    behind = set()
    for answer in every:
        best = next((each for each in answer.ranking if each.label in labels), None)
        if best and best != answer.ranking[0] and best.behind.verdict is not Verdict.same:
            behind.add(answer.question)
    found = [answer for answer in answers(current) if answer.question in behind and _has_verdict(answer)]
    return [f"Frameworks in development only: {answer.sentence}" for answer in found]


def _has_verdict(answer: Answer) -> bool:
    return any(each.behind.verdict is not Verdict.unresolved for each in answer.ranking[1:])


# Charts.


def section_charts(
    frameworks: list[FrameworkResults],
    by_turns: Iterable[ratios.Ranking],
    answered: Collection[str],
    target: float,
    client: MetricHistories,
) -> list[Chart]:
    """Return the charts that have values to compare.

    Args:
        frameworks: those with finished runs. Charts of times leave out those that failed the quality gate.
        by_turns: rankings of a paired measurement.
        answered: times of whole runs that these rankings replace.
        target: accuracy in percent, for the time to target.
        client: reads the history of metrics.
    """
    frameworks = frameworks[:CHARTED]
    timed = [each for each in frameworks if not each.failed_quality] or frameworks
    colors = {each.label: each.color for each in frameworks}
    runs = {each.label: typical(each) for each in frameworks}
    curves = {label: learning_curve(run, client) for label, run in runs.items()}
    titles = Counter((each.activity, each.clock) for each in by_turns)
    drawn = [
        *(_relative_times(each, colors, titles[each.activity, each.clock] > 1) for each in by_turns),
        *(_repeats(timed, each.name, colors) for each in TIMES if each.name not in answered),
        _pareto(timed, colors),
        *_curves(curves, colors),
        _time_to_target(runs, curves, target, colors),
        _phases(runs),
    ]
    return [chart for chart in drawn if chart is not None]


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def _relative_times(ranking: ratios.Ranking, colors: charts.Colors, with_names: bool) -> Chart | None:
    frameworks = [each for each in ranking.frameworks if each.framework in colors]
    rows = [
        {"framework": each.framework, "ratio": each.ratio.value, "low": each.ratio.low, "high": each.ratio.high}
        for each in frameworks
    ]
    if len(rows) < 2:
        return None
    table = Table(
        ["framework", "time relative to the best"], [[each.framework, each.ratio.text] for each in frameworks]
    )
    names = f": {', '.join(each.framework for each in frameworks)}" if with_names else ""
    title = f"{_capitalized(ratios.UNITS[ranking.activity])}, {ratios.CLOCKS[ranking.clock]}{names}"
    return Chart(
        title,
        charts.relative_times(rows, colors),
        table,
        f"Paired measurement, relative to the best. Bar: the {LEVEL:.0%} interval.",
    )


def _repeats(frameworks: list[FrameworkResults], name: str, colors: charts.Colors) -> Chart | None:
    metric = METRICS[name]
    rows: list[dict[str, Any]] = [
        {"framework": each.label, "seed": run.seed, "value": run.metrics[name]}
        for each in frameworks
        for run in each.finished
        if math.isfinite(run.metrics.get(name, math.nan))
    ]
    if len(rows) < 2:
        return None
    table = Table(
        ["framework", f"{metric.title}: {SAMPLE}"],
        [[each.label, text] for each in frameworks if (text := each.sample(name).text)],
    )
    chart = charts.repeats(rows, "value", metric.title, colors)
    return Chart(_capitalized(metric.label), chart, table, "Point: a run. Bar: the median.")


def _pareto(frameworks: list[FrameworkResults], colors: charts.Colors) -> Chart | None:
    names = ("training_time_s", "accuracy_percent")
    rows: list[dict[str, Any]] = []
    centers: list[dict[str, Any]] = []
    for each in frameworks:
        results: list[dict[str, Any]] = [
            {"framework": each.label, "seed": run.seed, **{name: run.metrics[name] for name in names}}
            for run in each.finished
            if all(math.isfinite(run.metrics[name]) for name in names)
        ]
        if results:
            rows += results
            time_s = statistics.median(row["training_time_s"] for row in results)
            accuracy = statistics.fmean(row["accuracy_percent"] for row in results)
            centers.append({"framework": each.label, "training_time_s": time_s, "accuracy_percent": accuracy})
    if len(rows) < 2:
        return None
    front = pareto_front(centers)
    header = ["framework", f"median {TRAINING_TIME}", f"mean {ACCURACY}", "on the front"]
    lines = [
        [row["framework"], *(format_number(row[name]) for name in names), "yes" if row in front else ""]
        for row in centers
    ]
    note = (
        "Left and up is better. Dashed line: Pareto front of median times and mean accuracies, where differences up to "
        f"{EQUAL_POINTS:g} points do not count."
    )
    return Chart("Accuracy against training time", charts.pareto(rows, front, colors), Table(header, lines), note)


def pareto_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that are more accurate than every faster one by over ``EQUAL_POINTS``, the fastest first."""
    front, best = [], -math.inf
    for row in sorted(rows, key=lambda row: (row["training_time_s"], -row["accuracy_percent"])):
        if row["accuracy_percent"] > best + EQUAL_POINTS:
            front.append(row)
        best = max(best, row["accuracy_percent"])
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


def _time_to_target(
    runs: dict[str, BenchmarkRun], curves: dict[str, LearningCurve], target: float, colors: charts.Colors
) -> Chart | None:
    times = {label: time_to_target(each, target) for label, each in curves.items()}
    reached = [
        {"framework": label, "seed": runs[label].seed, "seconds": seconds}
        for label, seconds in times.items()
        if seconds is not None
    ]
    if len(reached) < 2:
        return None
    title = f"time to {target:g} %, s"
    table = Table(
        ["framework", title],
        [[label, "not reached" if seconds is None else format_number(seconds)] for label, seconds in times.items()],
    )
    missed = [label for label, seconds in times.items() if seconds is None]
    note = f"{TYPICAL} The target is {target:g} % (dataset.target_accuracy_percent)."
    note += f" Not reached: {', '.join(missed)}." if missed else ""
    return Chart("Time to target", charts.repeats(reached, "seconds", title, colors), table, note)


def time_to_target(curve: LearningCurve, target: float) -> float | None:
    """Return the training time at the first evaluation that reached ``target`` percent; None if none did."""
    points = zip(curve.seconds, curve.accuracy, strict=True)
    return next((seconds for seconds, accuracy in points if accuracy >= target), None)


def _phases(runs: dict[str, BenchmarkRun]) -> Chart | None:
    times = {label: phase_times(run.metrics) for label, run in runs.items()}
    phases = [*(metric.phase for metric in PHASES), OTHER]
    present = [part for part in phases if any(parts.get(part) for parts in times.values())]
    if not any(any(parts.values()) for parts in times.values()):
        return None
    long = {
        part for parts in times.values() for part, value in parts.items() if value >= SHORT_PHASE * sum(parts.values())
    }
    rows = []
    for label, parts in times.items():
        drawn = {part: parts[part] for part in phases[:-1] if part in long & parts.keys()}
        drawn[OTHER] = sum(parts.values()) - sum(drawn.values())
        rows += [{"framework": label, "part": part, "seconds": seconds} for part, seconds in drawn.items()]
    table = Table(
        ["framework", *(f"{part}, s" for part in present)],
        [[label, *(format_number(parts.get(part, 0.0)) for part in present)] for label, parts in times.items()],
    )
    note = f"Wall time of the worker, from its start to its end. {TYPICAL}"
    return Chart("Time by phase", charts.stacked_bars(rows, phases), table, note)
