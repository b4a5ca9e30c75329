"""Statistics against published values, and what they may not conclude from too few runs."""

from __future__ import annotations

import math

import pytest

from gtdl_mlflow.report.formats import format_number, format_p, format_ratio, format_summary
from gtdl_mlflow.report.stats import LEAST_FOR_SIGNIFICANCE, compare, holm, noise_flags, summarize


def test_summary_is_that_of_the_textbook() -> None:
    # Student's own example (1908): additional hours of sleep under a drug; the interval is R's t.test.
    summary = summarize([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    assert summary.n == 10
    assert summary.mean == pytest.approx(0.75)
    assert (summary.low, summary.high) == pytest.approx((-0.5297804, 2.0297804))
    assert summary.median == pytest.approx(0.35)
    assert summary.mad == pytest.approx(1.05)


def test_one_run_has_no_interval_and_no_test() -> None:
    summary = summarize([3.0])
    assert (summary.n, summary.median) == (1, 3.0)
    assert (summary.low, summary.high) == (-math.inf, math.inf)
    assert math.isnan(compare([3.0], [4.0, 5.0]).p)


def test_holm_equals_p_adjust_of_r() -> None:
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    corrected = holm([0.5, math.nan, 0.9])
    assert corrected[::2] == pytest.approx([1.0, 1.0])
    assert math.isnan(corrected[1])


def test_least_number_of_repeats_for_a_significant_difference() -> None:
    assert compare([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]).p == pytest.approx(2 / 252)  # two of all C(10, 5) orders
    assert compare([1, 2, 3], [6, 7, 8]).p == pytest.approx(0.1)
    assert compare([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]).significant
    for n in range(2, 6):
        first, second = range(n), range(10, 10 + n)
        assert compare(first, second).significant == (n >= LEAST_FOR_SIGNIFICANCE)


def test_interval_of_a_ratio_contains_the_ratio() -> None:
    result = compare([2.0, 2.1, 1.9, 2.05, 1.95], [1.0, 1.05, 0.95, 1.02, 0.98])
    assert result.ratio == pytest.approx(2.0)
    assert result.low < 2.0 < result.high
    assert result.high - result.low < 0.3


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
    assert format_summary(summarize([2.0])) == "2.00, 1"
    assert format_summary(summarize([1.0, 2.0, 3.0])) == "2.00 [-0.484, 4.48], 3"
    assert [format_ratio(value) for value in (0.5, 1.154, 2.0, 12.34, 1234.5)] == [
        "0.500",
        "1.15",
        "2.00",
        "12.3",
        "1,234",
    ]
    assert [format_p(value) for value in (0.0158, 0.0002, math.nan)] == ["= 0.016", "< 0.001", ""]
