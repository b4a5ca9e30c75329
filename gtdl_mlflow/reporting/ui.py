"""``gtdl ui``: MLflow's own pages, with the table of runs set up for a comparison."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from contextlib import suppress
from dataclasses import dataclass

from mlflow.entities import Experiment

from .. import signals, tags
from ..console import Failure, info, printable
from ..metrics import HEADLINE
from ..redaction import redact, reveal
from ..tracking.store import TrackingFailed, translate_errors
from .runs import NothingFound, connect

VIEW = "gtdl"
"""Key of this view among the shared views that MLflow stores with an experiment."""

START_S = 120
"""Longest time for MLflow's server to start."""

STOP_S = 10
"""Longest time for MLflow's server to stop."""

COLUMNS = (
    *(f"tags.`{tag}`" for tag in (tags.FRAMEWORK, tags.DATASET, tags.SETTING, tags.BUDGET, tags.SEED, tags.DEVICE)),
    "params.`hardware.threads`",
    *(f"metrics.`{name}`" for name in HEADLINE),
    f"tags.`{tags.INTERFERENCE}`",
)
"""Columns of the table, as MLflow spells them."""

KIND, TRAINING_KIND = "mlflow.experimentKind", "custom_model_development"
"""Tag of an experiment, and its value, with which MLflow opens the pages for training instead of those for agents."""


@dataclass(frozen=True)
class View:
    """MLflow's table of the runs of one experiment."""

    path: str
    """Path of the page on MLflow's server."""
    experiment: Experiment


class UiFailed(Failure):
    """MLflow's server did not start; the message is one line."""


def arrange(uri: str, experiment: str) -> View:
    """Store the view with the experiment, as MLflow's Share button does, and return it.

    A user who may only read gets the view that another user has stored, or MLflow's default one.

    Raises:
        NothingFound: the experiment does not exist.
    """
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise NothingFound(f"experiment {experiment}: not found in this tracking store")
    # Means over other sets of runs would mix what is not comparable. One tag, because the names of several are cut off.
    keys = [{"mode": "tag", "groupByData": tags.SERIES}]
    view = {"selectedColumns": list(COLUMNS), "groupBy": {"aggregateFunction": "average", "groupByKeys": keys}}
    name, value = f"mlflow.sharedViewState.{VIEW}", json.dumps(view)
    path = f"/#/experiments/{found.experiment_id}/runs?workflowType=machine_learning"
    wanted = {name: value, **({} if KIND in found.tags else {KIND: TRAINING_KIND})}
    try:
        with translate_errors(uri):
            for tag, text in wanted.items():
                if found.tags.get(tag) != text:
                    client.set_experiment_tag(found.experiment_id, tag, text)
    except TrackingFailed as error:
        info(f"the table is not arranged: {error}")
        if name not in found.tags:
            return View(path, found)
    return View(f"{path}&viewStateShareKey={VIEW}", found)


def serve(uri: str, view: View, port: int, browser: bool) -> int:
    """Open the view, run MLflow's server on the store until it is stopped, and return the exit status.

    If the store is a server, or a server of this store runs on ``port`` already, its pages are opened instead. If
    another program uses ``port``, the server gets another one.

    Raises:
        UiFailed: the server did not start.
    """
    if uri.startswith("http"):
        _open(f"{redact(uri).rstrip('/')}{view.path}", browser)
        return 0
    if not is_free(port):
        if serves(f"http://127.0.0.1:{port}", view.experiment):
            info(f"MLflow's server on port {port} shows this store already")
            _open(f"http://127.0.0.1:{port}{view.path}", browser)
            return 0
        info(f"port {port} is used by another program: choosing a free one")
        port = free_port()
    signals.interrupt_on_first()  # SIGTERM must stop the server too
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"],
        # Any user of the machine can read a command line. The server's job queue would start eight more processes.
        env={**os.environ, "MLFLOW_BACKEND_STORE_URI": reveal(uri), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,  # one process group to stop
    )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while not responds(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise UiFailed(f"MLflow's server did not start on port {port}; choose another one with --port")
            time.sleep(0.2)
        _open(address + view.path, browser)
        return server.wait()
    finally:
        _stop(server)


def is_free(port: int) -> bool:
    """Return whether no program listens on ``port`` of this machine."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    """Return a port on which no program listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def serves(address: str, experiment: Experiment) -> bool:
    """Return whether MLflow's server at ``address`` shows the store that has ``experiment``."""
    url = f"{address}/api/2.0/mlflow/experiments/get?experiment_id={experiment.experiment_id}"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            found = json.load(response)["experiment"]
            same = found["name"], found["creation_time"], found["artifact_location"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same == (experiment.name, experiment.creation_time, experiment.artifact_location)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and its children."""
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def responds(address: str) -> bool:
    """Return whether MLflow's server at ``address`` responds."""
    try:
        urllib.request.urlopen(f"{address}/health", timeout=1).close()
    except OSError:
        return False
    return True


def _open(address: str, browser: bool) -> None:
    print(printable(address))
    if address.endswith(f"={VIEW}"):
        print("Runs are grouped by framework, setting, data set and budget (change it in Group by, above the table).")
    print("To compare runs, select some and press Compare.", flush=True)
    if browser:
        webbrowser.open(address)
