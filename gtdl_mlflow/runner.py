"""One run: environment, data, device lock, execution mode, worker and recording."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from . import datasets, environments, modes
from .config import Config, ConfigError, check, describe
from .config.job import create_job
from .console import info
from .datasets import PreparedDataset
from .environments import Environment
from .files import translated_errors
from .hardware import device_lock, host, peak
from .progress import ProgressLine
from .tracking.identity import checkpoint_folder, identity
from .tracking.recorder import Recorder, SweepPosition
from .worker.job import Precision
from .worker_process import WorkerFailed, WorkerProcess, environment_variables


@dataclass(frozen=True)
class Outcome:
    """A finished run: where it is tracked, and the last value of every metric."""

    run_id: str
    view_hint: str
    """The command or the address that shows the run."""
    metrics: dict[str, float]
    undelivered: str = ""
    """Why MLflow does not have the whole run; empty if it does."""


@translated_errors()
def run(config: Config, folder: Path, position: SweepPosition | None = None) -> Outcome:
    """Train and test one network in one framework and record it in MLflow. The run's files go to ``folder``.

    Raises:
        Failure: the run cannot start or has failed; the MLflow run is FAILED, with the reason.
    """
    with (
        _started_early(config, folder) as early,
        Recorder(config, folder, position) as recorder,
        translated_errors(),  # within the recorder, which records the reason
        device_lock.hold(config.hardware) as waited_s,
        ExitStack() as stack,  # the worker ends before the device is released
        recorder.measuring(waited_s),
        ProgressLine(describe(config)) as progress,
    ):
        check(config)  # a sweep may combine values that are valid one by one only
        if config.precision is Precision.bfloat16 and config.hardware.device == "cpu" and not host.has_bfloat16():
            info("precision=bfloat16: this processor has no instructions for it, so it is slower than float32")
        data = datasets.prepare(config.dataset)
        environment = environments.ensure(config.framework, config.hardware.device)
        # The peak is that of float32, which other precisions can exceed.
        in_float32 = config.precision is Precision.float32
        machine_peak = peak.get_or_measure(config.hardware, config.threads) if in_float32 else None
        config, choice = modes.choose(config, environment, data, folder)
        worker = stack.enter_context(early.get(config.mode) or _worker(config, environment, folder))
        pid = worker.start(environment.python)
        recorder.record_inputs(environment, data, machine_peak)
        recorder.record_mode(choice.name, choice.text, config.execution)
        job = create_job(config, data.folder, folder, data.sha256, environment.compile_cache)
        with _checkpoints(config, environment, data, recorder) as checkpoints:
            recorder.start_monitoring(pid)
            # An exception in the loop must stop the worker at once, not when the generator is garbage-collected.
            with closing(worker.run(replace(job, checkpoints=checkpoints), config.limits.run_timeout_s)) as events:
                for event in events:
                    recorder.add(event)
                    progress.show(event)
        if config.tracking.model and Path(job.folder).is_dir():  # the worker could save it
            recorder.log_model(Path(job.folder))
        shutil.rmtree(job.folder, ignore_errors=True)
    return Outcome(recorder.record.reference, recorder.view_hint, recorder.results, recorder.undelivered)


@contextmanager
def _started_early(config: Config, folder: Path) -> Iterator[dict[str, WorkerProcess]]:
    """Start the worker's interpreter while MLflow creates the run. Yield the worker, by its execution mode.

    The worker waits for its job without using the CPU. The dictionary is empty if the environment does not exist or the
    mode is not known yet.
    """
    started = {}
    with ExitStack() as stack:
        with suppress(OSError, WorkerFailed, ConfigError):  # run() fails in the same way and records the reason
            environment = environments.find(config.framework, config.hardware.device)
            if environment and (known := modes.recall(config, environment)):
                worker = stack.enter_context(_worker(known, environment, folder))
                worker.start(environment.python)
                started[known.mode] = worker
        yield started


def _worker(config: Config, environment: Environment, folder: Path) -> WorkerProcess:
    return WorkerProcess(folder, config.threads, environment_variables(config.execution, environment.compile_cache))


@contextmanager
def _checkpoints(config: Config, environment: Environment, data: PreparedDataset, recorder: Recorder) -> Iterator[str]:
    """Hold the folder of the worker's checkpoints and yield it; empty if the worker writes none."""
    if not config.training.checkpoint_every_s:
        yield ""
        return
    owner = config.framework.name, recorder.record.reference, config.tracking.uri
    with checkpoint_folder(identity(config, environment, data), *owner) as (folder, interrupted):
        if interrupted is not None:
            recorder.resume_from(interrupted)
        yield "" if folder is None else str(folder)
