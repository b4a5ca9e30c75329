"""Ratios of paired measurements: intervals, verdicts, rankings and sentences."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gtdl_mlflow.reporting import ratios
from gtdl_mlflow.reporting.intervals import Verdict
from gtdl_mlflow.reporting.ratios import CPU, WALL, MeasuredTurn


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
        assert ranking.frameworks[1].ratio.verdict is Verdict.same
    else:
        assert [each.framework for each in ranking.frameworks] == ["a", "b"]
        assert ranking.frameworks[1].ratio.low < factor < ranking.frameworks[1].ratio.high
        assert ranking.frameworks[1].ratio.verdict is Verdict.larger
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
