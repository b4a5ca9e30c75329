"""The MLflow project, its packages, and PyTorch from the command line to a served model."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from helpers.project import ROOT, Command, messages, mlflow_run, need_framework, start, wait_for_worker

from gtdl_mlflow import config


@pytest.fixture
def torch_environment() -> None:
    need_framework("torch")


def only_run(experiment: str = "gtdl") -> Any:
    (run,) = mlflow.search_runs(experiment_names=[experiment], output_format="list")
    return run


@pytest.mark.slow
def test_mlflow_run_records_into_its_own_run(store: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    client.create_experiment("gtdl", artifact_location=str(tmp_path / "artifacts"))
    params = ("-P", "framework=reference", "-P", "seed=5", "-P", "budget=.1", "-P", "training.epochs=2.0")
    done = mlflow_run("--env-manager", "local", "--experiment-name", "gtdl", *params)
    assert done.returncode == 0, done.stderr
    run = only_run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.project.entryPoint"] == "main"
    assert run.data.tags["gtdl.seed"] == "5"
    assert run.data.params["budget"] == ".1"  # as MLflow recorded it before this project could
    assert run.data.metrics["train/iterations"] == 16


@pytest.mark.slow
def test_mlflow_run_starts_a_sweep(store: str, tmp_path: Path) -> None:
    mlflow.MlflowClient().create_experiment("gtdl", artifact_location=str(tmp_path / "artifacts"))
    params = ("-P", "framework=reference", "-P", "seed=1,2", "-P", "budget=0.1")
    folder = ("-P", f"hydra.sweep.dir={tmp_path / 'multirun'}")
    done = mlflow_run("-e", "sweep", "--env-manager", "local", "--experiment-name", "gtdl", *params, *folder)
    assert done.returncode == 0, done.stderr
    runs: Any = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    parents = [run for run in runs if run.data.tags.get("mlflow.project.entryPoint") == "sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert (len(parents), len(children), len(runs)) == (1, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [("framework=torhc",), ("-e", "sweep", "framework=torch,torhc")])
def test_a_typo_under_mlflow_run_leaves_a_run_with_its_reason(store: str, parameters: tuple[str, ...]) -> None:
    *entry_point, typo = parameters
    done = mlflow_run(*entry_point, "--env-manager", "local", "--experiment-name", "gtdl", "-P", typo)
    assert done.returncode != 0
    run = only_run()
    assert run.info.status == "FAILED"
    assert "did you mean torch" in run.data.tags["gtdl.failure"]
    assert run.data.tags["gtdl.failure"] in run.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_mlflow_creates_the_drivers_environment_with_uv(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.MlflowClient().create_experiment("gtdl", artifact_location=str(tmp_path / "artifacts"))
    # MLflow's own folder of environments is shared by all projects of this user.
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "environments"))
    done = mlflow_run("--env-manager", "uv", "--experiment-name", "gtdl", "-P", "framework=reference")
    assert done.returncode == 0, done.stderr
    assert only_run().info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.frameworks
def test_pytorch_trains(gtdl: Command, store: str, torch_environment: None) -> None:
    done = gtdl("mode=default", "setting=caffe_mnist", "training.iterations=60")
    assert done.returncode == 0, done.stderr
    run = only_run()
    assert run.data.metrics["accuracy_percent"] > 60
    assert run.data.params["worker.device"] == "cpu"
    assert run.data.params["worker.threads"] == run.data.params["hardware.threads"]
    assert run.data.params["worker.parameters"] == "431080"
    assert run.data.tags["gtdl.framework_version"].split("+")[0] == config.compose([]).framework.version


@pytest.mark.slow
@pytest.mark.frameworks
def test_a_killed_worker_fails_its_run_and_nothing_else(gtdl: Command, store: str, torch_environment: None) -> None:
    driver = start("mode=default", "training.epochs=1000", "training.checkpoint_every_s=0")
    worker = wait_for_worker(driver)
    time.sleep(random.random())
    os.kill(worker, signal.SIGKILL)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert len(messages(errors)) == 1
    assert "was killed by SIGKILL; " in errors
    run = only_run()
    assert run.info.status == "FAILED"
    assert "SIGKILL" in run.data.tags["gtdl.failure"]
    assert run.data.metrics["setup/import_s"] > 0
    assert run.data.params["worker.device"] == "cpu"
    assert gtdl("framework=reference", "training.epochs=1").returncode == 0


def test_python_env_lists_the_dependencies_of_pyproject() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 is the first with tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = yaml.safe_load((ROOT / "python_env.yaml").read_text())
    assert listed["dependencies"] == project["dependencies"]
    assert "python" not in listed


def test_mlproject_has_the_defaults_of_the_configuration() -> None:
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    for name in ("main", "sweep"):
        assert entry_points[name]["parameters"]["framework"]["default"] == config.compose([]).framework.name
    assert entry_points["answer"]["parameters"]["minutes"]["default"] == 10


@pytest.mark.slow
def test_an_installed_package_contains_its_configuration(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, ROOT],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site"], check=True, timeout=60)
    code = "import gtdl_mlflow.config as c; print(c.CONF, c.compose(['setting=caffe_mnist']).model.name)"
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    assert output == [str(tmp_path / "site" / "gtdl_mlflow" / "conf"), "caffe_mnist"]
