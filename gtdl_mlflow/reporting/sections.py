"""A section of the report: results of the frameworks under the same conditions, as tables, sentences and charts."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from .. import charts, config, tags
from ..config import display
from ..metrics import METRICS, PHASES
from . import ratios
from .formats import format_number, one_line
from .intervals import Difference, Ratio, Verdict
from .ranking import Answer, Conditions, FrameworkResults, answers, remarks, samples
from .runs import BenchmarkRun, LearningCurve, MetricHistories, learning_curve
from .verdicts import QUESTIONS, TIMES, Question, compare

OTHER = "other"
"""Label of the part of the worker's wall time that belongs to no phase, or to short ones."""

SHORT_PHASE = 0.02
"""Share of the worker's wall time below which a phase is drawn as ``OTHER``."""

WALL_TIME = "worker/wall_s"

RESOURCES = ("worker/peak_memory_mb", "worker/peak_gpu_memory_mb", "train/cpu_utilization_percent",
             "system/cpu_energy_j", "system/gpu_energy_j")  # fmt: skip
"""Metrics beside the headline metrics in a ranking."""

CHARTED = 24
"""Largest number of frameworks, or of versions, in the charts of a section. The tables have all."""

TYPICAL = "For each framework, the run with the median training time."
"""Note of charts that show one run per framework."""

SAMPLE = "Median [95 % interval], number of values; up to three values are listed"
"""Note of columns that have the text of a sample."""

TRAINING_TIME, ACCURACY = METRICS["training_time_s"].title, METRICS["accuracy_percent"].title

OVER_PLAIN = "_over_plain"
"""Follows the activity in the metrics of a paired measurement that compare a framework with the one that it runs on."""

Paired = Mapping[str, Ratio]
"""Ratios of a paired measurement by ``CLOCK/ACTIVITY/FRAMEWORK``, where the framework's label has ``-`` for spaces."""


@dataclass(frozen=True)
class Table:
    """Header and rows of text. The text of a cell after its first line is shown smaller."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def without_empty_columns(self) -> Table:
        """Return the table without the columns in which no row has text."""
        return self._with([index for index in range(len(self.header)) if any(row[index] for row in self.rows)])

    def without_constant_columns(self, fixed: int) -> tuple[Table, list[str]]:
        """Return the table without the columns after the first ``fixed`` that have one value, and these values."""
        if len(self.rows) < 2:
            return self, []
        constant = [index for index in range(fixed, len(self.header)) if len({row[index] for row in self.rows}) == 1]
        values = [f"{self.header[index]}: {self.rows[0][index]}" for index in constant]
        return self._with([index for index in range(len(self.header)) if index not in constant]), values

    def _with(self, columns: Sequence[int]) -> Table:
        return Table(
            [self.header[index] for index in columns], [[row[index] for index in columns] for row in self.rows]
        )


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
    paired: Table | None
    """Ranking of a paired measurement; None if there was none."""
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
    conditions: Conditions, frameworks: list[FrameworkResults], paired: Paired, client: MetricHistories | None
) -> Section:
    """Build the section of some conditions.

    Args:
        conditions: what the frameworks have in common.
        frameworks: the runs of each.
        paired: ratios of a paired measurement of these frameworks; may be empty.
        client: reads the history of metrics for the charts. None: no charts.
    """
    found = answers(frameworks)
    labels = [each.label for each in frameworks]
    measured = paired_rankings(paired, labels)
    sentences = [
        f"{ratios.CLOCKS[each.clock]}, taking turns: {ratios.sentence(each)}" for each in measured if _complete(each)
    ]
    finished = [each for each in frameworks if each.finished]
    ranking, same = ranking_table(frameworks, found).without_constant_columns(1 + len(QUESTIONS))
    return Section(
        conditions,
        labels,
        paired_table(measured) if measured else None,
        ranking,
        abstraction_table(frameworks, paired),
        modes_table(frameworks),
        same,
        sentences + [answer.sentence for answer in found] + in_development(frameworks),
        remarks(frameworks),
        section_charts(finished, target_accuracy(conditions.dataset), client) if client else [],
    )


@cache
def target_accuracy(dataset: str) -> float:
    """Return ``dataset.target_accuracy_percent``; infinity for a data set that is not in ``conf/``."""
    if dataset not in config.choices("dataset"):
        return math.inf
    target: float = config.compose_part("dataset", dataset).target_accuracy_percent
    return target


# Rankings.


def paired_ratios(metrics: Mapping[str, float]) -> Paired:
    """Return the ratios in the metrics of a sweep's parent run, whose names end in ``ratio[_low|_high]``."""
    return {
        name.removesuffix("/ratio"): Ratio(
            value, metrics.get(f"{name}_low", 0.0), metrics.get(f"{name}_high", math.inf), 0
        )
        for name, value in metrics.items()
        if name.endswith("/ratio")
    }


