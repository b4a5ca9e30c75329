"""The benchmark of verdicts: its log, and the goals that it prints."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.project import ROOT

from gtdl_mlflow.reporting.intervals import Verdict

SCRIPT = ROOT / "benchmarks" / "verdict.py"
OPTIONS = {"method": "paired", "load": "0", "setting": "caffe_mnist"}


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module(SCRIPT.stem)


def write_log(verdict: Any, path: Path, *of_three_percent: Verdict, again: Verdict = Verdict.same) -> None:
    """Write a log of trials with these verdicts on the slow-down of 3 % and on PyTorch itself."""
    log = verdict.Log(path, OPTIONS)
    for each in of_three_percent:
        comparisons = {
            "again": verdict.Comparison(1.0, 0.99, 1.01, 5, again),
            "slowed by 3 %": verdict.Comparison(1.03, 1.02, 1.04, 5, each),
            "slowed by 10 %": verdict.Comparison(1.1, 1.08, 1.12, 5, Verdict.larger),
        }
        log.add(verdict.Trial(60.0, comparisons))


def run(log: Path, trials: int, load: str = "0") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--log", str(log), "--trials", str(trials), "--load", load]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_goals_are_those_of_the_trials_in_the_log(verdict: Any, tmp_path: Path) -> None:
    write_log(verdict, tmp_path / "log.csv", Verdict.larger, Verdict.larger)
    done = run(tmp_path / "log.csv", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "against itself: 0 false differences in 2 (at most 5 %); 2 'same'",
        "  the true ratio is in 2 of 2 intervals (at least 90 %), whose median half-width is 1.01 %",
        "slowed by 3 %: detected in 2 of 2 (at least 90 %); 0 'faster'",
        "  the true ratio is in 2 of 2 intervals (at least 90 %), whose median half-width is 0.98 %",
        "slowed by 10 %: detected in 2 of 2 (at least 100 %); 0 'faster'",
        "  the true ratio is in 2 of 2 intervals (at least 90 %), whose median half-width is 1.84 %",
        "2 trials, 60 s each; load: 0 other processes",
    ]


@pytest.mark.slow
def test_a_missed_goal_fails(verdict: Any, tmp_path: Path) -> None:
    write_log(verdict, tmp_path / "log.csv", Verdict.larger, Verdict.unresolved)
    done = run(tmp_path / "log.csv", 2)
    assert done.returncode == 1
    assert "slowed by 3 %: detected in 1 of 2 (at least 90 %)" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("again", "false"), [(Verdict.unresolved, 0), (Verdict.larger, 1), (Verdict.smaller, 1)])
def test_only_a_difference_from_itself_is_false(verdict: Any, tmp_path: Path, again: Verdict, false: int) -> None:
    write_log(verdict, tmp_path / "log.csv", Verdict.larger, again=again)
    done = run(tmp_path / "log.csv", 1)
    assert done.returncode == false
    assert f"against itself: {false} false differences in 1 (at most 5 %); 0 'same'" in done.stdout


@pytest.mark.slow
def test_a_log_of_other_options_is_refused(verdict: Any, tmp_path: Path) -> None:
    write_log(verdict, tmp_path / "log.csv", Verdict.larger)
    done = run(tmp_path / "log.csv", 2, load="2")
    assert done.returncode == 1
    assert "log.csv has trials with {'load': '0'}" in done.stderr


@pytest.mark.slow
@pytest.mark.frameworks
def test_an_interrupted_benchmark_goes_on(verdict: Any, tmp_path: Path) -> None:
    """A trial is a real measurement."""
    log = tmp_path / "log.csv"
    write_log(verdict, log, Verdict.larger)
    command = [sys.executable, str(SCRIPT), "--log", str(log), "--trials", "2", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "2 of 2: again " in done.stdout, done.stderr
    assert "1 of 2: " not in done.stdout
    first, second = verdict.Log(log, OPTIONS).trials
    assert first.seconds == 60.0
    assert {each.repeats for each in second.comparisons.values()} == {3}
