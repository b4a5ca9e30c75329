"""The tracking store: connect, search and close runs, and turn its failures into one line."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import mlflow
import requests
import sqlalchemy
from mlflow.entities import Run
from mlflow.exceptions import RestException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.db.utils import create_sqlalchemy_engine
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from .. import tags
from ..console import Failure
from ..files import cache_dir, lock_for
from ..redaction import redact, reveal
from .deadline import Deadline, DeadlinePassed

if sys.platform != "win32":  # there, no run starts
    import fcntl

T = TypeVar("T")

logging.getLogger("alembic").setLevel(logging.WARNING)
# It logs each failure with its traceback before it raises the exception, which is reported in one line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it reports each retry

PAGE_SIZE = 500
"""Runs per search request: MLflow needs about 0.3 MB for each while it reads them."""

CREATE_ATTEMPTS = 5
"""Attempts to create a server database's tables: another process may be creating them."""

TRANSIENT = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "IO_ERROR",
             "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED"}  # fmt: skip
"""MLflow's error codes after which a retry may succeed. An unreachable server is among them."""

REFUSED = {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "MALFORMED_REQUEST", "RESOURCE_DOES_NOT_EXIST",
           "RESOURCE_CONFLICT", "RESOURCE_ALREADY_EXISTS"}  # fmt: skip
"""MLflow's error codes of a request that no retry makes acceptable."""

REFUSED_STATUS, DENIED_STATUS = {400, 411, 413, 414, 415, 422}, {401, 403, 404, 405, 407}
"""HTTP statuses with which an artifact store refuses one file, and every file until a setting changes."""


LONGEST_REASON = 300
"""Characters of a reason."""


class TrackingFailed(Failure):
    """The tracker refuses a request or is unreachable; the message is one line."""


class TrackerUnreachable(TrackingFailed):
    """The tracker does not respond now; a later retry may succeed."""


class RequestRefused(TrackingFailed):
    """The tracker works and refuses the contents of this request; a retry fails in the same way."""


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Translate the exceptions of MLflow, its drivers and its artifact stores to one line without credentials.

    Other exceptions pass unchanged.

    Raises:
        TrackerUnreachable: the tracker is a server, and a retry may succeed.
        RequestRefused: a retry fails in the same way.
        TrackingFailed: any other failure. For a file or a database the address is wrong more often than not.
    """
    try:
        yield
    except TrackingFailed:
        raise
    except Exception as error:
        if isinstance(error, (SQLAlchemyError, OSError)) or _passed_through_mlflow(error):
            raise failure(error, uri) from error
        raise


def failure(error: Exception, uri: str) -> TrackingFailed:
    """Return the exception that describes ``error``, raised by the tracker at ``uri``, as for ``translate_errors``."""
    if isinstance(error, TrackingFailed):
        return error
    message = f"MLflow at {redact(uri)} failed ({reason(error)})"
    if _is_refusal(error, is_server=uri.startswith("http")):
        return RequestRefused(message)
    if uri.startswith("http") and not _is_permanent(error):
        return TrackerUnreachable(message)
    return TrackingFailed(message)


def artifact_failure(error: Exception, uri: str) -> TrackingFailed:
    """Return the exception that describes ``error``, raised by the artifact store at ``uri``.

    A missing package, missing credentials and a missing permission are TrackingFailed: the store can never work as it
    is configured. Everything else may pass, such as a full disk.
    """
    if isinstance(error, TrackingFailed):
        return error
    message = f"MLflow's artifact store at {redact(uri)} failed ({reason(error)})"
    if _http_status(error) in REFUSED_STATUS:
        return RequestRefused(message)
    return (TrackingFailed if _is_permanent(error) else TrackerUnreachable)(message)


def reason(error: Exception) -> str:
    """Return the line of an exception that explains it: the database driver's, if there is one."""
    for each in _chain(error):
        if isinstance(each, ImportError) and each.name:
            return f"the Python package {each.name} is not installed"
        if isinstance(each, DBAPIError) and each.orig is not None:
            error = each.orig if isinstance(each.orig, Exception) else error
            break
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return redact(f"{error.filename}: {error.strerror}")
    if any(isinstance(each, requests.RequestException) for each in _chain(error)) and (text := _connection(str(error))):
        return text
    lines = [line.strip() for line in str(error).splitlines()]
    shown = [line for line in lines if line and not line.startswith(("(Background on", "[SQL:", "[parameters:"))]
    if isinstance(error, LookupError) or not shown:  # KeyError: 'run'
        return redact(f"unexpected response, {type(error).__name__}: {' '.join(shown)}")
    line = redact(shown[0])
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}..."


