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
import typing
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

import filelock
import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from .. import tags
from ..console import info
from ..files import cache_dir, lock_for, read_state, set_aside, write_atomically
from ..redaction import has_secrets, redact
from .deadline import Deadline, DeadlinePassed
from .processes import PROCESS_GONE, is_alive, this_process
from .store import (
    RequestRefused,
    TrackerUnreachable,
    TrackingFailed,
    artifact_failure,
    connect,
    failure,
    single_attempt,
)

BATCH_SIZE, METRICS_BATCH_SIZE = 100, 800
"""Params or tags, and metrics, per request. MLflow accepts 100 of each of the former, and 1,000 of all together."""

PARAM_LIMIT, TAG_LIMIT, NAME_LIMIT = 6000, 8000, 250
"""Characters that MLflow accepts in the value of a param, in the value of a tag, and in a name."""

CREATE_ATTEMPTS = 3
"""Attempts to create a run. Before each further one, the run is looked up: a lost response may follow a commit."""

MOST_FAILURES = 3
"""Failures of single items, by a tracker that still responds, after which a delivery ends."""

START_DEADLINE_S, END_DEADLINE_S, REPLAY_DEADLINE_S = 60.0, 120.0, 300.0
"""Longest delivery at the start of a run, at its end, and by ``gtdl track replay``, without the time of its files."""

SLOWEST_UPLOAD = 500_000
"""Bytes per second. The size of a record's files extends its deadline accordingly."""

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
    refused: list[dict[str, str]] = field(default_factory=list)
    """What MLflow or its artifact store refused for good: item, value and reason."""

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


def deliver(record: Record, uri: str, deadline_s: float = END_DEADLINE_S) -> None:
    """Send everything in ``record`` to MLflow at ``uri``; what MLflow accepts is removed from the record.

    What MLflow refuses for good moves to ``record.refused``, and the rest is sent. The final status is sent before the
    files. The size of the files extends ``deadline_s``.

    Raises:
        TrackerUnreachable: the tracker does not respond, or not within the deadline; the record holds what is left.
        RequestRefused: the tracker refuses the run itself.
        TrackingFailed: any other failure.
    """
    files = (Path(record.folder) / name for name in record.artifacts)
    deadline = Deadline(deadline_s + sum(_size(path) for path in files) / SLOWEST_UPLOAD)
    copy = dataclasses.replace(record)

    def publish() -> None:
        deadline.publish(lambda: vars(record).update(vars(copy)))

    try:
        deadline.run(_Delivery(copy, uri, publish).run)
    except DeadlinePassed as error:
        raise TrackerUnreachable(f"MLflow at {redact(uri)} failed ({error})") from error
    except TrackingFailed:
        raise
    except Exception as error:
        raise failure(error, uri) from error


@dataclass(frozen=True)
class _Item:
    """One param, tag or metric of a record."""

    field: str
    """Field of the record that holds it."""
    source: Any
    """The key of the param or tag, or the point of the curve, as in the record."""
    entity: Param | RunTag | Metric

    @property
    def label(self) -> str:
        return f"{self.field.removesuffix('s')} {self.entity.key}"


