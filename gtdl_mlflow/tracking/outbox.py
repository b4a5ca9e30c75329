"""Durable outbox: stores what MLflow has not accepted yet and retries it.

Delivery is idempotent. A run is looked up by the key of its record before it is created, and MLflow stores a parameter,
a tag, a point of a curve and a file once, however often they are sent.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from .. import tags
from ..files import cache_dir, lock_for, write_atomically
from ..redaction import redact
from .processes import PROCESS_GONE, is_alive, this_process
from .store import TrackerUnreachable, TrackingFailed, connect, translate_errors

BATCH_SIZE, METRICS_BATCH_SIZE = 100, 800
"""Params or tags, and metrics, per request. MLflow accepts 100 of each of the former, and 1,000 of all together."""

STAGING = "mlflow"
"""Subfolder of a run's folder for files that are deleted once MLflow has them."""

UNDELIVERED = "record:"
"""Prefix of the reference to a run that has no MLflow ID yet; the key of its record follows."""


@dataclass
class Record:
    """One run, with everything that MLflow has not accepted yet."""

    uri: str
    """Address of the tracker, without credentials."""
    folder: str
    """Folder of the run's files."""
    name: str
    experiment: str
    """Name of the experiment; unused if there is an ``experiment_id``."""
    experiment_id: str = ""
    run_id: str = ""
    """Empty until MLflow has created the run."""
    parent: str = ""
    """Run of the sweep: its ID, or ``UNDELIVERED`` and the key of its record."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: str = ""
    maybe_created: bool = False
    """Whether MLflow may have created the run although its response was lost."""
    started_ms: int = field(default_factory=lambda: round(time.time() * 1000))
    ended_ms: int | None = None
    status: str = "RUNNING"
    context_tags: dict[str, str] = field(default_factory=dict)
    """MLflow's own tags about user and source. They describe this process, so they are resolved when it starts."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    """Name, value, milliseconds since 1970, step."""
    inputs: list[dict[str, str]] = field(default_factory=list)
    """Fields of MLflow's ``Dataset``."""
    artifacts: list[str] = field(default_factory=list)
    """Files and folders in ``folder``."""

    @property
    def created_by_mlflow_run(self) -> bool:
        """Whether ``mlflow run`` created the run."""
        return not self.context_tags

    @property
    def reference(self) -> str:
        """The run in another run's record or tag: its ID, or a reference to its record."""
        return self.run_id or f"{UNDELIVERED}{self.key}"

    def finish(self, status: str, ended_ms: int | None = None) -> None:
        """Set the final status. ``ended_ms`` defaults to now."""
        self.status, self.ended_ms = status, ended_ms or round(time.time() * 1000)


def new_record(uri: str, folder: Path, name: str, experiment: str, parent: str = "") -> Record:
    """Return the record of a new run of this process.

    Under ``mlflow run``, a run without ``parent`` is the one that MLflow has created for this process.
    """
    run_id = "" if parent else os.environ.get("MLFLOW_RUN_ID", "")
    return Record(
        uri=redact(uri),
        folder=str(folder),
        name=name,
        experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment,
        experiment_id=os.environ.get("MLFLOW_EXPERIMENT_ID", ""),
        run_id=run_id,
        parent=parent,
        process=this_process(),
        context_tags={} if run_id else {key: redact(str(value)) for key, value in resolve_tags().items()},
    )


def deliver(record: Record, uri: str) -> None:
    """Send everything in ``record`` to MLflow at ``uri``; what MLflow accepts is removed from the record.

    Raises:
        TrackerUnreachable: the tracker does not respond; the record holds what is left.
        TrackingFailed: the tracker refuses.
    """
    with translate_errors(uri):
        client = connect(uri)
        _ensure_run(record, client)
        # MLflow refuses to change the params of `mlflow run -P`. A run that we have created has only ours.
        known = client.get_run(record.run_id).data.params if record.params and record.created_by_mlflow_run else {}
        params = [Param(key, str(value)) for key, value in record.params.items() if key not in known]
        run_tags = [RunTag(key, value) for key, value in record.tags.items()]
        metrics = [Metric(*point) for point in record.metrics]
        # As few requests as possible: each one is a transaction of its own.
        batches = (
            _slices(params, BATCH_SIZE),
            _slices(run_tags, BATCH_SIZE),
            _slices(metrics, METRICS_BATCH_SIZE),
        )
        for some_params, some_tags, some_metrics in itertools.zip_longest(*batches, fillvalue=()):
            client.log_batch(record.run_id, metrics=some_metrics, params=some_params, tags=some_tags)
        record.params, record.tags, record.metrics = {}, {}, []
        if record.inputs:
            _log_inputs(record, client)
        record.inputs = []
        while record.artifacts:
            path = Path(record.folder) / record.artifacts[0]
            if path.is_dir():
                client.log_artifacts(record.run_id, str(path), path.name)
            elif path.exists():
                client.log_artifact(record.run_id, str(path))
            del record.artifacts[0]
        if record.status != "RUNNING":
            client.set_terminated(record.run_id, record.status, record.ended_ms)


