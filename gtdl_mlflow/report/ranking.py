"""The answer in plain words: which framework is fastest to train, to test, most accurate, and whether that is so."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .runs import OWN, BenchmarkRun, CellKey
from .stats import Comparison, Summary, compare, holm, summarize


@dataclass(frozen=True)
class Conditions:
    """What frameworks are compared under. Nothing but the framework differs within one, or its own default with it."""

    dataset: str
    setting: str
    """A setting's name, or ``OWN``."""
    place: str
    budget: float
    tuning: str
    machine: str

    @property
    def text(self) -> str:
        share = "" if self.budget == 1 else f", {self.budget:.3g} of the iterations"
        tuning = "" if self.tuning == "best" else f", tuning {self.tuning}"
        setting = OWN if self.setting == OWN else f"all under {self.setting}"
        return f"{self.dataset}, {setting}, {self.place}{share}{tuning}"


@dataclass(frozen=True)
class FrameworkResults:
    """One framework under some conditions."""

    framework: str
    finished: tuple[BenchmarkRun, ...]
    failed: tuple[BenchmarkRun, ...]
    """Runs whose seed never finished."""
    unavailable: tuple[BenchmarkRun, ...]

    @property
    def poor(self) -> str:
        """Why its times mean nothing; empty if they mean something."""
        return ", ".join(sorted({run.quality for run in self.finished} - {"ok", ""}))

    def values(self, name: str) -> list[float]:
        return [run.metrics[name] for run in self.finished if math.isfinite(run.metrics[name])]


@dataclass(frozen=True)
class Question:
    """A question that is answered for every data set."""

    name: str
    question: str
    """``trains fastest``."""
    unit: str
    largest: bool = False


QUESTIONS = (
    Question("training_time_s", "trains fastest", "s"),
    Question("testing_time_s", "tests fastest", "s"),
    Question("accuracy_percent", "is most accurate", "%", largest=True),
)


@dataclass(frozen=True)
class RankedFramework:
    """One framework in the answer to one question."""

    framework: str
    summary: Summary
    against_best: Comparison | None
    """None for the best itself."""


@dataclass(frozen=True)
class Answer:
    """To one question under some conditions."""

    figure: Question
    ranking: tuple[RankedFramework, ...]
    """The best first; frameworks whose runs did not learn are in no ranking of times."""
    sentence: str


