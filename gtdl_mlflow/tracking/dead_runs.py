"""Dead runs: RUNNING in MLflow, or saved for a later delivery, though their process no longer exists."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from .. import tags
from ..console import info
from . import outbox
from .processes import PROCESS_GONE, is_alive
from .store import PAGE_SIZE, TrackingFailed, close_run, open_store, translate_errors, within

DEADLINE_S = 60.0
"""Longest search for dead runs at the start of a run."""


@cache
def close_once(uri: str) -> None:
    """Deliver what dead processes have saved for the tracker at ``uri``, and close their runs there.

    Later calls in this process do nothing, and no failure is raised: a run must not depend on others. A saved record
    is delivered first, because it may hold the results of a run that is RUNNING in MLflow.
    """
    try:
        delivered = [each for each in outbox.replay(uri) if not each.failure]
        if delivered:
            info(f"delivered {_count(len(delivered))} saved for this tracking store")
        within(DEADLINE_S, uri, lambda: close(uri))
    except (TrackingFailed, OSError) as error:
        info(f"dead runs could not be closed: {error}")


def close(uri: str) -> None:
    """Close dead runs of all experiments as KILLED: runs that are RUNNING and whose process certainly no longer exists.

    A run with a saved record is left to its delivery. Runs that this user must not change are left as they are.

    Raises:
        TrackingFailed: the tracker cannot be searched.
    """
    closed = 0
    with open_store(uri) as client:
        saved = {record.key for record in outbox.pending()}
        for run in _running(client):
            if is_alive(run.data.tags[tags.PROCESS]) is False and run.data.tags.get(tags.RECORD) not in saved:
                with suppress(TrackingFailed), translate_errors(uri):
                    # Another process may have delivered it since the search.
                    if client.get_run(run.info.run_id).info.status == "RUNNING":
                        close_run(client, run, PROCESS_GONE)
                        closed += 1
    if closed:
        info(f"closed {_count(closed, 'dead ')} as KILLED: the process no longer exists")


def _running(client: MlflowClient) -> list[Run]:
    """Return the runs of this project that are RUNNING, in all experiments."""
    experiments = [str(each.experiment_id) for each in client.search_experiments()]
    condition = f"attributes.status = 'RUNNING' and tags.`{tags.PROCESS}` LIKE '%'"
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(experiments, condition, max_results=PAGE_SIZE, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _count(number: int, kind: str = "") -> str:
    return f"{number} {kind}{'run' if number == 1 else 'runs'}"
