"""One run, top to bottom."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow.entities import Run

from . import datasets, devices, environments, peaks, resuming, sweeps, tracking
from .config import Config, ConfigError, check
from .datasets import Prepared
from .delivery import TrackingFailed
from .environments import Environment
from .launch import Worker, WorkerFailed
from .pip_settings import SettingsUnreadable
from .progress import ProgressLine
from .worker.job import Job

FAILURES = (ConfigError, WorkerFailed, environments.EnvironmentFailed, datasets.DatasetError, TrackingFailed)
"""What can go wrong with a run that was asked for rightly: it is then a FAILED run, if the tracker can be told."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: where it is tracked, and the last value of every metric."""

    run_id: str
    where: str
    """What to type or open to look at it."""
    metrics: dict[str, float]
    undelivered: str = ""
    """Why the tracker has not heard all of it; empty if it has."""


def run(config: Config, folder: Path, place: sweeps.Place | None = None) -> Outcome:
    """Train and test one network in one framework, tracked in MLflow; files of the run go to ``folder``.

    Raises:
        Exception: one of ``FAILURES``; the MLflow run is FAILED, with the reason.
    """
    with (
        devices.held(config.hardware) as waited_s,
        _early(config, folder) as worker,
        tracking.Run(config, folder, place, waited_s) as tracked,
        ProgressLine(label(config)) as line,
    ):
        check(config)  # a combination in a sweep may be impossible though each of its values is not
        data = datasets.prepare(config.dataset)
        environment = environments.ensure(config.framework, config.hardware.device)
        peak = peaks.peak(config.hardware, config.threads)
        number = worker.start(environment.python)
        tracked.uses(environment, data, peak)
        job = job_of(config, data.folder, folder)
        with _checkpoints(config, environment, data, tracked) as checkpoints:
            job = replace(job, checkpoints=checkpoints)
            tracked.starts(number)
            # Closed at once if anything is raised in here, and the worker with it; not when the generator is collected.
            with closing(worker.work(job, config.limits.run_timeout_s)) as events:
                for event in events:
                    tracked.add(event)
                    line.show(event)
        if config.tracking.model:
            tracked.log_model(Path(job.folder))
        shutil.rmtree(job.folder)
    return Outcome(tracked.record.reference, tracked.where, tracked.results, tracked.undelivered)


def done_already(config: Config, place: sweeps.Place) -> Run | None:
    """The run that makes this cell of a sweep needless; None where it is to be run, or where that cannot be told."""
    try:
        candidates = sweeps.earlier(config, place)
        if not candidates:
            return None
        check(config)
        data = datasets.prepare(config.dataset)
        same = resuming.identity(config, environments.ensure(config.framework, config.hardware.device), data)
        done = next((run for run in candidates if same.fits(run.data.tags)), None)
        if done is not None:
            sweeps.adopt(config, place, done)
        return done
    except FAILURES:
        return None  # the run itself will meet it, and keep the reason


def _early(config: Config, folder: Path) -> Worker:
    """The run's worker, whose interpreter gets ready while MLflow hears of the run, if its environment is there."""
    worker = Worker(folder, config.threads, config.settings.environment)
    with suppress(OSError, SettingsUnreadable, WorkerFailed):  # the run itself will meet it, and keep the reason
        if there := environments.ready(config.framework, config.hardware.device):
            worker.start(there.python)
    return worker


@contextmanager
def _checkpoints(config: Config, environment: Environment, data: Prepared, tracked: tracking.Run) -> Iterator[str]:
    """Where the worker finds and leaves its checkpoints; empty where there shall be none."""
    if not config.training.checkpoint_every:
        yield ""
        return
    same = resuming.identity(config, environment, data)
    who = config.framework.name, tracked.record.reference, config.tracking.uri
    with resuming.checkpoints(same, *who) as (folder, interrupted):
        if interrupted is not None:
            tracked.resumes(interrupted)
        yield "" if folder is None else str(folder)


def job_of(config: Config, data: Path, folder: Path) -> Job:
    """What the worker is asked to do."""
    return Job(
        adapter=config.framework.adapter,
        options=config.settings.options,
        layers=config.model.layers,
        image_shape=config.dataset.image_shape,
        classes=config.dataset.classes,
        data=str(data),
        training=config.training,
        budget=config.budget,
        seed=config.seed,
        device=config.hardware.device,
        threads=config.threads,
        cores=config.hardware.cores,
        folder=str(folder / "model"),
        parity=config.parity,
        latency=config.latency,
    )


def label(config: Config) -> str:
    """The run in a few words, for a person."""
    share = "" if config.budget == 1 else f" ({config.budget:.0%} of it)"
    return (
        f"{config.framework.name} {config.framework.version}, {config.training.name}{share}, on {config.dataset.name}"
    )
