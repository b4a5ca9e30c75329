"""Delivery of a record to MLflow.

Delivery is idempotent. A run is looked up by the key of its record before it is created. MLflow stores a param, a tag,
a metric value or a file only once, even if it is sent again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from .. import tags
from ..redaction import has_secrets, redact
from .deadline import Deadline, DeadlinePassed
from .model import set_model_id
from .record import UNDELIVERED, Record, saved_path
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
"""Deadlines of a delivery at the start of a run, at its end and by ``gtdl track replay``. Its files extend them."""

SLOWEST_UPLOAD = 500_000
"""Bytes per second. The size of a record's files extends its deadline accordingly."""


def deliver(record: Record, uri: str, deadline_s: float = END_DEADLINE_S) -> None:
    """Send everything in ``record`` to MLflow at ``uri``; what MLflow accepts is removed from the record.

    What MLflow refuses for good moves to ``record.refused``, and the rest is sent. The final status is sent before the
    files. The size of the files extends ``deadline_s``.

    Raises:
        TrackerUnreachable: the tracker does not respond, or not within the deadline; the record holds what is left.
        RequestRefused: the tracker refuses the run itself.
        TrackingFailed: any other failure.
    """
    names = [*record.artifacts, *([record.model["path"]] if record.model else [])]
    files = (Path(record.folder) / name for name in names)
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
        self._log_model()
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
        if not found and saved_path(key).exists():
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
        """Record a failure to raise at the end of the delivery; raise it now if there have been too many."""
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

    def _log_model(self) -> None:
        """Log the model with its files, and link it to the run, the data set and the results."""
        record, client = self._record, self._client
        if not record.model:
            return
        path = Path(record.folder) / record.model["path"]
        try:
            _check_files(path)
            model_id = record.model.get("id") or self._find_model() or self._create_model()
            record.model = {**record.model, "id": model_id}
            self._publish()
            set_model_id(path, model_id, record.run_id)
            client.log_model_artifacts(model_id, str(path))
            outputs = client.get_run(record.run_id).outputs
            if model_id not in {each.model_id for each in (outputs.model_outputs if outputs else ())}:
                client.log_outputs(record.run_id, [LoggedModelOutput(model_id, step=0)])  # MLflow refuses a second one
            dataset = record.model.get("dataset", ""), record.model.get("digest", "")
            metrics = [
                Metric(
                    *point, model_id=model_id, dataset_name=dataset[0], dataset_digest=dataset[1], run_id=record.run_id
                )
                for point in record.model_metrics
            ]
            client.log_batch(record.run_id, metrics)
            client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        except Exception as error:
            failed = failure(error, self._uri)
            if getattr(error, "error_code", "") == "ENDPOINT_NOT_FOUND":  # a server before MLflow 3: a folder of files
                record.artifacts = [*record.artifacts, record.model["path"]]
            elif not isinstance(failed, RequestRefused):
                self._note(failed)
                return
            else:
                self._refuse("model", str(path), failed)
        record.model, record.model_params, record.model_metrics = {}, {}, []
        self._publish()

    def _find_model(self) -> str:
        """Return the ID of the model that an interrupted delivery has created; empty if there is none."""
        condition = f"tags.`{tags.RECORD}` = '{self._record.key}'"
        found = self._client.search_logged_models([self._record.experiment_id], condition, max_results=1)
        return str(found[0].model_id) if found else ""

    def _create_model(self) -> str:
        record = self._record
        with single_attempt():
            model = self._client.create_logged_model(
                record.experiment_id,
                name=_clean(record.model["name"], NAME_LIMIT),
                source_run_id=record.run_id,
                tags={tags.RECORD: record.key},
                params={key: _clean(value, PARAM_LIMIT) for key, value in record.model_params.items()},
                model_type="classifier",
            )
        return str(model.model_id)

    def _log_file(self, path: Path) -> None:
        _check_files(path)
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


def _check_files(path: Path) -> None:
    """Raise RequestRefused if a file, or one in a folder, is no regular file or cannot be read."""
    try:
        for each in (path, *path.rglob("*")):
            if not (each.is_dir() or each.is_file()):  # reading a device or a pipe may never end
                raise RequestRefused(f"{each}: not a regular file")
            if each.is_file():
                each.open("rb").close()
    except OSError as error:
        raise RequestRefused(f"{error.filename}: {error.strerror}") from error


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
