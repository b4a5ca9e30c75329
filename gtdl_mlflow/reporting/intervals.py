"""Intervals and verdicts: the one place that decides whether two times or two accuracies differ.

Times are compared by their ratio, on logarithms, so that no interval contains a negative time. Accuracies are compared
by their difference. All intervals are Student's t with Bonferroni's correction for the number of comparisons in one
ranking: they are simultaneous confidence intervals. A verdict follows from the interval alone. There is a difference
if the interval excludes equality; two values are equivalent if it lies within a margin of equality (two one-sided
tests, Schuirmann 1987).

Repeats are of two kinds:

- Restarts of a paired measurement have one value each: the median over the rounds of the logarithm of the ratio of two
  neighbouring turns. Restarts are the independent repeats (Kalibera and Jones 2013), and ``paired_ratio`` has the
  interval of their mean. In a simulation with heavy tails, skewed restart effects and drift
  (``benchmarks/coverage.py``), it covers the true ratio in at least 93 % of the data sets. A percentile bootstrap over
  restarts and rounds covers it in 97 to 100 %, because its intervals are 1.4 to 3.6 times as wide.
- Times of whole runs are compared by their medians, which one disturbed run does not move. Welch's interval of two
  means is widened by ``MEDIAN_FACTOR``, the standard error of a median relative to that of a mean.
- Accuracies are compared by their means. Those of one setting with the same seeds are pairs, because these runs start
  from the same weights and train on the same batches: ``mean_difference`` has Student's interval of the mean difference
  (common random numbers).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, ParamSpec, TypeVar

import numpy as np
from scipy import special

P = ParamSpec("P")
R = TypeVar("R")

LEVEL = 0.95
"""Confidence level of all intervals of one ranking together."""

EQUAL_WITHIN = 0.02
"""Two times are the same if the interval of their ratio lies within this distance of 1: the smallest difference that
decides a choice.
"""

EARLY_LEVEL = 0.99
"""Confidence level at which a difference ends a measurement before its interval is as narrow as ``FINAL_WIDTH``.

A measurement that tests its interval after every restart until it excludes 1 reports false differences: in 7 % of the
comparisons of a framework with itself if the ratio varies by 1.5 % between restarts, in 13 % at 2.8 %. With this level,
it does so in 4 % and 7 % (``benchmarks/coverage.py``). This is the rule of Haybittle (1971) and Peto: interim analyses
require stronger evidence, so that the final analysis has nearly its nominal level.
"""

FINAL_WIDTH = 0.01
"""Half-width at which every ratio has a verdict: its interval excludes 1, or lies within ``EQUAL_WITHIN`` of 1."""

EQUAL_POINTS = 0.5
"""Two accuracies are the same if the interval of their difference lies within so many percentage points of 0."""

FEWEST_RESTARTS = 3
"""With fewer restarts of a paired measurement there is no interval."""

FEWEST_RUNS = 4
"""With fewer whole runs there is no interval: Student's quantile for 2 degrees of freedom is 4.3, for 3 it is 3.2."""

SEEDS_TO_PUBLISH = 5
"""Smallest number of seeds of a publishable result: the median of fewer has no usable interval (pyperf, MLPerf)."""

MEDIAN_FACTOR = math.sqrt(math.pi / 2)
"""Standard error of the median of many normal values, relative to that of their mean (Laplace). It is smaller for few
values and for heavy tails.
"""


class Verdict(str, Enum):
    """What an interval shows of the first of two frameworks, compared with the second."""

    larger = "larger"
    smaller = "smaller"
    same = "same"
    """The same within a margin."""
    unresolved = "unresolved"