class _Delivery:
    """One delivery of a record.

    It replaces the lists and dictionaries of the record and changes none of them. ``publish`` is called after each
    step, so that the caller's record holds what is left if the deadline passes.
    """

    def __init__(self, record: Record, uri: str, publish: Callable[[], None]) -> None:
        self._record, self._uri, self._publish = record, uri, publish
        self._failures: list[TrackingFailed] = []
        """Failures that did not end the delivery. What they are about is still in the record."""

    def run(self) -> None:
        record = self._record
        self._client = connect(self._uri)
        self._ensure_run()
        self._publish()
        before = dataclasses.replace(record)
        for items in self._batches():
            self._send(items)
        self._log_inputs()
        if record.status != "RUNNING":
            self._client.set_terminated(record.run_id, record.status, record.ended_ms)
        self._log_files()
        self._confirm(before)
        if self._failures:
            raise self._failures[0]

    # The run.

    def _ensure_run(self) -> None:
        """Find the run of the record in MLflow, or create it."""
        record, client = self._record, self._client
        if record.run_id and record.experiment_id:
            return
        if record.run_id:  # created by `mlflow run`, in an experiment of its choice
            run = client.get_run(record.run_id)
            record.experiment_id = str(run.info.experiment_id)
            client.update_run(record.run_id, "RUNNING", _clean(record.name, NAME_LIMIT))
            # MLflow stores the project's address as it was typed. The tags can be replaced, the params cannot.
            redacted = {key: redact(value) for key, value in run.data.tags.items() if has_secrets(value)}
            record.tags = {**redacted, tags.RECORD: record.key, tags.PROCESS: record.process, **record.tags}
            return
        record.experiment_id = record.experiment_id or self._experiment_id()
        essential = {tags.RECORD: record.key, tags.PROCESS: record.process}
        if parent := self._parent():
            essential[MLFLOW_PARENT_RUN_ID] = parent
        record.tags = {**record.context_tags, **record.tags}
        every = {_clean(key, NAME_LIMIT): _clean(value, TAG_LIMIT) for key, value in record.tags.items()}
        try:
            self._create_run(every | essential)
        except RequestRefused:
            self._create_run(essential)  # the other tags are sent later, where each is refused on its own
        else:
            record.tags = {}

    def _create_run(self, run_tags: dict[str, str]) -> None:
        """Create the run, at most once: after a failure it is looked up, because the tracker may have created it."""
        record, name = self._record, _clean(self._record.name, NAME_LIMIT)
        for attempt in range(CREATE_ATTEMPTS):
            if record.maybe_created and (found := self._find_run(record.key)):
                record.run_id = found
                self._client.log_batch(found, tags=[RunTag(*each) for each in run_tags.items()][:BATCH_SIZE])
                return
            record.maybe_created = True
            self._publish()
            try:
                with single_attempt():
                    run = self._client.create_run(record.experiment_id, record.started_ms, run_tags, name)
            except Exception as error:
                failed = failure(error, self._uri)
                if not isinstance(failed, TrackerUnreachable) or attempt == CREATE_ATTEMPTS - 1:
                    self._check_experiment(failed)
                    raise failed from error
                time.sleep(attempt + 1)
            else:
                if not run.info.run_id:
                    raise TrackerUnreachable(f"MLflow at {redact(self._uri)} failed (empty response)")
                record.run_id = str(run.info.run_id)
                return

    def _check_experiment(self, failed: TrackingFailed) -> None:
        """Raise RequestRefused if the experiment is deleted, for which a server responds with its status 500."""
        if isinstance(failed, TrackerUnreachable):
            with suppress(Exception):
                experiment = self._client.get_experiment(self._record.experiment_id)
                if experiment.lifecycle_stage == LifecycleStage.DELETED:
                    failed = RequestRefused(f"MLflow at {redact(self._uri)}: experiment {experiment.name} is deleted")
            if isinstance(failed, RequestRefused):
                raise failed

    def _parent(self) -> str:
        """Return the ID of the run of the sweep; empty if there is none."""
        parent = self._record.parent
        if not parent.startswith(UNDELIVERED):
            return parent
        key = parent.removeprefix(UNDELIVERED)
        found = self._find_run(key)
        if not found and _path(key).exists():
            raise TrackerUnreachable("the parent run of its sweep has not been delivered yet")
        return found

    def _find_run(self, key: str) -> str:
        condition = f"tags.`{tags.RECORD}` = '{key}'"
        found = self._client.search_runs([self._record.experiment_id], condition, max_results=1)
        return str(found[0].info.run_id) if found else ""

    def _experiment_id(self) -> str:
        name = _clean(self._record.experiment, 500)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except mlflow.MlflowException:  # another process was faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == LifecycleStage.DELETED:
            raise RequestRefused(
                f"MLflow at {redact(self._uri)}: experiment {name} is deleted; restore it, or set tracking.experiment"
            )
        if not found.experiment_id:
            raise TrackerUnreachable(f"MLflow at {redact(self._uri)} failed (empty response)")
        return str(found.experiment_id)

    def _check_run(self, failed: TrackingFailed) -> None:
        """Raise ``failed`` unless the tracker responds, and RequestRefused if the run is deleted."""
        try:
            run = self._client.get_run(self._record.run_id)
        except Exception as error:
            other = failure(error, self._uri)
            raise other if isinstance(other, RequestRefused) else failed from error
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            raise RequestRefused(f"MLflow at {redact(self._uri)}: run {self._record.run_id} is deleted") from failed

    def _confirm(self, before: Record) -> None:
        """Read the run back: a proxy may respond to every request with an empty page.

        Raises:
            TrackerUnreachable: the response is not the run; the record has everything again.
        """
        record = self._record
        run = self._client.get_run(record.run_id)
        if run.info.run_id != record.run_id:
            vars(record).update(vars(before))
            self._publish()
            raise TrackerUnreachable(f"MLflow at {redact(self._uri)} failed (empty responses)")
        if record.status == "FINISHED" and tags.FAILURE in run.data.tags:  # closed as dead before its delivery
            self._client.delete_tag(record.run_id, tags.FAILURE)

    # Params, tags and metrics.

    def _batches(self) -> list[list[_Item]]:
        """Return the items of the record in as few requests as possible: each request is a transaction of its own."""
        record = self._record
        known: Collection[str] = ()
        if record.params and record.created_by_mlflow_run:
            # MLflow refuses to change the params of `mlflow run -P`. A run that we have created has only ours.
            known = self._client.get_run(record.run_id).data.params
            record.params = {key: value for key, value in record.params.items() if key not in known}
        params = [
            _Item("params", key, Param(_clean(key, NAME_LIMIT), _clean(value, PARAM_LIMIT)))
            for key, value in record.params.items()
        ]
        run_tags = [
            _Item("tags", key, RunTag(_clean(key, NAME_LIMIT), _clean(value, TAG_LIMIT)))
            for key, value in record.tags.items()
        ]
        metrics = [_Item("metrics", point, Metric(*point)) for point in record.metrics]
        sizes = (params, BATCH_SIZE), (run_tags, BATCH_SIZE), (metrics, METRICS_BATCH_SIZE)
        parts = [list(_slices(items, size)) for items, size in sizes]
        return [list(itertools.chain(*together)) for together in itertools.zip_longest(*parts, fillvalue=[])]

    def _send(self, items: list[_Item]) -> None:
        """Send items in one request; if it is refused, send them in halves, down to the items that cause it."""
        entities = [item.entity for item in items]
        metrics = [each for each in entities if isinstance(each, Metric)]
        params = [each for each in entities if isinstance(each, Param)]
        run_tags = [each for each in entities if isinstance(each, RunTag)]
        try:
            self._client.log_batch(self._record.run_id, metrics, params, run_tags)
        except Exception as error:
            failed = failure(error, self._uri)
            if not isinstance(failed, (RequestRefused, TrackerUnreachable)):
                raise failed from error
            self._check_run(failed)
            if len(items) > 1:
                middle = len(items) // 2
                self._send(items[:middle])
                self._send(items[middle:])
            elif isinstance(failed, RequestRefused):
                (item,) = items
                value = item.source if isinstance(item.entity, Metric) else item.entity.value
                self._refuse(item.label, str(value), failed)
                self._remove(items)
            else:
                self._note(failed)
        else:
            self._remove(items)

    def _remove(self, items: list[_Item]) -> None:
        """Remove items that MLflow has, or never accepts, from the record."""
        record = self._record
        gone = {(item.field, item.source) for item in items}
        record.params = {key: value for key, value in record.params.items() if ("params", key) not in gone}
        record.tags = {key: value for key, value in record.tags.items() if ("tags", key) not in gone}
        record.metrics = [point for point in record.metrics if ("metrics", point) not in gone]
        self._publish()

    def _note(self, failed: TrackingFailed) -> None:
        """Keep a failure for the end of the delivery; raise it if there have been too many."""
        self._failures.append(failed)
        if len(self._failures) >= MOST_FAILURES:
            raise failed

    def _refuse(self, label: str, value: str, failed: TrackingFailed) -> None:
        entry = {"item": label, "value": value, "reason": str(failed)}
        self._record.refused = [*self._record.refused, entry]

    # The data set and the files.

    def _log_inputs(self) -> None:
        """Log the run's data set.

        MLflow stores one row per data set and experiment, and searches for it before it inserts it. Of two runs that
        insert the same data set at the same moment, the database refuses the slower one; its second attempt finds it.
        """
        record = self._record
        context = [InputTag("mlflow.data.context", "training and testing")]
        inputs = [DatasetInput(Dataset(**data), context) for data in record.inputs]
        for attempt in range(2 if inputs else 0):
            try:
                self._client.log_inputs(record.run_id, inputs)
                break
            except Exception as error:
                failed = failure(error, self._uri)
                if not isinstance(failed, RequestRefused):
                    self._note(failed)
                    return
                if attempt == 1:
                    self._refuse("data set", json.dumps(record.inputs), failed)
        record.inputs = []
        self._publish()

    def _log_files(self) -> None:
        record = self._record
        for name in record.artifacts:
            path = Path(record.folder) / name
            try:
                if path.exists():
                    self._log_file(path)
            except TrackingFailed as failed:
                if not isinstance(failed, RequestRefused):
                    self._note(failed)
                    continue
                self._refuse(f"file {name}", str(path), failed)
            record.artifacts = [each for each in record.artifacts if each != name]
            self._publish()

    def _log_file(self, path: Path) -> None:
        try:
            for each in (path, *path.rglob("*")):
                if not (each.is_dir() or each.is_file()):  # reading a device or a pipe may never end
                    raise RequestRefused(f"{each}: not a regular file")
                if each.is_file():
                    each.open("rb").close()
        except OSError as error:
            raise RequestRefused(f"{error.filename}: {error.strerror}") from error
        try:
            if path.is_dir():
                self._client.log_artifacts(self._record.run_id, str(path), path.name)
            else:
                self._client.log_artifact(self._record.run_id, str(path))
        except Exception as error:
            try:
                uri = str(self._client.get_run(self._record.run_id).info.artifact_uri)
            except Exception:  # the tracker is the reason
                raise failure(error, self._uri) from error
            raise artifact_failure(error, self._uri if uri.startswith("mlflow-artifacts:") else uri) from error


