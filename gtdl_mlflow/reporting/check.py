"""``gtdl check``: whether the runs of an experiment can be published, by the rules in ``rules.yaml``."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mlflow.tracking import MlflowClient

from .. import tags
from ..console import info
from ..metrics import PHASES
from ..tracking.store import TrackingFailed, translate_errors
from .formats import count, one_line
from .intervals import SEEDS_TO_PUBLISH
from .ranking import FrameworkResults, group_by_conditions
from .runs import BenchmarkRun, CellKey, SkippedRun
from .verdicts import QUESTIONS, TIMES, sample

REQUIRED_TAGS = (tags.FRAMEWORK_VERSION, tags.ENVIRONMENT, tags.MACHINE, tags.DATA_DIGEST, tags.CODE)
"""Tags without which a result cannot be repeated."""

TOLERANCE = 1.02
"""Largest sum of the worker's times relative to its wall time."""

ACROSS_CELLS = {"same_data", "any_finished"}
"""Rules about all runs together."""

COMPARED = {"compared_version", "compared_code"}
"""Rules about the frameworks under the same conditions, which a report ranks. Every other rule is about one cell."""


@dataclass(frozen=True)
class Finding:
    """A rule that a run or a cell breaks."""

    rule: str
    level: str
    """``error`` or ``warning``."""
    subject: str
    """Cell, run or data set that breaks the rule."""
    message: str
    runs: tuple[str, ...]
    """IDs of the runs."""


@dataclass(frozen=True)
class CheckResult:
    """All findings about some runs, and the number of runs and cells."""

    findings: list[Finding]
    runs: int
    cells: int
    skipped: tuple[SkippedRun, ...] = ()
    """Runs that are incomplete or malformed, which no rule was applied to."""

    @property
    def passed(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)

    def tag_value(self, run_id: str) -> str:
        """Return the value of the tag ``gtdl.check`` of a run."""
        broken = {finding.rule for finding in self.findings if run_id in finding.runs}
        return ", ".join(sorted(broken)) or "ok"

    def json(self) -> dict[str, Any]:
        """Return the result as values that JSON can represent: passed, runs, cells, skipped and findings."""
        return {
            "passed": self.passed,
            "runs": self.runs,
            "cells": self.cells,
            "skipped": [asdict(run) for run in self.skipped],
            "findings": [asdict(finding) for finding in self.findings],
        }

    def text(self) -> str:
        """Return a line for each finding, the reason for each broken rule, and the totals."""
        lines = []
        for finding in sorted(self.findings, key=lambda each: (each.level, each.rule, each.subject)):
            lines.append(f"{finding.level.ljust(7)}  {finding.rule.ljust(20)}  {finding.subject}: {finding.message}")
        broken = {name: rules()[name]["why"] for name in sorted({finding.rule for finding in self.findings})}
        if broken:
            lines += ["", *(f"{name.ljust(20)}  {why}" for name, why in broken.items()), ""]
        errors = sum(finding.level == "error" for finding in self.findings)
        totals = f"{count(self.runs, 'run')} in {count(self.cells, 'cell')}"
        counts = f"{count(errors, 'error')}, {count(len(self.findings) - errors, 'warning')}"
        lines.append(f"{'passed' if self.passed else 'not passed'}: {totals}, {counts}")
        return "\n".join(lines)


@cache
def rules() -> dict[str, dict[str, str]]:
    """Return all rules by name: their ``level``, and ``why`` they exist."""
    loaded: dict[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text())
    return loaded


def check(runs: Iterable[BenchmarkRun], skipped: Iterable[SkippedRun] = ()) -> CheckResult:
    """Check every rule on every run and cell. Runs of one cell differ in the seed, the machine or its cores only."""
    every = sorted(runs, key=lambda run: run.started_ms)
    cells: dict[CellKey, list[BenchmarkRun]] = defaultdict(list)
    for run in every:
        if not run.unavailable:
            cells[replace(run.key, machine="")].append(run)
    compared = [(conditions.text, _runs_of(some)) for conditions, some in group_by_conditions(every).items()]
    findings = []
    for name, rule in rules().items():
        groups: Iterable[tuple[str, list[BenchmarkRun]]]
        if name in COMPARED:
            groups = compared
        else:
            groups = (("", some) for some in ([every] if name in ACROSS_CELLS else cells.values()))
        for conditions, some in groups:
            for message, concerned in RULES[name](some):
                ids = tuple(run.run_id for run in concerned)
                subject = conditions or _subject(concerned, name in ACROSS_CELLS)
                findings.append(Finding(name, rule["level"], subject, one_line(message), ids))
    return CheckResult(findings, len(every), len(cells), tuple(skipped))


