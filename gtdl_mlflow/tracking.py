"""One MLflow run: what was asked, what happened, how it ended. No call to the tracker while a worker's clock runs."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

# Before MLflow's import, which sets its loggers up: the one line a run prints must not drown in migrations.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
import mlflow
import numpy as np
import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from sqlalchemy.exc import SQLAlchemyError

from . import __version__, machine
from .config import Config, Unavailable
from .datasets import Prepared, contact_sheet
from .environments import Environment
from .pyfunc import save_model
from .resuming import Interrupted
from .system_metrics import Sampler
from .worker.events import Described, Event, Metrics

logging.getLogger("alembic").setLevel(logging.WARNING)

PARENT_VARIABLE = "GTDL_PARENT_RUN_ID"
"""Environment variable that tells the jobs of a sweep, in whatever process, whose children they are."""

UNAVAILABLE = "gtdl.unavailable"
"""Tag of a run that this machine cannot do: the reason."""

BATCH = 100
"""Params or tags in one request, MLflow's limit; of metrics it takes ten times as many."""

ARTIFACTS = ("config.yaml", "environment.txt", "contact_sheet.png", "job.json", "events.jsonl", "worker.log")
"""Files of a run's folder that are kept with it, as far as it came to them."""


class TrackingFailed(Exception):
    """The tracker cannot be reached or refuses; the message says where what was measured is kept."""


