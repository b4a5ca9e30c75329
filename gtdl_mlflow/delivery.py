"""What MLflow is to be told of a run, kept until it has been heard: a server that is away delays it, and loses nothing.

Telling is idempotent. A run is looked for by the key of its record before it is made, and MLflow keeps a parameter, a
tag, a point of a curve and a file once however often it is told of them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import filelock
import mlflow
import psutil
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from sqlalchemy.exc import SQLAlchemyError

from .home import home, write_whole

logging.getLogger("alembic").setLevel(logging.WARNING)

BATCH, METRICS = 100, 800
"""Params or tags, and metrics, in one request: MLflow takes 100 of each of the former, and 1,000 of all together."""

KEY, PROCESS = "gtdl.record", "gtdl.process"
"""Tags: the record that a run comes from; the process that makes it, by host, number and start."""

FAILURE, UNAVAILABLE = "gtdl.failure", "gtdl.unavailable"
"""Tags: why a run did not finish; why this machine cannot do it."""

STAGING = "mlflow"
"""What of a run's folder is there only until MLflow has it."""

UNDELIVERED = "record:"
"""What stands before the key of a run that MLflow has no number for yet."""

ENDED = "it ended without a word"

PASSING = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "IO_ERROR",
           "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED"}  # fmt: skip
"""MLflow's codes for what may be over later, a server that is not there among them."""


class TrackingFailed(Exception):
    """The tracker refuses, or cannot be reached where it must be; the message says what became of the run."""


class Away(TrackingFailed):
    """The tracker cannot be reached now; later it may."""


@dataclass
class Record:
    """One run, and all of it that MLflow has not heard yet."""

    uri: str
    """Of the tracker, without user names and passwords."""
    folder: str
    """Where the run's files are."""
    name: str
    experiment: str
    """Its name; unused where there is an ``experiment_id``."""
    experiment_id: str = ""
    run_id: str = ""
    """Empty until MLflow has given one."""
    parent: str = ""
    """The sweep's run: its number, or ``UNDELIVERED`` and the key of its record."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: str = ""
    tried: bool = False
    """Whether it may have been made in MLflow though no answer came."""
    started_ms: int = field(default_factory=lambda: round(time.time() * 1000))
    ended_ms: int | None = None
    status: str = "RUNNING"
    source: dict[str, str] = field(default_factory=dict)
    """MLflow's own tags of who started what: they belong to this process, so they are found out here."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    """Key, value, milliseconds since 1970, step."""
    inputs: list[dict[str, str]] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    """Files and folders in ``folder``."""

    @property
    def given(self) -> bool:
        """Whether ``mlflow run`` made it in MLflow."""
        return not self.source

    @property
    def reference(self) -> str:
        """What to call this run by, in another's record or a tag."""
        return self.run_id or f"{UNDELIVERED}{self.key}"


def record(uri: str, folder: Path, name: str, experiment: str, parent: str = "") -> Record:
    """A new run of this process; under ``mlflow run``, unless it has a parent, the run that was started for it."""
    given = "" if parent else os.environ.get("MLFLOW_RUN_ID", "")
    return Record(
        redacted(uri), str(folder), name, os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment,
        experiment_id=os.environ.get("MLFLOW_EXPERIMENT_ID", ""), run_id=given, parent=parent, process=this_process(),
        source={} if given else {key: redacted(str(value)) for key, value in resolve_tags().items()},
    )  # fmt: skip