@dataclass(frozen=True)
class Estimate:
    """A comparison of a first framework with a second one, with its interval."""

    value: float
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval. With too few repeats, a ratio has (0, inf) and a difference (-inf, inf)."""
    n: int
    """Number of repeats: the smaller one of both frameworks."""

    equality: ClassVar[float]
    """Value of two equal frameworks."""
    margin: ClassVar[tuple[float, float]]
    """Two frameworks are the same if the interval lies between these values."""

    @property
    def has_interval(self) -> bool:
        return self.high < math.inf or self.low > 0  # the ratio of two finite times may be infinite

    @property
    def verdict(self) -> Verdict:
        if self.margin[0] < self.low and self.high < self.margin[1]:
            return Verdict.same
        if self.low > self.equality:
            return Verdict.larger
        return Verdict.smaller if self.high < self.equality else Verdict.unresolved


@dataclass(frozen=True)
class Ratio(Estimate):
    """The time of the first framework divided by that of the second."""

    early: bool = False
    """Whether the interval with the level ``EARLY_LEVEL`` excludes 1, too."""

    equality = 1.0
    margin = (1 / (1 + EQUAL_WITHIN), 1 + EQUAL_WITHIN)

    @property
    def half_width(self) -> float:
        """Half of the interval's width, relative to the ratio: 0.02 is 2 %. Infinite without an interval."""
        return math.sqrt(self.high / self.low) - 1 if self.low > 0 and self.has_interval else math.inf

    @property
    def is_resolved(self) -> bool:
        """Whether more repeats are unnecessary.

        The half-width must be at most ``EQUAL_WITHIN`` for a verdict of equality, or for a difference at the level
        ``EARLY_LEVEL``. Otherwise it must be at most ``FINAL_WIDTH``.
        """
        final = self.verdict is Verdict.same or self.early
        return self.half_width <= (EQUAL_WITHIN if final else FINAL_WIDTH)

    @property
    def text(self) -> str:
        """``1.15x [1.13, 1.17]``; without the interval if there is none."""
        interval = f" [{_digits(self.low)}, {_digits(self.high)}]" if self.has_interval else ""
        return f"{_digits(self.value)}x{interval}"


@dataclass(frozen=True)
class Difference(Estimate):
    """The accuracy of the first framework minus that of the second, in percentage points."""

    equality = 0.0
    margin = (-EQUAL_POINTS, EQUAL_POINTS)

    @property
    def text(self) -> str:
        """``1.20 points [1.05, 1.35]``; without the interval if there is none."""
        interval = f" [{self.low:.2f}, {self.high:.2f}]" if self.has_interval else ""
        return f"{self.value:.2f} points{interval}"


def _digits(ratio: float) -> str:
    """Return a ratio with two decimals below 10, then with fewer, and with three digits below 0.1."""
    return f"{ratio:.3g}" if ratio < 0.1 else f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.{ratio < 100:d}f}"