class Run:
    """A context: entered RUNNING; left FINISHED, FAILED with the reason, or KILLED, with all that was reported.

    A run that cannot be here is FAILED too, as MLflow has no other word for it, with the tag ``UNAVAILABLE``.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._client: MlflowClient
        self._metrics: list[Metric] = []
        self._facts: dict[str, Any] = {}
        self._sampler = Sampler(config.tracking.system_metrics_interval_s)
        self._started = time.monotonic()
        self._environment: Environment | None = None
        self._resumes: Interrupted | None = None

    def __enter__(self) -> Run:
        config = self._config
        with reaching(config.tracking.uri, "nothing was run"), impatient():
            self._client = MlflowClient(config.tracking.uri)
            self.run_id, self.experiment_id = open_run(self._client, _name(config), config.tracking.experiment)
            logged = self._client.get_run(self.run_id).data.params  # those of `mlflow run -P`, which cannot change
            params = {key: value for key, value in _params(config).items() if key not in logged}
            self._log(params=params, tags=_tags(config))
        (self._folder / "config.yaml").write_text(yaml.safe_dump(config.plain(), sort_keys=False))
        return self

    def uses(self, environment: Environment, data: Prepared) -> None:
        """What the run runs in and on."""
        self._environment = environment
        (self._folder / "environment.txt").write_text("\n".join(environment.packages) + "\n")
        contact_sheet.write(data, self._folder / "contact_sheet.png")
        with reaching(self._config.tracking.uri, "nothing was run"):
            self._log(tags={"gtdl.data_digest": data.digest, "gtdl.environment": environment.key})
            self._client.log_inputs(self.run_id, [_dataset_input(self._config, data)])
        self._sampler.start()

    def resumes(self, interrupted: Interrupted) -> None:
        """This run goes on with another, which can say no more."""
        self._resumes = interrupted
        uri = self._config.tracking.uri
        if interrupted.uri != uri:
            return
        with reaching(uri, "nothing was run"), suppress(mlflow.MlflowException):  # it may have been deleted
            if self._client.get_run(interrupted.run_id).info.status == "RUNNING":
                reason = f"it ended without a word; run {self.run_id} goes on from its last checkpoint"
                self._client.set_tag(interrupted.run_id, "gtdl.failure", reason)
                self._client.set_terminated(interrupted.run_id, "KILLED")

    def add(self, event: Event) -> None:
        """Keep an event for later: a worker's clock may be running."""
        if isinstance(event, Metrics):
            at = round(event.time * 1000)
            self._metrics += [Metric(key, value, at, event.step) for key, value in event.values.items()]
        elif isinstance(event, Described):
            self._facts |= event.facts

    @property
    def results(self) -> dict[str, float]:
        """The last value of every metric so far."""
        return {metric.key: metric.value for metric in self._metrics}

    @property
    def where(self) -> str:
        """What to type, or which page to open, to look at the run."""
        uri = redacted(self._config.tracking.uri)
        if uri.startswith("http"):
            return f"{uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {uri}"

    def log_model(self, folder: Path) -> None:
        """The worker's saved model, as a pyfunc model that loads in the framework's environment."""
        assert self._environment is not None
        kept = f"what was measured is in {self._folder}"
        with reaching(self._config.tracking.uri, kept), TemporaryDirectory() as staging:
            save_model(Path(staging) / "model", folder, self._config, self._environment, str(self._facts["numpy"]))
            self._client.log_artifacts(self.run_id, str(Path(staging) / "model"), "model")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics += self._sampler.stop()
        tags = {f"gtdl.{key}": str(self._facts[key]) for key in ("framework_version", "device") if key in self._facts}
        if "weights_sha256" in self._facts:
            tags["gtdl.weights_sha256"] = self._facts["weights_sha256"]
        if self._resumes is not None and "resumed_from_iteration" in self._facts:
            tags["gtdl.resumed"] = (
                f"after iteration {self._facts['resumed_from_iteration']} of run {self._resumes.run_id}"
            )
        if kind is None:
            status = "FINISHED"
            self._metrics.append(Metric("wall_time_s", time.monotonic() - self._started, round(time.time() * 1000), 0))
            tags |= {"gtdl.quality": quality(self._metrics, self._config.dataset.classes)}
            tags[MLFLOW_RUN_NOTE] = _note(self._config, self.results)
        else:
            status = "FAILED" if issubclass(kind, Exception) else "KILLED"
            reason = str(error) if issubclass(kind, Exception) else "stopped by the user"
            unavailable = issubclass(kind, Unavailable)
            word = "unavailable" if unavailable else status
            tags |= {UNAVAILABLE if unavailable else "gtdl.failure": reason[:5000],
                     MLFLOW_RUN_NOTE: f"{word}: {reason}"[:5000]}  # fmt: skip
        facts = {f"worker.{key}": value for key, value in self._facts.items()}
        with reaching(self._config.tracking.uri, f"what was measured is in {self._folder}"):
            self._log(params=facts, tags=tags, metrics=self._metrics)
            for name in ARTIFACTS:
                if (self._folder / name).exists():
                    self._client.log_artifact(self.run_id, str(self._folder / name))
            self._client.set_terminated(self.run_id, status)

    def _log(
        self,
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
        metrics: list[Metric] | None = None,
    ) -> None:
        for part in _slices([Param(key, str(value)) for key, value in (params or {}).items()], BATCH):
            self._client.log_batch(self.run_id, params=part)
        for part in _slices([RunTag(key, value) for key, value in (tags or {}).items()], BATCH):
            self._client.log_batch(self.run_id, tags=part)
        for part in _slices(metrics or [], 10 * BATCH):
            self._client.log_batch(self.run_id, metrics=part)


@contextmanager
def reaching(uri: str, kept: str) -> Iterator[None]:
    """Turn whatever the tracker fails with into one line; ``kept`` says what became of the run."""
    try:
        yield
    except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrackingFailed(f"MLflow at {redacted(uri)} failed ({redacted(reason)}); {kept}") from error


