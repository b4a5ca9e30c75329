"""``gtdl compare A B``: two frameworks, two searches or two sets of runs, under the same conditions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mlflow.exceptions import MlflowException

from .. import config
from ..config import display
from ..config.errors import similar
from ..console import aligned
from .formats import count, one_line
from .intervals import LEVEL, SEEDS_TO_PUBLISH, Difference, Ratio
from .ranking import Conditions, FrameworkResults, group_by_conditions, samples
from .runs import BenchmarkRun, NothingFound
from .verdicts import QUESTIONS, Question, Sample, compare, failed_quality, sample, verdict

Search = Callable[[str], Iterable[BenchmarkRun]]
"""Returns the runs that meet an MLflow search condition."""


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of both sides, under the same conditions."""

    conditions: str
    question: Question
    first: Sample
    second: Sample
    result: Ratio | Difference | None
    """None if nothing can be concluded."""
    warnings: tuple[str, ...]


def rows(
    runs: Iterable[BenchmarkRun], search: Search, first: str, second: str, across_machines: bool = False
) -> list[ComparisonRow]:
    """Compare every headline metric under all conditions that both sides were measured under.

    Args:
        runs: all runs of the experiments. The verdict on two frameworks is that of the report: see ``verdicts``.
        search: finds runs by an MLflow search, for a side that is one.
        first: a framework's name (with ``=VERSION``), run IDs or an MLflow search.
        second: the other side.
        across_machines: whether to compare runs of different machines.

    Raises:
        ConfigError: a side is not a selector, or both sides are the same runs.
        NothingFound: a side has no finished run, or the sides have no condition in common.
    """
    every = list(runs)
    sides = [{run.run_id for run in select(every, search, selector)} for selector in (first, second)]
    if sides[0] == sides[1]:
        raise config.ConfigError(
            f"{first} and {second} are the same runs: name two frameworks, searches or sets of runs"
        )
    found = []
    for conditions, frameworks in group_by_conditions(every, across_machines).items():
        finished = [run for each in frameworks for run in each.finished]
        ours, theirs = ([run for run in finished if run.run_id in side] for side in sides)
        if not ours or not theirs:
            continue
        warnings = tuple(_warnings(title(first), ours) + _warnings(title(second), theirs))
        labels = _label(ours, frameworks), _label(theirs, frameworks)
        for question in QUESTIONS:
            one, other = (sample(some, question.name) for some in (ours, theirs))
            if labels[0] and labels[1] and labels[0] != labels[1]:
                result = compare(question, labels[0], labels[1], samples(frameworks, question))
            else:  # other sets of runs: one comparison, planned by the user
                result = compare(question, "first", "second", {"first": one, "second": other})
            found.append(ComparisonRow(_text(conditions), question, one, other, result, warnings))
    if not found:
        hint = "" if across_machines else "; --across-machines compares runs of different machines"
        raise NothingFound(f"{first} and {second}: no data set, setting, budget and device in common{hint}")
    return found


def _label(runs: list[BenchmarkRun], frameworks: list[FrameworkResults]) -> str:
    """Return the label of the framework that has exactly these runs; empty if there is none."""
    ids = {run.run_id for run in runs}
    return next((each.label for each in frameworks if {run.run_id for run in each.finished} == ids), "")