def deliver(told: Record, uri: str) -> None:
    """Tell MLflow at ``uri`` all that it has not heard of this run; what it has heard leaves the record.

    Raises:
        Away: it cannot be reached; the record has what is left.
        TrackingFailed: it refuses.
    """
    with reaching(uri):
        client = connect(uri)
        _open(told, client)
        # Those of `mlflow run -P` cannot change; a run that we have made has ours alone.
        known = client.get_run(told.run_id).data.params if told.params and told.given else {}
        params = [Param(key, str(value)) for key, value in told.params.items() if key not in known]
        tags = [RunTag(key, value) for key, value in told.tags.items()]
        metrics = [Metric(*point) for point in told.metrics]
        # As few requests as can be: each is a transaction of its own.
        for some_params, some_tags, some_metrics in itertools.zip_longest(
            _slices(params, BATCH), _slices(tags, BATCH), _slices(metrics, METRICS), fillvalue=()
        ):
            client.log_batch(told.run_id, metrics=some_metrics, params=some_params, tags=some_tags)
        told.params, told.tags, told.metrics = {}, {}, []
        if told.inputs:
            _log_inputs(told, client)
        told.inputs = []
        while told.artifacts:
            path = Path(told.folder) / told.artifacts[0]
            if path.is_dir():
                client.log_artifacts(told.run_id, str(path), path.name)
            elif path.exists():
                client.log_artifact(told.run_id, str(path))
            del told.artifacts[0]
        if told.status != "RUNNING":
            client.set_terminated(told.run_id, told.status, told.ended_ms)


def _open(told: Record, client: MlflowClient) -> None:
    """Have a run in MLflow for this record: the one it has, one made by an earlier try, or a new one."""
    if told.run_id and told.experiment_id:
        return
    if told.run_id:  # the one that `mlflow run` made, in an experiment of its choice
        told.experiment_id = str(client.get_run(told.run_id).info.experiment_id)
        client.update_run(told.run_id, "RUNNING", told.name)
        told.tags = {KEY: told.key, PROCESS: told.process, **told.tags}
        return
    told.experiment_id = told.experiment_id or _experiment(client, told.experiment)
    if told.tried and (found := _by_key(client, told.experiment_id, told.key)):
        told.run_id = found
        return
    tags = {**told.source, **told.tags, KEY: told.key, PROCESS: told.process}
    if told.parent:
        parent = told.parent
        if parent.startswith(UNDELIVERED):
            parent = _by_key(client, told.experiment_id, parent.removeprefix(UNDELIVERED))
            if not parent:
                raise Away("the run of its sweep has not been delivered yet")
        tags[MLFLOW_PARENT_RUN_ID] = parent
    told.tried = True
    run = client.create_run(told.experiment_id, start_time=told.started_ms, tags=tags, run_name=told.name)
    told.run_id = str(run.info.run_id)
    told.tags = {}


def _log_inputs(told: Record, client: MlflowClient) -> None:
    """Name the run's data sets.

    MLflow keeps one row per data set and experiment, and looks for it before it makes it: of two runs that name a new
    one at the same moment, the database refuses the slower, which finds the row when it asks again.
    """
    context = [InputTag("mlflow.data.context", "training and testing")]
    inputs = [DatasetInput(Dataset(**data), context) for data in told.inputs]
    for last in (False, True):
        try:
            client.log_inputs(told.run_id, inputs)
            return
        except mlflow.MlflowException as error:
            if last or error.error_code != "BAD_REQUEST":  # what MLflow makes of a database's refusal
                raise


def _by_key(client: MlflowClient, experiment_id: str, key: str) -> str:
    found = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'", max_results=1)
    return str(found[0].info.run_id) if found else ""


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except mlflow.MlflowException:  # another process was faster
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def end(told: Record, status: str, ended_ms: int | None = None) -> None:
    """The run is over; now, if not told otherwise."""
    told.status, told.ended_ms = status, ended_ms or round(time.time() * 1000)


# What could not be delivered, on this machine.


def _place(key: str) -> Path:
    return home() / "undelivered" / f"{key}.json"


def keep(told: Record) -> None:
    """Write the record down, for a later delivery by whichever process, which may not come to forget it."""
    told.tried = True
    write_whole(_place(told.key), json.dumps(dataclasses.asdict(told)))


def forget(told: Record) -> None:
    """It has been delivered."""
    _place(told.key).unlink(missing_ok=True)