def _clean(text: str, limit: int) -> str:
    """Return ``text`` as databases can store it: without NUL and unpaired surrogates, at most ``limit`` characters."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    if len(text) <= limit:
        return text
    note = "" if limit == NAME_LIMIT else f" ... ({len(text)} characters)"  # names must not contain brackets
    return text[: limit - len(note)] + note


def _size(path: Path) -> int:
    """Return the size in bytes of a file, or of all files of a folder; 0 if it cannot be read."""
    with suppress(OSError):
        return sum(each.stat().st_size for each in (path, *path.rglob("*")))
    return 0


def _slices(items: list[_Item], size: int) -> Iterator[list[_Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


# Records that could not be delivered are files of the cache directory.


def _path(key: str) -> Path:
    return cache_dir() / "undelivered" / f"{key}.json"


def _refused_path(key: str) -> Path:
    return _path(key).with_name(f"{key}.json.refused")


def save(record: Record) -> None:
    """Write the record to disk, for a later delivery by any process.

    If the cache directory cannot be written, the record is written to the run's folder, with a message.
    """
    record.maybe_created = True
    path, text = _path(record.key), json.dumps(dataclasses.asdict(record))
    try:
        write_atomically(path, text)
    except OSError as error:
        problem, fallback = f"{path.parent}: {error.strerror}", Path(record.folder) / path.name
        try:
            write_atomically(fallback, text)
        except OSError as other:
            problem += f"; {fallback.parent}: {other.strerror}"
            info(f"{problem}: {record.name} could not be saved for a later delivery")
        else:
            info(f"{problem}: {record.name} is saved as {fallback}; move it there before `gtdl track replay`")


def discard(record: Record) -> None:
    """Delete the saved record and the staged files after a delivery. What MLflow refused is kept and reported."""
    with suppress(OSError):
        _path(record.key).unlink(missing_ok=True)
    if record.status == "RUNNING":
        return
    if not record.refused:
        shutil.rmtree(Path(record.folder) / STAGING, ignore_errors=True)
        return
    first, kept = record.refused[0], _refused_path(record.key)
    try:
        write_atomically(kept, json.dumps(dataclasses.asdict(record)))
    except OSError as error:
        where = f"could not be saved ({error.strerror})"
    else:
        where = f"saved in {kept}"
    count = len(record.refused)
    what = f"{first['item']} refused" if count == 1 else f"{count} items refused, the first is {first['item']}"
    info(f"{record.name}: {what}: {first['reason']}; {where}")


def conclude(record: Record, uri: str) -> str:
    """Deliver a record with its final status; return why MLflow does not have all of it, or an empty string.

    The record is saved during the delivery: if this process is killed, ``replay`` completes it.
    """
    with _hold(record.key):
        with suppress(OSError):
            write_atomically(_path(record.key), json.dumps(dataclasses.asdict(record)))
        try:
            deliver(record, uri)
        except TrackingFailed as error:
            save(record)
            return str(error)
        discard(record)
        return ""


@contextmanager
def _hold(key: str) -> Iterator[bool]:
    """Hold the lock of a saved record; yield False if another process delivers it."""
    try:
        lock = lock_for(_path(key))
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    except OSError:  # the cache directory cannot be written: there is no saved record either
        yield True
        return
    try:
        yield True
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def pending() -> list[Record]:
    """Return all saved records, those of sweeps before those of their runs."""
    records = [record for path in cache_dir().glob("undelivered/*.json") if (record := _read(path)) is not None]
    return sorted(records, key=lambda record: (record.parent != "", record.started_ms))


def _read(path: Path) -> Record | None:
    """Return a saved record; None if it has just been delivered, or if it is not a record of this version.

    The latter is set aside.
    """
    values = read_state(path)
    if values is None:
        return None
    hints = typing.get_type_hints(Record)
    if isinstance(values.get("metrics"), list):
        values["metrics"] = [tuple(point) if isinstance(point, list) else point for point in values["metrics"]]
    wrong = sorted(values.keys() ^ hints.keys()) or [name for name in hints if not _matches(values[name], hints[name])]
    if wrong:
        set_aside(path, f"not a record of this version: {', '.join(wrong)}")
        return None
    return Record(**values)


def _matches(value: Any, hint: Any) -> bool:
    """Return whether a value read from JSON has the type ``hint``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is UnionType:
        return any(_matches(value, each) for each in arguments)
    if origin is list:
        return isinstance(value, list) and all(_matches(each, arguments[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_matches(each, arguments[1]) for each in value.values())
    if origin is tuple:
        return (
            isinstance(value, tuple)
            and len(value) == len(arguments)
            and all(itertools.starmap(_matches, zip(value, arguments, strict=True)))
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is hint


@dataclass(frozen=True)
class ReplayResult:
    """Result of delivering one saved record."""

    record: Record
    failure: str = ""
    """Why MLflow does not have all of it; empty if it was delivered."""


def replay(uri: str) -> Iterator[ReplayResult]:
    """Deliver the saved records for the tracker at ``uri`` and yield the result of each.

    A run whose process no longer exists is ended as KILLED. A run whose process exists, or may exist on another host,
    is left to it. A record that the tracker refuses for good is set aside.
    """
    for record in pending():
        if not is_for(record, uri) or (record.status == "RUNNING" and is_alive(record.process) is not False):
            continue
        with _hold(record.key) as held:
            # Another process may have delivered it, or more of it, meanwhile.
            current = _read(_path(record.key)) if held else None
            if current is not None:
                yield _replay(current, uri)


def is_for(record: Record, uri: str) -> bool:
    """Return whether a record is for the tracker at ``uri``."""
    return record.uri == redact(uri)


def _replay(record: Record, uri: str) -> ReplayResult:
    if record.status == "RUNNING":
        record.finish("KILLED")
        record.tags |= {tags.FAILURE: PROCESS_GONE, MLFLOW_RUN_NOTE: f"KILLED: {PROCESS_GONE}"}
    try:
        deliver(record, uri, REPLAY_DEADLINE_S)
    except RequestRefused as error:
        save(record)
        with suppress(OSError):
            _path(record.key).replace(_refused_path(record.key))
        return ReplayResult(record, f"{error}; the record is set aside as {_refused_path(record.key)}")
    except TrackingFailed as error:
        save(record)
        return ReplayResult(record, f"still undelivered: {error}")
    discard(record)
    return ReplayResult(record)
