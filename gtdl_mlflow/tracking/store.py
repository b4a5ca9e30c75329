"""The tracking store: connect, search and close runs, and turn its failures into one line."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import Run
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from sqlalchemy.exc import SQLAlchemyError

from .. import tags
from ..files import cache_dir, lock_for
from ..redaction import VARIABLE, redact

logging.getLogger("alembic").setLevel(logging.WARNING)

PAGE_SIZE = 1000
"""Runs per search request."""

TRANSIENT = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "IO_ERROR",
             "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED"}  # fmt: skip
"""MLflow's error codes after which a retry may succeed. An unreachable server is among them."""


class TrackingFailed(Exception):
    """The tracker refuses a request or is unreachable; the message is one line."""


class TrackerUnreachable(TrackingFailed):
    """The tracker does not respond now; a later retry may succeed."""


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Translate the tracker's exceptions to one line without credentials.

    Raises:
        TrackerUnreachable: the tracker is a server, and a retry may succeed.
        TrackingFailed: any other failure. For a file or a database the address is wrong more often than not.
    """
    try:
        yield
    except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
        reason = redact(str(error).strip().splitlines()[0])
        transient = uri.startswith("http") and getattr(error, "error_code", "INTERNAL_ERROR") in TRANSIENT
        kind = TrackerUnreachable if transient else TrackingFailed
        raise kind(f"MLflow at {redact(uri)} failed ({reason})") from error


@contextmanager
def http_timeouts(retries: int, timeout_s: int) -> Iterator[None]:
    """Limit MLflow's HTTP retries, unless the user's environment does. MLflow's own limit is minutes for every call."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": retries, "MLFLOW_HTTP_REQUEST_TIMEOUT": timeout_s}
    ours = {name: str(value) for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def with_credentials(uri: str) -> str:
    """Return ``uri`` with the credentials that MLFLOW_TRACKING_URI holds for the same address, if it holds any."""
    configured = os.environ.get(VARIABLE, "")
    return configured if redact(configured) == uri else uri


def connect(uri: str) -> MlflowClient:
    """Return a client of the tracker at ``uri``. A new database gets its tables."""
    if urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
        _create_tables(uri)
    return MlflowClient(uri)


@functools.cache
def _create_tables(uri: str) -> None:
    """Open a database under a lock: MLflow lets one of two processes fail that both create its tables."""
    name = hashlib.sha256(redact(uri).encode()).hexdigest()[:16]
    with lock_for(cache_dir() / "trackers" / name):
        MlflowClient(uri).search_experiments(max_results=1)


@contextmanager
def open_store(uri: str, retries: int = 2, timeout_s: int = 10) -> Iterator[MlflowClient]:
    """Yield a client of the tracker at ``uri``, with limited retries; raise as ``translate_errors`` does."""
    with translate_errors(uri), http_timeouts(retries, timeout_s):
        yield connect(uri)


def search_runs(client: MlflowClient, experiment_id: str, condition: str) -> Iterator[Run]:
    """Yield all runs of an experiment that meet an MLflow search ``condition``, page by page."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], condition, max_results=PAGE_SIZE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def close_run(client: MlflowClient, run: Run, reason: str) -> None:
    """End a run as KILLED and record the reason."""
    client.set_tag(run.info.run_id, tags.FAILURE, reason)
    client.set_tag(run.info.run_id, MLFLOW_RUN_NOTE, f"KILLED: {reason}")
    client.set_terminated(run.info.run_id, "KILLED")
