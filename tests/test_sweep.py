"""A sweep is one parent run with one distinct run per cell below it, whoever starts it."""

from __future__ import annotations

import csv
import os
import re
import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
from helpers.project import Command, family, start
from mlflow.entities import Run
from omegaconf import OmegaConf

from gtdl_mlflow import environments
from gtdl_mlflow.config import CONF, SweepOrder, compose
from gtdl_mlflow.sweeps.hydra_callbacks import check_lines, count, ordered, requested_overrides
from gtdl_mlflow.tracking import store


def test_a_multirun_is_a_parent_with_its_children(gtdl: Command, store: str) -> None:
    done = gtdl("-m", "framework=reference", "seed=1,2", "training.epochs=1")
    assert done.returncode == 0, done.stderr
    parent, children = family()
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/finished"] == 2
    assert {run.data.tags["gtdl.seed"] for run in children} == {"1", "2"}
    assert len({run.data.tags["gtdl.weights_sha256"] for run in children}) == 2
    assert all(run.info.status == "FINISHED" for run in children)


def test_under_mlflow_run_the_projects_run_is_the_parent(
    gtdl: Command, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What `mlflow run` does before it starts the entry point.
    client = mlflow.MlflowClient()
    experiment_id = client.create_experiment("mine")
    project_run = client.create_run(experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", project_run)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    done = gtdl("--multirun", "framework=reference", "--seed", "1,2", "--training.epochs", "1")
    assert done.returncode == 0, done.stderr
    parent, children = family("mine")
    assert parent.info.run_id == project_run
    assert "training_time_s" not in parent.data.metrics
    assert [len(run.data.metrics) > 10 for run in children] == [True, True]


def test_a_combination_that_cannot_be_fails_alone_with_its_reason(gtdl: Command, store: str) -> None:
    # Neither the pool nor the image is wrong by itself.
    done = gtdl("-m", "framework=reference", "training.epochs=1", "seed=0,1,2", "+impossible=1")
    assert done.returncode == 2
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []
    done = gtdl("-m", "setting=reference_mnist,caffe_mnist", "framework=reference", "training.epochs=1")
    assert done.returncode == 1
    parent, children = family()
    assert parent.info.status == "FAILED"
    assert sorted(run.info.status for run in children) == ["FAILED", "FINISHED"]
    (failed,) = [run for run in children if run.info.status == "FAILED"]
    assert "cannot run layer conv1" in failed.data.tags["gtdl.failure"]


def test_every_value_of_a_sweep_is_checked_once() -> None:
    assert check_lines(["a=1,2,3", "b=x", "c=range(0,2)", "d=interval(0,1)"]) == [
        ["a=1", "b=x", "c=0"],
        ["a=2", "b=x", "c=0"],
        ["a=3", "b=x", "c=0"],
        ["a=1", "b=x", "c=1"],
    ]


def test_what_cannot_run_here_is_a_run_with_the_reason_and_no_failure(gtdl: Command, store: str) -> None:
    done = gtdl("-m", "framework=reference", "hardware=gpu,cpu", "training.epochs=1")
    assert done.returncode == 0, done.stderr
    parent, children = family()
    assert parent.info.status == "FINISHED"
    assert [parent.data.metrics[f"sweep/{word}"] for word in ("finished", "failed", "unavailable")] == [1, 0, 1]
    (unavailable,) = [run for run in children if "gtdl.unavailable" in run.data.tags]
    assert "framework=reference runs on cpu: it is NumPy" in unavailable.data.tags["gtdl.unavailable"]
    assert unavailable.info.status == "FAILED"
    assert "gtdl.failure" not in unavailable.data.tags


def test_an_experiments_own_sweep_is_checked_and_yields_to_what_is_typed() -> None:
    hydra: Any = OmegaConf.create(
        {"overrides": {"task": ["experiment=x", "seed=1"]}, "sweeper": {"params": {"seed": "1,2", "budget": "0.5,1"}}}
    )
    assert requested_overrides(hydra) == ["budget=0.5,1", "experiment=x", "seed=1"]


SWEEP = ("-m", "framework=reference", "training.epochs=1")


def test_frameworks_take_turns_and_the_order_is_logged(gtdl: Command, store: str) -> None:
    for order, seeds in (("interleaved", "0 0 1 1"), ("grouped", "0 1 0 1")):
        done = gtdl(*SWEEP, "framework=reference,torch", "seed=0,1", f"sweep.order={order}", "hardware=gpu",
                    f"tracking.experiment={order}")  # fmt: skip
        assert done.returncode == 0, done.stderr  # none can run on a GPU here, which is no failure
        parent, children = family(order)
        by_position = sorted(children, key=lambda run: int(run.data.tags["gtdl.sweep_position"]))
        assert [run.data.tags["gtdl.seed"] for run in by_position] == seeds.split()
        assert parent.data.tags["gtdl.sweep_order"] == order
        assert "sweep: 0 finished, 4 unavailable of 4 cells" in done.stdout


def test_the_summary_says_what_failed_and_why(gtdl: Command, store: str, tmp_path: Path) -> None:
    done = gtdl("-m", "setting=caffe_mnist,reference_mnist", "framework=reference", "training.epochs=1", "seed=3,4")
    assert done.returncode == 1
    parent, children = family()
    assert "sweep: 2 finished, 2 failed of 4 cells, in " in done.stdout
    lines = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines() if line.startswith("  failed")]
    assert len(lines) == 2
    assert all("seed" in label and "cannot run layer conv1" in reason for _, label, reason in lines)
    assert parent.data.metrics["sweep/time_s"] > 0
    kept = mlflow.MlflowClient().download_artifacts(parent.info.run_id, "summary.csv", str(tmp_path))
    rows = list(csv.DictReader(Path(kept).read_text().splitlines()))
    assert [row["state"] for row in rows].count("finished") == 2
    assert {row["run_id"] for row in rows} == {run.info.run_id for run in children}
    assert all(float(row["accuracy_percent"]) > 50 for row in rows if row["state"] == "finished")


def test_the_same_sweep_again_runs_only_what_is_not_finished(gtdl: Command, store: str) -> None:
    first = gtdl(*SWEEP, "seed=1,2", "limits.run_timeout_s=0.01")
    assert first.returncode == 1
    again = gtdl("-m", "seed=1,2", "training.epochs=1", "framework=reference")  # the same words in another order
    assert again.returncode == 0, again.stderr
    parent, children = family()
    assert parent.info.status == "FINISHED"
    assert sorted(run.info.status for run in children) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert parent.data.metrics["sweep/finished"] == 2
    assert parent.data.metrics["sweep/failed"] == 0
    third = gtdl(*SWEEP, "seed=1,2")
    assert third.returncode == 0
    assert third.stdout.count("of this sweep did that: FINISHED") == 2
    assert len(family()[1]) == 4


def test_what_is_run_again_can_be_chosen(gtdl: Command, store: str) -> None:
    assert gtdl(*SWEEP, "seed=1,2", "limits.run_timeout_s=0.01").returncode == 1
    left = gtdl(*SWEEP, "seed=1,2", "sweep.rerun=none")
    assert left.returncode == 1  # they are still failed
    assert len(family()[1]) == 2
    assert gtdl(*SWEEP, "seed=1,2", "sweep.rerun=all").returncode == 0
    runs: Any = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert len([run for run in runs if "mlflow.parentRunId" not in run.data.tags]) == 2
    assert len(runs) == 6


def test_other_code_or_other_data_is_another_cell(gtdl: Command, store: str) -> None:
    assert gtdl(*SWEEP, "seed=1,2").returncode == 0
    client = mlflow.MlflowClient()
    _, (one, other) = family()
    client.set_tag(one.info.run_id, "gtdl.data_digest", "another")
    client.set_tag(other.info.run_id, "gtdl.code", "another")
    assert gtdl(*SWEEP, "seed=1,2").returncode == 0
    assert len(family()[1]) == 4


def test_another_sweep_is_another_parent(gtdl: Command, store: str) -> None:
    assert gtdl(*SWEEP, "seed=1,2").returncode == 0
    done = gtdl(*SWEEP, "seed=1,2,3")
    assert done.returncode == 0
    assert "did that" not in done.stdout


def test_what_a_dead_driver_left_is_closed_and_made_good(gtdl: Command, store: str) -> None:
    sweep = ("-m", "framework=reference", "training.epochs=200", "seed=1,2,3")
    process = start(*sweep)
    cells: dict[str, list[Run]] = {}
    while not {"FINISHED", "RUNNING"} <= cells.keys():
        assert process.poll() is None
        cells = {}
        for run in all_runs():
            if "gtdl.sweep_position" in run.data.tags:
                cells.setdefault(run.info.status, []).append(run)
    process.kill()
    process.communicate()
    done = gtdl(*sweep)
    assert done.returncode == 0, done.stderr
    assert "as KILLED whose process was gone" in done.stderr
    parent, children = family()
    assert parent.info.status == "FINISHED"
    finished = [run.data.tags["gtdl.seed"] for run in children if run.info.status == "FINISHED"]
    assert sorted(finished) == ["1", "2", "3"]
    assert cells["FINISHED"][0].info.run_id in {run.info.run_id for run in children if run.info.status == "FINISHED"}
    killed = [run for run in children if run.info.status != "FINISHED"]
    assert killed
    assert all(run.info.status == "KILLED" and "without a word" in run.data.tags["gtdl.failure"] for run in killed)


def test_commands_that_find_no_database_make_one_together(store: str) -> None:
    processes = [start("-m", "framework=reference", "training.epochs=1", f"seed={seed}") for seed in range(4)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], said
    assert {run.data.tags["gtdl.seed"] for run in all_runs() if "gtdl.seed" in run.data.tags} == {"0", "1", "2", "3"}


def test_a_sweep_that_is_under_way_is_not_started_twice(gtdl: Command, store: str) -> None:
    sweep = ("-m", "framework=reference", "training.epochs=3000", "seed=1,2")
    process = start(*sweep)
    try:
        while not any("gtdl.sweep_position" in run.data.tags for run in all_runs()):
            assert process.poll() is None
        done = gtdl(*sweep)
        assert done.returncode == 2
        assert f"this very sweep is being run by process {process.pid} " in done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    parent, _ = family()
    assert parent.info.status == "KILLED"


def test_under_mlflow_run_the_cells_of_the_run_before_are_taken_over(
    gtdl: Command, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient()
    experiment_id = client.create_experiment("gtdl")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    for seeds in ("1,2", "1,2"):
        monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run(experiment_id).info.run_id)
        done = gtdl(*SWEEP, f"seed={seeds}")
        assert done.returncode == 0, done.stderr
    runs = all_runs()
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(runs) == 4
    assert [run.data.metrics["sweep/finished"] for run in parents] == [2, 2]
    newest = max(parents, key=lambda run: run.info.start_time).info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in runs if run not in parents} == {newest}


