"""Runs of a tracking store as the report uses them: the conditions of each run and its metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from .. import config, tags
from ..config import display
from ..tracking import store

SQLITE = "sqlite:///"

WORKER = "worker."
"""Prefix of the params that the worker reports."""

OWN = "each under its own default"
"""Setting of a comparison in which every framework has its own default."""


class NothingFound(Exception):
    """There is no run to report on; the message is one line."""


@dataclass(frozen=True)
class CellKey:
    """Conditions that the runs of one cell have in common."""

    dataset: str
    framework: str
    setting: str
    """``MODEL`` where model and training belong to one default, else ``MODEL + TRAINING``; marked if it was changed."""
    version: str
    device: str
    threads: str
    budget: float
    tuning: str
    machine: str
    side_by_side: bool = False
    """Whether other runs were allowed on other cores at the same time."""

    @property
    def label(self) -> str:
        """Label and version of the framework, without the suffix of a build such as ``+cpu``."""
        return f"{display.label(self.framework)} {self.version.partition('+')[0]}"

    @property
    def is_default(self) -> bool:
        """Whether the setting is the framework's own default for this kind of data, GTDLBench's baseline."""
        return self.setting == f"{self.framework}_{config.family(self.dataset)}"

    @property
    def settings(self) -> list[str]:
        """Settings to compare the cell under: its own and, if that is the framework's default, ``OWN``."""
        return [self.setting, OWN] if self.is_default else [self.setting]

    @property
    def hardware(self) -> str:
        """Device and threads, without the machine."""
        if self.device == "gpu":
            return self.device
        threads = f"{self.threads} {'thread' if self.threads == '1' else 'threads'}"
        return f"{self.device}, {threads}{', other runs side by side' if self.side_by_side else ''}"


@dataclass(frozen=True)
class BenchmarkRun:
    """One run of the tracking store."""

    run_id: str
    experiment_id: str
    key: CellKey
    seed: int
    status: str
    reason: str
    """Why the run did not finish; empty if it did."""
    unavailable: bool
    quality: str
    """``ok``, or the rule of the quality gate that the run failed."""
    started_ms: int
    metrics: dict[str, float]
    tags: dict[str, str]
    reported: dict[str, str]
    """Params that the worker reported: device, threads, precision, build."""

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED" and "accuracy_percent" in self.metrics

    @property
    def resumed(self) -> bool:
        return tags.RESUMED in self.tags


def load(uri: str, experiments: Iterable[str], condition: str = "") -> list[BenchmarkRun]:
    """Return the runs of some experiments in the tracking store at ``uri`` that meet MLflow's search ``condition``.

    Raises:
        NothingFound: an experiment does not exist.
    """
    client, identifiers = connect(uri), []
    for name in experiments:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise NothingFound(f"experiment {name}: not found in this tracking store")
        identifiers.append(experiment.experiment_id)
    every = (run for identifier in identifiers for run in store.search_runs(client, identifier, condition))
    return [to_benchmark_run(run) for run in every if tags.FRAMEWORK in run.data.tags]


def connect(uri: str) -> MlflowClient:
    """Return a client of an existing store. MLflow would create a missing SQLite file, with nothing in it.

    Raises:
        NothingFound: the SQLite file does not exist.
    """
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        raise NothingFound(f"{uri}: no such file; run the command in the folder of mlflow.db, or give --tracking-uri")
    return store.connect(uri)


def to_benchmark_run(run: Run) -> BenchmarkRun:
    """Convert a run of MLflow, which must have this project's tags and params."""
    run_tags = run.data.tags
    params = {key.removeprefix(WORKER): value for key, value in run.data.params.items() if key.startswith(WORKER)}
    return BenchmarkRun(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        key=_key(run),
        seed=int(run_tags.get(tags.SEED, 0)),
        status=run.info.status,
        reason=run_tags.get(tags.FAILURE) or run_tags.get(tags.UNAVAILABLE, ""),
        unavailable=tags.UNAVAILABLE in run_tags,
        quality=run_tags.get(tags.QUALITY, ""),
        started_ms=run.info.start_time,
        metrics=dict(run.data.metrics),
        tags=dict(run_tags),
        reported=params,
    )


