"""``gtdl answer``: what fits into the minutes, and the whole of it, for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from gtdl_mlflow import answering
from gtdl_mlflow.answering import CELL_S, LEAST, SEEDS, SWEEP_S, Cost, budgets, rounded


def spent(costs: list[list[Cost]], shares: list[float]) -> float:
    return sum(
        SWEEP_S + SEEDS * sum(cost.fixed_s + CELL_S + share * cost.training_s for cost in study)
        for study, share in zip(costs, shares, strict=False)
    )


def test_budgets_fill_the_time_and_no_more() -> None:
    costs = [[Cost(2, 40), Cost(4, 60)], [Cost(2, 400), Cost(4, 600)]]
    shares = budgets(costs, 600)
    assert len(shares) == 2
    assert shares[0] > shares[1]
    assert 0.9 * 600 < spent(costs, shares) <= 600


def test_what_one_study_cannot_use_goes_to_the_others() -> None:
    costs = [[Cost(1, 0.1)], [Cost(1, 1000)]]
    shares = budgets(costs, 300)
    assert shares[0] == 1
    assert 0.95 * 300 < spent(costs, shares) <= 300


def test_studies_are_left_out_from_the_end() -> None:
    assert len(budgets([[Cost(5, 10)], [Cost(5, 10)], [Cost(5, 10)]], 2 * (SWEEP_S + SEEDS * (5 + CELL_S)) + 10)) == 2
    assert budgets([[Cost(5, 10)]], 1) == []


def test_rather_fewer_studies_than_trainings_that_teach_nothing() -> None:
    fixed = SWEEP_S + SEEDS * (1 + CELL_S)
    costs = [[Cost(1, 200)], [Cost(1, 200)], [Cost(1, 20_000)]]  # of the last 100 s in all, 0.1 % could be had
    shares = budgets(costs, 3 * fixed + 300)
    assert len(shares) == 2
    assert min(shares) > 0.1
    assert 0 < budgets([[Cost(1, 20_000)]], fixed + 10)[0] < LEAST  # better than no answer


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
    done = answer("minutes=0.05", "hardware=cpu_1core")
    assert done.returncode == 1
    assert "minutes=0.05: too few for 5 runs of " in done.stderr
    assert not (tmp_path / "gtdl_answer.html").exists()


def test_the_answer_of_a_few_minutes(store: str, tmp_path: Path) -> None:
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
    monkeypatch.setattr(answering.environments, "ensure", lambda framework, device: made.append(framework.name))
    names, reasons = answering.able("cpu")
    assert "caffe" not in names
    assert made == names
    assert [reason for reason in reasons if "gtdl env create caffe" in reason]
    assert "reference" not in names
