"""Statistics against published values and simulations, and what they may not conclude from too few runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gtdl_mlflow.paired import MeasurementPlan
from gtdl_mlflow.reporting.formats import format_number, format_ratio, format_values
from gtdl_mlflow.reporting.intervals import (
    FEWEST_RUNS,
    MEDIAN_FACTOR,
    Difference,
    Ratio,
    Verdict,
    difference_of_means,
    mean_difference,
    noise_flags,
    paired_ratio,
    ratio_of_medians,
    repeats_needed,
    summarize,
)

# Student's own example (1908): additional hours of sleep under two drugs.
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_difference_of_means_is_welchs() -> None:
    # R's t.test(extra ~ group, data = sleep): -3.3654832 to 0.2054832.
    result = difference_of_means(SLEEP_1, SLEEP_2)
    assert result.value == pytest.approx(-1.58)
    assert (result.low, result.high) == pytest.approx((-3.3654832, 0.2054832), rel=1e-6)
    assert result.n == 10


def test_ratio_of_medians_is_welchs_on_logarithms() -> None:
    result = ratio_of_medians(np.exp(SLEEP_1), np.exp(SLEEP_2))
    half = MEDIAN_FACTOR * (0.2054832 + 3.3654832) / 2
    assert result.value == pytest.approx(np.median(np.exp(SLEEP_1)) / np.median(np.exp(SLEEP_2)))
    assert (result.low, result.high) == pytest.approx((result.value * math.exp(-half), result.value * math.exp(half)))


def test_mean_difference_is_students_for_pairs() -> None:
    # R's t.test(extra ~ group, data = sleep, paired = TRUE): -2.4598858 to -0.7001142.
    result = mean_difference([first - second for first, second in zip(SLEEP_1, SLEEP_2, strict=True)])
    assert result.value == pytest.approx(-1.58)
    assert (result.low, result.high) == pytest.approx((-2.4598858, -0.7001142), rel=1e-6)
    assert result.n == 10


def test_summary_is_students_around_the_median() -> None:
    # R's t.test(sleep$extra[1:10]): -0.5297804 to 2.0297804.
    summary = summarize(SLEEP_1)
    half = MEDIAN_FACTOR * (2.0297804 + 0.5297804) / 2
    assert (summary.n, summary.center) == (10, pytest.approx(0.35))
    assert (summary.low, summary.high) == pytest.approx((0.35 - half, 0.35 + half), rel=1e-6)
    mean = summarize(SLEEP_1, mean=True)
    assert (mean.center, mean.low, mean.high) == pytest.approx((0.75, -0.5297804, 2.0297804), rel=1e-6)


def test_interval_of_paired_ratios_is_students_t_over_the_restarts() -> None:
    # Student's t for 4 degrees of freedom: 2.776; standard error of these five values: 0.01581 / sqrt(5).
    result = paired_ratio([0.08, 0.09, 0.10, 0.11, 0.12])
    half = 2.776 * 0.015811 / math.sqrt(5)
    assert result.value == pytest.approx(math.exp(0.1))
    assert (result.low, result.high) == pytest.approx((math.exp(0.1 - half), math.exp(0.1 + half)), rel=1e-4)
    assert result.half_width == pytest.approx(math.expm1(half), rel=1e-3)


def test_intervals_of_one_ranking_hold_together() -> None:
    values, others = [1.0, 1.1, 1.2, 1.3], [2.0, 2.1, 2.2, 2.3]
    assert paired_ratio(values, comparisons=4).high > paired_ratio(values).high
    assert ratio_of_medians(values, others, 4).high > ratio_of_medians(values, others).high
    assert difference_of_means(values, others, 4).high > difference_of_means(values, others).high


@pytest.mark.parametrize("compare", [ratio_of_medians, difference_of_means])
def test_too_few_runs_have_no_interval_and_no_verdict(compare: type) -> None:
    for n in range(1, 6):
        result = compare(range(1, 1 + n), range(100, 100 + n))
        assert result.has_interval == (n >= FEWEST_RUNS)
        assert (result.verdict is Verdict.smaller) == (n >= FEWEST_RUNS)
        assert result.n == n
    assert compare([1.0], [4.0, 5.0, 6.0, 7.0, 8.0]).verdict is Verdict.unresolved


def test_two_restarts_give_no_interval_and_no_verdict() -> None:
    result = paired_ratio([0.5, 0.5])
    assert (result.low, result.high, result.verdict) == (0.0, math.inf, Verdict.unresolved)
    assert result.text == "1.65x"
    assert repeats_needed(result) is None


@pytest.mark.parametrize("spread", [0.001, 0.3, 3.0])
def test_interval_of_a_time_is_positive_and_contains_the_value(spread: float) -> None:
    generator = np.random.default_rng(0)
    first, second = (list(np.exp(spread * generator.normal(size=5))) for _ in range(2))
    result, summary = ratio_of_medians(first, second), summarize(first)
    assert result.value == pytest.approx(np.median(first) / np.median(second))
    assert 0 < result.low < result.value < result.high
    assert 0 < summary.low < summary.center < summary.high


def test_interval_of_medians_covers_the_truth() -> None:
    """Five runs each, with heavy tails: at least 95 % of the intervals contain the true ratio."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        first, second = (np.exp(0.02 * generator.standard_t(3, 5)) for _ in range(2))
        result = ratio_of_medians(list(1.1 * first), list(second))
        covered += result.low <= 1.1 <= result.high
    assert covered >= 0.95 * 2000


