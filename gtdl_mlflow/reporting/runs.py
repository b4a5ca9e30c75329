"""Runs of a tracking store as the report uses them: the conditions of each run and its metrics.

Anybody who can write to the store can write anything into a run. What identifies a run is checked here, and a run that
does not pass is skipped and listed. All other text from the store is data: it is escaped where it is written.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import multiprocessing
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, Protocol

from mlflow.entities import LifecycleStage, Metric, Run
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from .. import config, tags
from ..config import display
from ..console import Failure
from ..metrics import HEADLINE
from ..tracking import store
from ..worker.job import Precision
from .formats import count, shorten

SQLITE = "sqlite:///"

WORKER = "worker."
"""Prefix of the params that the worker reports."""

OWN = "each under its own default"
"""Setting of a comparison in which every framework has its own default."""

PAGES_OF_ONE_PROCESS = 4
"""A second process starts if the search has more pages: it takes as long to start as to read two."""

PAIRED = "paired/"
"""Prefix of the metrics of a paired measurement."""

LONGEST = 500
"""Largest number of characters of a tag that identifies a run. A machine's name with eight GPUs has 300."""

REASONS = 3
"""Largest number of reasons in the line about skipped runs."""


class NothingFound(Failure):
    """There is no run to report on; the message is one line."""


class MalformedRun(Exception):
    """A run lacks a tag, a param or a metric, or has a wrong value; the message is one line."""


@dataclass(frozen=True)
class SkippedRun:
    """A run that is incomplete or malformed, so that nothing can be concluded from it."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class LoadedRuns:
    """Runs of this project in some experiments."""

    runs: list[BenchmarkRun]
    skipped: list[SkippedRun]
    paired: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Metrics of paired measurements, without their prefix, by the ID of the sweep's parent run."""
    sweep_ids: dict[str, str] = dataclasses.field(default_factory=dict)
    """Tag ``gtdl.sweep_id`` of these parent runs. Its runs may have become children of a later start of the sweep."""

    @property
    def remarks(self) -> list[str]:
        """One line with the number of skipped runs and the reasons, the most frequent first; empty without any."""
        if not self.skipped:
            return []
        by_reason: dict[str, list[str]] = defaultdict(list)
        for run in self.skipped:
            by_reason[run.reason].append(run.run_id)
        parts = [
            f"{reason} ({f'run {ids[0]}' if len(ids) == 1 else f'{len(ids)} runs'})"
            for reason, ids in sorted(by_reason.items(), key=lambda item: -len(item[1]))
        ]
        if more := len(parts) - REASONS:
            parts[REASONS:] = [count(more, "other reason")] if more > 0 else []
        return [f"{count(len(self.skipped), 'incomplete or malformed run')} skipped: {'; '.join(parts)}"]


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
    machine: str
    mode: str = config.BEST
    """Execution mode as it was requested: ``best``, ``default`` or a name."""
    precision: str = Precision.float32.value
    deterministic: bool = True
    side_by_side: bool = False
    """Whether other runs were allowed on other cores at the same time."""

    @property
    def label(self) -> str:
        """Label and version of the framework, without the suffix of a build such as ``+cpu``, and the variant of its
        execution if that is not the default: ``PyTorch 2.13.0 eager bfloat16``."""
        variant = display.variant(*self.execution)
        return f"{display.label(self.framework)} {self.version.partition('+')[0]}{variant}"

    @property
    def execution(self) -> tuple[str, str, bool]:
        """The requested mode, the precision and whether the run is deterministic."""
        return self.mode, self.precision, self.deterministic

    @property
    def is_default(self) -> bool:
        """Whether the setting is the framework's own default for this kind of data, GTDLBench's baseline."""
        return _is_default(self.dataset, self.framework, self.setting)

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
    requested_version: str
    """Version of the framework that was requested, as in ``framework.version=``."""

    @property
    def mode(self) -> str:
        """Execution mode of the run, and the request if it names no mode: ``compiled (best)``; empty if unknown."""
        used, requested = self.tags.get(tags.MODE, ""), self.key.mode
        return used if used in ("", requested) else f"{used} ({requested})"

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED"

    @property
    def running(self) -> bool:
        """Whether the run has not ended, according to the store."""
        return self.status in ("RUNNING", "SCHEDULED")

    @property
    def state(self) -> str:
        """``finished``, ``running``, ``failed``, ``killed`` or ``unavailable``."""
        return "unavailable" if self.unavailable else "running" if self.running else self.status.lower()

    @property
    def resumed(self) -> bool:
        return tags.RESUMED in self.tags

    @property
    def parent_id(self) -> str:
        """ID of the parent run; empty if the run belongs to no sweep."""
        return self.tags.get(MLFLOW_PARENT_RUN_ID, "")