def group_by_conditions(runs: Iterable[BenchmarkRun]) -> dict[Conditions, list[FrameworkResults]]:
    """Frameworks by the conditions that they were measured under, those with two frameworks or more first."""
    groups: dict[Conditions, dict[str, list[BenchmarkRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for setting in run.kind.settings:
            groups[_conditions(run.kind, setting)][run.kind.name].append(run)
    found = {conditions: [_entry(name, some) for name, some in sorted(by_name.items())]
             for conditions, by_name in groups.items()}  # fmt: skip
    order = sorted(found, key=lambda each: (len(found[each]) < 2, each.dataset, each.setting != OWN, each.setting,
                                            each.machine, each.place, -each.budget, each.tuning))  # fmt: skip
    return {conditions: found[conditions] for conditions in order}


def _conditions(kind: CellKey, setting: str) -> Conditions:
    return Conditions(kind.dataset, setting, kind.place, kind.budget, kind.tuning, kind.machine)


def _entry(name: str, runs: list[BenchmarkRun]) -> FrameworkResults:
    finished = [run for run in runs if run.finished]
    done = {run.seed for run in finished}
    latest: dict[int, BenchmarkRun] = {}
    for run in sorted(runs, key=lambda run: run.started_ms):
        if not run.finished and run.seed not in done and not run.unavailable:
            latest[run.seed] = run
    return FrameworkResults(
        name, tuple(finished), tuple(latest.values()),
        tuple(run for run in runs if run.unavailable and run.seed not in done),
    )  # fmt: skip


def answers(found: list[FrameworkResults]) -> list[Answer]:
    """To the three questions, for frameworks under the same conditions."""
    rankings = ((figure, _ranking(figure, found)) for figure in QUESTIONS)
    return [Answer(figure, ranking, sentence(figure, ranking)) for figure, ranking in rankings if ranking]


def _ranking(figure: Question, found: list[FrameworkResults]) -> tuple[RankedFramework, ...]:
    """The best first; each other one is held against it, and Holm's correction is for that many tests."""
    able = [entry for entry in found if entry.values(figure.name) and (figure.largest or not entry.poor)]
    able.sort(key=lambda entry: summarize(entry.values(figure.name)).median, reverse=figure.largest)
    tests = [compare(entry.values(figure.name), able[0].values(figure.name)) for entry in able[1:]]
    corrected = holm([test.p for test in tests])
    against = [None, *(replace(test, p=p) for test, p in zip(tests, corrected, strict=True))]
    return tuple(
        RankedFramework(entry.framework, summarize(entry.values(figure.name)), test)
        for entry, test in zip(able, against, strict=False)
    )


def sentence(figure: Question, ranking: tuple[RankedFramework, ...]) -> str:
    """One answer, for a person."""
    best, *others = ranking
    start = f"{best.framework} {figure.question}"
    value = f"{format_number(best.summary.median)} {figure.unit}, n = {best.summary.n}"
    if not others:
        return f"{best.framework}: {value}; there is nothing to compare it with."
    tied = [each for each in others if each.against_best is not None and not each.against_best.significant]
    slower = [each for each in others if each not in tied]
    if not tied:
        return f"{start} ({value}): {_by(figure, slower[0])}."
    *most, last = (each.framework for each in tied)
    names = f"{', '.join(most)} and {last}" if most else last
    few = min(each.summary.n for each in (best, *tied)) < 4
    doubt = "too few runs to tell" if few else "not significant"
    text = f"{start} in these runs ({value}), but its lead over {names} is {_lead(figure, tied[0])}: {doubt}"
    return f"{text}; {_by(figure, slower[0])}." if slower else f"{text}."


def _by(figure: Question, other: RankedFramework) -> str:
    assert other.against_best is not None
    p = f"p = {other.against_best.p:.2g}"
    if figure.largest:
        return f"{-other.against_best.difference:.2f} points more than {other.framework} ({p})"
    return f"{other.against_best.ratio:.2f} times as fast as {other.framework} ({p})"


def _lead(figure: Question, other: RankedFramework) -> str:
    assert other.against_best is not None
    if figure.largest:
        return f"{abs(other.against_best.difference):.2f} points"
    return f"{other.against_best.ratio - 1:.0%}"


def remarks(found: list[FrameworkResults]) -> list[str]:
    """What a reader has to know beside the answers: what failed, is missing, noisy, or did not learn."""
    said = []
    most = max((len({run.seed for run in entry.finished}) for entry in found), default=0)
    for entry in found:
        seeds = len({run.seed for run in entry.finished})
        if entry.unavailable and not entry.finished:
            said.append(f"{entry.framework} cannot run here: {entry.unavailable[0].reason}")
            if not entry.failed:
                continue
        if entry.failed:
            said.append(f"{entry.framework}: {len(entry.failed)} of {len(entry.failed) + seeds} seeds failed: "
                        f"{entry.failed[-1].reason}")  # fmt: skip
        elif seeds < most:
            said.append(f"{entry.framework}: {seeds} {'seed' if seeds == 1 else 'seeds'}, where others have {most}")
        if entry.poor:
            said.append(f"{entry.framework}: left out of the times: {entry.poor}")
        if any("gtdl.resumed" in run.tags for run in entry.finished):
            said.append(f"{entry.framework}: a run went on after a kill")
    said += [remark for figure in QUESTIONS[:2] if (remark := _noise(figure, found))]
    if 0 < most < 5:
        said.append(f"{most} {'seed' if most == 1 else 'seeds'}; a publishable figure has 5")
    return said


def _noise(figure: Question, found: list[FrameworkResults]) -> str:
    """In one line: whose repeats are far apart, the worst of them with what is wrong; empty if nobody's are."""
    worst = {}
    for entry in found:
        values = entry.values(figure.name)
        if values and (flags := summarize(values).noise):
            worst[entry.framework] = (max(values) / min(values), ", ".join(flags))
    if not worst:
        return ""
    first, *others = sorted(worst, key=lambda name: -worst[name][0])
    text = f"{figure.name} is noisy: {first} ({worst[first][1]})"
    return f"{text}, less so {', '.join(others)}" if others else text


def format_number(value: float) -> str:
    """With as many digits as a reader can use."""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def text(runs: Iterable[BenchmarkRun]) -> str:
    """All answers, for a terminal."""
    parts = []
    for conditions, found in group_by_conditions(runs).items():
        if len(found) < 2:
            continue
        lines = [conditions.text, *(f"  {answer.sentence}" for answer in answers(found))]
        lines += [f"  ! {remark}" for remark in remarks(found)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "there are no two frameworks under the same conditions to compare"
