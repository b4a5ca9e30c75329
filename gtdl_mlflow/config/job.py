"""The worker's job for a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..worker.job import Job
from .schema import DEFAULT, Config


def create_job(
    config: Config,
    data: Path,
    folder: Path,
    data_sha256: Mapping[str, str] | None = None,
    compile_cache: Path | None = None,
) -> Job:
    """Return the job of a run.

    Args:
        config: a configuration with one execution mode.
        data: folder of the prepared data set.
        folder: folder whose subfolder ``model`` gets the trained model.
        data_sha256: SHA-256 of the files in ``data``, which the worker checks.
        compile_cache: folder of compiled code, for a mode that compiles.

    Raises:
        ValueError: ``mode=best`` leaves the choice between several modes.
    """
    mode, default = config.execution, replace(config, mode=DEFAULT).execution
    return Job(
        adapter=config.framework.adapter,
        options=mode.options,
        saved_options=default.options,
        saved_environment={
            name: value
            for name, value in default.environment.items()
            if "{" not in value  # folders of this machine
        }
        | default.model_environment,
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
        precision=config.precision,
        deterministic=config.deterministic,
        compile_cache=str(compile_cache) if compile_cache and mode.compiles else "",
    )
