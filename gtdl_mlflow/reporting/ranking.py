"""The answer in words: the fastest frameworks in training and testing, the most accurate ones, and the intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .. import tags
from ..config import display
from .formats import count, one_line
from .intervals import SEEDS_TO_PUBLISH, Difference, Ratio, Verdict, repeats_needed
from .runs import OWN, BenchmarkRun, CellKey
from .sentences import ranking_sentence
from .verdicts import QUESTIONS, TIMES, Question, Sample, Samples, compare, failed_quality, ranked, sample

REFERENCE = "reference"
"""Name of the NumPy implementation that frameworks are checked against."""

MOST_RUNS = 100
"""Number of runs above which a remark recommends a paired measurement."""


@dataclass(frozen=True)
class Conditions:
    """Conditions that compared frameworks share. Under ``OWN``, each has its own default; otherwise all are equal."""

    dataset: str
    setting: str
    """Name of a setting, or ``OWN``."""
    hardware: str
    budget: float
    machine: str
    """Empty if runs of all machines are compared."""

    @property
    def processor(self) -> str:
        return processor_name(self.machine)

    @property
    def text(self) -> str:
        share = "" if self.budget == 1 else f", {100 * self.budget:.3g} % of the iterations"
        setting = f"{OWN} (networks differ)" if self.setting == OWN else f"all under {self.setting}"
        return f"{self.dataset}, {setting}, {self.hardware}{share}"


def processor_name(machine: str) -> str:
    """Return the processor in the description of a machine, as in the tag ``gtdl.machine``."""
    return machine.partition(",")[0]


@dataclass(frozen=True)
class FrameworkResults:
    """Runs of one version of a framework, executed in one way, under the same conditions."""

    framework: str
    label: str
    """Label and version of the framework, with the mode if one was requested."""
    finished: tuple[BenchmarkRun, ...]
    failed: tuple[BenchmarkRun, ...]
    """Last run of each seed that never finished and is not running."""
    running: tuple[BenchmarkRun, ...]
    unavailable: tuple[BenchmarkRun, ...]

    @property
    def color(self) -> str:
        return display.color(self.framework)

    @property
    def failed_quality(self) -> str:
        """Rules of the quality gate that a run failed, so that the times do not count; empty if all runs passed."""
        return failed_quality(self.finished)

    @property
    def seeds(self) -> int:
        """Number of seeds that finished."""
        return len({run.seed for run in self.finished})

    def sample(self, metric: str) -> Sample:
        """Return the independent values of a metric over the finished runs."""
        return sample(self.finished, metric)


@dataclass(frozen=True)
class RankedFramework:
    """One framework in the answer to one question."""

    label: str
    sample: Sample
    behind: Ratio | Difference
    """Distance from the best: its time relative to the best's, or the percentage points that it is less accurate."""


@dataclass(frozen=True)
class Answer:
    """Answer to one question under the same conditions."""

    question: Question
    ranking: tuple[RankedFramework, ...]
    """The best first. Frameworks whose times do not count are in no ranking of times; ``reference`` is in none."""
    sentence: str


