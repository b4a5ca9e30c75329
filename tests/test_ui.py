"""``gtdl ui``: MLflow's pages show the store that was asked for, whatever runs on the port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from helpers.project import ROOT, wait_until
from helpers.servers import mlflow_server

from gtdl_mlflow.reporting import ui


def new_store(folder: Path) -> str:
    """Return a store with the experiment ``gtdl``, whose ID is the same in every new store."""
    folder.mkdir()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.MlflowClient(uri).create_experiment("gtdl", artifact_location=str(folder / "artifacts"))
    return uri


@contextmanager
def gtdl_ui(uri: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable,
        "-m",
        "gtdl_mlflow.cli",
        "ui",
        "--no-browser",
        "--port",
        str(port),
        "--tracking-uri",
        uri,
    ]
    with log.open("w") as file:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        wait_until(lambda: "To compare runs" in log.read_text(), "the address is printed", timeout_s=300)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.mark.slow
@pytest.mark.server
def test_another_stores_server_is_not_opened(tmp_path: Path) -> None:
    stores = [new_store(tmp_path / name) for name in ("one", "other")]
    experiments = [ui.arrange(store, "gtdl").experiment for store in stores]
    log = tmp_path / "log"
    with mlflow_server(tmp_path, "--backend-store-uri", stores[0]) as server:
        port = int(server.uri.rpartition(":")[2])
        assert [ui.serves(server.uri, each) for each in experiments] == [True, False]
        with gtdl_ui(stores[0], port, log) as process:
            assert process.wait(60) == 0, "the running server is used"
        assert f"http://127.0.0.1:{port}/#/experiments/1/runs?" in log.read_text()
        with gtdl_ui(stores[1], port, log) as process:
            text = log.read_text()
            assert f"gtdl: port {port} is used by another program: choosing a free one" in text
            (chosen,) = re.findall(r"http://127\.0\.0\.1:(\d+)/", text)
            assert int(chosen) != port
            assert ui.serves(f"http://127.0.0.1:{chosen}", experiments[1])
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{chosen}", timeout=10)


def test_server_of_another_program_is_no_server_of_the_store(tmp_path: Path) -> None:
    experiment = ui.arrange(new_store(tmp_path / "store"), "gtdl").experiment
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not ui.is_free(port)
    assert ui.is_free(port)
    assert not ui.serves(f"http://127.0.0.1:{port}", experiment)


def test_mlflow_opens_the_pages_for_training(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    view = ui.arrange(store, "gtdl")
    assert "workflowType=machine_learning" in view.path
    tags = mlflow.MlflowClient(store).get_experiment(view.experiment.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert "gtdl.budget" in tags["mlflow.sharedViewState.gtdl"]
