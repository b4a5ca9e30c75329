"""What a few repeats of a measurement can say, and what they cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Of every interval; 1 - LEVEL is what a p-value is held against."""


@dataclass(frozen=True)
class Summary:
    """Of the repeats of one cell."""

    n: int
    median: float
    mad: float
    """Median absolute deviation from the median, not scaled."""
    mean: float
    low: float
    high: float
    """The interval of the mean by Student's t; infinitely wide for a single run."""
    noise: tuple[str, ...]
    """Why the repeats are too far apart to be compared in good faith; nothing if they are not."""
    spread: float
    """Standard deviation over the mean; nan for a single run."""


def summarize(values: Sequence[float]) -> Summary:
    """Of at least one value."""
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


def noise_flags(values: Sequence[float]) -> tuple[str, ...]:
    """Flags of pyperf and TorchBench: a standard deviation of 10 % of the mean, an extreme 50 % off, a range of 7 %."""
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
    """Of repeats in their order."""

    percent: float
    """Of the median, from one to the next: the median of all slopes (Theil and Sen)."""
    p: float
    """Two-sided, of Kendall's rank correlation with the order (Mann 1945): low if there is a trend."""


def drift(values: Sequence[float]) -> Drift:
    """Of at least two values."""
    order = range(len(values))
    slope = float(stats.theilslopes(values, order).slope)
    p = float(stats.kendalltau(order, values).pvalue)
    return Drift(100 * slope / float(np.median(values)), 1.0 if math.isnan(p) else p)


POWER = 0.8
"""How often a difference that is there shall be seen: what is customary."""

RANKS = 3 / math.pi
"""Efficiency of Mann-Whitney's test against Student's where values are normal (Hodges and Lehmann 1956)."""


def repeats_needed(spread: float, difference: float) -> int:
    """Repeats of each of two groups with a standard deviation of ``spread`` times the mean that show, with ``POWER``,
    means that are apart by ``difference`` times the mean: of the normal approximation, at least the four below which no
    rank test is significant.
    """
    quantiles = float(stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER))
    return max(4, math.ceil(2 * (quantiles * spread / difference) ** 2 / RANKS))


@dataclass(frozen=True)
class Comparison:
    """Of two cells, in one figure."""

    first: Summary
    second: Summary
    ratio: float
    """Of the medians, the first over the second."""
    low: float
    high: float
    """The interval of the ratio of geometric means, by Welch's t on the logarithms; nan where it cannot be had."""
    difference: float
    """Of the medians, the first less the second."""
    p: float
    """Two-sided, of Mann-Whitney's rank test; after ``holm``, corrected for their number. nan for fewer than 2 + 2."""

    @property
    def significant(self) -> bool:
        return self.p < 1 - LEVEL


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Two groups of at least one value each; their order and pairing do not matter."""
    one, other = summarize(first), summarize(second)
    low = high = p = math.nan
    if min(one.n, other.n) > 1:
        p = float(stats.mannwhitneyu(first, second, alternative="two-sided").pvalue)
        if min(*first, *second) > 0:
            logs = np.log(first), np.log(second)
            if min(float(np.ptp(log)) for log in logs) > 0:
                interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(LEVEL)
                low, high = math.exp(interval.low), math.exp(interval.high)
    ratio = one.median / other.median if other.median else math.nan
    return Comparison(one, other, ratio, low, high, one.median - other.median, p)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down procedure (1979); a nan is no test, and stays."""
    tests = sorted((p, index) for index, p in enumerate(values) if not math.isnan(p))
    corrected, least = list(values), 0.0
    for rank, (p, index) in enumerate(tests):
        least = max(least, min(1.0, p * (len(tests) - rank)))
        corrected[index] = least
    return corrected