def test_equal_values_have_an_interval_without_width() -> None:
    assert ratio_of_medians([2.0] * 5, [1.0] * 5) == Ratio(2.0, 2.0, 2.0, 5)
    assert difference_of_means([98.0] * 5, [98.0] * 5).verdict is Verdict.same


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.03, 1.05, Verdict.larger),
        (0.95, 0.97, Verdict.smaller),
        (0.99, 1.01, Verdict.same),
        (1.001, 1.015, Verdict.same),  # a difference that decides no choice
        (0.99, 1.05, Verdict.unresolved),
        (1.001, 1.05, Verdict.larger),
    ],
)
def test_verdict_on_a_ratio_follows_the_interval(low: float, high: float, verdict: Verdict) -> None:
    assert Ratio(math.sqrt(low * high), low, high, 5).verdict is verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.9, Verdict.larger),
        (-0.9, -0.1, Verdict.smaller),
        (-0.4, 0.4, Verdict.same),
        (0.1, 0.4, Verdict.same),
        (-0.1, 0.6, Verdict.unresolved),
    ],
)
def test_verdict_on_a_difference_follows_the_interval(low: float, high: float, verdict: Verdict) -> None:
    assert Difference((low + high) / 2, low, high, 5).verdict is verdict


@pytest.mark.parametrize(("true_ratio", "most_wrong"), [(1.0, 0.05), (1.03, 0.01)])
def test_a_measurement_that_ends_by_its_own_verdict_is_rarely_wrong(true_ratio: float, most_wrong: float) -> None:
    generator, wrong, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        values = [*generator.normal(math.log(true_ratio), 0.015, MeasurementPlan.fewest)]
        while not (ratio := paired_ratio(values)).is_resolved:
            values.append(generator.normal(math.log(true_ratio), 0.015))
        assert ratio.half_width <= 0.02
        wrong += ratio.verdict is not (Verdict.same if true_ratio == 1 else Verdict.larger)
    assert wrong <= most_wrong * trials


def test_repeats_needed_narrow_the_interval() -> None:
    wide = Ratio(1.0, 1.02**-3, 1.02**3, 50)
    # With many repeats, the width falls with the square root; here to a third, and a little more by Student's quantile.
    assert repeats_needed(wide) == pytest.approx(9 * 50, rel=0.05)
    assert repeats_needed(Ratio(1.0, 0.99, 1.01, 5)) == 5


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ([1.0, 1.01, 1.02], 0),
        ([1.0, 1.03, 1.08], 1),
        ([1.0, 1.3, 1.1], 2),
        ([1.0, 1.0, 1.0, 1.0, 3.0], 3),
    ],
)
def test_noise_is_flagged(values: list[float], flags: int) -> None:
    assert len(noise_flags(values)) == flags


def test_number_formats() -> None:
    assert [format_number(value) for value in (1234.56, 98.0, 1.0, 0.8, 0.01234)] == [
        "1,234.6",
        "98.00",
        "1.00",
        "0.800",
        "0.0123",
    ]
    assert format_values([2.0]) == "2.00"
    assert format_values([2.0, 1.0, 3.0]) == "2.00; 1.00; 3.00"
    assert format_values([2.0, 2.0, 2.0, 2.0]) == "2.00 [2.00, 2.00], 4"
    assert [format_ratio(value) for value in (0.5, 1.154, 2.0, 12.34, 1234.5)] == [
        "0.500",
        "1.15",
        "2.00",
        "12.3",
        "1,234",
    ]
    assert [Ratio(value, 0, math.inf, 2).text for value in (0.012, 0.5, 1.154, 12.34, 1234.5)] == [
        "0.012x",
        "0.50x",
        "1.15x",
        "12.3x",
        "1,234x",
    ]