def kept() -> list[Record]:
    """All records on this machine, those of sweeps before those of their runs."""
    records = []
    for path in home().glob("undelivered/*.json"):
        with suppress(FileNotFoundError):  # just delivered by another process
            records.append(_read(path))
    return sorted(records, key=lambda told: (told.parent != "", told.started_ms))


def _read(path: Path) -> Record:
    values = json.loads(path.read_text(encoding="utf-8"))
    values["metrics"] = [tuple(point) for point in values["metrics"]]
    return Record(**values)


@dataclass(frozen=True)
class Replayed:
    """What became of one record."""

    told: Record
    failure: str = ""
    """Why it is still kept; empty where it was delivered."""


def replay(uri: str | None = None) -> Iterator[Replayed]:
    """Deliver what is kept for the tracker at ``uri``, or for all of them, one after the other.

    A run whose process is gone is ended as KILLED. One that goes on, or may on another machine, is its own process's.
    """
    for told in kept():
        if (uri is not None and redacted(uri) != told.uri) or (
            told.status == "RUNNING" and alive(told.process) is not False
        ):
            continue
        with filelock.FileLock(_place(told.key).with_suffix(".lock")):
            if not _place(told.key).exists():
                continue  # another process did
            told = _read(_place(told.key))
            if told.status == "RUNNING":
                end(told, "KILLED")
                told.tags |= {FAILURE: ENDED, MLFLOW_RUN_NOTE: f"KILLED: {ENDED}"}
            try:
                deliver(told, address(told.uri))
            except TrackingFailed as error:
                keep(told)
                yield Replayed(told, str(error))
                continue
            forget(told)
            shutil.rmtree(Path(told.folder) / STAGING, ignore_errors=True)
            yield Replayed(told)
        _place(told.key).with_suffix(".lock").unlink(missing_ok=True)


def address(uri: str) -> str:
    """``uri`` with the user name and password that MLFLOW_TRACKING_URI has for it, if it does."""
    configured = os.environ.get("MLFLOW_TRACKING_URI", "")
    return configured if redacted(configured) == uri else uri


# Processes.


def this_process() -> str:
    """``HOST NUMBER START``: no other process is ever called so."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.2f}"


def alive(process: str) -> bool | None:
    """Whether it still runs; None where that cannot be known, as it is of another machine."""
    words = process.split(" ")
    if len(words) != 3 or words[0] != socket.gethostname():
        return None
    try:
        return f"{psutil.Process(int(words[1])).create_time():.2f}" == words[2]
    except (psutil.NoSuchProcess, ValueError):
        return False


# The tracker's failures.


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn whatever the tracker fails with into one line.

    Raises:
        Away: it is a server, and may be reached later.
        TrackingFailed: it refuses. A file or database that cannot be opened is a wrong address more often than not.
    """
    try:
        yield
    except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
        reason = redacted(str(error).strip().splitlines()[0])
        passing = uri.startswith("http") and getattr(error, "error_code", "INTERNAL_ERROR") in PASSING
        raise (Away if passing else TrackingFailed)(f"MLflow at {redacted(uri)} failed ({reason})") from error


def connect(uri: str) -> MlflowClient:
    """A client of the tracker at ``uri``; a new database gets its tables."""
    if urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
        _make_tables(uri)
    return MlflowClient(uri)


@functools.cache
def _make_tables(uri: str) -> None:
    """Open a database, alone: of two processes that find it new and make MLflow's tables, MLflow lets one fail."""
    name = hashlib.sha256(redacted(uri).encode()).hexdigest()[:16]
    place = home() / "trackers" / f"{name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(place):
        MlflowClient(uri).search_experiments(max_results=1)


@contextmanager
def patience(retries: int, timeout_s: int) -> Iterator[None]:
    """How long to try a server, unless the user's environment says: MLflow's own is minutes, for every call anew."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": retries, "MLFLOW_HTTP_REQUEST_TIMEOUT": timeout_s}
    ours = {name: str(value) for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def redacted(text: str) -> str:
    """``text`` without the user names and passwords of any address in it."""
    return re.sub(r"(\w://)[^/@\s]+@", r"\1", text)


def _slices(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