def all_runs() -> list[Run]:
    client = store.connect(mlflow.get_tracking_uri())
    experiment = client.get_experiment_by_name("gtdl")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def test_a_run_answers_a_sweeper_with_its_objective(gtdl: Command, store: str) -> None:
    done = gtdl(*SWEEP, "seed=1", "sweep.objective=parity/loss_difference")
    assert done.returncode == 0
    assert "sweep.objective=parity/loss_difference: expected one of accuracy_percent, " in done.stderr


def test_the_order_of_a_sweeps_words() -> None:
    words = ["framework=a,b", "dataset=x,y", "seed=0,1", "budget=0.1"]
    assert ordered(words, SweepOrder.interleaved) == ["seed=0,1", "dataset=x,y", "budget=0.1", "framework=a,b"]
    assert ordered(words, SweepOrder.grouped) == ["framework=a,b", "dataset=x,y", "budget=0.1", "seed=0,1"]
    assert count(words) == 8
    assert count([*words, "training.learning_rate=interval(0.1,1)"]) is None


def test_all_frameworks_finish_in_one_sweep_and_learn_the_same(gtdl: Command, store: str) -> None:
    usable = available()
    done = gtdl("-m", f"framework={','.join(usable)}", "setting=caffe_mnist", "training.iterations=60", timeout=1200)
    assert done.returncode == 0, done.stderr
    parent, children = family()
    assert parent.data.metrics["sweep/finished"] == len(usable)
    assert {run.data.tags["gtdl.framework"] for run in children} == set(usable)
    for run in children:
        assert run.data.tags["gtdl.framework_version"].partition("+")[0] == run.data.params["framework.version"]
        assert run.data.metrics.keys() >= {"training_time_s", "testing_time_s", "accuracy_percent", "setup/compile_s"}
    # The same start, the same batches, the same steps: what differs after 60 of them is rounding.
    accuracies = [run.data.metrics["accuracy_percent"] for run in children]
    assert min(accuracies) > 80
    assert max(accuracies) - min(accuracies) <= 1
    losses = [run.data.metrics["train/loss"] for run in children]
    assert max(losses) / min(losses) < 1.02


def available() -> list[str]:
    """The frameworks with an environment of their own that this machine can make."""
    found = []
    for path in sorted((CONF / "framework").glob("*.yaml")):
        framework = compose([f"framework={path.stem}", "setting=reference_mnist"]).framework
        if not framework.devices["cpu"].recipes:
            continue
        try:
            environments.ensure(framework, "cpu")
        except environments.EnvironmentFailed:
            if os.environ.get("GTDL_REQUIRE_FRAMEWORKS") == "1":
                raise
            continue  # test_frameworks.py says why
        found.append(path.stem)
    return found
