"""The planner of ``gtdl answer``: what fits into a time limit; and the whole command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from gtdl_mlflow.report.statistics import SEEDS_TO_PUBLISH as SEEDS
from gtdl_mlflow.sweeps import planner
from gtdl_mlflow.sweeps.planner import (
    CELL_S,
    SMALLEST_BUDGET,
    SWEEP_S,
    Plan,
    PlannedSweep,
    RunCost,
    left_out,
    plan,
    round_down,
)

COMMON, OWN = PlannedSweep("digits", "caffe_mnist"), PlannedSweep("digits", "")
"""A sweep that needs all frameworks, and one that does not."""

ANOTHER, LAST = PlannedSweep("more", "caffe_mnist"), PlannedSweep("more", "")

FIXED = SWEEP_S + SEEDS * (1 + CELL_S)
"""Seconds of a sweep with one framework whose runs take 1 s with any budget."""


def frameworks(*costs: RunCost) -> dict[str, RunCost]:
    return dict(zip("abcd", costs, strict=False))


CHEAP = frameworks(*[RunCost(1, 20)] * 4)
EXPENSIVE = frameworks(RunCost(1, 200), RunCost(1, 9_000), RunCost(1, 300), RunCost(1, 3_000))


def total_s(costs: dict[PlannedSweep, dict[str, RunCost]], plans: dict[PlannedSweep, Plan]) -> float:
    return sum(
        SWEEP_S + SEEDS * sum(costs[sweep][name].run_s(chosen.budget) for name in chosen.frameworks)
        for sweep, chosen in plans.items()
    )


def smallest_s(*sweeps: tuple[dict[str, RunCost], str]) -> float:
    """Return just enough seconds for the smallest budget of some frameworks in each sweep."""
    return 1 + sum(
        SWEEP_S + SEEDS * sum(costs[name].run_s(SMALLEST_BUDGET) for name in names) for costs, names in sweeps
    )


def names(plans: dict[PlannedSweep, Plan]) -> dict[PlannedSweep, str]:
    return {sweep: "".join(chosen.frameworks) for sweep, chosen in plans.items()}


def test_plans_fill_the_time_and_no_more() -> None:
    costs = {COMMON: frameworks(RunCost(2, 40), RunCost(4, 60)), OWN: frameworks(RunCost(2, 400), RunCost(4, 600))}
    plans = plan(costs, 600)
    assert names(plans) == {COMMON: "ab", OWN: "ab"}
    assert plans[COMMON].budget > plans[OWN].budget
    assert 0.9 * 600 < total_s(costs, plans) <= 600


def test_time_that_one_sweep_cannot_use_goes_to_the_others() -> None:
    costs = {COMMON: frameworks(RunCost(1, 0.1)), OWN: frameworks(RunCost(1, 1000))}
    plans = plan(costs, 300)
    assert plans[COMMON].budget == 1
    assert 0.95 * 300 < total_s(costs, plans) <= 300


def test_the_last_sweeps_are_left_out_first() -> None:
    costs = dict.fromkeys((COMMON, OWN, LAST), frameworks(RunCost(5, 10)))
    assert list(plan(costs, 2 * (SWEEP_S + SEEDS * (5 + CELL_S)) + 10)) == [COMMON, OWN]
    assert plan(costs, 1) == {}


def test_a_sweep_is_left_out_rather_than_run_below_the_smallest_budget() -> None:
    # The last sweep's training takes 20,000 s: five times 1 % exceed the 300 s that all trainings have.
    costs = {
        COMMON: frameworks(RunCost(1, 200)),
        OWN: frameworks(RunCost(1, 200)),
        LAST: frameworks(RunCost(1, 20_000)),
    }
    plans = plan(costs, 3 * FIXED + 300)
    assert list(plans) == [COMMON, OWN]
    assert min(chosen.budget for chosen in plans.values()) > 0.1


def test_a_single_sweep_may_run_below_the_smallest_budget() -> None:
    plans = plan({COMMON: frameworks(RunCost(1, 20_000)), OWN: frameworks(RunCost(1, 200))}, FIXED + 10)
    assert list(plans) == [COMMON]
    assert 0 < plans[COMMON].budget < SMALLEST_BUDGET


@pytest.mark.parametrize("remaining", ["abcd", "acd", "ac"])
def test_as_few_frameworks_as_possible_are_left_out_and_the_most_expensive_first(remaining: str) -> None:
    plans = plan({COMMON: CHEAP, OWN: EXPENSIVE}, smallest_s((CHEAP, "abcd"), (EXPENSIVE, remaining)))
    assert names(plans) == {COMMON: "abcd", OWN: remaining}
    assert min(chosen.budget for chosen in plans.values()) >= SMALLEST_BUDGET


def test_a_sweep_without_two_frameworks_is_left_out() -> None:
    seconds = smallest_s((CHEAP, "abcd"), (EXPENSIVE, "ac")) - 2
    assert names(plan({COMMON: CHEAP, OWN: EXPENSIVE}, seconds)) == {COMMON: "abcd"}


def test_a_sweep_with_a_common_setting_has_all_frameworks_or_none() -> None:
    seconds = smallest_s((CHEAP, "abcd"), (EXPENSIVE, "abcd")) - 2
    assert names(plan({COMMON: CHEAP, ANOTHER: EXPENSIVE}, seconds)) == {COMMON: "abcd"}


def test_the_first_sweep_has_all_frameworks() -> None:
    seconds = smallest_s((CHEAP, "abcd"), (EXPENSIVE, "abcd")) - 2
    assert names(plan({OWN: CHEAP, ANOTHER: EXPENSIVE}, seconds)) == {OWN: "abcd"}


def test_a_sweep_that_does_not_fit_does_not_exclude_later_ones() -> None:
    costs = {COMMON: CHEAP, ANOTHER: EXPENSIVE, LAST: EXPENSIVE}
    assert names(plan(costs, smallest_s((CHEAP, "abcd"), (EXPENSIVE, "ac")))) == {COMMON: "abcd", LAST: "ac"}


def test_a_further_sweep_is_preferred_to_two_further_frameworks() -> None:
    costs = {COMMON: CHEAP, OWN: EXPENSIVE, LAST: frameworks(RunCost(80, 200), RunCost(80, 300))}
    seconds = smallest_s((CHEAP, "abcd"), (EXPENSIVE, "ac"), (costs[LAST], "ab"))
    assert seconds > smallest_s((CHEAP, "abcd"), (EXPENSIVE, "abcd"))
    assert names(plan(costs, seconds)) == {COMMON: "abcd", OWN: "ac", LAST: "ab"}


def test_one_framework_is_left_out_of_a_sweep_rather_than_two_of_a_later_one() -> None:
    costs = {
        COMMON: CHEAP,
        OWN: EXPENSIVE,
        LAST: frameworks(RunCost(1, 20), RunCost(1, 20), RunCost(1, 5_000), RunCost(1, 5_000)),
    }
    seconds = smallest_s((CHEAP, "abcd"), (EXPENSIVE, "acd"), (costs[LAST], "abcd"))
    assert seconds > smallest_s((CHEAP, "abcd"), (EXPENSIVE, "abcd"), (costs[LAST], "ab"))
    assert names(plan(costs, seconds)) == {COMMON: "abcd", OWN: "acd", LAST: "abcd"}


def test_every_sweep_gets_a_part_of_the_remaining_time() -> None:
    costs = {COMMON: frameworks(*[RunCost(1, 200)] * 4), OWN: EXPENSIVE}
    plans = plan(costs, smallest_s((costs[COMMON], "abcd"), (EXPENSIVE, "acd")) + 100)
    assert names(plans) == {COMMON: "abcd", OWN: "acd"}
    assert plans[COMMON].budget > 2 * SMALLEST_BUDGET
    assert plans[OWN].budget > SMALLEST_BUDGET


def test_frameworks_that_are_left_out_are_reported() -> None:
    assert left_out(PlannedSweep("mnist", ""), EXPENSIVE, Plan(("a", "c", "d"), SMALLEST_BUDGET)) == [
        "mnist, each with its own default: b is left out, a run with budget=0.01 takes 92 s"
    ]


@pytest.mark.parametrize(
    ("budget", "rounded"), [(0.123456, 0.12), (0.0019999, 0.0019), (1.7, 1.0), (1.0, 1.0), (0.3, 0.3)]
)
def test_budgets_are_rounded_down(budget: float, rounded: float) -> None:
    assert round_down(budget) == rounded


def test_a_framework_that_must_be_compiled_first_is_left_out(
    monkeypatch: pytest.MonkeyPatch, cache_folders: None
) -> None:
    created: list[str] = []
    monkeypatch.setattr(planner.environments, "ensure", lambda framework, device: created.append(framework.name))
    runnable, reasons = planner.runnable_frameworks("cpu")
    assert "caffe" not in runnable
    assert created == runnable
    assert [reason for reason in reasons if "gtdl env create caffe" in reason]
    assert "reference" not in runnable


def answer(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gtdl_mlflow.cli", "answer", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan"])
def test_minutes_must_be_a_number_above_zero(store: str, minutes: str) -> None:
    done = answer(f"minutes={minutes}")
    assert done.returncode == 2
    assert done.stderr == f"gtdl: minutes={minutes}: expected a number above 0, such as minutes=10\n"


@pytest.mark.slow
@pytest.mark.frameworks
def test_a_time_limit_that_is_too_short_is_one_line_and_no_run(store: str, tmp_path: Path) -> None:
    done = answer("minutes=0.05", "hardware=cpu_1core", "framework=torch,mxnet")
    assert done.returncode == 1
    assert "minutes=0.05: too short for 5 runs of torch, mxnet here; try minutes=" in done.stderr
    assert not (tmp_path / "gtdl_answer.html").exists()
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


@pytest.mark.slow
@pytest.mark.frameworks
def test_an_answer_compares_the_frameworks_and_writes_a_report(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")  # as `mlflow run . -e answer` sets it: the experiment Default
    done = answer("minutes=3", "--output", "verdict.html", "--hardware", "cpu_1core", "framework=torch,mxnet")
    assert done.returncode == 0, done.stderr
    assert "mnist_5k, all under caffe_mnist, cpu, 1 thread" in done.stdout
    assert "trained fastest: median" in done.stdout
    assert "was most accurate: median" in done.stdout
    assert (tmp_path / "verdict.html").stat().st_size > 100_000
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    cells = [run for run in runs if "gtdl.framework" in run.data.tags]
    assert {run.info.status for run in cells} == {"FINISHED"}
    assert {run.data.tags["gtdl.framework"] for run in cells} == {"torch", "mxnet"}
    assert len(cells) in (2 * SEEDS, 4 * SEEDS, 6 * SEEDS, 8 * SEEDS)  # with full MNIST, if a test has prepared it
    assert {run.data.params["hardware"] for run in cells} == {"cpu_1core"}