def group_by_conditions(
    runs: Iterable[BenchmarkRun], across_machines: bool = False
) -> dict[Conditions, list[FrameworkResults]]:
    """Return the frameworks by conditions; conditions with at least two frameworks come first.

    ``across_machines`` combines the runs of all machines.
    """
    groups: dict[Conditions, dict[str, list[BenchmarkRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for setting in run.key.settings:
            groups[_conditions(run.key, setting, across_machines)][run.key.label].append(run)
    results = {
        conditions: [_results(label, some) for label, some in sorted(by_label.items())]
        for conditions, by_label in groups.items()
    }

    def order(each: Conditions) -> tuple[object, ...]:
        first = len(results[each]) < 2, each.dataset, each.setting != OWN, each.setting
        return *first, each.machine, each.hardware, -each.budget

    return {conditions: results[conditions] for conditions in sorted(results, key=order)}


def _conditions(key: CellKey, setting: str, across_machines: bool) -> Conditions:
    machine = "" if across_machines else key.machine
    return Conditions(key.dataset, setting, key.hardware, key.budget, machine)


def _results(label: str, runs: list[BenchmarkRun]) -> FrameworkResults:
    finished = [run for run in runs if run.finished]
    seeds = {run.seed for run in finished}
    failed: dict[int, BenchmarkRun] = {}
    for run in sorted(runs, key=lambda run: run.started_ms):
        if run.seed not in seeds and run.state in ("failed", "killed"):
            failed[run.seed] = run
    running = [run for run in runs if run.state == "running"]
    unavailable = [run for run in runs if run.unavailable and run.seed not in seeds]
    some = (tuple(finished), tuple(failed.values()), tuple(running), tuple(unavailable))
    return FrameworkResults(runs[0].key.framework, label, *some)


def answers(frameworks: list[FrameworkResults]) -> list[Answer]:
    """Return the answers to the three questions, for frameworks under the same conditions."""
    rankings = ((question, _ranking(question, frameworks)) for question in QUESTIONS)
    return [Answer(question, ranking, sentence(question, ranking)) for question, ranking in rankings if ranking]


def samples(frameworks: Iterable[FrameworkResults], question: Question) -> Samples:
    """Return the values of each framework by its label. The NumPy reference is no framework to choose."""
    every = list(frameworks)
    chosen = [each for each in every if each.framework != REFERENCE] or every
    return {each.label: each.sample(question.name) for each in chosen}


def _ranking(question: Question, frameworks: list[FrameworkResults]) -> tuple[RankedFramework, ...]:
    """Compare every framework with the best."""
    measured = samples(frameworks, question)
    order = ranked(question, measured)
    found = []
    for label in order:
        pair = (order[0], label) if question.largest else (label, order[0])
        behind = compare(question, *pair, measured)
        assert behind is not None
        found.append(RankedFramework(label, measured[label], behind))
    return tuple(found)


def sentence(question: Question, ranking: tuple[RankedFramework, ...]) -> str:
    """Return the answer in words: the best, and the distance of every other framework with its interval."""
    best, *others = ranking
    distances = [(each.label, each.behind) for each in others]
    values = {each.label: each.sample.summary.center for each in ranking}
    metric = question.metric
    return ranking_sentence(
        question.phrases, best.label, distances, best.sample.noun, values, metric.label, metric.unit
    )


def remarks(frameworks: list[FrameworkResults], answered: Collection[str] = ()) -> list[str]:
    """Return what limits the answers: failed, running and missing seeds, failed quality gates, values that are no
    measurement, noise, too few seeds.

    Args:
        frameworks: the runs of each.
        answered: names of the times that a paired measurement has ranked; noise of whole runs does not limit these.
    """
    times = [question for question in TIMES if question.name not in answered]
    lines = []
    most = max((each.seeds for each in frameworks), default=0)
    for each in frameworks:
        if each.running:
            lines.append(f"{each.label}: {count(len(each.running), 'run')} still running.")
        if each.unavailable and not each.finished:
            lines.append(f"{each.label} is not available: {one_line(each.unavailable[0].reason)}")
            if not each.failed:
                continue
        if each.failed:
            seeds = f"{len(each.failed)} of {len(each.failed) + each.seeds} seeds failed"
            lines.append(f"{each.label}: {seeds}: {one_line(each.failed[-1].reason)}")
        elif each.seeds < most and each.framework != REFERENCE:
            lines.append(f"{each.label}: {count(each.seeds, 'seed')}; others have {most}.")
        if each.failed_quality:
            rule = one_line(each.failed_quality)
            lines.append(f"{each.label} failed the quality gate, so its times are not ranked: {rule}")
        lines += [remark for question in QUESTIONS if (remark := _rejected(question, each))]
        if repeats := len(each.finished) - each.seeds:
            lines.append(f"{each.label}: {count(repeats, 'repeat')} of a seed; each seed has one accuracy, the median.")
        if resumed := sum(run.resumed for run in each.finished):
            lines.append(f"{each.label}: {count(resumed, 'run')} resumed after a kill.")
    lines += filter(None, [_disturbed(frameworks)] if times else [])
    lines += [remark for question in times if (remark := _noise(question, frameworks))]
    lines += [remark for question in times if (remark := _unresolved(question, frameworks))]
    if 0 < most < SEEDS_TO_PUBLISH:
        lines.append(f"Only {count(most, 'seed')}; publish with at least {SEEDS_TO_PUBLISH}.")
    return lines


def _rejected(question: Question, framework: FrameworkResults) -> str:
    """Return one line if a metric has invalid values (``Sample.rejected``); otherwise an empty string."""
    rejection = framework.sample(question.name).rejection
    number = len(framework.finished)
    label = question.metric.label
    return f"{framework.label} is not ranked by {label}: {rejection} of {number}." if rejection else ""


def _noise(question: Question, frameworks: list[FrameworkResults]) -> str:
    """Return one line that names the frameworks with noisy repeats, the noisiest first; empty if there are none."""
    noisy = {}
    for each in frameworks:
        values = each.sample(question.name).values
        if values and (flags := each.sample(question.name).summary.noise):
            noisy[each.label] = (max(values) / min(values), ", ".join(flags))
    if not noisy:
        return ""
    first, *others = sorted(noisy, key=lambda label: -noisy[label][0])
    text = f"Noisy {question.metric.label}: {first} ({noisy[first][1]})"
    return f"{text}; also {', '.join(others)}" if others else text


def _unresolved(question: Question, frameworks: list[FrameworkResults]) -> str:
    """Return one line with the number of runs that would resolve a ranking of times; empty if it is resolved.

    Above ``MOST_RUNS``, it recommends a paired measurement.
    """
    ratios = [each.behind for each in _ranking(question, frameworks)[1:] if isinstance(each.behind, Ratio)]
    unresolved = [each for each in ratios if each.verdict is Verdict.unresolved]
    needed = [number for each in unresolved if (number := repeats_needed(each, len(ratios)))]
    if not needed:
        return ""
    advice = "; experiment=paired needs fewer" if max(needed) > MOST_RUNS else ""
    return f"About {max(needed):,} runs of each framework would resolve the ranking by {question.metric.label}{advice}."


def _disturbed(frameworks: list[FrameworkResults]) -> str:
    """Return one line if other load disturbed some of the runs; empty if it disturbed none."""
    finished = [run for each in frameworks for run in each.finished]
    disturbed = sum(run.tags.get(tags.INTERFERENCE, "ok") != "ok" for run in finished)
    if not disturbed:
        return ""
    every = count(len(finished), "run")
    return f"Other load disturbed {disturbed} of {every}. Use experiment=paired to compare frameworks under load."


def text(runs: Iterable[BenchmarkRun]) -> str:
    """Return all answers and remarks for a terminal."""
    parts = []
    for conditions, frameworks in group_by_conditions(runs).items():
        if len(frameworks) < 2:
            continue
        lines = [conditions.text, *(f"  {answer.sentence}" for answer in answers(frameworks))]
        lines += [f"  ! {remark}" for remark in remarks(frameworks)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "No two frameworks have runs under the same conditions."
