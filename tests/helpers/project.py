"""The command line, the store and the processes of this project."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run

from gtdl_mlflow import config, environments

ROOT = Path(__file__).parents[2]


Command = Callable[..., "subprocess.CompletedProcess[str]"]


def runs(uri: str) -> list[Run]:
    """All of the experiment gtdl, the newest first."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("gtdl")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def need_torch() -> None:
    """Have PyTorch at hand, or skip the test and say why not."""
    try:
        environments.ensure(config.compose([]).framework, "cpu")
    except environments.EnvironmentFailed as error:
        if os.environ.get("GTDL_REQUIRE_FRAMEWORKS"):
            raise
        pytest.skip(str(error))


def worker_of(driver: int) -> int:
    """The worker of a driver, once it trains."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for events in Path.cwd().glob("outputs/*/*/events.jsonl"):
            if '"progress"' in events.read_text():
                return child_of(driver)
        time.sleep(0.1)
    raise AssertionError("the worker did not start to train")


def child_of(driver: int) -> int:
    """The only process that a driver has started: a worker."""
    children = Path(f"/proc/{driver}/task").glob("*/children")
    return int("".join(path.read_text() for path in children).split()[0])


def mlflow_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(ROOT), *arguments],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def family(experiment: str = "gtdl") -> tuple[Run, list[Run]]:
    """The parent of the only sweep in the store, and its children."""
    runs: Any = mlflow.search_runs(experiment_names=[experiment], output_format="list")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1
    return parent, children


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gtdl_mlflow", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
