"""Tables of a section of the report: rankings, execution modes, and the cost of an abstraction."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .. import tags
from ..config import display
from ..metrics import METRICS
from . import ratios
from .formats import format_number, one_line
from .intervals import Difference, Ratio, Verdict
from .ranking import Answer, FrameworkResults, samples
from .ratios import OVER_PLAIN
from .verdicts import QUESTIONS, TIMES, Question, compare

RESOURCES = ("worker/peak_memory_mb", "worker/peak_gpu_memory_mb", "train/cpu_utilization_percent",
             "system/cpu_energy_j", "system/gpu_energy_j")  # fmt: skip
"""Metrics beside the headline metrics in a ranking."""

SAMPLE = "Median (accuracy: mean) [95 % interval], number of values; up to three values are listed"
"""Note of columns that have the text of a sample."""

Paired = Mapping[str, ratios.Ranked]
"""Values of a paired measurement by ``CLOCK/ACTIVITY/FRAMEWORK``, where the framework's label has ``-`` for spaces."""


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
        values = [f"{self.header[index]}: {self.rows[0][index]}".replace("\n", ", ") for index in constant]
        return self._with([index for index in range(len(self.header)) if index not in constant]), values

    def _with(self, columns: Sequence[int]) -> Table:
        return Table(
            [self.header[index] for index in columns], [[row[index] for index in columns] for row in self.rows]
        )


def paired_values(metrics: Mapping[str, float]) -> Paired:
    """Return the values of a paired measurement, from the metrics of a sweep's parent run."""
    found = {}
    for key, value in metrics.items():
        name, _, kind = key.rpartition("/")
        if kind == "ratio":
            ratio = Ratio(value, metrics.get(f"{key}_low", 0.0), metrics.get(f"{key}_high", math.inf), 0)
            found[name] = ratios.Ranked(name.rpartition("/")[2], metrics.get(f"{name}/time_ms", math.nan) / 1e3, ratio)
    return found


def paired_rankings(paired: Paired, labels: Iterable[str]) -> list[ratios.Ranking]:
    """Return the rankings by clock and activity, CPU time first."""
    names = {display.part_of_metric(label): label for label in labels}
    found = []
    for clock in ratios.CLOCKS:
        for activity in ratios.PHRASES:
            some = [each for name, each in paired.items() if name.startswith(f"{clock}/{activity}/")]
            ranked = [replace(each, framework=names.get(each.framework, each.framework)) for each in some]
            ranked.sort(key=lambda each: each.ratio.value)
            if len(ranked) > 1:
                found.append(ratios.Ranking(activity, clock, tuple(ranked)))
    return found


def paired_table(rankings: Sequence[ratios.Ranking]) -> Table:
    """Return the ratios to the best, with a row per framework in the order of the first ranking."""
    labels = dict.fromkeys(each.framework for ranking in rankings for each in ranking.frameworks)
    columns = [
        {each.framework: _paired_cell(each, index == 0) for index, each in enumerate(ranking.frameworks)}
        for ranking in rankings
    ]
    header = ["framework", *(f"{ratios.UNITS[each.activity]}, {ratios.CLOCKS[each.clock]}" for each in rankings)]
    return Table(header, [[label, *(column.get(label, "") for column in columns)] for label in labels])


def ranking_table(
    frameworks: Sequence[FrameworkResults], found: Sequence[Answer], answered: Collection[str] = ()
) -> Table:
    """Return the ranking: a row per framework, the fastest in training first and those without a rank last.

    Times in ``answered`` have no distance from the best: a paired measurement has ranked them.
    """
    places = {answer.question.name: answer.ranking for answer in found}
    order = dict.fromkeys(each.label for places_ in places.values() for each in places_)
    by_label = {each.label: each for each in frameworks}
    rows = []
    for label in dict.fromkeys((*order, *by_label)):
        each = by_label[label]
        distances = {
            name: _distance(place.behind, place is some[0]) if len(some) > 1 and name not in answered else ""
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
    return Table(["framework", "chosen", "others"], rows).without_empty_columns() if rows else None


def abstraction_table(frameworks: Sequence[FrameworkResults], paired: Paired) -> Table | None:
    """Return the cost of each abstraction: by a paired measurement if there was one, otherwise by whole runs."""
    costs: dict[tuple[str, str], dict[str, str]] = {}
    for each, other in _with_plain(frameworks):
        found: dict[str, str] = {}
        for clock, activity in itertools.product(ratios.CLOCKS, ratios.PHRASES):
            name = f"{clock}/{activity}{OVER_PLAIN}/{display.part_of_metric(each.label)}"
            if name in paired:
                found[f"{ratios.UNITS[activity]}, {ratios.CLOCKS[clock]}"] = _distance(paired[name].ratio, best=False)
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
    finished = {(each.framework, each.finished[0].key.execution): each for each in frameworks if each.finished}
    pairs = ((each, finished.get((display.plain(name), how))) for (name, how), each in finished.items())
    return [(each, other) for each, other in pairs if other is not None]


def _measured(framework: FrameworkResults, question: Question, distance: str | None) -> str:
    """Return a cell of a ranking: the values, and the distance from the best or why there is none."""
    values = framework.sample(question.name)
    if distance is None and values.text:
        failed = "" if question.largest else one_line(framework.failed_quality)
        return f"({values.text})\nnot ranked{failed and f': {failed}'}"
    return f"{values.text}\n{distance}" if distance else values.text


def _paired_cell(ranked: ratios.Ranked, best: bool) -> str:
    if best and math.isfinite(ranked.unit_s):
        return f"best: {format_number(1e3 * ranked.unit_s)} ms"
    return _distance(ranked.ratio, best)


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
    """Return the number of runs by state, and how many of the finished ones were disturbed."""
    disturbed = sum(run.tags.get(tags.INTERFERENCE, "ok") != "ok" for run in framework.finished)
    numbers = {
        "finished": len(framework.finished),
        "running": len(framework.running),
        "failed": len(framework.failed),
        "not available": len(framework.unavailable),
    }
    states = ", ".join(f"{number} {state}" for state, number in numbers.items() if number)
    return f"{states}\n{disturbed} disturbed" if disturbed else states