def load(uri: str, experiments: Iterable[str], condition: str = "") -> LoadedRuns:
    """Return the runs of some experiments in the tracking store at ``uri`` that meet MLflow's search ``condition``.

    Raises:
        NothingFound: an experiment does not exist or was deleted.
    """
    client = connect(uri)
    return _read_from_both_ends(client, uri, active_experiments(client, experiments), condition)


def active_experiments(client: MlflowClient, names: Iterable[str]) -> list[str]:
    """Return the IDs of experiments by their names.

    Raises:
        NothingFound: an experiment does not exist or was deleted.
    """
    identifiers = []
    for name in dict.fromkeys(names):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise NothingFound(f"experiment {name}: not found in this tracking store")
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            command = f"mlflow experiments restore -x {experiment.experiment_id}"
            raise NothingFound(f"experiment {name}: was deleted; `{command}` restores it")
        identifiers.append(experiment.experiment_id)
    return identifiers


class Page(NamedTuple):
    """Runs of one search request, and the IDs of all of them, including those that are not of this project."""

    ids: set[str]
    loaded: LoadedRuns


def _pages(client: MlflowClient, experiments: list[str], condition: str, order: str) -> Iterator[Page]:
    """Yield pages from one end of the search; the runs of a page are always the newest first."""
    for runs in store.search_pages(client, experiments, condition, order):
        yield Page({run.info.run_id for run in runs}, read(runs if order == "DESC" else reversed(runs)))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Delay Python's garbage collector. It takes two thirds of the time in which MLflow creates runs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_garbage_collection()
def _read_from_both_ends(client: MlflowClient, uri: str, experiments: list[str], condition: str) -> LoadedRuns:
    """Read the runs of a store, the newest first, and let a second process read a large store from the other end.

    MLflow creates an object for every param, tag and metric, which takes most of the time of a report.
    """
    newest: list[Page] = []
    oldest: list[Page] = []
    with ExitStack() as stack:
        receiver: Connection | None = None
        for page in _pages(client, experiments, condition, "DESC"):
            newest.append(page)
            if len(newest) == PAGES_OF_ONE_PROCESS:
                receiver = stack.enter_context(_second_process(uri, experiments, condition))
            while receiver and receiver.poll():
                try:
                    oldest.append(receiver.recv())
                except (EOFError, OSError):  # it failed: this process reads all
                    receiver = None
            if _ids(newest) & _ids(oldest):
                break
    return _merge([*newest, *reversed(oldest)])


def _ids(pages: Iterable[Page]) -> set[str]:
    return {run_id for page in pages for run_id in page.ids}