def ignore_overflow(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` with infinity as the result of an overflow, without a warning on the terminal.

    A store may hold any number.
    """

    @functools.wraps(function)
    def quiet(*arguments: P.args, **options: P.kwargs) -> R:
        with np.errstate(all="ignore"):
            return function(*arguments, **options)

    return quiet


def paired_ratio(log_ratios: Sequence[float], comparisons: int = 1) -> Ratio:
    """Return the ratio from one mean log ratio per restart.

    ``comparisons`` is the number of ratios in the ranking. Bonferroni's correction makes their intervals simultaneous.
    """
    values = np.asarray(log_ratios, float)
    value, count = float(values.mean()), len(values)
    if count < FEWEST_RESTARTS:
        return Ratio(math.exp(value), 0.0, math.inf, count)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    half = t_quantile(count - 1, comparisons) * error
    early = abs(value) > t_quantile(count - 1, comparisons, EARLY_LEVEL) * error
    return Ratio(math.exp(value), math.exp(value - half), math.exp(value + half), count, early)


@ignore_overflow
def mean_difference(differences: Sequence[float], comparisons: int = 1) -> Difference:
    """Return the mean of a non-empty sample of differences of accuracies in percentage points, one per seed."""
    values = np.asarray(differences, float)
    value, count = float(values.mean()), len(values)
    if count < FEWEST_RUNS:
        return Difference(value, -math.inf, math.inf, count)
    half = t_quantile(count - 1, comparisons) * float(values.std(ddof=1)) / math.sqrt(count)
    return Difference(value, value - half, value + half, count)


@ignore_overflow
def ratio_of_medians(first: Sequence[float], second: Sequence[float], comparisons: int = 1) -> Ratio:
    """Compare the medians of two non-empty groups of positive times; order and pairing do not matter."""
    half, count = _half_width(np.log(first), np.log(second), comparisons)
    half *= MEDIAN_FACTOR
    value = float(np.median(first) / np.median(second))
    return Ratio(value, float(value * np.exp(-half)), float(value * np.exp(half)), count)


@ignore_overflow
def difference_of_means(first: Sequence[float], second: Sequence[float], comparisons: int = 1) -> Difference:
    """Compare the means of two non-empty groups of accuracies in percent; order and pairing do not matter."""
    half, count = _half_width(np.asarray(first, float), np.asarray(second, float), comparisons)
    value = float(np.mean(first) - np.mean(second))
    return Difference(value, value - half, value + half, count)


def _half_width(first: np.ndarray, second: np.ndarray, comparisons: int) -> tuple[float, int]:
    """Return half of Welch's interval of two means, and the size of the smaller group."""
    count = min(len(first), len(second))
    if count < FEWEST_RUNS:
        return math.inf, count
    squares = [float(group.var(ddof=1)) / len(group) for group in (first, second)]
    if not sum(squares) > 0:
        return 0.0, count
    freedom = sum(squares) ** 2 / sum(
        square**2 / (len(group) - 1) for square, group in zip(squares, (first, second), strict=True)
    )
    return t_quantile(freedom, comparisons) * math.sqrt(sum(squares)), count


def t_quantile(freedom: float, comparisons: int = 1, level: float = LEVEL) -> float:
    """Return the quantile of Student's t for two-sided intervals of ``level``, with Bonferroni's correction."""
    return float(special.stdtrit(freedom, 1 - (1 - level) / (2 * comparisons)))


MOST_REPEATS = 10_000
"""Largest estimate of a number of repeats."""

POWER = 0.8
"""Probability with which an existing difference is shown: the customary value."""


def repeats_needed(ratio: Ratio, comparisons: int = 1) -> int | None:
    """Return the number of restarts that resolves a ratio if the noise stays as it is; None without an interval.

    The width of the interval falls with the square root of the number, and with the quantile of Student's t. The result
    is at most ``MOST_REPEATS``.
    """
    if not ratio.has_interval:
        return None
    if ratio.is_resolved:
        return ratio.n
    margin, distance = math.log1p(EQUAL_WITHIN), abs(math.log(ratio.value))
    numbers = np.arange(ratio.n, MOST_REPEATS + 1)

    def relative(level: float) -> np.ndarray:
        widths: np.ndarray = special.stdtrit(numbers - 1, 1 - (1 - level) / (2 * comparisons)) / np.sqrt(numbers)
        return widths

    error = math.log1p(ratio.half_width) / float(relative(LEVEL)[0])
    widths, early = error * relative(LEVEL), error * relative(EARLY_LEVEL)
    final = (distance + widths < margin) | (distance > early)
    enough = numbers[(widths <= margin) & final | (widths <= math.log1p(FINAL_WIDTH))]
    return max(ratio.n + 1, int(enough[0])) if len(enough) else MOST_REPEATS


def restarts_for(deviation: float, difference: float) -> int:
    """Return the restarts whose interval excludes 1 with the probability ``POWER`` if the true ratio differs from 1.

    Args:
        deviation: standard deviation of the log ratios of restarts.
        difference: true ratio minus 1.
    """

    def quantiles(freedom: float) -> float:
        return float(special.stdtrit(freedom, (1 + LEVEL) / 2) + special.stdtrit(freedom, POWER))

    relative = deviation / math.log1p(difference)
    fewest = max(FEWEST_RESTARTS, math.floor((quantiles(math.inf) * relative) ** 2))  # t has larger quantiles
    return next(n for n in itertools.count(fewest) if quantiles(n - 1) * relative <= math.sqrt(n))


@dataclass(frozen=True)
class Summary:
    """Statistics of the repeats of one cell."""

    n: int
    center: float
    """The median, or the mean of accuracies."""
    low: float
    high: float
    """Upper end of the interval; equal to ``low`` and to ``center`` with fewer than ``FEWEST_RUNS``."""
    noise: tuple[str, ...]
    """Why the repeats are too far apart for a fair comparison; empty if they are not."""


@ignore_overflow
def summarize(values: Sequence[float], mean: bool = False) -> Summary:
    """Return the statistics of a non-empty sample.

    Args:
        values: for positive values, the interval of the median is computed on logarithms.
        mean: whether the centre is the mean, as for accuracies, and not the median.
    """
    array = np.asarray(values, float)
    center = low = high = float(np.mean(array) if mean else np.median(array))
    if mean and len(array) >= FEWEST_RUNS:
        half = t_quantile(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
        low, high = center - half, center + half
    elif len(array) >= FEWEST_RUNS:
        positive = bool(array.min() > 0)
        some = np.log(array) if positive else array
        half = MEDIAN_FACTOR * t_quantile(len(array) - 1) * float(some.std(ddof=1)) / math.sqrt(len(array))
        low, high = center * np.exp((-half, half)) if positive else (center - half, center + half)
    return Summary(len(array), center, float(low), float(high), noise_flags(values))


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
