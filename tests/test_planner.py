"""``gtdl answer``: what fits into the minutes, and the whole of it, for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from gtdl_mlflow.sweeps import planner
from gtdl_mlflow.sweeps.planner import (
    CELL_S,
    SEEDS,
    SMALLEST_BUDGET,
    SWEEP_S,
    Plan,
    PlannedSweep,
    RunCost,
    plan,
    rounded,
    without,
)

COMMON, OWN = PlannedSweep("digits", "caffe_mnist"), PlannedSweep("digits", "")
"""A study that needs all frameworks, and one that does not."""

ANOTHER, LAST = PlannedSweep("more", "caffe_mnist"), PlannedSweep("more", "")

FIXED = SWEEP_S + SEEDS * (1 + CELL_S)
"""Seconds of a study with one framework whose runs take 1 s, whatever the budget."""


def frameworks(*costs: RunCost) -> dict[str, RunCost]:
    return dict(zip("abcd", costs, strict=False))


CHEAP = frameworks(*[RunCost(1, 20)] * 4)
DEAR = frameworks(RunCost(1, 200), RunCost(1, 9_000), RunCost(1, 300), RunCost(1, 3_000))


def spent(costs: dict[PlannedSweep, dict[str, RunCost]], made: dict[PlannedSweep, Plan]) -> float:
    return sum(
        SWEEP_S + SEEDS * sum(costs[study][name].run_s(of_study.share) for name in of_study.names)
        for study, of_study in made.items()
    )


def room(*studies: tuple[dict[str, RunCost], str]) -> float:
    """Just enough for LEAST of the trainings of some frameworks in each study."""
    return 1 + sum(
        SWEEP_S + SEEDS * sum(costs[name].run_s(SMALLEST_BUDGET) for name in names) for costs, names in studies
    )


def names(made: dict[PlannedSweep, Plan]) -> dict[PlannedSweep, str]:
    return {study: "".join(of_study.names) for study, of_study in made.items()}


def test_plans_fill_the_time_and_no_more() -> None:
    costs = {COMMON: frameworks(RunCost(2, 40), RunCost(4, 60)), OWN: frameworks(RunCost(2, 400), RunCost(4, 600))}
    made = plan(costs, 600)
    assert names(made) == {COMMON: "ab", OWN: "ab"}
    assert made[COMMON].share > made[OWN].share
    assert 0.9 * 600 < spent(costs, made) <= 600


def test_what_one_study_cannot_use_goes_to_the_others() -> None:
    costs = {COMMON: frameworks(RunCost(1, 0.1)), OWN: frameworks(RunCost(1, 1000))}
    made = plan(costs, 300)
    assert made[COMMON].share == 1
    assert 0.95 * 300 < spent(costs, made) <= 300


def test_studies_are_left_out_from_the_end() -> None:
    costs = dict.fromkeys((COMMON, OWN, LAST), frameworks(RunCost(5, 10)))
    assert list(plan(costs, 2 * (SWEEP_S + SEEDS * (5 + CELL_S)) + 10)) == [COMMON, OWN]
    assert plan(costs, 1) == {}


def test_rather_fewer_studies_than_trainings_that_teach_nothing() -> None:
    # Of the last one's 20,000 s, five times 1 % are more than the 300 s in all.
    costs = {
        COMMON: frameworks(RunCost(1, 200)),
        OWN: frameworks(RunCost(1, 200)),
        LAST: frameworks(RunCost(1, 20_000)),
    }
    made = plan(costs, 3 * FIXED + 300)
    assert list(made) == [COMMON, OWN]
    assert min(of_study.share for of_study in made.values()) > 0.1
    alone = plan({COMMON: costs[LAST], OWN: costs[OWN]}, FIXED + 10)
    assert list(alone) == [COMMON]
    assert 0 < alone[COMMON].share < SMALLEST_BUDGET  # better than no answer


@pytest.mark.parametrize("stay", ["abcd", "acd", "ac"])
def test_the_most_expensive_frameworks_are_left_out_and_no_more_than_must_be(stay: str) -> None:
    made = plan({COMMON: CHEAP, OWN: DEAR}, room((CHEAP, "abcd"), (DEAR, stay)))
    assert names(made) == {COMMON: "abcd", OWN: stay}
    assert min(of_study.share for of_study in made.values()) >= SMALLEST_BUDGET


def test_two_frameworks_stay_or_the_study_is_left_out() -> None:
    assert names(plan({COMMON: CHEAP, OWN: DEAR}, room((CHEAP, "abcd"), (DEAR, "ac")) - 2)) == {COMMON: "abcd"}


def test_under_one_setting_all_are_compared() -> None:
    seconds = room((CHEAP, "abcd"), (DEAR, "abcd")) - 2
    assert names(plan({COMMON: CHEAP, ANOTHER: DEAR}, seconds)) == {COMMON: "abcd"}
    assert names(plan({OWN: CHEAP, ANOTHER: DEAR}, seconds)) == {OWN: "abcd"}  # nor does the first lose any


def test_a_study_that_does_not_fit_stops_no_later_one() -> None:
    costs = {COMMON: CHEAP, ANOTHER: DEAR, LAST: DEAR}
    assert names(plan(costs, room((CHEAP, "abcd"), (DEAR, "ac")))) == {COMMON: "abcd", LAST: "ac"}


def test_another_study_is_worth_two_frameworks() -> None:
    costs = {COMMON: CHEAP, OWN: DEAR, LAST: frameworks(RunCost(80, 200), RunCost(80, 300))}
    seconds = room((CHEAP, "abcd"), (DEAR, "ac"), (costs[LAST], "ab"))
    assert seconds > room((CHEAP, "abcd"), (DEAR, "abcd"))
    assert names(plan(costs, seconds)) == {COMMON: "abcd", OWN: "ac", LAST: "ab"}


def test_one_framework_is_left_out_of_a_study_rather_than_two_of_a_later_one() -> None:
    costs = {
        COMMON: CHEAP,
        OWN: DEAR,
        LAST: frameworks(RunCost(1, 20), RunCost(1, 20), RunCost(1, 5_000), RunCost(1, 5_000)),
    }
    seconds = room((CHEAP, "abcd"), (DEAR, "acd"), (costs[LAST], "abcd"))
    assert seconds > room((CHEAP, "abcd"), (DEAR, "abcd"), (costs[LAST], "ab"))
    assert names(plan(costs, seconds)) == {COMMON: "abcd", OWN: "acd", LAST: "abcd"}


def test_no_study_starves_for_a_later_one() -> None:
    """Each has LEAST of its training, and a part of what is left."""
    costs = {COMMON: frameworks(*[RunCost(1, 200)] * 4), OWN: DEAR}
    made = plan(costs, room((costs[COMMON], "abcd"), (DEAR, "acd")) + 100)
    assert names(made) == {COMMON: "abcd", OWN: "acd"}
    assert made[COMMON].share > 2 * SMALLEST_BUDGET
    assert made[OWN].share > SMALLEST_BUDGET


def test_what_is_left_out_is_told() -> None:
    assert without(PlannedSweep("mnist", ""), DEAR, Plan(("a", "c", "d"), SMALLEST_BUDGET)) == [
        "mnist, each under its own default: b is left out, 1 % of its training would take 92 s a run"
    ]


@pytest.mark.parametrize(
    ("share", "typed"), [(0.123456, 0.12), (0.0019999, 0.0019), (1.7, 1.0), (1.0, 1.0), (0.3, 0.3)]
)
def test_budgets_are_rounded_down(share: float, typed: float) -> None:
    assert rounded(share) == typed


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan"])
def test_a_time_that_is_none(store: str, minutes: str) -> None:
    done = answer(f"minutes={minutes}")
    assert done.returncode == 2
    assert done.stderr == f"gtdl: minutes={minutes}: expected a number above 0, such as minutes=10\n"


def answer(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gtdl_mlflow.cli", "answer", *words], capture_output=True, text=True,
                          timeout=900)  # fmt: skip


def test_too_little_time_is_one_line_and_no_run(store: str, tmp_path: Path) -> None:
    done = answer("minutes=0.05", "hardware=cpu_1core", "framework=torch,mxnet")
    assert done.returncode == 1
    assert "minutes=0.05: too few for 5 runs of torch, mxnet here" in done.stderr
    assert not (tmp_path / "gtdl_answer.html").exists()


def test_the_answer_of_a_few_minutes(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")  # as `mlflow run . -e answer` does: the runs go to Default
    done = answer("minutes=3", "--output", "verdict.html", "--hardware", "cpu_1core", "framework=torch,mxnet")
    assert done.returncode == 0, done.stderr
    assert "mnist_5k, all under caffe_mnist, cpu, 1 thread" in done.stdout
    assert "trains fastest" in done.stdout
    assert "is most accurate" in done.stdout
    assert (tmp_path / "verdict.html").stat().st_size > 100_000
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    cells = [run for run in runs if "gtdl.framework" in run.data.tags]
    assert {run.info.status for run in cells} == {"FINISHED"}
    assert {run.data.tags["gtdl.framework"] for run in cells} == {"torch", "mxnet"}
    assert len(cells) in (2 * SEEDS, 4 * SEEDS, 6 * SEEDS, 8 * SEEDS)  # full MNIST too, where it is prepared
    assert {run.data.params["hardware"] for run in cells} == {"cpu_1core"}


def test_frameworks_that_must_be_compiled_wait_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GTDL_HOME", str(tmp_path))
    made: list[str] = []
    monkeypatch.setattr(planner.environments, "ensure", lambda framework, device: made.append(framework.name))
    names, reasons = planner.runnable_frameworks("cpu")
    assert "caffe" not in names
    assert made == names
    assert [reason for reason in reasons if "gtdl env create caffe" in reason]
    assert "reference" not in names
