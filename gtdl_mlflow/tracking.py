"""One MLflow run: what was asked, what happened, how it ended. No call to the tracker while a worker's clock runs."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

# Before MLflow's import, which sets its loggers up: the one line a run prints must not drown in migrations.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
import mlflow.pyfunc
import numpy as np
import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.models import ModelSignature
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from . import __version__, machine
from .config import Config
from .datasets import Prepared
from .environments import Environment
from .worker.events import Described, Event, Metrics

logging.getLogger("alembic").setLevel(logging.WARNING)

PARENT_VARIABLE = "GTDL_PARENT_RUN_ID"
"""Environment variable that tells the jobs of a sweep, in whatever process, whose children they are."""

BATCH = 100
"""Params or tags in one request, MLflow's limit; of metrics it takes ten times as many."""


class TrackingFailed(Exception):
    """The tracker cannot be reached or refuses; the message says where what was measured is kept."""


class Run:
    """A context: entered RUNNING; left FINISHED, FAILED with the reason, or KILLED, with all that was reported."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._client = MlflowClient(config.tracking.uri)
        self._metrics: list[Metric] = []
        self._facts: dict[str, Any] = {}
        self._sampler = Sampler(config.tracking.system_metrics_interval_s)
        self._started = time.monotonic()
        self._environment: Environment | None = None

    def __enter__(self) -> Run:
        config = self._config
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
        self._log(tags={"gtdl.data_digest": data.digest, "gtdl.environment": environment.key})
        self._client.log_inputs(self.run_id, [_dataset_input(self._config, data)])
        self._sampler.start()

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

    def log_model(self, folder: Path) -> None:
        """The worker's saved model, as a pyfunc model that loads in the framework's environment."""
        assert self._environment is not None
        with TemporaryDirectory() as staging:
            save_pyfunc(Path(staging) / "model", folder, self._config, self._environment, str(self._facts["numpy"]))
            self._client.log_artifacts(self.run_id, str(Path(staging) / "model"), "model")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics += self._sampler.stop()
        tags = {f"gtdl.{key}": str(self._facts[key]) for key in ("framework_version", "device") if key in self._facts}
        if "weights_sha256" in self._facts:
            tags["gtdl.weights_sha256"] = self._facts["weights_sha256"]
        if kind is None:
            status = "FINISHED"
            self._metrics.append(Metric("wall_time_s", time.monotonic() - self._started, round(time.time() * 1000), 0))
            tags |= {"gtdl.quality": quality(self._metrics, self._config.dataset.classes)}
            tags[MLFLOW_RUN_NOTE] = _note(self._config, self.results)
        else:
            status = "FAILED" if issubclass(kind, Exception) else "KILLED"
            reason = str(error) if issubclass(kind, Exception) else "stopped by the user"
            tags |= {"gtdl.failure": reason[:5000], MLFLOW_RUN_NOTE: f"{status}: {reason}"[:5000]}
        facts = {f"worker.{key}": value for key, value in self._facts.items()}
        self._log(params=facts, tags=tags, metrics=self._metrics)
        for path in sorted(self._folder.glob("*")):
            if path.name in ("config.yaml", "environment.txt", "events.jsonl", "worker.log", "job.json"):
                self._client.log_artifact(self.run_id, str(path))
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


class Sampler:
    """MLflow's own system metrics, kept until the run is over: its monitor asks the tracker at every sample."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._metrics: list[Metric] = []
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._interval_s:
            self._thread = threading.Thread(target=self._sample, name="system metrics", daemon=True)
            self._thread.start()

    def stop(self) -> list[Metric]:
        """The samples; a last one is taken now, so that the shortest run has one."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._metrics

    def _sample(self) -> None:
        # Made here: they count from their construction on.
        monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        monitors[0].collect_metrics()  # psutil's first answer is always 0 %
        monitors[0].clear_metrics()
        step, stopped = 0, False
        while not stopped:
            stopped = self._stopped.wait(self._interval_s)
            at = round(time.time() * 1000)
            for monitor in monitors:
                monitor.collect_metrics()
                values = monitor.aggregate_metrics()
                monitor.clear_metrics()
                self._metrics += [Metric(f"system/{key}", value, at, step) for key, value in values.items()]
            step += 1


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


def save_pyfunc(path: Path, data: Path, config: Config, environment: Environment, numpy_version: str) -> None:
    """Write an MLflow model whose environment is the framework's own, though this process lacks the framework."""
    requirements = environment.requirements or [f"numpy=={numpy_version}"]
    classes, shape = config.dataset.classes, config.dataset.image_shape
    with TemporaryDirectory() as staging:
        # The worker's half of the package is all that the model needs.
        package = Path(staging) / "gtdl_mlflow"
        here = Path(__file__).parent
        shutil.copytree(here / "worker", package / "worker", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(here / "__init__.py", package)
        mlflow.pyfunc.save_model(
            path,
            loader_module="gtdl_mlflow.worker.model",
            data_path=str(data),
            code_paths=[str(package)],
            # A local version (+cpu) is known to this machine only.
            pip_requirements=[re.sub(r"\+[\w.]+", "", requirement) for requirement in requirements],
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))]),
                Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]),
            ),
            input_example=np.zeros((1, *shape), np.uint8),
        )
    # MLflow writes down this process's Python; the model wants its framework's.
    environment_file = path / "python_env.yaml"
    described = yaml.safe_load(environment_file.read_text())
    environment_file.write_text(yaml.safe_dump({**described, "python": environment.python_version}))


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
