"""The planner of ``gtdl answer``: what fits into a time limit; and the whole command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from helpers.project import ROOT, sweep_runs, wait_until
from helpers.share import only_in

from gtdl_mlflow import config
from gtdl_mlflow.sweeps import planner
from gtdl_mlflow.sweeps.planner import SMALLEST_BUDGET, Cost, choose_budget, round_down, shortest_measurement_s

CHEAP, EXPENSIVE = Cost(2, 20), Cost(4, 400)


def test_one_run_of_each_framework_fills_its_share_and_no_more() -> None:
    costs = [CHEAP, EXPENSIVE]
    budget = choose_budget(costs, 60)
    assert 0.9 * 60 < sum(each.run_s(budget) for each in costs) <= 60


def test_budget_is_at_most_the_whole_training_and_not_too_small_to_learn() -> None:
    assert choose_budget([CHEAP], 1e9) == 1
    assert choose_budget([CHEAP, EXPENSIVE], 1) == SMALLEST_BUDGET


def test_more_frameworks_need_a_longer_measurement() -> None:
    assert shortest_measurement_s([CHEAP] * 5) > 2 * shortest_measurement_s([CHEAP] * 2)


def test_the_longest_runs_are_left_out_until_the_others_fit() -> None:
    costs = {"torch": CHEAP, "tinygrad": Cost(15, 400), "jax": CHEAP, "paddle": EXPENSIVE}
    assert planner.fit(costs, 1e9, SMALLEST_BUDGET) == (costs, [])
    two = {"torch": CHEAP, "jax": CHEAP}
    three = {**two, "paddle": EXPENSIVE}
    assert planner.fit(costs, planner.needed_s(three.values()), SMALLEST_BUDGET) == (three, ["tinygrad"])
    assert planner.fit(costs, 0, SMALLEST_BUDGET) == (two, ["tinygrad", "paddle"]), "two are needed for a comparison"
    # A slow start counts once for each restart, a long training once: with the smallest budget, the start decides.
    slow_start, long_training = {"jax": Cost(9, 1)}, {"paddle": Cost(2, 800)}
    assert planner.fit({"torch": CHEAP, **slow_start, **long_training}, 0, SMALLEST_BUDGET)[1] == ["jax"]
    assert planner.fit({"torch": CHEAP, **slow_start, **long_training}, 0, 1)[1] == ["paddle"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The overrides of each sweep that ``planner.run`` would start, with frameworks that cost what a test expects."""
    sweeps: list[list[str]] = []
    costs = {"torch": CHEAP, "jax": CHEAP, "tinygrad": Cost(15, 400)}
    monkeypatch.setattr(planner, "create_environments", lambda frameworks, device: ([], []))
    monkeypatch.setattr(planner, "probe_all", lambda composed, ends: (costs, []))
    monkeypatch.setattr(planner, "_run_sweep", lambda overrides, experiment: sweeps.append(overrides))
    return sweeps


def minutes_for(*costs: Cost, budget: float = SMALLEST_BUDGET) -> float:
    return (planner.needed_s(costs, budget) + planner.SWEEP_S + planner.REPORT_S + 1) / 60


def test_a_framework_that_does_not_fit_is_left_out_with_a_time_that_suffices(started: list[list[str]]) -> None:
    remarks = planner.run(minutes_for(CHEAP, CHEAP), [], [], "gtdl")
    assert re.fullmatch(r"tinygrad: left out, because minutes=[\d.]+ is too short; try minutes=\d+", remarks[-1])
    assert "framework=torch,jax" in started[0]
    assert any(re.fullmatch(r"budget=0\.0\d+", override) for override in started[0])


def test_named_frameworks_are_not_left_out(started: list[list[str]]) -> None:
    named = ["torch", "jax", "tinygrad"]
    with pytest.raises(planner.AnswerImpossible, match=r"too short for torch, jax, tinygrad here; try minutes=\d+"):
        planner.run(minutes_for(CHEAP, CHEAP), named, [], "gtdl")
    assert started == []


def test_a_given_budget_is_that_of_the_runs_and_of_the_plan(started: list[list[str]]) -> None:
    with pytest.raises(planner.AnswerImpossible, match="too short"):
        planner.run(minutes_for(CHEAP, CHEAP), [], ["budget=1"], "gtdl")
    planner.run(1000, [], ["budget=0.001"], "gtdl")
    assert [each for each in started[0] if each.startswith("budget=")] == ["budget=0.001"]


@pytest.mark.parametrize(
    ("overrides", "added"),
    [
        ([], ["dataset=mnist_5k", "setting=caffe_mnist"]),
        (["dataset=cifar10"], ["setting=caffe_cifar10"]),
        (["setting=torch_mnist"], ["dataset=mnist_5k"]),
        (["dataset=cifar10", "model=torch_cifar10"], []),
    ],
)
def test_network_of_caffe_for_the_data_set_is_compared_by_default(overrides: list[str], added: list[str]) -> None:
    assert planner.with_defaults(overrides) == [*added, *overrides]


def test_plan_states_what_runs_how_long_and_how_much_disk_it_needs(cache_folders: None) -> None:
    frameworks, _ = planner.candidates("cpu", ["torch", "mxnet"])
    text = "\n".join(planner.describe(frameworks, config.compose(["setting=caffe_mnist", "hardware=cpu_1core"]), 10))
    assert "plan: PyTorch 2.13.0, MXNet 1.9.1; caffe_mnist on mnist_5k, cpu, 1 thread" in text
    assert "create the environments of torch, mxnet" in text
    assert "at most 3.0 min" in text
    assert "time: at most 10 min in all; disk: about 3,020 MB" in text


