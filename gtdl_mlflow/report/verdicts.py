"""Verdicts on differences between frameworks: the one place that ``report``, ``compare`` and ``answer`` take them from.

A question is one metric under one set of conditions. Its frameworks are compared with Mann-Whitney's test, and the
p-values are corrected by Holm's procedure over one family: the comparisons of one framework with all others. The
verdict on a pair belongs to the family of the better of the two, so that it does not depend on the command.

For the best framework, the family is that of the comparisons with the best (Hsu 1981): one test per other framework. A
family of all pairs is larger than what the commands claim, and with five frameworks and five seeds its smallest
possible p-value is 0.079. Metrics are questions of their own, each with its own answer, and share no family.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ..metrics import HEADLINE, HIGHER, METRICS, Metric
from .formats import count, format_ratio, format_summary
from .runs import BenchmarkRun
from .stats import Comparison, Summary, compare, holm, summarize

PER_SEED = frozenset({"accuracy_percent"})
"""Metrics that the seed decides: repeats of one seed are one value, their median. Times vary between its repeats."""


@dataclass(frozen=True)
class Question:
    """A question that the report answers for every data set."""

    metric: Metric
    verb: str
    """Predicate of the answer, such as ``trained fastest``."""

    @property
    def name(self) -> str:
        return self.metric.name

    @property
    def largest(self) -> bool:
        """Whether the largest value is the best."""
        return self.metric.better == HIGHER


_VERBS = ("trained fastest", "tested fastest", "was most accurate")
QUESTIONS = tuple(Question(METRICS[name], verb) for name, verb in zip(HEADLINE, _VERBS, strict=True))
TIMES = tuple(question for question in QUESTIONS if question.metric.unit == "s")


@dataclass(frozen=True)
class Sample:
    """Independent values of one metric over some finished runs."""

    values: tuple[float, ...]
    rejected: tuple[float, ...]
    """Values that are no measurement: those that are not finite, and times that are not above zero."""
    noun: str
    """What each value is of: ``run`` or ``seed``."""
    failed_quality: str = ""
    """Rules of the quality gate that a run failed, so that the times do not count; empty if all passed."""

    @cached_property
    def summary(self) -> Summary:
        """Statistics of ``values``, which must not be empty."""
        return summarize(self.values)

    @property
    def size(self) -> str:
        """Number of values in words: ``5 runs``, ``1 seed``."""
        return count(len(self.values), self.noun)

    @property
    def rejection(self) -> str:
        """How many values are no measurement: ``1 not finite``; empty if all are."""
        finite = sum(map(math.isfinite, self.rejected))
        parts = (len(self.rejected) - finite, "not finite"), (finite, "not above 0")
        return ", ".join(f"{number} {text}" for number, text in parts if number)

    @property
    def text(self) -> str:
        """Median, interval of the mean, number of values and ``rejection``; empty without any run."""
        known = [format_summary(self.summary)] if self.values else []
        return ", ".join([*known, *([self.rejection] if self.rejected else [])])


def sample(runs: Iterable[BenchmarkRun], metric: str) -> Sample:
    """Return the independent values of a metric over the runs that have it."""
    measured = [run for run in runs if metric in run.metrics]
    positive = METRICS[metric].unit == "s"
    by_seed: dict[int, list[float]] = defaultdict(list)
    values, rejected = [], []
    for run in measured:
        value = run.metrics[metric]
        if math.isfinite(value) and (value > 0 or not positive):
            values.append(value)
            by_seed[run.seed].append(value)
        else:
            rejected.append(value)
    if metric in PER_SEED:
        values = [statistics.median(repeats) for repeats in by_seed.values()]
    noun = "seed" if metric in PER_SEED else "run"
    return Sample(tuple(values), tuple(rejected), noun, failed_quality(measured))


def failed_quality(runs: Iterable[BenchmarkRun]) -> str:
    """Return the rules of the quality gate that a run failed; empty if all passed."""
    return ", ".join(sorted({run.quality for run in runs} - {"ok", ""}))


Samples = Mapping[str, Sample]
"""Label of a framework, or of another set of runs, to its values."""


def ineligible(question: Question, values: Sample) -> str:
    """Return why nothing is concluded from some values; empty if something may be."""
    if values.rejected:
        return values.rejection
    if values.failed_quality and not question.largest:
        return "failed the quality gate"
    return "" if values.values else "no value"


def ranked(question: Question, samples: Samples) -> list[str]:
    """Return the labels from which conclusions are drawn, the best first."""
    eligible = [label for label, values in samples.items() if not ineligible(question, values)]
    return sorted(eligible, key=lambda label: samples[label].summary.median, reverse=question.largest)


def against(question: Question, label: str, samples: Samples) -> dict[str, Comparison]:
    """Compare every other eligible framework with the one called ``label``; p-values are corrected for their number."""
    others = [each for each in ranked(question, samples) if each != label]
    tests = [compare(samples[each].values, samples[label].values) for each in others]
    corrected = holm([test.p for test in tests])
    return {each: replace(test, p=p) for each, test, p in zip(others, tests, corrected, strict=True)}


def pair(question: Question, first: str, second: str, samples: Samples) -> Comparison | None:
    """Compare two of the frameworks, with the p-value that ``against`` gives; None if either is not eligible."""
    order = ranked(question, samples)
    if first not in order or second not in order:
        return None
    better, other = sorted((first, second), key=order.index)
    p = against(question, better, samples)[other].p
    return replace(compare(samples[first].values, samples[second].values), p=p)


def verdict(question: Question, first: Sample, second: Sample, result: Comparison | None) -> str:
    """Return how the first side differs from the second, or why that is unknown."""
    if result is None:
        reason = ineligible(question, first) or ineligible(question, second)
        return f"no verdict: {reason}"
    if min(result.first.n, result.second.n) < 2:
        return f"one {first.noun} is no comparison"
    if not result.significant:
        return "not significant"
    if question.largest:
        return f"{abs(result.difference):.2f} points {'higher' if result.difference > 0 else 'lower'}"
    if result.ratio < 1:
        return f"{format_ratio(1 / result.ratio)}x as fast"
    return f"{format_ratio(result.ratio)}x as long"
