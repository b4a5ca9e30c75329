"""The stability study: noise of frameworks that are measured against themselves."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from gtdl_mlflow import metrics
from gtdl_mlflow.reporting.intervals import Verdict, paired_ratio
from gtdl_mlflow.reporting.ratios import CPU, MeasuredTurn
from gtdl_mlflow.sweeps.stability import SECOND_WORKER, conclude, restarts_for

ROUNDS = (-0.03, -0.01, 0.0, 0.01, 0.03)
"""Deviation of the log ratio in each round of a restart."""

RESTARTS = (-0.01, -0.005, 0.0, 0.005, 0.01)
"""Log ratio of the two workers in each restart."""


def turns(restarts: Sequence[float] = RESTARTS, threads: int = 1, foreign_percent: float = 0.0) -> list[MeasuredTurn]:
    """Return turns of two workers of A and two of B, which has ten times the noise and takes twice as long."""
    return [
        MeasuredTurn(
            restart,
            threads,
            "training",
            number,
            0,
            name + end,
            1,
            wall_s := seconds * math.exp(noise * (of_restart + of_round) if end else 0.0),
            wall_s,
            0.0,
            foreign_percent,
            0.0,
        )
        for restart, of_restart in enumerate(restarts)
        for number, of_round in enumerate(ROUNDS)
        for name, seconds, noise in (("A 1", 0.1, 1), ("B 2", 0.2, 10))
        for end in ("", SECOND_WORKER)
    ]


def test_planted_noise_is_found(tmp_path: Path) -> None:
    result = conclude(turns(), 2, 30.0, [], tmp_path)
    with (tmp_path / "stability.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["framework"], first["measured"], first["clock"], first["ms"]) == ("A 1", "training", CPU, "100")
    assert float(first["rounds %"]) == pytest.approx(1.48)  # median absolute deviation: 1 %
    assert float(first["restarts %"]) == pytest.approx(100 * np.std(RESTARTS, ddof=1), abs=0.01)
    assert float(first["half-width %"]) == pytest.approx(2.776 * 0.791 / math.sqrt(5), abs=0.01)
    assert first["2nd / 1st worker"].startswith("1.000 [0.990, ")
    assert int(first["restarts for 2 %"]) == restarts_for(0.0079057, 0.02)
    assert float(first["min for 2 %"]) == int(first["restarts for 2 %"]) / 2  # 30 s each
    assert float(second["restarts %"]) == pytest.approx(10 * float(first["restarts %"]), rel=0.01)
    needed = int(second["restarts for 2 %"])
    assert f"training: a difference of 2 % by CPU time needs {needed} restarts, about {needed / 2:.0f} min (B 2)" in (
        result.text
    )
    assert "5 restarts of 30 s with 4 workers" in result.text
    assert result.metrics["stability/cpu/training/B-2/restarts_needed"] == needed
    assert all(metrics.find(name) for name in result.metrics)
    assert result.artifacts == ["turns.csv", "stability.csv"]


def test_wall_clock_counts_only_without_other_load(tmp_path: Path) -> None:
    disturbed = conclude(turns() + turns(threads=2, foreign_percent=61.0), 2, 30.0, ["a remark"], tmp_path)
    assert not [name for name in disturbed.metrics if name.startswith("stability/wall/")]
    assert "! 100 % of the turns do not count for the wall clock: other processes used 61 %" in disturbed.text
    assert disturbed.text.endswith("! a remark")
    quiet = conclude(turns() + turns(threads=2), 2, 30.0, [], tmp_path)
    assert "stability/wall/training/A-1/half_width_percent" in quiet.metrics


def test_too_few_restarts_give_the_turns_and_a_remark(tmp_path: Path) -> None:
    result = conclude(turns(RESTARTS[:2]), 2, 30.0, ["B 2 is left out: no memory"], tmp_path)
    few, left_out = result.text.splitlines()
    assert few == "! fewer than 3 restarts: the noise is unknown; sweep.paired_minutes= gives more time"
    assert left_out == "! B 2 is left out: no memory"
    assert (result.artifacts, result.metrics) == (["turns.csv"], {})


def test_restarts_needed_match_the_textbook() -> None:
    # One-sample t-test, power 80 %, level 5 %: effect of one standard deviation, and of a half.
    assert restarts_for(math.log(1.02), 0.02) == 10
    assert restarts_for(2 * math.log(1.02), 0.02) == 34
    assert restarts_for(0.0, 0.02) == 3  # with fewer there is no interval


def test_so_many_restarts_show_the_difference_in_four_of_five_studies() -> None:
    generator, deviation = np.random.default_rng(0), 0.03
    values = generator.normal(math.log(1.02), deviation, (2000, restarts_for(deviation, 0.02)))
    shown = [paired_ratio(list(study)).verdict is Verdict.larger for study in values]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.03)