def tag(verdict: CheckResult, runs: Iterable[BenchmarkRun], client: MlflowClient) -> None:
    """Set the tag ``gtdl.check`` of all runs; the report shows it.

    If the store refuses, as it does for a user who may only read, a message is printed.
    """
    try:
        with translate_errors(client.tracking_uri):
            for run in runs:
                value = verdict.tag_value(run.run_id)
                if run.tags.get(tags.CHECK) != value:
                    client.set_tag(run.run_id, tags.CHECK, value)
    except TrackingFailed as error:
        info(f"the tag {tags.CHECK} is not set: {error}")


def _runs_of(frameworks: list[FrameworkResults]) -> list[BenchmarkRun]:
    """Return the finished runs of several frameworks; none if only one framework has any."""
    finished = [each.finished for each in frameworks if each.finished]
    return [run for some in finished for run in some] if len(finished) > 1 else []


def _subject(runs: list[BenchmarkRun], across_cells: bool) -> str:
    key = runs[0].key
    if across_cells:
        return key.dataset
    cell = f"{key.framework} {key.setting} on {key.dataset}, {key.hardware}"
    return f"{cell}, seed {runs[0].seed}" if len(runs) == 1 else cell


Violations = Iterator[tuple[str, list[BenchmarkRun]]]
"""Messages, each with the runs that it concerns."""


def _finished_runs(runs: list[BenchmarkRun]) -> list[BenchmarkRun]:
    return [run for run in runs if run.finished]


def _any_finished(runs: list[BenchmarkRun]) -> Violations:
    if runs and not _finished_runs(runs):
        yield "no run finished", runs


def _enough_seeds(runs: list[BenchmarkRun]) -> Violations:
    seeds = {run.seed for run in _finished_runs(runs)}
    if len(seeds) < SEEDS_TO_PUBLISH:
        yield f"{count(len(seeds), 'seed')} finished; publish with at least {SEEDS_TO_PUBLISH}", runs


def _distinct_seeds(runs: list[BenchmarkRun]) -> Violations:
    counts = Counter(run.seed for run in _finished_runs(runs))
    for seed, number in counts.items():
        if number > 1:
            yield f"seed {seed} finished {number} times", [run for run in _finished_runs(runs) if run.seed == seed]


def _same(attribute: Callable[[BenchmarkRun], str], plural: str) -> Callable[[list[BenchmarkRun]], Violations]:
    def check_rule(runs: list[BenchmarkRun]) -> Violations:
        values = sorted({attribute(run) for run in _finished_runs(runs)})
        if len(values) > 1:
            yield f"{len(values)} {plural}: {'; '.join(values)}", _finished_runs(runs)

    return check_rule


def _code(run: BenchmarkRun) -> str:
    return run.tags.get(tags.CODE, "unknown")


def _same_data(runs: list[BenchmarkRun]) -> Violations:
    """Compare the data's digests. Settings that change the data on purpose make another variant of the data set."""
    digests: dict[tuple[str, ...], dict[str, list[BenchmarkRun]]] = defaultdict(lambda: defaultdict(list))
    for run in _finished_runs(runs):
        variant = tuple(run.tags.get(name, "") for name in tags.DATASET_VARIANTS)
        digests[(run.key.dataset, *variant)][run.tags.get(tags.DATA_DIGEST, "unknown")].append(run)
    for by_digest in digests.values():
        if len(by_digest) > 1:
            yield f"{len(by_digest)} digests of the data", [run for some in by_digest.values() for run in some]


def _environment_recorded(runs: list[BenchmarkRun]) -> Violations:
    for run in _finished_runs(runs):
        missing = [name for name in REQUIRED_TAGS if not run.tags.get(name)]
        if missing:
            yield f"no {', '.join(missing)}", [run]


def _device_as_requested(runs: list[BenchmarkRun]) -> Violations:
    for run in _finished_runs(runs):
        requested = {"device": run.tags.get(tags.DEVICE, ""), "precision": run.key.precision}
        if run.key.device == "cpu":
            requested["threads"] = run.key.threads
        for name, value in requested.items():
            reported = run.reported.get(name, "nothing")
            if reported != value:
                yield f"{name} {value} requested, {reported} reported", [run]


