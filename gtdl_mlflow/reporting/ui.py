"""``gtdl ui``: MLflow's own pages, with the table of runs set up for a comparison."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import webbrowser
from contextlib import suppress

from .. import signals, tags
from ..console import info, printable
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
    *(f"tags.`{tag}`" for tag in (tags.FRAMEWORK, tags.DATASET, tags.DEVICE)),
    *(f"metrics.`{name}`" for name in HEADLINE),
)
"""Columns of the table, as MLflow spells them."""


class UiFailed(Exception):
    """MLflow's server did not start; the message is one line."""


def arrange(uri: str, experiment: str) -> str:
    """Store the view with the experiment, as MLflow's Share button does, and return the path that opens it.

    A user who may only read gets the view that another user has stored, or MLflow's default one.

    Raises:
        NothingFound: the experiment does not exist.
    """
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise NothingFound(f"experiment {experiment}: not found in this tracking store")
    keys = [{"mode": "tag", "groupByData": tags.FRAMEWORK}]
    view = {"selectedColumns": list(COLUMNS), "groupBy": {"aggregateFunction": "average", "groupByKeys": keys}}
    name, value, path = f"mlflow.sharedViewState.{VIEW}", json.dumps(view), f"/#/experiments/{found.experiment_id}/runs"
    if found.tags.get(name) != value:
        try:
            with translate_errors(uri):
                client.set_experiment_tag(found.experiment_id, name, value)
        except TrackingFailed as error:
            info(f"the table is not arranged: {error}")
            if name not in found.tags:
                return path
    return f"{path}?viewStateShareKey={VIEW}"


def serve(uri: str, path: str, port: int, browser: bool) -> int:
    """Run MLflow's server on the store until it is stopped. If the store is a server, open its own pages instead.

    Raises:
        UiFailed: the server did not start.
    """
    if uri.startswith("http"):
        _open(f"{redact(uri).rstrip('/')}{path}", browser)
        return 0
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
        _open(address + path, browser)
        return server.wait()
    finally:
        _stop(server)


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
        print("Runs are grouped by framework (change it in Group by, above the table).")
    print("To compare runs, select some and press Compare.", flush=True)
    if browser:
        webbrowser.open(address)
