"""``gtdl compare A B``: two frameworks, two searches or two sets of runs, under the same conditions."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .. import config, tags
from ..config import display
from ..console import aligned
from .formats import count, format_p, format_ratio, format_summary
from .ranking import QUESTIONS, Question
from .runs import BenchmarkRun, CellKey, NothingFound, load
from .stats import SEEDS_TO_PUBLISH, Comparison, compare, holm


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of both sides, under the same conditions."""

    conditions: str
    question: Question
    result: Comparison
    warnings: tuple[str, ...]


def rows(
    uri: str, experiments: list[str], first: str, second: str, across_machines: bool = False
) -> list[ComparisonRow]:
    """Compare every headline metric under all conditions that both sides were measured under.

    Holm's correction is for the metrics of one condition: with one for all conditions, five repeats could show nothing.

    Raises:
        NothingFound: a side has no finished run, or the sides have no condition in common.
    """
    one, other = (select(uri, experiments, selector) for selector in (first, second))
    groups = [_by_conditions(runs, across_machines) for runs in (one, other)]
    found = []
    for conditions, ours in groups[0].items():
        if (theirs := groups[1].get(conditions)) is None:
            continue
        warnings = tuple(_warnings(title(first), ours) + _warnings(title(second), theirs))
        results = [
            compare(*([run.metrics[each.name] for run in runs] for runs in (ours, theirs))) for each in QUESTIONS
        ]
        corrected = holm([result.p for result in results])
        for question, result, p in zip(QUESTIONS, results, corrected, strict=True):
            found.append(ComparisonRow(conditions, question, replace(result, p=p), warnings))
    if not found:
        hint = "" if across_machines else "; --across-machines compares runs of different machines"
        raise NothingFound(f"{first} and {second}: no data set, setting, budget, tuning and device in common{hint}")
    return found


def select(uri: str, experiments: list[str], selector: str) -> list[BenchmarkRun]:
    """Return finished runs by run IDs, by a framework's name (with ``=VERSION``) or by an MLflow search.

    Raises:
        NothingFound: no finished run matches.
    """
    ids = selector.split(",")
    if all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids):
        runs = [run for run in load(uri, experiments) if run.run_id in ids]
    else:
        runs = load(uri, experiments, _search(selector))
    runs = [run for run in runs if run.finished]
    if not runs:
        raise NothingFound(f"{selector}: no finished run in experiment {', '.join(experiments)}")
    return runs


def title(selector: str) -> str:
    """Return the name of a side in tables: ``PyTorch 2.13.0`` for ``torch=2.13.0``, any other selector unchanged."""
    name, _, version = selector.partition("=")
    return f"{display.label(name)} {version}".rstrip() if _is_framework(name) else selector


def _is_framework(name: str) -> bool:
    return (config.CONF / "framework" / f"{name}.yaml").is_file()


def _search(selector: str) -> str:
    name, _, version = selector.partition("=")
    if not _is_framework(name):
        return selector
    condition = f"tags.`{tags.FRAMEWORK}` = '{name}'"
    return condition + (f" and params.`framework.version` = '{version}'" if version else "")


def _by_conditions(runs: Iterable[BenchmarkRun], across_machines: bool) -> dict[str, list[BenchmarkRun]]:
    groups: dict[str, list[BenchmarkRun]] = defaultdict(list)
    for run in runs:
        for setting in run.key.settings:
            groups[_conditions(run.key, setting, across_machines)].append(run)
    return groups


def _conditions(key: CellKey, setting: str, across_machines: bool) -> str:
    parts = [f"{key.dataset}, {setting}", key.hardware]
    if key.budget != 1:
        parts.append(f"budget {key.budget:g}")
    if key.tuning != "best":
        parts.append(f"tuning {key.tuning}")
    if not across_machines:
        parts.append(key.machine)
    return ", ".join(parts)


def _warnings(side: str, runs: list[BenchmarkRun]) -> list[str]:
    warnings = []
    if (seeds := len({run.seed for run in runs})) < SEEDS_TO_PUBLISH:
        warnings.append(f"{side}: only {count(seeds, 'seed')}; publish with at least {SEEDS_TO_PUBLISH}.")
    if failed := sorted({run.quality for run in runs} - {"ok", ""}):
        warnings.append(f"{side} failed the quality gate, so its times are meaningless: {', '.join(failed)}")
    if resumed := sum(run.resumed for run in runs):
        warnings.append(f"{side}: {count(resumed, 'run')} resumed after a kill.")
    return warnings


def text(compared: list[ComparisonRow], first: str, second: str) -> str:
    """Return a table for each condition, with its warnings, for a terminal."""
    sides = title(first), title(second)
    lines = []
    for conditions in dict.fromkeys(row.conditions for row in compared):
        some = [row for row in compared if row.conditions == conditions]
        table = [["", *sides, "ratio", "p (Holm)", ""]]
        noise = []
        for row in some:
            result, metric = row.result, row.question.metric
            summaries = [format_summary(side) for side in (result.first, result.second)]
            p = format_p(result.p).removeprefix("= ")
            table.append([metric.title, *summaries, _ratio(result), p, verdict(row)])
            for side, summary in zip(sides, (result.first, result.second), strict=True):
                noise += [f"{metric.label} of {side}: {flag}" for flag in summary.noise]
        lines.append(conditions)
        lines += [f"  {line}" for line in aligned(table)]
        lines += [f"  ! {warning}" for warning in [*some[0].warnings, *noise]]
        lines.append("")
    lines.append(
        "Columns: median [95 % interval of the mean], number of runs. Ratio: of the medians, with the 95 % interval"
    )
    lines.append("of the geometric means' ratio. p: Mann-Whitney's test, corrected by Holm for the three metrics.")
    return "\n".join(lines)


def verdict(row: ComparisonRow) -> str:
    """Return how the first side differs from the second, or why that is unknown."""
    result = row.result
    if min(result.first.n, result.second.n) < 2:
        return "one run is no comparison"
    if not result.significant:
        return "not significant"
    if row.question.largest:
        return f"{abs(result.difference):.2f} points {'higher' if result.difference > 0 else 'lower'}"
    if result.ratio < 1:
        return f"{format_ratio(1 / result.ratio)}x as fast"
    return f"{format_ratio(result.ratio)}x as long"


def _ratio(result: Comparison) -> str:
    interval = "" if math.isnan(result.low) else f" [{format_ratio(result.low)}, {format_ratio(result.high)}]"
    return f"{format_ratio(result.ratio)}{interval}"