def _connection(text: str) -> str:
    """Return why there is no connection, from the message of a failed request; empty if there may be one."""
    if found := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):
        return f"no connection: {found[1].lower()}"
    return "no response in time" if "timed out" in text.lower() else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that caused it."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _passed_through_mlflow(error: Exception) -> bool:
    """Return whether an exception was raised by MLflow or by what it calls, such as the driver of a database."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "mlflow":
            return True
        frame = frame.tb_next
    return False


def _is_refusal(error: Exception, is_server: bool) -> bool:
    if isinstance(error, mlflow.MlflowException) and error.error_code in REFUSED:
        # An error page of a proxy has a status too. Only a response of MLflow proves that the request is invalid.
        return isinstance(error, RestException) or not is_server
    # What a database's driver cannot encode: PostgreSQL's text has no NUL bytes.
    malformed = (json.JSONDecodeError, requests.RequestException)
    kinds = (DataError, IntegrityError, UnicodeError) if is_server else (DataError, IntegrityError, ValueError)
    return any(isinstance(each, kinds) and not isinstance(each, malformed) for each in _chain(error))


def _is_permanent(error: Exception) -> bool:
    """Return whether the same request fails until somebody changes a setting."""
    for each in _chain(error):
        if isinstance(each, (ImportError, PermissionError)) or "Credentials" in type(each).__name__:
            return True
        if isinstance(each, mlflow.MlflowException) and each.error_code not in TRANSIENT:
            return True
    return _http_status(error) in DENIED_STATUS | REFUSED_STATUS


def _http_status(error: Exception) -> int | None:
    """Return the HTTP status in an exception of requests or botocore; None if it has none."""
    client_error = getattr(sys.modules.get("botocore.exceptions"), "ClientError", ())
    for each in _chain(error):
        if isinstance(each, requests.RequestException) and each.response is not None:
            return int(each.response.status_code)
        if isinstance(each, client_error):
            return int(getattr(each, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return None


def within(seconds: float, uri: str, work: Callable[[], T]) -> T:
    """Return the result of ``work``, which sends requests to the tracker at ``uri``.

    Raises:
        TrackerUnreachable: it took longer than ``seconds``; otherwise as for ``translate_errors``.
    """
    results: list[T] = []
    try:
        with translate_errors(uri):
            Deadline(seconds).run(lambda: results.append(work()))
    except DeadlinePassed as error:
        raise TrackerUnreachable(f"MLflow at {redact(uri)} failed ({error})") from error
    return results[0]


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Translate the exceptions of commands that read a store, and limit their waits for a server to about a minute."""
    with translate_errors(uri), http_timeouts(retries=2, timeout_s=30):
        yield


@contextmanager
def http_timeouts(retries: int, timeout_s: int) -> Iterator[None]:
    """Limit MLflow's HTTP retries, unless the user's environment does. MLflow's own limit is minutes for every call.

    A server's Retry-After, which may be hours, is ignored: MLflow's own waits between retries are seconds.
    """
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    }
    with _environment({name: value for name, value in wanted.items() if name not in os.environ}):
        yield


