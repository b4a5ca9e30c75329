"""Launchers and sweepers of Hydra: a sweep has the same results through each of them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import mlflow
import pytest
from helpers.project import Command, mlflow_run, sweep_runs
from helpers.servers import login_server
from helpers.share import share
from mlflow import MlflowClient

pytestmark = pytest.mark.slow

SWEEP = ("-m", "framework=reference", "setting=reference_mnist", "training.epochs=1", "seed=1,2")

LAUNCHERS = ("joblib", "submitit_local", "ray")

PACKAGES = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "ray": "hydra_ray_launcher",
    "optuna": "hydra_optuna_sweeper",
}


def need(plugin: str) -> None:
    """Skip the test if a plugin of Hydra is not installed."""
    if importlib.util.find_spec(f"hydra_plugins.{PACKAGES[plugin]}") is None:
        assert os.environ.get("GTDL_REQUIRE_FRAMEWORKS") != "1", f"{plugin} is not installed"
        pytest.skip(f"pip install '.[{plugin}]'")


@pytest.mark.frameworks
@pytest.mark.parametrize("launcher", share(LAUNCHERS, ["joblib"]))
def test_results_are_the_same_through_a_launcher(gtdl: Command, store: str, launcher: str) -> None:
    need(launcher)
    results = []
    for chosen in ("basic", launcher):
        experiment = f"through_{chosen}"
        overrides = ["framework=reference,torch", "setting=reference_mnist", "training.iterations=20", "seed=1"]
        overrides += ["training.epochs=null", f"tracking.experiment={experiment}", f"hydra.sweep.dir=multirun/{chosen}"]
        done = gtdl("-m", f"hydra/launcher={chosen}", *overrides, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "sweep: 2 finished of 2 cells" in done.stdout
        assert (" of 2 done" in done.stderr) == (chosen == "basic"), "in the processes of a launcher, nobody can count"
        parent, children = sweep_runs(experiment)
        assert parent.info.status == "FINISHED"
        assert {run.info.status for run in children} == {"FINISHED"}
        compared = [f"gtdl.{name}" for name in ("framework", "seed", "weights_sha256", "sweep_position")]
        results.append(
            sorted((*map(run.data.tags.get, compared), run.data.metrics["accuracy_percent"]) for run in children)
        )
        assert all(run.data.tags["gtdl.framework"] in run.info.run_name for run in children)
    assert len(results[0]) == 2
    assert results[0] == results[1]


@pytest.mark.frameworks
def test_a_parallel_launcher_under_mlflow_run_creates_one_run_per_cell(store: str) -> None:
    need("joblib")
    params = ["framework=reference,torch", "setting=reference_mnist", "training.iterations=20", "training.epochs=null"]
    arguments = [word for param in (*params, "hydra/launcher=joblib") for word in ("-P", param)]
    done = mlflow_run("-e", "sweep", "--env-manager", "local", "--experiment-name", "gtdl", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    parent, children = sweep_runs()
    assert parent.data.tags["mlflow.project.entryPoint"] == "sweep"
    assert {run.data.tags["gtdl.framework"] for run in children} == {"reference", "torch"}
    assert {run.data.params["framework"] for run in children} == {"reference", "torch"}
    assert [run.data.metrics["accuracy_percent"] > 20 for run in children] == [True, True]
    assert "training_time_s" not in parent.data.metrics


@pytest.mark.server
@pytest.mark.parametrize("launcher", share(LAUNCHERS, []))
def test_jobs_get_a_password_that_was_typed_and_no_file_has_it(
    gtdl: Command, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, launcher: str
) -> None:
    need(launcher)
    password = "planted-password-0123456789"
    with login_server(tmp_path_factory.mktemp("tracker"), {"alice": password}) as server:
        address = server.uri.replace("http://", f"http://alice:{password}@")
        done = gtdl(*SWEEP, f"hydra/launcher={launcher}", f"tracking.uri={address}", timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "sweep: 2 finished of 2 cells" in done.stdout
        with (server.folder / "server.db").open("rb") as stored:
            assert password.encode() not in stored.read()
    assert password not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if password.encode() in path.read_bytes()] == []


def measured(store: str, run_id: str) -> tuple[int, int]:
    """Return the time of the first and of the last measurement of a run's worker, in ms. A run exists before it."""
    client = MlflowClient(store)
    first, last = (client.get_metric_history(run_id, name)[0] for name in ("setup/import_s", "worker/wall_s"))
    return first.timestamp, last.timestamp


def test_jobs_of_a_parallel_launcher_run_one_after_the_other_unless_side_by_side(
    gtdl: Command, store: str, all_cores: None
) -> None:
    need("joblib")
    for extra, together in (([], False), (["hardware.cores=[0],[1]", "hardware.side_by_side=true"], True)):
        experiment = f"together_{together}"
        seeds = "seed=1" if together else "seed=1,2"
        overrides = ("framework=reference", "training.epochs=400", seeds, f"tracking.experiment={experiment}", *extra)
        done = gtdl("-m", "hydra/launcher=joblib", *overrides, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        _, children = sweep_runs(experiment)
        spans = sorted(measured(store, run.info.run_id) for run in children)
        assert (spans[0][1] > spans[1][0]) == together


def test_optuna_optimizes_the_objective(gtdl: Command, store: str) -> None:
    need("optuna")
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1"]
    sweeper += ["hydra.sweeper.direction=maximize", "training.learning_rate=interval(0.001,0.5)"]
    command = ("-m", "framework=reference", "training.epochs=1", *sweeper)
    done = gtdl(*command, "sweep.objective=test/no_such")
    assert done.returncode == 2
    assert "sweep.objective=test/no_such: no such metric" in done.stderr
    done = gtdl(*command, "tracking.experiment=tuned")
    assert done.returncode == 0, done.stderr
    _, children = sweep_runs("tuned")
    best = max(run.data.metrics["accuracy_percent"] for run in children)
    assert len({run.data.params["training.learning_rate"] for run in children}) == 4
    assert "gtdl: 4 done\n" in done.stderr
    assert "sweep: 4 finished of 4 cells" in done.stdout
    (result,) = Path("multirun").rglob("optimization_results.yaml")
    assert f"best_value: {best}" in result.read_text()
    assert mlflow.get_experiment_by_name("tuned") is not None


def test_number_of_cells_is_that_of_optunas_trials(gtdl: Command, store: str) -> None:
    need("optuna")
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    done = gtdl("-m", "framework=reference", "training.epochs=1", "seed=choice(1,2,3,4,5)", *sweeper)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if " done" in line] == ["gtdl: 1 done", "gtdl: 2 done"]
    assert "missing" not in done.stdout


def test_a_launcher_that_is_not_installed_is_an_error(gtdl: Command, store: str) -> None:
    done = gtdl(*SWEEP, "hydra/launcher=joblib", "hydra.launcher._target_=hydra_plugins.hydra_nowhere.Launcher")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "hydra/launcher=joblib: hydra_plugins.hydra_nowhere is not installed" in done.stderr
    assert "pip install 'gtdl-mlflow[joblib]'" in done.stderr
