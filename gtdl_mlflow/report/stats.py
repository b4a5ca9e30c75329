"""Statistics of a few repeats: summaries, noise flags, rank tests and the number of repeats that a difference needs."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from scipy import stats

P = ParamSpec("P")
R = TypeVar("R")

SEEDS_TO_PUBLISH = 5
"""Smallest number of seeds of a publishable result: the median of fewer has no usable interval (pyperf, MLPerf)."""

LEAST_FOR_SIGNIFICANCE = 4
"""Smallest size of two groups that Mann-Whitney's test can tell apart: with 3 repeats each, p is at least 0.1."""

LEVEL = 0.95
"""Confidence level of every interval; a difference is significant if its p-value is below 1 - LEVEL."""


@dataclass(frozen=True)
class Summary:
    """Statistics of the repeats of one cell."""

    n: int
    median: float
    mad: float
    """Median absolute deviation from the median, not scaled."""
    mean: float
    low: float
    high: float
    """Upper end of the mean's interval by Student's t; the interval is infinite for a single run."""
    noise: tuple[str, ...]
    """Why the repeats are too far apart for a fair comparison; empty if they are not."""
    spread: float
    """Standard deviation divided by the mean; nan for a single run."""


def ignore_overflow(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` with infinity as the result of an overflow, without a warning on the terminal.

    A store may hold any number, and SciPy warns of repeats that are all equal.
    """

    @functools.wraps(function)
    def quiet(*arguments: P.args, **options: P.kwargs) -> R:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return function(*arguments, **options)

    return quiet


@ignore_overflow
def summarize(values: Sequence[float]) -> Summary:
    """Return the statistics of at least one value."""
    array = np.asarray(values, float)
    mean, low, high, spread = float(array.mean()), -math.inf, math.inf, math.nan
    if len(array) > 1:
        deviation = float(array.std(ddof=1))
        error, spread = deviation / math.sqrt(len(array)), deviation / mean if mean else math.nan
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1)) * error
        low, high = mean - half, mean + half
    median = float(np.median(array))
    mad = float(np.median(np.abs(array - median)))
    return Summary(len(array), median, mad, mean, low, high, noise_flags(values), spread)


@ignore_overflow
def noise_flags(values: Sequence[float]) -> tuple[str, ...]:
    """Return what is wrong with positive values by the rules of pyperf and TorchBench.

    The limits are a standard deviation of 10 % of the mean, an extreme 50 % off the mean, and a range of 7 %.
    """
    array = np.asarray(values, float)
    if len(array) < 2 or not array.min() > 0:
        return ()
    flags = []
    spread = float(array.std(ddof=1) / array.mean())
    if spread >= 0.10:
        flags.append(f"standard deviation {spread:.0%} of the mean")
    extreme = float(np.abs(array / array.mean() - 1).max())
    if extreme >= 0.50:
        flags.append(f"an extreme {extreme:.0%} off the mean")
    width = float(array.max() / array.min() - 1)
    if width >= 0.07:
        flags.append(f"range {width:.0%} of the smallest")
    return tuple(flags)


@dataclass(frozen=True)
class Drift:
    """Trend of repeats in the order in which they ran."""

    percent: float
    """Change from one repeat to the next in percent of the median: the median of all slopes (Theil and Sen)."""
    p: float
    """Two-sided p-value of Kendall's rank correlation with the order (Mann 1945); low if there is a trend."""


def drift(values: Sequence[float]) -> Drift:
    """Return the trend of at least two values."""
    order = range(len(values))
    slope = float(stats.theilslopes(values, order).slope)
    p = float(stats.kendalltau(order, values).pvalue)
    return Drift(100 * slope / float(np.median(values)), 1.0 if math.isnan(p) else p)


POWER = 0.8
"""Probability with which an existing difference is detected: the customary value."""

RANK_TEST_EFFICIENCY = 3 / math.pi
"""Efficiency of Mann-Whitney's test relative to Student's for normal values (Hodges and Lehmann 1956)."""


def repeats_needed(spread: float, difference: float) -> int:
    """Return the repeats of each of two groups that detect a ``difference`` of their means with ``POWER``.

    ``spread`` (the standard deviation) and ``difference`` are relative to the mean. The result is that of the normal
    approximation, and at least ``LEAST_FOR_SIGNIFICANCE``.
    """
    quantiles = float(stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER))
    return max(LEAST_FOR_SIGNIFICANCE, math.ceil(2 * (quantiles * spread / difference) ** 2 / RANK_TEST_EFFICIENCY))


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs in one metric."""

    first: Summary
    second: Summary
    ratio: float
    """Median of the first divided by the median of the second."""
    low: float
    high: float
    """Upper end of the interval of the geometric means' ratio, by Welch's t on the logarithms; nan if undefined."""
    difference: float
    """Median of the first minus the median of the second."""
    p: float
    """Two-sided p-value of Mann-Whitney's rank test; nan for fewer than 2 values each."""

    @property
    def significant(self) -> bool:
        return self.p < 1 - LEVEL


@ignore_overflow
def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare two groups of at least one value each; order and pairing do not matter."""
    one, other = summarize(first), summarize(second)
    low = high = p = math.nan
    if min(one.n, other.n) > 1:
        p = float(stats.mannwhitneyu(first, second, alternative="two-sided").pvalue)
        if min(*first, *second) > 0:
            logs = np.log(first), np.log(second)
            if min(float(np.ptp(log)) for log in logs) > 0:
                interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(LEVEL)
                low, high = float(np.exp(interval.low)), float(np.exp(interval.high))
    ratio = one.median / other.median if other.median else math.nan
    return Comparison(one, other, ratio, low, high, one.median - other.median, p)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down procedure (1979); nan means no test and stays."""
    tests = sorted((p, index) for index, p in enumerate(values) if not math.isnan(p))
    corrected, least = list(values), 0.0
    for rank, (p, index) in enumerate(tests):
        least = max(least, min(1.0, p * (len(tests) - rank)))
        corrected[index] = least
    return corrected