@contextmanager
def _second_process(uri: str, experiments: list[str], condition: str) -> Iterator[Connection]:
    """Read the runs from the oldest to the newest in another process, and yield the connection that receives them."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    program = f"from {__name__} import send_oldest; send_oldest({sender.fileno()})"
    # Not a process of multiprocessing: a fork would share the database's connection, a spawn runs the user's script.
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[sender.fileno()],
        start_new_session=True,  # an interrupt reaches this process only
    )
    sender.close()
    try:
        assert process.stdin
        with suppress(BrokenPipeError), process.stdin:  # not in the list of processes: an address may have a password
            process.stdin.write(json.dumps([uri, experiments, condition]).encode())
        yield receiver
    finally:
        receiver.close()
        process.kill()
        process.wait()


@_without_garbage_collection()
def send_oldest(descriptor: int) -> None:
    """Send the runs of the search on standard input to a descriptor, the oldest first, in a process of its own."""
    uri, experiments, condition = json.load(sys.stdin)
    sender = Connection(descriptor, readable=False)
    for page in _pages(connect(uri), experiments, condition, "ASC"):
        sender.send(page)


def _merge(pages: Iterable[Page]) -> LoadedRuns:
    """Return every run once, in the order of the pages, whose ends may overlap."""
    runs: dict[str, BenchmarkRun] = {}
    skipped: dict[str, SkippedRun] = {}
    paired: dict[str, dict[str, float]] = {}
    sweep_ids: dict[str, str] = {}
    for _, loaded in pages:
        runs |= {run.run_id: run for run in loaded.runs if run.run_id not in runs}
        skipped |= {run.run_id: run for run in loaded.skipped}
        paired |= loaded.paired
        sweep_ids |= loaded.sweep_ids
    return LoadedRuns(list(runs.values()), list(skipped.values()), paired, sweep_ids)


def read(runs: Iterable[Run]) -> LoadedRuns:
    """Return those of MLflow's ``runs`` that this project created. Other runs are ignored.

    Raises:
        ConfigError: the user's folder ``GTDL_CONF`` has a fault.
    """
    if fault := config.check_own_conf():
        raise config.ConfigError(fault)
    if config.own_conf() is not None:
        for cached in (_known, _is_default, _works):
            cached.cache_clear()  # in a notebook, a file of the folder may have changed
    loaded = LoadedRuns([], [])
    for run in runs:
        if tags.FRAMEWORK not in run.data.tags:
            if tags.SWEEP in run.data.tags and (paired := _paired(run)):
                loaded.paired[run.info.run_id] = paired
                loaded.sweep_ids[run.info.run_id] = run.data.tags.get(tags.SWEEP_ID, "")
            continue
        try:
            loaded.runs.append(to_benchmark_run(run))
        except MalformedRun as error:
            status = "" if run.info.status == "FINISHED" else f" ({run.info.status})"
            loaded.skipped.append(SkippedRun(run.info.run_id, f"{error}{status}"))
    return loaded


def _paired(run: Run) -> dict[str, float]:
    values = {key: _number(value) for key, value in run.data.metrics.items() if key.startswith(PAIRED)}
    return {key.removeprefix(PAIRED): value for key, value in values.items() if value > 0}


def experiments_with_runs(uri: str) -> list[str]:
    """Return the names of the experiments that have runs of this project."""
    client = connect(uri)
    return [
        experiment.name
        for experiment in client.search_experiments()
        if client.search_runs([experiment.experiment_id], f"tags.`{tags.FRAMEWORK}` != ''", max_results=1)
    ]


def connect(uri: str) -> MlflowClient:
    """Return a client of an existing store. MLflow would create a missing SQLite file, with nothing in it.

    Raises:
        NothingFound: the SQLite file does not exist.
    """
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        raise NothingFound(f"{uri}: no such file; run the command in the folder of mlflow.db, or give --tracking-uri")
    return store.connect(uri)


def to_benchmark_run(run: Run) -> BenchmarkRun:
    """Convert a run of MLflow.

    Raises:
        MalformedRun: the run lacks a tag, a param or a metric of this project, or has a wrong value.
    """
    run_tags = run.data.tags
    metrics = {sys.intern(name): _number(value) for name, value in run.data.metrics.items()}
    if run.info.status == "FINISHED" and (missing := [name for name in HEADLINE if name not in metrics]):
        raise MalformedRun(f"no {' and no '.join(missing)}")
    return BenchmarkRun(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        key=_key(run),
        seed=_seed(run_tags),
        status=run.info.status,
        reason=run_tags.get(tags.FAILURE) or run_tags.get(tags.UNAVAILABLE, ""),
        unavailable=tags.UNAVAILABLE in run_tags,
        quality=run_tags.get(tags.QUALITY, ""),
        started_ms=run.info.start_time or 0,
        metrics=metrics,
        tags={sys.intern(name): sys.intern(value) for name, value in run_tags.items()},
        reported={key.removeprefix(WORKER): value for key, value in run.data.params.items() if key.startswith(WORKER)},
        requested_version=run.data.params.get("framework.version", ""),
    )


def _number(value: float) -> float:
    """Return a metric's value. MLflow stores infinity in a database as the largest number."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def _word(values: Mapping[str, str], name: str) -> str:
    """Return a tag that identifies the run, or raise MalformedRun if it could not be printed in one line."""
    value = values.get(name)
    if value is None:
        raise MalformedRun(f"no tag {name}")
    if not (0 < len(value) <= LONGEST and value.isprintable()):
        raise MalformedRun(f"{name}={shorten(value)}: expected 1 to {LONGEST} printable characters")
    return value


def _seed(run_tags: Mapping[str, str]) -> int:
    seed = _word(run_tags, tags.SEED)
    if not re.fullmatch(r"[0-9]{1,10}", seed, re.ASCII):
        raise MalformedRun(f"{tags.SEED}={shorten(seed)}: expected a number from 0 to 2**32 - 1")
    return int(seed)


def _budget(run_tags: Mapping[str, str]) -> float:
    budget = _word(run_tags, tags.BUDGET)
    try:
        value = float(budget)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise MalformedRun(f"{tags.BUDGET}={shorten(budget)}: expected a number above 0 and at most 1")
    return value


def _device(run_tags: Mapping[str, str]) -> str:
    device = _word(run_tags, tags.DEVICE)
    if device not in ("cpu", "gpu"):
        raise MalformedRun(f"{tags.DEVICE}={shorten(device)}: expected cpu or gpu")
    return device


def _threads(params: Mapping[str, str]) -> int:
    threads = params.get("hardware.threads")
    if threads is None:
        raise MalformedRun("no param hardware.threads")
    if not re.fullmatch(r"[1-9][0-9]{0,5}", threads, re.ASCII):
        raise MalformedRun(f"hardware.threads={shorten(threads)}: expected a number above 0")
    return int(threads)


