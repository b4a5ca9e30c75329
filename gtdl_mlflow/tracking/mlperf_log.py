"""A run in MLPerf's log format, for the tools that read it, by MLPerf's own writer.

Written after the run from what it reported, so nothing of it is beside the clock.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlperf_logging.mllog import constants
from mlperf_logging.mllog.mllog import MLLogger

from .. import __version__
from ..config import Config

TIMES = ("training_time_s", "train/evaluation_s", "train/validation_s", "train/checkpoint_s")
"""What lies between the start and the end of training."""


def write(
    path: Path, config: Config, metrics: Sequence[Metric], facts: dict[str, Any], now_ms: int, success: bool
) -> None:
    """The whole log of a run that has ended, in the order of its times."""
    last = {metric.key: metric for metric in metrics}
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    logger = logging.Logger("mlperf", logging.INFO)
    logger.addHandler(handler)
    log = MLLogger(logger)
    try:
        stop_ms = last["training_time_s"].timestamp if "training_time_s" in last else now_ms
        start_ms = stop_ms - round(1000 * sum(last[name].value for name in TIMES if name in last))
        begin_ms = start_ms - round(
            1000 * sum(metric.value for key, metric in last.items() if key.startswith("setup/"))
        )
        log.start(constants.INIT_START, time_ms=begin_ms)
        for key, value in _description(config, facts).items():
            if value is not None:
                log.event(key, value, time_ms=begin_ms)
        log.end(constants.INIT_STOP, time_ms=start_ms)
        log.start(constants.RUN_START, time_ms=start_ms)
        epochs = {metric.step: metric.value for metric in metrics if metric.key == "train/epoch"}
        for metric in metrics:
            if metric.key == "eval/accuracy_percent":
                place = {constants.EPOCH_NUM: epochs.get(metric.step), "step_num": metric.step}
                log.event(constants.EVAL_ACCURACY, metric.value / 100, place, time_ms=metric.timestamp)
        status = {constants.STATUS: constants.SUCCESS if success else constants.ABORTED}
        log.end(constants.RUN_STOP, metadata=status, time_ms=stop_ms)
        if "accuracy_percent" in last:
            final = last["accuracy_percent"]
            log.event(constants.EVAL_ACCURACY, final.value / 100, time_ms=final.timestamp)
    finally:
        handler.close()


def _description(config: Config, facts: dict[str, Any]) -> dict[str, Any]:
    """MLPerf's keys where it has one, ours with a prefix of their own."""
    training = config.training
    return {
        constants.SUBMISSION_BENCHMARK: f"{config.dataset.name}_{config.model.name}",
        constants.SUBMISSION_DIVISION: constants.OPEN, constants.SUBMISSION_ORG: "gtdl_mlflow",
        constants.SUBMISSION_STATUS: "research", constants.SUBMISSION_PLATFORM: config.hardware.name,
        constants.SEED: config.seed, constants.GLOBAL_BATCH_SIZE: training.batch_size,
        constants.TRAIN_SAMPLES: facts.get("train_images"), constants.EVAL_SAMPLES: facts.get("test_images"),
        constants.OPT_NAME: training.optimizer.value, constants.OPT_BASE_LR: training.learning_rate,
        constants.OPT_WEIGHT_DECAY: training.weight_decay, "gtdl_framework": config.framework.name,
        "gtdl_framework_version": facts.get("framework_version"), "gtdl_budget": config.budget,
        "gtdl_version": __version__,
    }  # fmt: skip
