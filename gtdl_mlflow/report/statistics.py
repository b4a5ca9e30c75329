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


def summarize(values: Sequence[float]) -> Summary:
    """Of at least one value."""
    array = np.asarray(values, float)
    mean, low, high = float(array.mean()), -math.inf, math.inf
    if len(array) > 1:
        error = float(array.std(ddof=1)) / math.sqrt(len(array))
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1)) * error
        low, high = mean - half, mean + half
    median = float(np.median(array))
    return Summary(len(array), median, float(np.median(np.abs(array - median))), mean, low, high, noise(values))


def noise(values: Sequence[float]) -> tuple[str, ...]:
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