@dataclass(frozen=True)
class LearningCurve:
    """Test accuracy of a run at each evaluation and at its end."""

    iterations: tuple[float, ...]
    seconds: tuple[float, ...]
    """Training time so far."""
    accuracy: tuple[float, ...]


def learning_curve(run: BenchmarkRun, client: MlflowClient) -> LearningCurve:
    """Read the evaluations of a finished run."""
    accuracies = {point.step: point.value for point in client.get_metric_history(run.run_id, "eval/accuracy_percent")}
    times = {point.step: point.value for point in client.get_metric_history(run.run_id, "train/elapsed_s")}
    points = [(float(step), times[step], accuracies[step]) for step in sorted(accuracies) if step in times]
    end = run.metrics.get("train/iterations", math.nan)
    if end > (points[-1][0] if points else 0):
        points.append((end, run.metrics["training_time_s"], run.metrics["accuracy_percent"]))
    iterations, seconds, accuracy = ([point[index] for point in points] for index in range(3))
    return LearningCurve(tuple(iterations), tuple(seconds), tuple(accuracy))


CELL_TAGS = (tags.FRAMEWORK, tags.DATASET, tags.MODEL, tags.TRAINING, tags.HARDWARE, tags.BUDGET, tags.TUNING)
"""Tags that hold the overrides of a run whose setting is unchanged."""


def _key(run: Run) -> CellKey:
    run_tags, params = run.data.tags, run.data.params
    model, training = run_tags[tags.MODEL], run_tags[tags.TRAINING]
    setting = model if model == training else f"{model} + {training}"
    overrides = [f"{tag.removeprefix('gtdl.')}={run_tags[tag]}" for tag in CELL_TAGS]
    overrides.append(f"framework.version={params['framework.version']}")
    # Other cores change no setting. Params hold the number of threads that was used, not the one that was requested, so
    # that both are tried.
    cores = [
        f"hardware.{key}={params[f'hardware.{key}']}"
        for key in ("cores", "side_by_side")
        if params.get(f"hardware.{key}", "None") not in ("None", "False")
    ]
    threads = f"hardware.threads={params['hardware.threads']}"
    candidates = (overrides, [*overrides, *cores], [*overrides, *cores, threads])
    if not any(run_tags.get(tags.CELL) == _cell_hash(tuple(each)) for each in candidates):
        setting += f" (changed, {run_tags.get(tags.CELL, 'unknown')[:4]})"
    return CellKey(
        dataset=run_tags[tags.DATASET],
        framework=run_tags[tags.FRAMEWORK],
        setting=setting,
        version=run_tags[tags.FRAMEWORK_VERSION],
        device=run_tags[tags.DEVICE],
        threads=params["hardware.threads"],
        budget=float(run_tags[tags.BUDGET]),
        tuning=run_tags[tags.TUNING],
        machine=run_tags[tags.MACHINE],
        side_by_side=tags.SIDE_BY_SIDE in run_tags,
    )


PARTS = (("framework",), ("dataset",), ("model", "training"), ("hardware", "budget", "tuning"))
"""Parts of a configuration that are independent of each other."""


@cache
def _cell_hash(overrides: tuple[str, ...]) -> str:
    """Return the cell of some overrides by today's ``conf/``; empty if they are no longer valid.

    Each part is composed alone: a large store has few different parts, and Hydra takes 0.1 s to compose.
    """
    values: dict[str, Any] = {}
    try:
        for part in PARTS:
            chosen = tuple(each for each in overrides if re.split("[.=]", each)[0] in part)
            values |= {name: getattr(_compose(chosen), name) for name in part}
    except config.ConfigError:
        return ""
    return config.Config(**values).cell()


@cache
def _compose(overrides: tuple[str, ...]) -> config.Config:
    return config.compose_unchecked(list(overrides))