def _finite_results(runs: list[BenchmarkRun]) -> Violations:
    for run in _finished_runs(runs):
        for question in QUESTIONS:
            if not math.isfinite(run.metrics[question.name]):
                yield f"{question.metric.label} {run.metrics[question.name]}", [run]


def _device_synchronised(runs: list[BenchmarkRun]) -> Violations:
    for run in _finished_runs(runs):
        wall = run.metrics.get("worker/wall_s", math.nan)
        total = sum(value for metric in PHASES if math.isfinite(value := run.metrics.get(metric.name, 0.0)))
        # The steps before a kill ran in another worker.
        if not run.resumed and not total <= TOLERANCE * wall:
            yield f"the times add up to {total:.3g} s, the worker's wall time is {wall:.3g} s", [run]
        for question in TIMES:
            if math.isfinite(run.metrics[question.name]) and run.metrics[question.name] <= 0:
                yield f"{question.metric.label} {run.metrics[question.name]:g} s", [run]


def _first_step_included(runs: list[BenchmarkRun]) -> Violations:
    for run in _finished_runs(runs):
        first, training = run.metrics.get("train/first_step_s", math.nan), run.metrics["training_time_s"]
        if math.isfinite(training) and not 0 < first <= training:
            yield f"first step {first:.3g} s, training time {training:.3g} s", [run]


def _quality_gate(runs: list[BenchmarkRun]) -> Violations:
    for run in _finished_runs(runs):
        if run.quality != "ok":
            yield run.quality or f"no tag {tags.QUALITY}", [run]


def _finished(runs: list[BenchmarkRun]) -> Violations:
    seeds = {run.seed for run in _finished_runs(runs)}
    for run in runs:
        if run.state in ("failed", "killed") and run.seed not in seeds:
            yield f"{run.status}: {one_line(run.reason) or 'no reason recorded'}", [run]


def _none_running(runs: list[BenchmarkRun]) -> Violations:
    for run in runs:
        if run.running:
            yield "running: the verdict may change when it ends", [run]


def _low_noise(runs: list[BenchmarkRun]) -> Violations:
    for question in TIMES:
        times = sample(_finished_runs(runs), question.name)
        if times.values and (flags := times.summary.noise):
            yield f"{question.metric.label}: {', '.join(flags)}", _finished_runs(runs)


def _no_interference(runs: list[BenchmarkRun]) -> Violations:
    for run in _finished_runs(runs):
        if (interference := run.tags.get(tags.INTERFERENCE, "ok")) != "ok":
            yield interference, [run]


def _not_resumed(runs: list[BenchmarkRun]) -> Violations:
    for run in _finished_runs(runs):
        if run.resumed:
            yield run.tags[tags.RESUMED], [run]


def _resumption_recorded(runs: list[BenchmarkRun]) -> Violations:
    for run in _finished_runs(runs):
        if "resumed_from_iteration" in run.reported and not run.resumed:
            yield f"resumed from iteration {run.reported['resumed_from_iteration']}, but no tag {tags.RESUMED}", [run]


def _not_side_by_side(runs: list[BenchmarkRun]) -> Violations:
    side_by_side = [run for run in _finished_runs(runs) if run.key.side_by_side]
    if side_by_side:
        yield "other runs were allowed on other cores", side_by_side


RULES: dict[str, Callable[[list[BenchmarkRun]], Violations]] = {
    "any_finished": _any_finished,
    "enough_seeds": _enough_seeds,
    "distinct_seeds": _distinct_seeds,
    "same_machine": _same(lambda run: run.key.machine, "machines"),
    "same_data": _same_data,
    "same_code": _same(_code, "versions of the code"),
    "compared_version": _same(lambda run: _code(run).partition("+")[0], "versions of gtdl_mlflow"),
    "compared_code": _same(_code, "versions of the code"),
    "same_mode": _same(lambda run: run.tags.get(tags.MODE, ""), "execution modes"),
    "same_kernels": _same(lambda run: run.reported.get("blas_kernels", ""), "types of BLAS kernels"),
    "environment_recorded": _environment_recorded,
    "device_as_requested": _device_as_requested,
    "finite_results": _finite_results,
    "device_synchronised": _device_synchronised,
    "first_step_included": _first_step_included,
    "quality_gate": _quality_gate,
    "finished": _finished,
    "none_running": _none_running,
    "low_noise": _low_noise,
    "no_interference": _no_interference,
    "not_resumed": _not_resumed,
    "resumption_recorded": _resumption_recorded,
    "not_side_by_side": _not_side_by_side,
}