def paired_rankings(paired: Paired, labels: Iterable[str]) -> list[ratios.Ranking]:
    """Return the rankings by clock and activity, CPU time first."""
    names = {display.part_of_metric(label): label for label in labels}
    found = []
    for clock in ratios.CLOCKS:
        for activity in ratios.PHRASES:
            prefix = f"{clock}/{activity}/"
            some = {key.removeprefix(prefix): ratio for key, ratio in paired.items() if key.startswith(prefix)}
            ranked = [ratios.Ranked(names.get(name, name), math.nan, ratio) for name, ratio in some.items()]
            ranked.sort(key=lambda each: each.ratio.value)
            if len(ranked) > 1:
                found.append(ratios.Ranking(activity, clock, tuple(ranked)))
    return found


def _complete(ranking: ratios.Ranking) -> bool:
    return all(each.ratio.has_interval for each in ranking.frameworks)


def paired_table(rankings: Sequence[ratios.Ranking]) -> Table:
    """Return the ratios to the best, with a row per framework in the order of the first ranking."""
    labels = dict.fromkeys(each.framework for ranking in rankings for each in ranking.frameworks)
    columns = [
        {each.framework: _distance(each.ratio, index == 0) for index, each in enumerate(ranking.frameworks)}
        for ranking in rankings
    ]
    header = ["framework", *(f"{each.activity}, {ratios.CLOCKS[each.clock]}" for each in rankings)]
    return Table(header, [[label, *(column.get(label, "") for column in columns)] for label in labels])


def ranking_table(frameworks: Sequence[FrameworkResults], found: Sequence[Answer]) -> Table:
    """Return the ranking: a row per framework, the fastest in training first and those without a rank last."""
    places = {answer.question.name: answer.ranking for answer in found}
    order = dict.fromkeys(each.label for places_ in places.values() for each in places_)
    by_label = {each.label: each for each in frameworks}
    rows = []
    for label in dict.fromkeys((*order, *by_label)):
        each = by_label[label]
        distances = {
            name: _distance(place.behind, place is some[0]) if len(some) > 1 else ""
            for name, some in places.items()
            for place in some
            if place.label == label
        }
        cells = [_measured(each, question, distances.get(question.name)) for question in QUESTIONS]
        modes = ", ".join(sorted({run.mode for run in each.finished if run.mode}))
        rows.append([label, *cells, *(_median(each, name) for name in RESOURCES), modes, _runs(each)])
    titles = [*(question.metric.title for question in QUESTIONS), *(METRICS[name].title for name in RESOURCES)]
    return Table(["framework", *titles, "mode", "runs"], rows).without_empty_columns()


def modes_table(frameworks: Iterable[FrameworkResults]) -> Table | None:
    """Return the candidates of ``mode=best`` in the last run of each framework; None if there are none."""
    rows = []
    for each in frameworks:
        last = max(each.finished, key=lambda run: run.started_ms, default=None)
        if last and (candidates := last.tags.get(tags.MODE_CANDIDATES)):
            chosen, _, others = candidates.partition("; ")
            rows.append([each.label, chosen, "\n".join(others.split("; "))])
    return Table(["framework", "best mode", "others"], rows).without_empty_columns() if rows else None


