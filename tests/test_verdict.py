"""The benchmark of verdicts: its log, its trials, and the goals that it prints."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.project import ROOT, need_framework

SCRIPT = ROOT / "benchmarks" / "verdict.py"
OPTIONS = {"method": "paired", "load": "0", "setting": "caffe_mnist"}
QUIET = [0.999, 1.001, 1.0, 0.998, 1.002, 1.0]
"""Ratios of a framework to itself from restart to restart."""


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module(SCRIPT.stem)


def write_log(
    verdict: Any, path: Path, again: Sequence[float] = QUIET, three_percent: float = 1.03, method: str = "paired"
) -> None:
    """Write a log of repeats with these ratios of PyTorch to itself, and a slow-down of ``three_percent``."""
    log = verdict.Log(path, OPTIONS | {"method": method})
    for each in again:
        times = {"plain": 1.0, "again": each, "slowed by 3 %": three_percent * each, "slowed by 10 %": 1.1 * each}
        log.add(verdict.Repeat(9.0, times))


def run(log: Path, repeats: int, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--log", str(log), "--repeats", str(repeats), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_goals_are_those_of_the_repeats_in_the_log(verdict: Any, tmp_path: Path) -> None:
    write_log(verdict, tmp_path / "log.csv")
    done = run(tmp_path / "log.csv", len(QUIET))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[::2] == [
        "against itself: 0 false differences in 6 (at most 5 %); 6 'same'",
        "slowed by 3 %: detected in 6 of 6 (at least 90 %); 0 'faster'",
        "slowed by 10 %: detected in 6 of 6 (at least 100 %); 0 'faster'",
        "6 repeats, 9.0 s each; load: 0 other processes",
    ]
    for line in lines[1::2]:
        assert line.startswith("  the true ratio is in 6 of 6 intervals (at least 90 %)")
        assert line.endswith("; 5.0 restarts")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("again", "three_percent", "line"),
    [
        ([1.04, 1.05, 1.04, 1.05, 1.04, 1.05], 1.03, "against itself: 6 false differences in 6"),
        (QUIET, 0.96, "slowed by 3 %: detected in 0 of 6 (at least 90 %); 6 'faster'"),
        ([0.9, 1.1, 0.9, 1.1, 0.9, 1.1], 1.03, "slowed by 3 %: detected in 0 of 6"),
    ],
    ids=["a difference from itself", "faster instead of slower", "noise"],
)
def test_a_missed_goal_fails(verdict: Any, tmp_path: Path, again: list[float], three_percent: float, line: str) -> None:
    write_log(verdict, tmp_path / "log.csv", again, three_percent)
    done = run(tmp_path / "log.csv", 6, "--most", "6")
    assert done.returncode == 1
    assert line in done.stdout


@pytest.mark.slow
def test_whole_runs_are_compared_in_fives_and_have_no_goal(verdict: Any, tmp_path: Path) -> None:
    write_log(verdict, tmp_path / "log.csv", [0.9, 1.1, 0.9, 1.1, 0.9, 1.1], method="whole_runs")
    done = run(tmp_path / "log.csv", 6, "--method", "whole_runs")
    assert done.returncode == 0, done.stderr
    assert "slowed by 3 %: detected in 0 of 6" in done.stdout
    assert "interval" not in done.stdout


@pytest.mark.slow
def test_a_log_of_other_options_is_refused(verdict: Any, tmp_path: Path) -> None:
    write_log(verdict, tmp_path / "log.csv")
    done = run(tmp_path / "log.csv", 6, "--load", "2")
    assert done.returncode == 1
    assert "log.csv has repeats with {'load': '0'}" in done.stderr


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("method", ["paired", "whole_runs"])
def test_an_interrupted_benchmark_goes_on(verdict: Any, tmp_path: Path, method: str) -> None:
    """The second repeat is a real measurement."""
    need_framework("torch")
    log = tmp_path / "log.csv"
    write_log(verdict, log, QUIET[:1], method=method)
    done = run(log, 2, "--method", method)
    assert "2 of 2: again " in done.stdout, done.stderr
    assert "1 of 2: " not in done.stdout
    first, second = verdict.Log(log, OPTIONS | {"method": method}).repeats
    assert first.seconds == 9.0
    assert set(second.times) == {"plain", "again", "slowed by 3 %", "slowed by 10 %"}
    assert all(value > 0 for value in second.times.values())