def select(runs: Sequence[BenchmarkRun], search: Search, selector: str) -> list[BenchmarkRun]:
    """Return finished runs by run IDs, by a framework's name (with ``=VERSION``) or by an MLflow search.

    Raises:
        ConfigError: the selector is none of these.
        NothingFound: no finished run matches.
    """
    ids = selector.split(",")
    name, _, version = selector.removeprefix("framework=").partition("=")
    if all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids):
        found = [run for run in runs if run.run_id in ids]
    elif _is_framework(name):
        found = [run for run in runs if run.key.framework == name and version in ("", run.requested_version)]
    elif re.fullmatch(r"[\w.,=-]+", selector) and not re.match(r"(metrics|params|tags|attributes)\b", selector):
        frameworks = config.choices("framework")
        length = "; a run ID has 32 characters" if re.fullmatch(r"[0-9a-f]+", selector) else ""
        raise config.ConfigError(
            f"{selector}: expected a framework ({', '.join(frameworks)}), run IDs, or an MLflow search such as "
            f"\"params.framework = 'torch'\"{length}{similar(name, frameworks)}"
        )
    else:
        try:
            found = list(search(selector))
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            reason = one_line(str(error.message))
            raise config.ConfigError(
                f"{selector}: no MLflow search ({reason}); text is quoted: ... = 'torch'"
            ) from error
    if not any(run.finished for run in found):
        names = sorted({f"{run.key.framework}={run.requested_version}" for run in runs if run.finished})
        known = f"there are finished runs of {', '.join(names)}" if names else "no run has finished yet"
        if _is_framework(name):
            known += f"; to create one: gtdl run framework={name}{version and f' framework.version={version}'}"
        raise NothingFound(f"{selector}: no finished run in the experiments that are searched (--experiment); {known}")
    return [run for run in found if run.finished]


def title(selector: str) -> str:
    """Return the name of a side in tables: ``PyTorch 2.13.0`` for ``torch=2.13.0``, any other selector unchanged."""
    name, _, version = selector.removeprefix("framework=").partition("=")
    return f"{display.label(name)} {version}".rstrip() if _is_framework(name) else selector


def _is_framework(name: str) -> bool:
    return name in config.choices("framework")


def _text(conditions: Conditions) -> str:
    parts = [conditions.dataset, conditions.setting, conditions.hardware]
    if conditions.budget != 1:
        parts.append(f"budget {conditions.budget:g}")
    if conditions.machine:
        parts.append(conditions.machine)
    return ", ".join(parts)


def _warnings(side: str, runs: list[BenchmarkRun]) -> list[str]:
    warnings = []
    if (seeds := len({run.seed for run in runs})) < SEEDS_TO_PUBLISH:
        warnings.append(f"{side}: only {count(seeds, 'seed')}; publish with at least {SEEDS_TO_PUBLISH}.")
    if failed := one_line(failed_quality(runs)):
        warnings.append(f"{side} failed the quality gate, so its times are meaningless: {failed}")
    if resumed := sum(run.resumed for run in runs):
        warnings.append(f"{side}: {count(resumed, 'run')} resumed after a kill.")
    return warnings


def text(compared: list[ComparisonRow], first: str, second: str) -> str:
    """Return a table for each condition, with its warnings, for a terminal."""
    sides = title(first), title(second)
    lines = []
    for conditions in dict.fromkeys(row.conditions for row in compared):
        some = [row for row in compared if row.conditions == conditions]
        table = [["", *sides, "ratio or difference", ""]]
        noise = []
        for row in some:
            distance = row.result.text if row.result else ""
            decision = verdict(row.question, row.first, row.second, row.result)
            table.append([row.question.metric.title, row.first.text, row.second.text, distance, decision])
            for side, values in zip(sides, (row.first, row.second), strict=True):
                flags = values.summary.noise if values.values else ()
                noise += [f"{row.question.metric.label} of {side}: {flag}" for flag in flags]
        lines.append(conditions)
        lines += [f"  {line}" for line in aligned(table)]
        lines += [f"  ! {warning}" for warning in [*some[0].warnings, *noise]]
        lines.append("")
    lines += [
        f"Columns: median [{LEVEL:.0%} confidence interval], number of runs; accuracy: mean, number of seeds.",
        "Ratio: median time of the first side divided by that of the second.",
        "Difference: mean accuracy of the first side minus that of the second, in percentage points; seed by seed if "
        "both have the same setting and seeds.",
        "The intervals of ratios and differences are simultaneous for all frameworks under the same conditions.",
    ]
    return "\n".join(lines)
