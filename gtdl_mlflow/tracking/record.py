"""The record of one run: everything that MLflow has not accepted yet."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.tracking.context.registry import resolve_tags

from ..files import cache_dir
from ..redaction import redact
from .processes import this_process

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
    model: dict[str, str] = field(default_factory=dict)
    """Model to log: its ``name``, its ``path`` in ``folder``, and its ``id`` once MLflow has created it."""
    model_params: dict[str, str] = field(default_factory=dict)
    model_metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    """Points like those of ``metrics`` that MLflow links to the model."""
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


def saved_path(key: str) -> Path:
    """Return the path of the record with this key, if it is saved for a later delivery."""
    return cache_dir() / "undelivered" / f"{key}.json"