@dataclass(frozen=True)
class LearningCurve:
    """Test accuracy of a run at each evaluation and at its end."""

    iterations: tuple[float, ...]
    seconds: tuple[float, ...]
    """Training time so far."""
    accuracy: tuple[float, ...]


CURVE = ("eval/accuracy_percent", "train/elapsed_s")
"""Metrics of which a learning curve has every value."""


class MetricHistories(Protocol):
    """Source of metric histories: an MLflow client, or result files."""

    @property
    def tracking_uri(self) -> str: ...

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]: ...


def learning_curve(run: BenchmarkRun, client: MetricHistories) -> LearningCurve:
    """Read the evaluations of a finished run."""
    points: list[tuple[float, float, float]] = []
    if all(name in run.metrics for name in CURVE):  # a request for each costs more than all the rest of a chart
        accuracies, times = (
            {point.step: _number(point.value) for point in client.get_metric_history(run.run_id, name)}
            for name in CURVE
        )
        points = [(float(step), times[step], accuracies[step]) for step in sorted(accuracies) if step in times]
    end = run.metrics.get("train/iterations", math.nan)
    if end > (points[-1][0] if points else 0):
        points.append((end, run.metrics["training_time_s"], run.metrics["accuracy_percent"]))
    points = [point for point in points if all(map(math.isfinite, point))]
    iterations, seconds, accuracy = ([point[index] for point in points] for index in range(3))
    return LearningCurve(tuple(iterations), tuple(seconds), tuple(accuracy))


CHOICES = {
    "framework": tags.FRAMEWORK,
    "dataset": tags.DATASET,
    "model": tags.MODEL,
    "training": tags.TRAINING,
    "hardware": tags.HARDWARE,
}
"""Config groups, and the tags that hold a run's choices. Each part of a configuration is independent of the others."""


def _key(run: Run) -> CellKey:
    run_tags = run.data.tags
    model, training = _word(run_tags, tags.MODEL), _word(run_tags, tags.TRAINING)
    setting = model if model == training else f"{model} + {training}"
    key = CellKey(
        dataset=_word(run_tags, tags.DATASET),
        framework=_word(run_tags, tags.FRAMEWORK),
        setting=setting,
        version=_word(run_tags, tags.FRAMEWORK_VERSION),
        device=_device(run_tags),
        threads=str(_threads(run.data.params)),
        budget=_budget(run_tags),
        machine=_word(run_tags, tags.MACHINE),
        mode=_requested_mode(run_tags),
        precision=_word(run_tags, tags.PRECISION) if tags.PRECISION in run_tags else Precision.float32.value,
        deterministic=run_tags.get(tags.DETERMINISTIC) != "false",
        side_by_side=tags.SIDE_BY_SIDE in run_tags,
    )
    if _is_unchanged(run_tags):
        return key
    # Frameworks with the same change are compared. Older runs have no hash of the work.
    work = run_tags.get(tags.WORK, run_tags.get(tags.CELL, "unknown"))[:4]
    return dataclasses.replace(key, setting=f"{setting} (changed, {work if work.isprintable() else '?'})")


def _requested_mode(run_tags: Mapping[str, str]) -> str:
    """Return the requested execution mode. Runs of older development versions have ``tuning`` instead."""
    if tags.MODE_REQUESTED not in run_tags and run_tags.get("gtdl.tuning") in ("plain", "best"):
        return config.DEFAULT if run_tags["gtdl.tuning"] == "plain" else config.BEST
    return _word(run_tags, tags.MODE_REQUESTED)


def _is_unchanged(run_tags: Mapping[str, str]) -> bool:
    """Return whether data set, network and training are as the current ``conf/`` defines them.

    Framework, hardware and budget do not count: what differs in a result is part of its key.
    """
    choices = tuple(run_tags.get(tag, "") for tag in CHOICES.values())
    known = all(choice in _known(group) for group, choice in zip(CHOICES, choices, strict=True))
    return known and run_tags.get(tags.WORK) in _works(choices)


@cache
def _known(group: str) -> frozenset[str]:
    return frozenset(config.choices(group))


@cache
def _is_default(dataset: str, framework: str, setting: str) -> bool:
    return dataset in _known("dataset") and setting == config.default_setting(framework, dataset)


@cache
def _works(choices: tuple[str, ...]) -> frozenset[str]:
    """Return the hashes of the work of these choices, with and without a parity check."""
    parts = {group: config.compose_part(group, choice) for group, choice in zip(CHOICES, choices, strict=True)}
    return frozenset(config.Config(**parts, parity=parity).work() for parity in (False, True))