@pytest.mark.parametrize(
    ("budget", "rounded"), [(0.123456, 0.12), (0.0019999, 0.0019), (1.7, 1.0), (1.0, 1.0), (0.3, 0.3)]
)
def test_budgets_are_rounded_down(budget: float, rounded: float) -> None:
    assert round_down(budget) == rounded


def test_framework_that_must_be_compiled_first_is_left_out(cache_folders: None) -> None:
    chosen, reasons = planner.candidates("cpu", ["torch", "caffe"])
    assert [each.name for each in chosen] == ["torch"]
    assert [reason for reason in reasons if "gtdl env create caffe" in reason]


def test_answer_is_about_frameworks_in_development(cache_folders: None) -> None:
    chosen, reasons = planner.candidates("cpu")
    names = {each.name for each in chosen}
    assert names >= {"torch", "tensorflow", "jax"}
    assert not names & {"caffe", "mxnet", "theano", "reference", "keras_jax"}
    (reason,) = reasons
    assert reason.startswith("caffe, keras_jax, ")
    assert reason.endswith(": left out by default; name frameworks to compare them: `gtdl answer jax caffe`")


COMMAND = [sys.executable, "-m", "gtdl_mlflow.cli", "answer"]


def answer(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=900, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan", "inf"])
def test_minutes_must_be_a_number_above_zero(store: str, minutes: str) -> None:
    done = answer("--minutes", minutes)
    assert done.returncode == 2
    assert done.stderr.startswith("gtdl: Invalid value for '--minutes': ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pytroch"], "framework=pytroch: expected one of"),
        (["--device", "tpu"], "hardware=tpu: expected one of"),
        (["--hardware", "cpu", "epochs=3"], "epochs"),
    ],
)
def test_wrong_request_is_one_line(store: str, words: list[str], message: str) -> None:
    done = answer(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_lists_the_options() -> None:
    done = answer("--help")
    assert done.returncode == 0
    assert "NAMES are frameworks (default: those that are still developed and run on no other framework)" in " ".join(
        done.stdout.split()
    )


@pytest.mark.slow
def test_missing_data_set_is_one_line_before_environments_are_created(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_folders: None
) -> None:
    done = answer("torch", "mxnet", "dataset=cifar10", "setting=caffe_cifar10")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("gtdl: cifar10: cifar-10-binary.tar.gz not found in ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "environments").exists()


@pytest.mark.slow
@pytest.mark.frameworks
def test_one_framework_is_nothing_to_compare(store: str) -> None:
    done = answer("torch", "hardware=cpu_1core")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "gtdl: expected two frameworks that can run here, found torch; name more: `gtdl answer torch jax`"
    )


def test_suggested_limit_has_room_for_the_shares_that_grow_with_it() -> None:
    for fixed_s, runs_s in ((40, 5), (40, 60)):
        limit_s = planner.enough_s(fixed_s, runs_s)
        growing_s = (planner.RUNS_SHARE + planner.MODES_SHARE) * limit_s
        assert limit_s >= fixed_s + max(runs_s, growing_s) - 1e-9
        assert limit_s <= 2 * (fixed_s + runs_s)


@pytest.mark.slow
@pytest.mark.frameworks
@only_in(3)
def test_too_short_limit_is_answered_with_one_that_ends_in_a_ranking_and_a_report(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")  # as `mlflow run . -e answer` sets it: the experiment Default
    arguments = ("--output", "verdict.html", "--hardware", "cpu_1core", "torch", "mxnet")
    refused = answer("minutes=0.05", *arguments)
    assert refused.returncode == 1
    line = refused.stderr.splitlines()[-1]
    enough = re.fullmatch(r"gtdl: minutes=0\.05: too short for torch, mxnet here; try (minutes=\d+)", line)
    assert enough is not None, line
    assert not (tmp_path / "verdict.html").exists()
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []
    done = answer(enough[1], *arguments)
    assert done.returncode == 0, done.stderr
    plan, *_ = done.stderr.splitlines()
    assert plan.startswith("gtdl: plan: PyTorch 2.13.0, MXNet 1.9.1; caffe_mnist on mnist_5k, cpu, 1 thread")
    ranking = done.stdout[done.stdout.index("CPU time, 1 thread, ") :].splitlines()
    assert ranking[1].startswith("framework  ")
    assert {line.split()[0] for line in ranking[2:4]} == {"PyTorch", "MXNet"}
    assert "accuracy, %  peak memory, MB" in ranking[1]
    assert any(line.startswith("next: ") for line in ranking)
    assert ranking[-1] == "report: verdict.html"
    assert (tmp_path / "verdict.html").stat().st_size > 100_000
    parent, cells = sweep_runs("Default")
    assert {run.info.status for run in [parent, *cells]} == {"FINISHED"}
    assert [run.data.tags["gtdl.framework"] for run in cells] in (["torch", "mxnet"], ["mxnet", "torch"])
    assert {run.data.params["hardware"] for run in cells} == {"cpu_1core"}


@pytest.mark.slow
@pytest.mark.frameworks
def test_interrupted_answer_prints_the_ranking_of_what_is_known(store: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--minutes", "60", "budget=0.01", "hardware=cpu_1core", "torch", "mxnet"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: list(tmp_path.glob("multirun/*/*/paired/1-1/0/*")), "the second restart begins", process, 600)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "\nframework  " in output
    assert "in the shortest time so far" in output
    assert "not final yet" in output
    assert sweep_runs()[0].info.status == "KILLED"
