"""``gtdl ui``: MLflow's own pages, with the table of runs set up for a comparison."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
import webbrowser

from .. import tags
from ..metrics import HEADLINE
from .runs import NothingFound, connect

VIEW = "gtdl"
"""Key of this view among the shared views that MLflow stores with an experiment."""

START_S = 120
"""Longest time for MLflow's server to start."""

COLUMNS = (
    *(f"tags.`{tag}`" for tag in (tags.FRAMEWORK, tags.DATASET, tags.DEVICE)),
    *(f"metrics.`{name}`" for name in HEADLINE),
)
"""Columns of the table, as MLflow spells them."""


class UiFailed(Exception):
    """MLflow's server did not start; the message is one line."""


def arrange(uri: str, experiment: str) -> str:
    """Store the view with the experiment, as MLflow's Share button does, and return the path that opens it.

    Raises:
        NothingFound: the experiment does not exist.
    """
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise NothingFound(f"experiment {experiment}: not found in this tracking store")
    keys = [{"mode": "tag", "groupByData": tags.FRAMEWORK}]
    view = {"selectedColumns": list(COLUMNS), "groupBy": {"aggregateFunction": "average", "groupByKeys": keys}}
    client.set_experiment_tag(found.experiment_id, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))
    return f"/#/experiments/{found.experiment_id}/runs?viewStateShareKey={VIEW}"


def serve(uri: str, path: str, port: int, browser: bool) -> int:
    """Run MLflow's server on the store until it is stopped. If the store is a server, open its own pages instead.

    Raises:
        UiFailed: the server did not start.
    """
    if uri.startswith("http"):
        _open(f"{uri.rstrip('/')}{path}", browser)
        return 0
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)])
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
        server.terminate()
        server.wait()


def responds(address: str) -> bool:
    """Return whether MLflow's server at ``address`` responds."""
    try:
        urllib.request.urlopen(f"{address}/health", timeout=1).close()
    except OSError:
        return False
    return True


def _open(address: str, browser: bool) -> None:
    print(
        f"{address}\nRuns are grouped by framework (change it in Group by, above the table). "
        "To compare runs, select some and press Compare.",
        flush=True,
    )
    if browser:
        webbrowser.open(address)
