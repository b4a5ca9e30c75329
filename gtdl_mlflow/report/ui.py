"""``gtdl ui``: MLflow's own pages, the table of runs arranged for a comparison."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
import webbrowser

from .runs import NothingFound, connect

VIEW = "gtdl"
"""The name of our arrangement among those that MLflow keeps with an experiment."""

START_S = 120
"""How long MLflow's server may take to answer."""

COLUMNS = (
    "tags.`gtdl.framework`", "tags.`gtdl.dataset`", "tags.`gtdl.device`", "metrics.`training_time_s`",
    "metrics.`testing_time_s`", "metrics.`accuracy_percent`",
)  # fmt: skip
"""Of the table, in MLflow's own spelling."""


class UiFailed(Exception):
    """MLflow's server did not start; one line."""


def arrange(uri: str, experiment: str) -> str:
    """Keep the arrangement with the experiment, as MLflow's Share button does; the path that opens it.

    Raises:
        NothingFound: there is no such experiment.
    """
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise NothingFound(f"experiment {experiment}: there is none in this tracking store")
    view = {
        "selectedColumns": list(COLUMNS),
        "groupBy": {"aggregateFunction": "average",
                    "groupByKeys": [{"mode": "tag", "groupByData": "gtdl.framework"}]},
    }  # fmt: skip
    client.set_experiment_tag(found.experiment_id, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))
    return f"/#/experiments/{found.experiment_id}/runs?viewStateShareKey={VIEW}"


def serve(uri: str, path: str, port: int, browser: bool) -> int:
    """Run MLflow's server on the store until it is stopped; a server's own pages are opened where they are.

    Raises:
        UiFailed: it did not start.
    """
    if uri.startswith("http"):
        _open(f"{uri.rstrip('/')}{path}", browser)
        return 0
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)])
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while not _answers(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise UiFailed(f"MLflow's server did not start on port {port}; --port takes another one")
            time.sleep(0.2)
        _open(address + path, browser)
        return server.wait()
    finally:
        server.terminate()
        server.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/health", timeout=1).close()
    except OSError:
        return False
    return True


def _open(address: str, browser: bool) -> None:
    print(f"{address}\nruns are grouped by framework (Group by, above the table, undoes that); "
          "tick some and press Compare to see them side by side", flush=True)  # fmt: skip
    if browser:
        webbrowser.open(address)
