"""``gtdl compare A B``: two frameworks, two searches or two handfuls of runs, under equal conditions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .. import config
from ..console import aligned
from .runs import BenchmarkRun, CellKey, NothingFound, load
from .stats import Comparison, Summary, compare, holm

FIGURES = {"training_time_s": "training s", "testing_time_s": "testing s", "accuracy_percent": "accuracy %"}
"""The three headline metrics, and what to call them."""


@dataclass(frozen=True)
class ComparisonRow:
    """One figure of both, under the same conditions."""

    conditions: str
    figure: str
    result: Comparison
    warnings: tuple[str, ...]


def rows(
    uri: str, experiments: list[str], first: str, second: str, across_machines: bool = False
) -> list[ComparisonRow]:
    """Every figure under every condition that both have been measured under.

    p-values are Holm's, for the figures of one condition: for many conditions, five repeats could show nothing.

    Raises:
        NothingFound: one of them has no finished run, or no condition in common with the other.
    """
    one, other = (select(uri, experiments, words) for words in (first, second))
    groups = [_by_conditions(runs, across_machines) for runs in (one, other)]
    found = []
    for conditions in groups[0]:
        if conditions not in groups[1]:
            continue
        mine, theirs = groups[0][conditions], groups[1][conditions]
        warnings = tuple(_warnings(first, mine) + _warnings(second, theirs))
        results = [compare(*([run.metrics[name] for run in runs] for runs in (mine, theirs))) for name in FIGURES]
        corrected = holm([result.p for result in results])
        for figure, result, p in zip(FIGURES.values(), results, corrected, strict=True):
            found.append(ComparisonRow(conditions, figure, replace(result, p=p), warnings))
    if not found:
        hint = "" if across_machines else "; --across-machines compares runs of different machines"
        raise NothingFound(
            f"{first} and {second}: no data set, setting, budget, tuning and device that both were measured under{hint}"
        )
    return found


def select(uri: str, experiments: list[str], words: str) -> list[BenchmarkRun]:
    """The finished runs that ``words`` mean: run numbers, a framework's name (with ``=VERSION``), or an MLflow search.

    Raises:
        NothingFound: none.
    """
    numbers = words.split(",")
    if all(re.fullmatch(r"[0-9a-f]{32}", number) for number in numbers):
        some = [run for run in load(uri, experiments) if run.run_id in numbers]
    else:
        some = load(uri, experiments, _search(words))
    some = [run for run in some if run.finished]
    if not some:
        raise NothingFound(f"{words}: no finished run in experiment {', '.join(experiments)}")
    return some


def _search(words: str) -> str:
    name, _, version = words.partition("=")
    if (config.CONF / "framework" / f"{name}.yaml").is_file():
        condition = f"tags.`gtdl.framework` = '{name}'"
        return condition + (f" and params.`framework.version` = '{version}'" if version else "")
    return words


def _by_conditions(runs: Iterable[BenchmarkRun], across_machines: bool) -> dict[str, list[BenchmarkRun]]:
    groups: dict[str, list[BenchmarkRun]] = defaultdict(list)
    for run in runs:
        for setting in run.kind.settings:
            groups[_conditions(run.kind, setting, across_machines)].append(run)
    return groups


def _conditions(kind: CellKey, setting: str, across_machines: bool) -> str:
    words = [f"{kind.dataset}, {setting}", kind.place]
    if kind.budget != 1:
        words.append(f"budget {kind.budget:g}")
    if kind.tuning != "best":
        words.append(f"tuning {kind.tuning}")
    if not across_machines:
        words.append(kind.machine)
    return ", ".join(words)


def _warnings(words: str, runs: list[BenchmarkRun]) -> list[str]:
    warnings = []
    if len({run.seed for run in runs}) < 5:
        warnings.append(f"{words}: {len({run.seed for run in runs})} of the 5 seeds that a publishable figure has")
    poor = sorted({run.quality for run in runs} - {"ok", ""})
    if poor:
        warnings.append(f"{words}: its times mean nothing: {', '.join(poor)}")
    if any("gtdl.resumed" in run.tags for run in runs):
        warnings.append(f"{words}: a run went on after a kill")
    return warnings


def text(found: list[ComparisonRow], first: str, second: str) -> str:
    """For a terminal."""
    lines = []
    for conditions in dict.fromkeys(row.conditions for row in found):
        some = [row for row in found if row.conditions == conditions]
        table = [["", first, second, "ratio", "p (Holm)", ""]]
        for row in some:
            result = row.result
            table.append(
                [
                    row.figure,
                    format_summary(result.first),
                    format_summary(result.second),
                    _ratio(result),
                    _p(result),
                    verdict(row),
                ]
            )
        lines.append(conditions)
        lines += [f"  {line}" for line in aligned(table)]
        sides = [(f"{row.figure} of {name}", side) for row in some
                 for name, side in ((first, row.result.first), (second, row.result.second))]  # fmt: skip
        noise = [f"{what}: {flag}" for what, side in sides for flag in side.noise]
        lines += [f"  ! {warning}" for warning in [*some[0].warnings, *noise]]
        lines.append("")
    lines.append("Median [95 % interval of the mean], n; the ratio's interval is that of the geometric means;")
    lines.append("p by Mann-Whitney's test, corrected by Holm for the three figures.")
    return "\n".join(lines)


def verdict(row: ComparisonRow) -> str:
    """``first`` is less or more, or nothing can be said."""
    result = row.result
    if min(result.first.n, result.second.n) < 2:
        return "one run is no comparison"
    if not result.significant:
        return "not significant"
    if row.figure == FIGURES["accuracy_percent"]:
        return f"{abs(result.difference):.2f} points {'more' if result.difference > 0 else 'less'}"
    return f"{1 / result.ratio:.2f} times as fast" if result.ratio < 1 else f"{result.ratio:.2f} times as long"


def format_summary(summary: Summary) -> str:
    """``12.3 [11.9, 12.8], 5``."""
    interval = f" [{_number(summary.low)}, {_number(summary.high)}]" if summary.n > 1 else ""
    return f"{_number(summary.median)}{interval}, {summary.n}"


def _number(value: float) -> str:
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.3g}"


def _ratio(result: Comparison) -> str:
    interval = "" if result.low != result.low else f" [{result.low:.3f}, {result.high:.3f}]"
    return f"{result.ratio:.3f}{interval}"


def _p(result: Comparison) -> str:
    return "" if result.p != result.p else f"{result.p:.3f}"
