"""Classify images with the model of a run, in its framework's own environment."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import Model

from . import config, environments
from .console import Failure
from .redaction import reveal
from .reporting.runs import NothingFound, connect
from .tracking.store import artifact_failure, no_progress_bars, translate_errors
from .worker_process import LOG_LINES, WORKER_MAIN, WorkerFailed, environment_variables, worker_environment


class ImagesRefused(Failure, ValueError):
    """Images that the model does not take."""


def read_images(path: Path) -> np.ndarray:
    """Return the array in a .npy file.

    Raises:
        ImagesRefused: the file cannot be read, or is no .npy file.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ImagesRefused(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ImagesRefused(f"{path}: not a .npy file of numbers; numpy.save writes one") from error


def predict(uri: str, run_id: str, images: np.ndarray) -> np.ndarray:
    """Return the class probabilities, float32 (N, classes), of images, uint8 (N, height, width, channels).

    The model runs on the CPU with this version's worker; the code that was logged with the model is not used. The
    framework's environment is created if it does not exist.

    Args:
        uri: address of the tracking store.
        run_id: ID of the MLflow run that trained the model.
        images: raw images, as the data set has them; the model preprocesses them.

    Raises:
        Failure: the images, the model, its framework's environment or the tracking store cannot be used.
    """
    with translate_errors(uri), tempfile.TemporaryDirectory(prefix="gtdl-predict-") as name:
        logged = _find_model(uri, run_id)
        try:
            with no_progress_bars():
                folder = Path(
                    mlflow.artifacts.download_artifacts(
                        artifact_uri=logged.artifact_location, dst_path=name, tracking_uri=reveal(uri)
                    )
                )
        except Exception as error:
            raise artifact_failure(error, logged.artifact_location) from error
        _check_images(images, Model.load(folder / "MLmodel"))
        composed = config.compose_unchecked([*_framework_overrides(logged.params), "hardware=cpu"])
        environment = environments.ensure(composed.framework, "cpu")
        mode = replace(composed, mode=config.DEFAULT).execution  # that of the saved model
        files = Path(name, "images.npy"), Path(name, "probabilities.npy")
        np.save(files[0], images)
        done = subprocess.run(
            [environment.python, "-I", WORKER_MAIN, "predict", folder / "data", *files],
            env={
                **worker_environment(composed.threads, environment_variables(mode, environment.compile_cache)),
                "TMPDIR": name,  # an interrupted process leaves its temporary files
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = " | ".join(done.stderr.strip().splitlines()[-LOG_LINES:]) or f"exit status {done.returncode}"
            raise WorkerFailed(f"the model of run {run_id} could not classify the images: {reason}")
        probabilities: np.ndarray = np.load(files[1])
    return probabilities


def _find_model(uri: str, run_id: str) -> Any:
    client = connect(uri)
    try:
        run = client.get_run(run_id)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise NothingFound(f"run {run_id}: not in {uri}; the last line of a run has its ID") from error
    if not (run.outputs and run.outputs.model_outputs):
        raise NothingFound(
            f"run {run_id} ({run.info.status}) has no model: only finished runs with tracking.model=true have one"
        )
    return client.get_logged_model(run.outputs.model_outputs[-1].model_id)


def _framework_overrides(params: Mapping[str, str]) -> list[str]:
    """Return the overrides of a model's framework. The params are validated: anyone with write access can set them."""
    framework, version = params.get("framework", ""), params.get("framework.version", "")
    if framework not in config.choices("framework") or not re.fullmatch(r"[\w.+]{1,40}", version):
        raise NothingFound(f"framework={framework!r} {version!r} of the model is not supported by this version")
    return [f"framework={framework}", f"framework.version={version}"]


def _check_images(images: np.ndarray, model: Model) -> None:
    _, *expected = model.get_input_schema().inputs[0].shape
    if images.dtype != np.uint8 or images.ndim != 4 or [*images.shape[1:]] != expected or not len(images):
        wanted = ", ".join(map(str, expected))
        raise ImagesRefused(f"expected images of uint8 (N, {wanted}); given: {images.dtype} {images.shape}")
