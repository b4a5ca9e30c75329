"""What all tests share: a clean environment, a store of their own, the real command line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from helpers.project import ROOT, Command

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start and send one.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test depends on, or writes into, what the person who runs it tracks elsewhere."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "GTDL_")) and name not in ("GTDL_HOME", "GTDL_DATA", "GTDL_REQUIRE_FRAMEWORKS"):
            monkeypatch.delenv(name)
    # Nor does it wait for, or stop, what is measured on this machine meanwhile.
    monkeypatch.setenv("GTDL_LOCKS", str(tmp_path_factory.getbasetemp() / "locks"))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GTDL_HOME and a GTDL_DATA of the test's own."""
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which it takes seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(path.parent)  # where the files of the experiment Default will be
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> str:
    """An empty MLflow store, which MLFLOW_TRACKING_URI points to; also the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def gtdl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``python -m gtdl_mlflow ARGUMENTS`` in an empty folder, as a user of this checkout runs it."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gtdl_mlflow", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return command
