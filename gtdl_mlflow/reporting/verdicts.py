"""Verdicts on differences between frameworks over whole runs, for ``report``, ``compare``, ``answer`` and the terminal.

A question is one metric under one set of conditions. All frameworks are compared with the best one (Hsu 1981), with
simultaneous intervals from ``intervals``. The interval of any other pair has the same level, so a verdict does not
depend on the command. Bonferroni's correction applies to each question separately.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..metrics import HEADLINE, HIGHER, METRICS, Metric
from . import sentences
from .formats import count, format_ratio, format_values
from .intervals import (
    EQUAL_POINTS,
    EQUAL_WITHIN,
    FEWEST_RUNS,
    Difference,
    Ratio,
    Summary,
    Verdict,
    difference_of_means,
    mean_difference,
    ratio_of_medians,
    summarize,
)
from .runs import BenchmarkRun
from .sentences import Phrases

PER_SEED = frozenset({"accuracy_percent"})
"""Metrics that the seed decides: repeats of one seed are one value, their median. Times vary between its repeats."""


@dataclass(frozen=True)
class Question:
    """A question that the report answers for every data set."""

    metric: Metric
    phrases: Phrases

    @property
    def name(self) -> str:
        return self.metric.name

    @property
    def largest(self) -> bool:
        """Whether the largest value is the best."""
        return self.metric.better == HIGHER


_PHRASES = (sentences.of_times("trained"), sentences.of_times("tested"), sentences.OF_ACCURACY)
QUESTIONS = tuple(Question(METRICS[name], phrases) for name, phrases in zip(HEADLINE, _PHRASES, strict=True))
TIMES = tuple(question for question in QUESTIONS if question.metric.unit == "s")


@dataclass(frozen=True)
class Sample:
    """Independent values of one metric over some finished runs."""

    values: tuple[float, ...]
    rejected: tuple[float, ...]
    """Invalid values: those that are not finite, and times that are not above zero."""
    noun: str
    """What each value is of: ``run`` or ``seed``."""
    failed_quality: str = ""
    """Rules of the quality gate that a run failed, so that the times do not count; empty if all passed."""
    by_seed: Mapping[int, float] = field(default_factory=dict)
    """``values`` by seed; empty for metrics that are not in ``PER_SEED``."""
    setting: str = ""
    """Setting of all runs, in which a seed determines the initial weights and the batches; empty if they differ."""

    @cached_property
    def summary(self) -> Summary:
        """Statistics of ``values``, which must not be empty."""
        return summarize(self.values, mean=bool(self.by_seed))

    @property
    def size(self) -> str:
        """Number of values in words: ``5 runs``, ``1 seed``."""
        return count(len(self.values), self.noun)

    @property
    def rejection(self) -> str:
        """Number of invalid values, such as ``1 not finite``; empty if there is none."""
        finite = sum(map(math.isfinite, self.rejected))
        parts = (len(self.rejected) - finite, "not finite"), (finite, "not above 0")
        return ", ".join(f"{number} {text}" for number, text in parts if number)

    @property
    def text(self) -> str:
        """Median of times or mean of accuracies with its interval and the number of values, then ``rejection``.

        Too few values for an interval are listed instead. Empty without any value.
        """
        known = [format_values(self.values, mean=bool(self.by_seed))] if self.values else []
        return ", ".join([*known, *([self.rejection] if self.rejected else [])])


def sample(runs: Iterable[BenchmarkRun], metric: str) -> Sample:
    """Return the independent values of a metric over the runs that have it."""
    measured = [run for run in runs if metric in run.metrics]
    positive = METRICS[metric].unit == "s"
    repeats: dict[int, list[float]] = defaultdict(list)
    values, rejected = [], []
    for run in measured:
        value = run.metrics[metric]
        if math.isfinite(value) and (value > 0 or not positive):
            values.append(value)
            repeats[run.seed].append(value)
        else:
            rejected.append(value)
    if metric not in PER_SEED:
        return Sample(tuple(values), tuple(rejected), "run", failed_quality(measured))
    by_seed = {seed: statistics.median(some) for seed, some in repeats.items()}
    settings = {run.key.setting for run in measured}
    setting = settings.pop() if len(settings) == 1 else ""
    return Sample(tuple(by_seed.values()), tuple(rejected), "seed", failed_quality(measured), by_seed, setting)


def failed_quality(runs: Iterable[BenchmarkRun]) -> str:
    """Return the rules of the quality gate that a run failed; empty if all passed."""
    return ", ".join(sorted({run.quality for run in runs} - {"ok", ""}))


Samples = Mapping[str, Sample]
"""Label of a framework, or of another set of runs, to its values."""


def ineligible(question: Question, values: Sample) -> str:
    """Return why a sample is excluded from rankings and comparisons; empty if it is eligible."""
    if values.rejected:
        return values.rejection
    if values.failed_quality and not question.largest:
        return "failed the quality gate"
    return "" if values.values else "no value"


def ranked(question: Question, samples: Samples) -> list[str]:
    """Return the labels of the eligible samples, the best first; ties in the order of their labels."""
    eligible = sorted(label for label, values in samples.items() if not ineligible(question, values))
    return sorted(eligible, key=lambda label: samples[label].summary.center, reverse=question.largest)


def compare(question: Question, first: str, second: str, samples: Samples) -> Ratio | Difference | None:
    """Compare two of the frameworks; None if either is not eligible.

    The interval has Bonferroni's correction for one comparison per other eligible framework. Accuracies of one setting
    are compared seed by seed, over the seeds that both have, if these suffice for an interval.
    """
    order = ranked(question, samples)
    if first not in order or second not in order:
        return None
    one, other, comparisons = samples[first], samples[second], max(1, len(order) - 1)
    if not question.largest:
        return ratio_of_medians(one.values, other.values, comparisons)
    common = one.by_seed.keys() & other.by_seed.keys()
    if one.setting and one.setting == other.setting and len(common) >= FEWEST_RUNS:
        return mean_difference([one.by_seed[seed] - other.by_seed[seed] for seed in sorted(common)], comparisons)
    return difference_of_means(one.values, other.values, comparisons)


def verdict(question: Question, first: Sample, second: Sample, result: Ratio | Difference | None) -> str:
    """Return how the first side differs from the second, or why that is unknown."""
    if result is None:
        reason = ineligible(question, first) or ineligible(question, second)
        return f"no verdict: {reason}"
    if not result.has_interval:
        return f"no verdict: {count(result.n, first.noun)}, an interval needs {FEWEST_RUNS}"
    if result.verdict is Verdict.unresolved:
        return "not resolved"
    larger = result.verdict is Verdict.larger
    if isinstance(result, Difference):
        if result.verdict is Verdict.same:
            return f"the same within {EQUAL_POINTS:g} points"
        return f"{abs(result.value):.2f} points {'higher' if larger else 'lower'}"
    if result.verdict is Verdict.same:
        return f"the same within {100 * EQUAL_WITHIN:g} %"
    return f"{format_ratio(result.value)}x as long" if larger else f"{format_ratio(1 / result.value)}x as fast"