def abstraction_table(frameworks: Sequence[FrameworkResults], paired: Paired) -> Table | None:
    """Return the cost of each abstraction: by a paired measurement if there was one, otherwise by whole runs."""
    costs: dict[tuple[str, str], dict[str, str]] = {}
    for each, other in _with_plain(frameworks):
        found: dict[str, str] = {}
        for clock, activity in itertools.product(ratios.CLOCKS, ratios.PHRASES):
            name = f"{clock}/{activity}{OVER_PLAIN}/{display.part_of_metric(each.label)}"
            if name in paired:
                found[f"{activity}, {ratios.CLOCKS[clock]}"] = _distance(paired[name], best=False)
        for question in [] if found else TIMES:
            if result := compare(question, each.label, other.label, samples(frameworks, question)):
                found[question.metric.title] = _distance(result, best=False)
        if found:
            costs[each.label, other.label] = found
    columns = list(dict.fromkeys(column for found in costs.values() for column in found))
    rows = [[*labels, *(found.get(column, "") for column in columns)] for labels, found in costs.items()]
    return Table(["framework", "relative to", *columns], rows) if rows else None


def _with_plain(frameworks: Iterable[FrameworkResults]) -> list[tuple[FrameworkResults, FrameworkResults]]:
    """Return the frameworks that run on another one, with that one, executed in the same way."""
    finished = {(each.framework, _execution(each)): each for each in frameworks if each.finished}
    pairs = ((each, finished.get((display.plain(name), how))) for (name, how), each in finished.items())
    return [(each, other) for each, other in pairs if other is not None]


def _execution(framework: FrameworkResults) -> tuple[str, str, bool]:
    key = framework.finished[0].key
    return key.mode, key.precision, key.deterministic


def in_development(frameworks: Sequence[FrameworkResults]) -> list[str]:
    """Return the answers for the frameworks that are still developed, if there are others too."""
    current = [each for each in frameworks if display.last_release(each.framework) is None]
    if len(current) == len(frameworks):
        return []
    found = [answer for answer in answers(current) if len(answer.ranking) > 1]
    return [f"Frameworks in development only: {answer.sentence}" for answer in found]


def _measured(framework: FrameworkResults, question: Question, distance: str | None) -> str:
    """Return a cell of a ranking: the values, and the distance from the best or why there is none."""
    values = framework.sample(question.name)
    if distance is None and values.text:
        failed = "" if question.largest else one_line(framework.failed_quality)
        return f"({values.text})\nnot ranked{failed and f': {failed}'}"
    return f"{values.text}\n{distance}" if distance else values.text


def _distance(behind: Ratio | Difference, best: bool) -> str:
    if best:
        return "best"
    text = f"{behind.text} behind" if isinstance(behind, Difference) else behind.text
    if not behind.has_interval:
        return text
    return text + {Verdict.same: ", the same", Verdict.unresolved: ", not resolved"}.get(behind.verdict, "")


def _median(framework: FrameworkResults, name: str) -> str:
    values = framework.sample(name).values
    return format_number(statistics.median(values)) if values else ""


def _runs(framework: FrameworkResults) -> str:
    """Return the number of runs by state, and how many of the finished ones other processes disturbed."""
    disturbed = sum(run.tags.get(tags.INTERFERENCE, "ok") != "ok" for run in framework.finished)
    numbers = {
        "finished": len(framework.finished),
        "running": len(framework.running),
        "failed": len(framework.failed),
        "not available": len(framework.unavailable),
    }
    states = ", ".join(f"{number} {state}" for state, number in numbers.items() if number)
    return f"{states}\n{disturbed} disturbed by other processes" if disturbed else states


# Charts.


def section_charts(frameworks: list[FrameworkResults], target: float, client: MetricHistories) -> list[Chart]:
    """Return the charts that compare at least two values.

    Args:
        frameworks: those with finished runs. Charts of times leave out those that failed the quality gate.
        target: accuracy in percent, for the time to target.
        client: reads the history of metrics.
    """
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
        _time_to_target(runs, curves, target, colors),
        _phases(runs),
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
    if len(rows) < 2:
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
    times = {label: phase_times(run) for label, run in runs.items()}
    phases = [*(metric.phase for metric in PHASES), OTHER]
    present = [part for part in phases if any(parts.get(part) for parts in times.values())]
    if sum(any(parts.values()) for parts in times.values()) < 2:
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


def phase_times(run: BenchmarkRun) -> dict[str, float]:
    """Return the seconds of the worker's wall time by phase."""
    known = {name: value for name, value in run.metrics.items() if math.isfinite(value)}
    times = {metric.phase: known[metric.name] for metric in PHASES if metric.name in known}
    if WALL_TIME in known:
        times[OTHER] = max(0.0, known[WALL_TIME] - sum(times.values()))
    return times