@contextmanager
def single_attempt() -> Iterator[None]:
    """Let MLflow send each request once, for requests that must not be repeated blindly."""
    with _environment({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}):
        yield


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep MLflow from drawing progress bars of uploads and downloads."""
    with _environment({"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}):
        yield


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            elif name in os.environ:  # not removed meanwhile by the thread that waited for this one
                os.environ[name] = value


def connect(uri: str) -> MlflowClient:
    """Return a client of the tracker at ``uri``, with the credentials given for it. A new database gets its tables."""
    uri = reveal(uri)
    if urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
        _open_database(uri)
    return MlflowClient(uri)


@functools.cache
def _open_database(uri: str) -> None:
    """Create a database's tables under a lock: if two processes create them at once, MLflow fails in one of them."""
    with ExitStack() as stack:
        file = _database_file(uri)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)  # as MLflow does
        stack.enter_context(_database_lock(uri, file))
        # MLflow repeats a failed connection for 100 s, and reports it in other words.
        engine = create_sqlalchemy_engine(uri)
        stack.callback(engine.dispose)
        sqlalchemy.inspect(engine)
        for attempt in range(CREATE_ATTEMPTS):
            try:
                MlflowClient(uri).search_experiments(max_results=1)
                return
            except (mlflow.MlflowException, SQLAlchemyError):
                if file is not None or attempt == CREATE_ATTEMPTS - 1:
                    raise
                time.sleep(1 + attempt)


def _database_file(uri: str) -> Path | None:
    """Return the file of an SQLite database; None for a database of a server or in memory."""
    url = sqlalchemy.make_url(uri)
    name = url.database or ""
    if not url.drivername.startswith("sqlite") or name in ("", ":memory:") or name.startswith("file:"):
        return None
    return Path(name)


@contextmanager
def _database_lock(uri: str, file: Path | None) -> Iterator[None]:
    """Hold the lock of a database: its folder, which all processes share; otherwise a file of the cache directory."""
    with ExitStack() as stack:
        try:
            if file is None or sys.platform == "win32":
                raise OSError
            descriptor = os.open(file.parent, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a server's database, or a file system that cannot lock folders
            with suppress(OSError):
                name = hashlib.sha256(redact(uri).encode()).hexdigest()[:16]
                stack.enter_context(lock_for(cache_dir() / "trackers" / name))
        yield


@contextmanager
def open_store(uri: str, retries: int = 2, timeout_s: int = 10) -> Iterator[MlflowClient]:
    """Yield a client of the tracker at ``uri``, with limited retries; raise as ``translate_errors`` does."""
    with translate_errors(uri), http_timeouts(retries, timeout_s):
        yield connect(uri)


def search_runs(client: MlflowClient, experiment_id: str, condition: str) -> Iterator[Run]:
    """Yield all runs of an experiment that meet an MLflow search ``condition``, the newest first."""
    for page in search_pages(client, [experiment_id], condition):
        yield from page


def search_pages(
    client: MlflowClient, experiment_ids: list[str], condition: str, order: str = "DESC"
) -> Iterator[list[Run]]:
    """Yield the runs of some experiments, page by page, by their start.

    Args:
        client: client of the tracker.
        experiment_ids: IDs of the experiments.
        condition: an MLflow search.
        order: ``DESC`` for the newest first, ``ASC`` for exactly the reverse.
    """
    order_by = [f"attributes.{name} {order}" for name in ("start_time", "run_id")]
    token: str | None = None
    while True:
        page = client.search_runs(experiment_ids, condition, max_results=PAGE_SIZE, order_by=order_by, page_token=token)
        yield list(page)
        token = page.token
        if not token:
            return


def close_run(client: MlflowClient, run: Run, reason: str) -> None:
    """End a run as KILLED and record the reason."""
    client.set_tag(run.info.run_id, tags.FAILURE, reason)
    client.set_tag(run.info.run_id, MLFLOW_RUN_NOTE, f"KILLED: {reason}")
    client.set_terminated(run.info.run_id, "KILLED")


def explain_refusal(run_id: str, reason: str) -> None:
    """Record why a request is refused in the run that `mlflow run` has created; an unreachable tracker is ignored."""
    with suppress(TrackingFailed), open_store(mlflow.get_tracking_uri()) as client:
        client.set_tag(run_id, tags.FAILURE, reason)
        client.set_tag(run_id, MLFLOW_RUN_NOTE, f"FAILED: {reason}")
