"""Ratios of paired measurements: intervals, verdicts, rankings and sentences."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gtdl_mlflow.report import ratios
from gtdl_mlflow.report.ratios import CPU, WALL, MeasuredTurn, Ranked, Ranking, Ratio, RatioVerdict


def turn(restart: int, number: int, framework: str, cpu_s: float, wall_s: float = 1.0, **others: float) -> MeasuredTurn:
    """Return a training turn of ten steps."""
    values: dict[str, Any] = {"threads": 1, "foreign_percent": 0.0, **others}
    return MeasuredTurn(
        restart=restart,
        activity="training",
        round=number,
        position=0,
        framework=framework,
        units=10,
        wall_s=wall_s,
        cpu_s=cpu_s,
        waiting_cpu_s=0.0,
        stolen_percent=0.0,
        **values,
    )


def test_interval_is_students_t_over_the_restarts() -> None:
    # Student's t for 4 degrees of freedom: 2.776; standard error of these five values: 0.01581 / sqrt(5).
    result = ratios.ratio([0.08, 0.09, 0.10, 0.11, 0.12])
    half = 2.776 * 0.015811 / math.sqrt(5)
    assert result.value == pytest.approx(math.exp(0.1))
    assert (result.low, result.high) == pytest.approx((math.exp(0.1 - half), math.exp(0.1 + half)), rel=1e-4)
    assert result.half_width == pytest.approx(math.expm1(half), rel=1e-3)


def test_intervals_of_one_table_hold_together() -> None:
    values = [0.08, 0.09, 0.10, 0.11, 0.12]
    assert ratios.ratio(values, comparisons=4).high > ratios.ratio(values).high


def test_two_restarts_give_no_interval_and_no_verdict() -> None:
    result = ratios.ratio([0.5, 0.5])
    assert (result.low, result.high, result.verdict) == (0.0, math.inf, RatioVerdict.unresolved)
    assert ratios.factor(result) == "1.65x"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.03, 1.05, RatioVerdict.slower),
        (0.95, 0.97, RatioVerdict.faster),
        (0.99, 1.01, RatioVerdict.same),
        (1.001, 1.015, RatioVerdict.same),  # a difference that decides no choice
        (0.99, 1.05, RatioVerdict.unresolved),
        (1.001, 1.05, RatioVerdict.slower),
    ],
)
def test_verdict_follows_the_interval(low: float, high: float, verdict: RatioVerdict) -> None:
    assert Ratio(math.sqrt(low * high), low, high, 5).verdict is verdict


def turns(factor: float, restarts: int = 8, disturbed: float = 0.0) -> list[MeasuredTurn]:
    """Return turns of ``a`` and of ``b``, which takes ``factor`` times as long, on a machine that drifts."""
    generator = np.random.default_rng(0)
    made = []
    for restart, number in itertools.product(range(restarts), range(6)):
        speed = 1 + 0.5 * number + restart  # the same for neighbouring turns
        for name, times in (("a", 1.0), ("b", factor)):
            noise = math.exp(0.005 * generator.normal())
            made.append(turn(restart, number, name, speed * times * noise, foreign_percent=disturbed))
    return made


@pytest.mark.parametrize("factor", [1.0, 1.03, 1.1, 2.0])
def test_drift_of_the_machine_does_not_change_the_ratio(factor: float) -> None:
    ranking = ratios.rank(turns(factor), "training", CPU)
    if factor == 1.0:
        assert ranking.frameworks[1].ratio.verdict is RatioVerdict.same
    else:
        assert [each.framework for each in ranking.frameworks] == ["a", "b"]
        assert ranking.frameworks[1].ratio.low < factor < ranking.frameworks[1].ratio.high
        assert ranking.frameworks[1].ratio.verdict is RatioVerdict.slower
    assert ranking.is_resolved


def test_one_disturbed_turn_does_not_move_the_ratio() -> None:
    some = turns(1.1)
    some[3] = replace(some[3], cpu_s=100 * some[3].cpu_s)
    assert ratios.rank(some, "training", CPU).frameworks[1].ratio.value == pytest.approx(1.1, rel=0.01)


def test_cpu_time_uses_one_thread_and_the_wall_clock_all_threads() -> None:
    one = [turn(r, 0, name, cpu_s, 9.0) for r in range(3) for name, cpu_s in (("a", 1.0), ("b", 2.0))]
    two = [turn(r, 0, name, 9.0, wall_s, threads=2) for r in range(3) for name, wall_s in (("a", 3.0), ("b", 1.0))]
    assert ratios.rank([*one, *two], "training", CPU).frameworks[1].ratio.value == pytest.approx(2)
    assert [each.framework for each in ratios.rank([*one, *two], "training", WALL).frameworks] == ["b", "a"]


def test_turns_with_interference_do_not_count_for_the_wall_clock() -> None:
    calm, busy = turns(1.1, restarts=3), turns(1.1, restarts=3, disturbed=61.0)
    assert ratios.undisturbed(calm) == calm
    assert ratios.undisturbed(busy) == []
    assert ratios.interference_of(busy) == "other processes used 61 % of the machine's CPU time"


LABELS = ["A 1.0", "B 2.0", "C 3.0", "D 4.0"]
SHAPES = {
    "same": Ratio(1.005, 0.995, 1.015, 6),
    "slower": Ratio(1.5, 1.4, 1.6, 6),
    "unresolved": Ratio(1.03, 0.95, 1.12, 6),
    "too few": Ratio(1.03, 0.0, math.inf, 2),
}


@pytest.mark.parametrize("shapes", [each for n in range(4) for each in itertools.product(SHAPES, repeat=n)])
def test_every_clause_of_a_sentence_is_true(shapes: tuple[str, ...]) -> None:
    best, *names = LABELS
    others = [Ranked(name, 1.0, SHAPES[shape]) for name, shape in zip(names, shapes, strict=False)]
    text = ratios.sentence(Ranking("training", CPU, (Ranked(best, 1.0, Ratio(1, 1, 1, 6)), *others)))
    clauses = dict.fromkeys(LABELS, "")
    for clause in re.split(r"(?<=[a-z\]x%])\. ?", text):
        for label in LABELS:
            if label in clause:
                clauses[label] += f"{clause}."
    for name, shape in zip(names, shapes, strict=False):
        expected = {
            "same": "in the same time, within 2 %.",
            "slower": f"{ratios.factor(SHAPES[shape])}",
            "unresolved": "Not resolved: ",
            "too few": "Not resolved: ",
        }[shape]
        assert expected in clauses[name], text
    assert ("fastest" in text) == (set(shapes) == {"slower"}), text
    assert ("in the same time" in text) == ("same" in shapes), text
    assert ("Not resolved" in text) == bool({"unresolved", "too few"} & set(shapes)), text
    if not shapes:
        assert "no other framework" in text