def _ensure_run(record: Record, client: MlflowClient) -> None:
    """Find the run of ``record`` in MLflow, or create it."""
    if record.run_id and record.experiment_id:
        return
    if record.run_id:  # created by `mlflow run`, in an experiment of its choice
        record.experiment_id = str(client.get_run(record.run_id).info.experiment_id)
        client.update_run(record.run_id, "RUNNING", record.name)
        record.tags = {tags.RECORD: record.key, tags.PROCESS: record.process, **record.tags}
        return
    record.experiment_id = record.experiment_id or _experiment_id(client, record.experiment)
    if record.maybe_created and (run_id := _find_run(client, record.experiment_id, record.key)):
        record.run_id = run_id
        return
    run_tags = {**record.context_tags, **record.tags, tags.RECORD: record.key, tags.PROCESS: record.process}
    if record.parent:
        parent = record.parent
        if parent.startswith(UNDELIVERED):
            parent = _find_run(client, record.experiment_id, parent.removeprefix(UNDELIVERED))
            if not parent:
                raise TrackerUnreachable("the parent run of its sweep has not been delivered yet")
        run_tags[MLFLOW_PARENT_RUN_ID] = parent
    record.maybe_created = True
    run = client.create_run(record.experiment_id, start_time=record.started_ms, tags=run_tags, run_name=record.name)
    record.run_id = str(run.info.run_id)
    record.tags = {}


def _log_inputs(record: Record, client: MlflowClient) -> None:
    """Log the run's data set.

    MLflow stores one row per data set and experiment, and searches for it before it inserts it. Of two runs that insert
    the same data set at the same moment, the database refuses the slower one; its second attempt finds the row.
    """
    context = [InputTag("mlflow.data.context", "training and testing")]
    inputs = [DatasetInput(Dataset(**data), context) for data in record.inputs]
    for last in (False, True):
        try:
            client.log_inputs(record.run_id, inputs)
            return
        except mlflow.MlflowException as error:
            if last or error.error_code != "BAD_REQUEST":  # MLflow's code for the database's refusal
                raise


def _find_run(client: MlflowClient, experiment_id: str, key: str) -> str:
    found = client.search_runs([experiment_id], f"tags.`{tags.RECORD}` = '{key}'", max_results=1)
    return str(found[0].info.run_id) if found else ""


def _experiment_id(client: MlflowClient, name: str) -> str:
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


# Records that could not be delivered are files of the cache directory.


def _path(key: str) -> Path:
    return cache_dir() / "undelivered" / f"{key}.json"


def save(record: Record) -> None:
    """Write the record to disk, for a later delivery by any process."""
    record.maybe_created = True
    write_atomically(_path(record.key), json.dumps(dataclasses.asdict(record)))


def discard(record: Record) -> None:
    """Delete the saved record after its delivery."""
    _path(record.key).unlink(missing_ok=True)


def pending() -> list[Record]:
    """Return all saved records, those of sweeps before those of their runs."""
    records = []
    for path in cache_dir().glob("undelivered/*.json"):
        with suppress(FileNotFoundError):  # just delivered by another process
            records.append(_read(path))
    return sorted(records, key=lambda record: (record.parent != "", record.started_ms))


def _read(path: Path) -> Record:
    values = json.loads(path.read_text(encoding="utf-8"))
    values["metrics"] = [tuple(point) for point in values["metrics"]]
    return Record(**values)


@dataclass(frozen=True)
class ReplayResult:
    """Result of delivering one saved record."""

    record: Record
    failure: str = ""
    """Why it is still saved; empty if it was delivered."""


def replay(uri: str | None = None) -> Iterator[ReplayResult]:
    """Deliver the saved records for the tracker at ``uri``, or for all trackers, and yield the result of each.

    A run whose process no longer exists is ended as KILLED. A run whose process exists, or may exist on another host,
    is left to it.
    """
    for record in pending():
        if (uri is not None and redact(uri) != record.uri) or (
            record.status == "RUNNING" and is_alive(record.process) is not False
        ):
            continue
        lock = lock_for(_path(record.key))
        with lock:
            if not _path(record.key).exists():
                continue  # delivered by another process
            record = _read(_path(record.key))
            if record.status == "RUNNING":
                record.finish("KILLED")
                record.tags |= {tags.FAILURE: PROCESS_GONE, MLFLOW_RUN_NOTE: f"KILLED: {PROCESS_GONE}"}
            try:
                deliver(record, record.uri)
            except TrackingFailed as error:
                save(record)
                yield ReplayResult(record, str(error))
                continue
            discard(record)
            shutil.rmtree(Path(record.folder) / STAGING, ignore_errors=True)
            yield ReplayResult(record)
        Path(lock.lock_file).unlink(missing_ok=True)


def _slices(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
