"""The worker's job for a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..worker.job import Job
from .schema import Config


def create_job(config: Config, data: Path, folder: Path, data_sha256: Mapping[str, str] | None = None) -> Job:
    """Return the job of a run.

    ``data`` is the folder of the prepared data set, of whose files the worker checks ``data_sha256``. The trained model
    goes to ``folder / "model"``.
    """
    return Job(
        adapter=config.framework.adapter,
        options=config.speed_settings.options,
        layers=config.model.layers,
        image_shape=config.dataset.image_shape,
        classes=config.dataset.classes,
        data=str(data),
        data_sha256=dict(data_sha256 or {}),
        training=config.training,
        budget=config.budget,
        seed=config.seed,
        device=config.hardware.device,
        threads=config.threads,
        cores=config.hardware.cores,
        folder=str(folder / "model"),
        mean_per_class=config.dataset.mean_per_class,
        parity=config.parity,
        latency=config.latency,
    )
