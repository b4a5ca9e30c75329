"""A sweep is one parent run with one distinct run per cell below it, whoever starts it."""

from __future__ import annotations

import os
from typing import Any

import mlflow
import pytest
from conftest import Command
from mlflow.entities import Run
from omegaconf import OmegaConf

from gtdl_mlflow import environments
from gtdl_mlflow.callbacks import asked, one_by_one
from gtdl_mlflow.config import CONF, compose


def family(experiment: str = "gtdl") -> tuple[Run, list[Run]]:
    """The parent of the only sweep in the store, and its children."""
    runs: Any = mlflow.search_runs(experiment_names=[experiment], output_format="list")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1
    return parent, children


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
    assert one_by_one(["a=1,2,3", "b=x", "c=range(0,2)", "d=interval(0,1)"]) == [
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
    assert asked(hydra) == ["budget=0.5,1", "experiment=x", "seed=1"]


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
