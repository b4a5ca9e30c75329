"""A run in MLPerf's log format, for the tools that read it, written by MLPerf's own library.

The log is written after the run, from its recorded metrics: nothing is written while a clock runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlperf_logging.mllog import constants
from mlperf_logging.mllog.mllog import MLLogger

from .. import __version__
from ..config import Config
from ..metrics import PHASES


class _Handler(logging.FileHandler):
    """A handler that raises its exceptions: ``logging`` prints their tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


def write(
    path: Path, config: Config, metrics: Sequence[Metric], metadata: Mapping[str, Any], now_ms: int, success: bool
) -> None:
    """Write the whole log of a run that has ended, in the order of its times.

    ``now_ms`` is the end of the training, in milliseconds since 1970, if the run has no ``training_time_s``.

    Raises:
        OSError: the file cannot be written.
    """
    last = {metric.key: metric for metric in metrics}
    handler = _Handler(path, mode="w", encoding="utf-8", errors="backslashreplace")
    logger = logging.Logger("mlperf", logging.INFO)
    logger.addHandler(handler)
    log = MLLogger(logger)
    try:
        stop_ms = last["training_time_s"].timestamp if "training_time_s" in last else now_ms
        start_ms = stop_ms - _phases_ms("train", last)
        init_ms = start_ms - _phases_ms("setup", last)
        log.start(constants.INIT_START, time_ms=init_ms)
        for key, value in _submission(config, metadata).items():
            if value is not None:
                log.event(key, value, time_ms=init_ms)
        log.end(constants.INIT_STOP, time_ms=start_ms)
        log.start(constants.RUN_START, time_ms=start_ms)
        epochs = {metric.step: metric.value for metric in metrics if metric.key == "train/epoch"}
        for metric in metrics:
            if metric.key == "eval/accuracy_percent":
                position = {constants.EPOCH_NUM: epochs.get(metric.step), "step_num": metric.step}
                log.event(constants.EVAL_ACCURACY, metric.value / 100, position, time_ms=metric.timestamp)
        status = {constants.STATUS: constants.SUCCESS if success else constants.ABORTED}
        log.end(constants.RUN_STOP, metadata=status, time_ms=stop_ms)
        if "accuracy_percent" in last:
            final = last["accuracy_percent"]
            log.event(constants.EVAL_ACCURACY, final.value / 100, time_ms=final.timestamp)
    finally:
        with suppress(OSError):  # the same failure again: the file's buffer is written
            handler.close()


def _phases_ms(group: str, last: Mapping[str, Metric]) -> int:
    """Return the milliseconds of the recorded phases of one group of metrics."""
    names = [phase.name for phase in PHASES if phase.group == group]
    return round(1000 * sum(last[name].value for name in names if name in last))


def _submission(config: Config, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the run under MLPerf's keys, and under keys with our prefix where it has none."""
    training = config.training
    return {
        constants.SUBMISSION_BENCHMARK: f"{config.dataset.name}_{config.model.name}",
        constants.SUBMISSION_DIVISION: constants.OPEN,
        constants.SUBMISSION_ORG: "gtdl_mlflow",
        constants.SUBMISSION_STATUS: "research",
        constants.SUBMISSION_PLATFORM: config.hardware.name,
        constants.SEED: config.seed,
        constants.GLOBAL_BATCH_SIZE: training.batch_size,
        constants.TRAIN_SAMPLES: metadata.get("train_images"),
        constants.EVAL_SAMPLES: metadata.get("test_images"),
        constants.OPT_NAME: training.optimizer.value,
        constants.OPT_BASE_LR: training.learning_rate,
        constants.OPT_WEIGHT_DECAY: training.weight_decay,
        "gtdl_framework": config.framework.name,
        "gtdl_framework_version": metadata.get("framework_version"),
        "gtdl_budget": config.budget,
        "gtdl_version": __version__,
    }
