"""``gtdl check``: whether the runs of an experiment are fit to be published; the rules are in ``rules.yaml``."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow.tracking import MlflowClient

from ..tags import DATASET_VARIANTS
from .ranking import QUESTIONS
from .runs import BenchmarkRun
from .sections import PHASES
from .stats import noise_flags

TAG = "gtdl.check"
"""On every run: ``ok``, or the rules that it or its cell breaks."""

OVER_ALL = {"same_data"}
"""Rules about all runs together; the others are about a cell."""


@dataclass(frozen=True)
class Finding:
    """One rule, broken by one run or one cell."""

    rule: str
    level: str
    """``error`` or ``warning``."""
    where: str
    what: str
    runs: tuple[str, ...]
    """Their numbers."""


@dataclass(frozen=True)
class Verdict:
    """On some runs."""

    findings: list[Finding]
    runs: int
    cells: int

    @property
    def passed(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)

    def of(self, run_id: str) -> str:
        """What the tag says."""
        broken = [finding for finding in self.findings if run_id in finding.runs]
        return ", ".join(sorted({finding.rule for finding in broken})) or "ok"

    def json(self) -> dict[str, Any]:
        return {"passed": self.passed, "runs": self.runs, "cells": self.cells,
                "findings": [asdict(finding) for finding in self.findings]}  # fmt: skip

    def text(self) -> str:
        lines = []
        for finding in sorted(self.findings, key=lambda each: (each.level, each.rule, each.where)):
            lines.append(f"{finding.level.ljust(7)}  {finding.rule.ljust(20)}  {finding.where}: {finding.what}")
        broken = {name: rules()[name]["why"] for name in sorted({finding.rule for finding in self.findings})}
        if broken:
            lines += ["", *(f"{name.ljust(20)}  {why}" for name, why in broken.items()), ""]
        errors = sum(finding.level == "error" for finding in self.findings)
        lines.append(
            f"{'passed' if self.passed else 'not passed'}: {self.runs} runs in {self.cells} cells, {errors} errors, "
            f"{len(self.findings) - errors} warnings"
        )
        return "\n".join(lines)


def rules() -> dict[str, dict[str, Any]]:
    """All rules by name: ``level``, ``why`` and what is held against them."""
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text())
    return loaded


def check(runs: Iterable[BenchmarkRun]) -> Verdict:
    """Hold every rule against every run and cell; a cell is what differs in nothing but the seed, or the machine."""
    every = sorted(runs, key=lambda run: run.started_ms)
    cells: dict[str, list[BenchmarkRun]] = defaultdict(list)
    for run in every:
        if not run.unavailable:
            cells[run.tags.get("gtdl.cell", run.run_id)].append(run)
    found = []
    for name, rule in rules().items():
        for some in [every] if name in OVER_ALL else cells.values():
            for what, concerned in RULES[name](some, rule):
                numbers = tuple(run.run_id for run in concerned)
                found.append(Finding(name, rule["level"], _where(concerned, name in OVER_ALL), what, numbers))
    return Verdict(found, len(every), len(cells))


def tag(verdict: Verdict, runs: Iterable[BenchmarkRun], client: MlflowClient) -> None:
    """Leave the verdict on the runs, where the report finds it."""
    for run in runs:
        said = verdict.of(run.run_id)
        if run.tags.get(TAG) != said:
            client.set_tag(run.run_id, TAG, said)


def _where(runs: list[BenchmarkRun], over_all: bool) -> str:
    kind = runs[0].kind
    if over_all:
        return kind.dataset
    cell = f"{kind.framework} {kind.setting} on {kind.dataset}, {kind.place}"
    return f"{cell}, seed {runs[0].seed}" if len(runs) == 1 else cell


Broken = Iterator[tuple[str, list[BenchmarkRun]]]
"""What is wrong, and with which runs."""


def _done(runs: list[BenchmarkRun]) -> list[BenchmarkRun]:
    return [run for run in runs if run.finished]


def _enough_seeds(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    seeds = {run.seed for run in _done(runs)}
    if len(seeds) < rule["least"]:
        yield f"{len(seeds)} finished seeds of the {rule['least']} that a publishable figure has", runs


def _seeds_differ(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    counts = Counter(run.seed for run in _done(runs))
    for seed, count in counts.items():
        if count > 1:
            yield f"seed {seed} finished {count} times", [run for run in _done(runs) if run.seed == seed]


def _same(
    attribute: Callable[[BenchmarkRun], str], what: str
) -> Callable[[list[BenchmarkRun], dict[str, Any]], Broken]:
    def broken(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
        values = sorted({attribute(run) for run in _done(runs)})
        if len(values) > 1:
            yield f"{len(values)} {what}: {'; '.join(values)}", _done(runs)

    return broken


def _same_data(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    """All frameworks must have had the same images; a data set that was cut down on purpose is another one."""
    digests: dict[tuple[str, ...], dict[str, list[BenchmarkRun]]] = defaultdict(lambda: defaultdict(list))
    for run in _done(runs):
        variant = tuple(run.tags.get(f"gtdl.{name}", "") for name in DATASET_VARIANTS)
        digests[(run.kind.dataset, *variant)][run.tags.get("gtdl.data_digest", "unknown")].append(run)
    for by_digest in digests.values():
        if len(by_digest) > 1:
            yield f"{len(by_digest)} digests of the data", [run for some in by_digest.values() for run in some]


def _environment_recorded(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    for run in _done(runs):
        absent = [name for name in rule["names"] if not run.tags.get(name)]
        if absent:
            yield f"no {', '.join(absent)}", [run]


def _device_as_asked(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    for run in _done(runs):
        asked = {"device": run.tags.get("gtdl.device", ""), "precision": "float32"}
        if run.kind.device == "cpu":
            asked["threads"] = run.kind.threads
        for name, value in asked.items():
            reported = run.reported.get(name, "nothing")
            if reported != value:
                yield f"{name} {value} asked for, {reported} reported", [run]


def _device_synchronised(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    for run in _done(runs):
        wall = run.metrics.get("worker/wall_s", math.nan)
        within = sum(run.metrics.get(name, 0.0) for name in PHASES)
        # Steps before a kill were another worker's time.
        if "gtdl.resumed" not in run.tags and within > rule["share"] * wall:
            yield f"{within:.3g} s of work in {wall:.3g} s of the worker's", [run]
        if min(run.metrics["training_time_s"], run.metrics["testing_time_s"]) <= 0:
            yield "a time of nothing", [run]


def _warm_up_kept(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    for run in _done(runs):
        first = run.metrics.get("train/first_step_s", math.nan)
        if not 0 < first <= run.metrics["training_time_s"]:
            yield f"first step {first:.3g} s, all of the training {run.metrics['training_time_s']:.3g} s", [run]


def _quality_gate(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    for run in _done(runs):
        if run.quality != "ok":
            yield run.quality or "nothing is said of its quality", [run]


def _finished(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    done = {run.seed for run in _done(runs)}
    for run in runs:
        if not run.finished and run.seed not in done:
            yield f"{run.status}: {run.reason.splitlines()[0] if run.reason else 'no reason given'}", [run]


def _noise(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    for figure in QUESTIONS[:2]:
        if flags := noise_flags([run.metrics[figure.name] for run in _done(runs)]):
            yield f"{figure.name}: {', '.join(flags)}", _done(runs)


def _undisturbed(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    for run in _done(runs):
        if (said := run.tags.get("gtdl.interference", "ok")) != "ok":
            yield said, [run]


def _resumed(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    for run in _done(runs):
        if "gtdl.resumed" in run.tags:
            yield run.tags["gtdl.resumed"], [run]


def _resumed_silently(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    for run in _done(runs):
        if "resumed_from_iteration" in run.reported and "gtdl.resumed" not in run.tags:
            yield f"from iteration {run.reported['resumed_from_iteration']}", [run]


def _alone(runs: list[BenchmarkRun], rule: dict[str, Any]) -> Broken:
    beside = [run for run in _done(runs) if run.kind.side_by_side]
    if beside:
        yield "others may have run on other cores", beside


RULES: dict[str, Callable[[list[BenchmarkRun], dict[str, Any]], Broken]] = {
    "enough_seeds": _enough_seeds,
    "seeds_differ": _seeds_differ,
    "same_machine": _same(lambda run: run.kind.machine, "machines"),
    "same_data": _same_data,
    "same_code": _same(lambda run: run.tags.get("gtdl.code", "unknown"), "versions of the code"),
    "environment_recorded": _environment_recorded,
    "device_as_asked": _device_as_asked,
    "device_synchronised": _device_synchronised,
    "warm_up_kept": _warm_up_kept,
    "quality_gate": _quality_gate,
    "finished": _finished,
    "noise": _noise,
    "undisturbed": _undisturbed,
    "resumed": _resumed,
    "resumed_silently": _resumed_silently,
    "alone": _alone,
}