@contextmanager
def impatient() -> Iterator[None]:
    """MLflow tries a server that does not answer for four minutes; too long to wait before anything was run."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    if name in os.environ:
        yield
        return
    os.environ[name] = "2"
    try:
        yield
    finally:
        del os.environ[name]


def redacted(text: str) -> str:
    """``text`` without the user names and passwords of any address in it."""
    return re.sub(r"(\w://)[^/@\s]+@", r"\1", text)


def open_run(client: MlflowClient, name: str, experiment: str) -> tuple[str, str]:
    """(run id, experiment id) of a run in progress: the one that ``mlflow run`` started, or a new one."""
    given = os.environ.get("MLFLOW_RUN_ID")
    parent = os.environ.get(PARENT_VARIABLE)
    if given and not parent:
        run = client.get_run(given)
        client.update_run(given, "RUNNING", name)
        return given, str(run.info.experiment_id)
    tags = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") or _experiment(
        client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
    )
    run = client.create_run(experiment_id, tags=resolve_tags(tags), run_name=name)
    return str(run.info.run_id), experiment_id


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


def quality(metrics: Iterable[Metric], classes: int) -> str:
    """``ok``, or why a run's times should not be compared: it did not learn."""
    losses = [metric.value for metric in metrics if metric.key == "train/loss"]
    accuracy = [metric.value for metric in metrics if metric.key == "accuracy_percent"][-1]
    if not np.isfinite(losses).all():
        return "the loss is not finite"
    if len(losses) > 1 and losses[-1] >= losses[0]:
        return "the loss does not fall"
    if accuracy <= 100 / classes:
        return "the accuracy is no better than chance"
    return "ok"


def _dataset_input(config: Config, data: Prepared) -> DatasetInput:
    features = Schema([TensorSpec(np.dtype(np.uint8), (-1, *data.image_shape))])
    entity = Dataset(
        name=config.dataset.name,
        digest=data.digest[:36],  # all that MLflow's column holds; the tag has the rest
        source_type="http",
        source=json.dumps({"url": config.dataset.source}),
        schema=json.dumps({"mlflow_tensorspec": {"features": features.to_json()}}),
        profile=json.dumps({"train_images": data.train_images, "test_images": data.test_images}),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training and testing")])


def _name(config: Config) -> str:
    return f"{config.framework.name} {config.model.name} on {config.dataset.name}, seed {config.seed}"


def _tags(config: Config) -> dict[str, str]:
    return {
        "gtdl.framework": config.framework.name,
        "gtdl.framework_version": config.framework.version,
        "gtdl.dataset": config.dataset.name,
        "gtdl.model": config.model.name,
        "gtdl.training": config.training.name,
        "gtdl.device": config.hardware.device,
        "gtdl.hardware": config.hardware.name,
        "gtdl.seed": str(config.seed),
        "gtdl.budget": f"{config.budget:g}",
        "gtdl.tuning": config.tuning.value,
        "gtdl.config_hash": config.hash(),
        "gtdl.cell": config.cell(),
        "gtdl.machine": machine.fingerprint(),
        "gtdl.version": __version__,
    }


def _params(config: Config) -> dict[str, Any]:
    """The choices by the words that were typed for them, and every hyper-parameter below them."""
    plain = config.plain()
    params: dict[str, Any] = {
        group: plain[group]["name"] for group in ("framework", "dataset", "model", "training", "hardware")
    }
    params |= {key: plain[key] for key in ("seed", "budget", "tuning")}
    params["framework.version"] = config.framework.version
    params |= _flat("framework.options", config.settings.options)
    params |= _flat("framework.environment", config.settings.environment)
    params |= _flat("training", {key: value for key, value in plain["training"].items() if key != "name"})
    params |= _flat("hardware", {"device": config.hardware.device, "threads": config.threads})
    params |= _flat("machine", machine.describe())
    return params


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(f"{prefix}.{key}", value)
        else:
            flat[f"{prefix}.{key}"] = json.dumps(value) if isinstance(value, (list, dict)) else value
    return flat


def _note(config: Config, results: dict[str, float]) -> str:
    share = "" if config.budget == 1 else f" A budget of {config.budget:g}: not the full training."
    return (
        f"**{results['accuracy_percent']:.2f} %** after {results['training_time_s']:.1f} s of training; "
        f"tested in {results['testing_time_s']:.2f} s.{share}"
    )


def _slices(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
