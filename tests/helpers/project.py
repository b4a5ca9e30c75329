"""The command line, the store and the processes of this project."""

from __future__ import annotations

import functools
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run

from gtdl_mlflow import config, environments
from gtdl_mlflow.files import cache_dir

ROOT = Path(__file__).parents[2]

Command = Callable[..., "subprocess.CompletedProcess[str]"]
"""Type of the fixture ``gtdl``."""

STARTED: list[subprocess.Popen[str]] = []
"""Processes that a test has started with ``start``. Those that it leaves are ended."""


@functools.cache
def _empty_database() -> bytes:
    """Return an SQLite database with MLflow's tables, which take seconds to create."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow creates the artifact folder of the experiment Default here
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def create_store(path: Path, artifacts: str = "") -> str:
    """Create an empty MLflow store in the file ``path`` and return its address.

    ``artifacts`` is the location of the artifacts of the experiment Default: by default, a folder beside the file.
    """
    path.write_bytes(_empty_database())
    with closing(sqlite3.connect(path)) as database, database:
        location = artifacts or str(path.parent / "mlruns" / "0")
        database.execute("UPDATE experiments SET artifact_location = ?", [location])
    return f"sqlite:///{path}"


def runs(uri: str, name: str = "gtdl") -> list[Run]:
    """Return all runs of an experiment, the newest first."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def sweep_runs(experiment: str = "gtdl") -> tuple[Run, list[Run]]:
    """Return the parent run of the only sweep in the store, and its children."""
    found: Any = mlflow.search_runs(experiment_names=[experiment], output_format="list")
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(found) - 1
    return parent, children


def logged_model(client: MlflowClient, run: Run) -> LoggedModel:
    """Return the model that a run has logged."""
    (output,) = client.get_run(run.info.run_id).outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.status == LoggedModelStatus.READY
    assert model.source_run_id == run.info.run_id
    return model


def messages(stderr: str) -> list[str]:
    """Return the lines of standard error without warnings of other load: this machine may be busy."""
    return [line for line in stderr.splitlines() if "reliable" not in line]


def own_cache_directory(folder: Path) -> None:
    """Create a cache directory that has the environments and the measured peaks of the current one, and no records."""
    folder.mkdir()
    for name in ("environments", "builds", "peaks"):
        (folder / name).symlink_to(cache_dir() / name)


def need_framework(name: str) -> None:
    """Create the environment of a framework for the CPU, or skip the test with the reason."""
    try:
        environments.ensure(config.compose([f"framework={name}"]).framework, "cpu")
    except environments.EnvironmentFailed as error:
        if os.environ.get("GTDL_REQUIRE_FRAMEWORKS"):
            raise
        pytest.skip(str(error))


def need_package(name: str, found: object) -> None:
    """Skip the test unless the programs of a Debian package were ``found``. Fail instead where every test must run."""
    if not found:
        assert os.environ.get("GTDL_REQUIRE_FRAMEWORKS") != "1", f"apt-get install {name}"
        pytest.skip(f"apt-get install {name}")


def start(*arguments: str, stdout: int = subprocess.DEVNULL, **options: Any) -> subprocess.Popen[str]:
    """Start ``python -m gtdl_mlflow ARGUMENTS`` of this checkout; ``options`` are those of ``Popen``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gtdl_mlflow", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    STARTED.append(process)
    return process


def mlflow_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``mlflow run`` of this checkout."""
    return subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(ROOT), *arguments],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def wait_until(
    condition: Callable[[], object], what: str, process: subprocess.Popen[Any] | None = None, timeout_s: float = 120
) -> None:
    """Wait until ``condition`` holds. Fail if ``process`` ends before, or after ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, f"{what}: the process ended before, {process.communicate()}"
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)


def training_started() -> bool:
    """Return whether a worker of a run in the working directory has started to train."""
    return any('"progress"' in path.read_text() for path in Path.cwd().glob("outputs/*/*/events.jsonl"))


def wait_for_worker(driver: subprocess.Popen[Any]) -> int:
    """Wait until the worker of a driver in the working directory trains, and return its process ID."""
    wait_until(training_started, "the worker trains", driver)
    return child_of(driver.pid)


def child_of(driver: int) -> int:
    """Return the process ID of the only child of a driver: its worker."""
    children = Path(f"/proc/{driver}/task").glob("*/children")
    return int("".join(path.read_text() for path in children).split()[0])
