"""Runs as a report sees them: what was run under which conditions, and the figures."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from .. import config
from ..tags import FAILURE, UNAVAILABLE
from ..tracking import store

SQLITE = "sqlite:///"

WORKER = "worker."
"""What params begin with that the worker reported."""

OWN = "each under its own default"
"""The setting of frameworks that are compared each under its own."""


class NothingFound(Exception):
    """There is no run to report on; one line."""


@dataclass(frozen=True)
class CellKey:
    """What runs of one cell have in common."""

    dataset: str
    framework: str
    setting: str
    """``MODEL`` where model and training are of one default, else ``MODEL + TRAINING``; it says if anything in them was
    changed."""
    version: str
    device: str
    threads: str
    budget: float
    tuning: str
    machine: str
    side_by_side: bool = False
    """Whether others may have run on other cores at the same time."""

    @property
    def name(self) -> str:
        """Of the framework, with its version, without what says for which device it was built."""
        return f"{self.framework} {self.version.partition('+')[0]}"

    @property
    def is_default(self) -> bool:
        """Whether it is the framework's own default for this kind of data, GTDLBench's baseline."""
        return self.setting == f"{self.framework}_{config.family(self.dataset)}"

    @property
    def settings(self) -> list[str]:
        """What to compare it under: its setting and, where that is its own default, ``OWN``."""
        return [self.setting, OWN] if self.is_default else [self.setting]

    @property
    def place(self) -> str:
        """Where it ran, but for the machine."""
        if self.device == "gpu":
            return self.device
        threads = f"{self.threads} {'thread' if self.threads == '1' else 'threads'}"
        return f"{self.device}, {threads}{', others beside it' if self.side_by_side else ''}"


@dataclass(frozen=True)
class BenchmarkRun:
    """One run."""

    run_id: str
    experiment_id: str
    kind: CellKey
    seed: int
    status: str
    reason: str
    """Why it did not finish."""
    unavailable: bool
    quality: str
    started_ms: int
    metrics: dict[str, float]
    tags: dict[str, str]
    reported: dict[str, str]
    """What the worker said of itself: device, threads, precision, build."""

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED" and "accuracy_percent" in self.metrics


def load(uri: str, experiments: Iterable[str], condition: str = "") -> list[BenchmarkRun]:
    """The runs of some experiments in the tracking store at ``uri`` that meet MLflow's search ``condition``.

    Raises:
        NothingFound: an experiment does not exist.
    """
    client, identifiers = connect(uri), []
    for name in experiments:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise NothingFound(f"experiment {name}: there is none in this tracking store")
        identifiers.append(found.experiment_id)
    every = (run for identifier in identifiers for run in store.search_runs(client, identifier, condition))
    # MLflow makes some hundred objects a run. To look for cyclic garbage among them as often as Python does took two
    # thirds of the time to read 3,000 runs, and there are only 5 kB of it a run.
    with _uncollected():
        return [to_benchmark_run(run) for run in every if "gtdl.framework" in run.data.tags]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without a look for cyclic garbage."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def connect(uri: str) -> MlflowClient:
    """A client of a store that exists: MLflow makes an SQLite file that does not, and then there is nothing in it.

    Raises:
        NothingFound: it does not exist.
    """
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        raise NothingFound(f"{uri}: there is no such file; start in the folder of mlflow.db, or say --tracking-uri")
    return store.connect(uri)


def to_benchmark_run(run: Run) -> BenchmarkRun:
    tags = run.data.tags
    return BenchmarkRun(
        run.info.run_id, run.info.experiment_id, _kind(run), int(tags.get("gtdl.seed", 0)), run.info.status,
        tags.get(FAILURE) or tags.get(UNAVAILABLE, ""), UNAVAILABLE in tags, tags.get("gtdl.quality", ""),
        run.info.start_time, dict(run.data.metrics), dict(tags),
        {key.removeprefix(WORKER): value for key, value in run.data.params.items() if key.startswith(WORKER)},
    )  # fmt: skip


@dataclass(frozen=True)
class LearningCurve:
    """How accurate a run was, when."""

    iterations: tuple[float, ...]
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]


def learning_curve(run: BenchmarkRun, client: MlflowClient) -> LearningCurve:
    """Its looks at the test accuracy, and its end."""
    looks = {point.step: point.value for point in client.get_metric_history(run.run_id, "eval/accuracy_percent")}
    times = {point.step: point.value for point in client.get_metric_history(run.run_id, "train/elapsed_s")}
    points = [(float(step), times[step], looks[step]) for step in sorted(looks) if step in times]
    end = run.metrics.get("train/iterations", math.nan)
    if end > (points[-1][0] if points else 0):
        points.append((end, run.metrics["training_time_s"], run.metrics["accuracy_percent"]))
    iterations, seconds, accuracy = ([point[index] for point in points] for index in range(3))
    return LearningCurve(tuple(iterations), tuple(seconds), tuple(accuracy))


def _kind(run: Run) -> CellKey:
    tags, params = run.data.tags, run.data.params
    model, training = tags["gtdl.model"], tags["gtdl.training"]
    setting = model if model == training else f"{model} + {training}"
    overrides = [f"{key}={tags[f'gtdl.{key}']}" for key in ("framework", "dataset", "model", "training", "hardware",
                                                           "budget", "tuning")]  # fmt: skip
    overrides.append(f"framework.version={params['framework.version']}")
    # What moves a run to another place changes no setting; of threads, params have what was used, not what was asked.
    place = [f"hardware.{key}={params[f'hardware.{key}']}" for key in ("cores", "side_by_side")
             if params.get(f"hardware.{key}", "None") not in ("None", "False")]  # fmt: skip
    threads = f"hardware.threads={params['hardware.threads']}"
    meanings = (overrides, [*overrides, *place], [*overrides, *place, threads])
    if not any(tags.get("gtdl.cell") == _cell_of(tuple(words)) for words in meanings):  # one by one: each is composed
        setting += f" (changed, {tags.get('gtdl.cell', 'unknown')[:4]})"
    return CellKey(
        tags["gtdl.dataset"], tags["gtdl.framework"], setting, tags["gtdl.framework_version"], tags["gtdl.device"],
        params["hardware.threads"], float(tags["gtdl.budget"]), tags["gtdl.tuning"], tags["gtdl.machine"],
        "gtdl.side_by_side" in tags,
    )  # fmt: skip


PARTS = (("framework",), ("dataset",), ("model", "training"), ("hardware", "budget", "tuning"))
"""Of a configuration, that mean the same whatever the others are."""


@cache
def _cell_of(overrides: tuple[str, ...]) -> str:
    """The cell of what these words mean today, wherever they can be run; empty if they mean nothing any more.

    Part by part: of all that is combined in a large store there is little, and Hydra takes a tenth of a second each.
    """
    found: dict[str, Any] = {}
    try:
        for part in PARTS:
            words = tuple(word for word in overrides if re.split("[.=]", word)[0] in part)
            found |= {name: getattr(_meaning(words), name) for name in part}
    except config.ConfigError:
        return ""
    return config.Config(**found).cell()


@cache
def _meaning(overrides: tuple[str, ...]) -> config.Config:
    return config.compose_unchecked(list(overrides))
