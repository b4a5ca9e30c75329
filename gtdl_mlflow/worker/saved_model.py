"""A trained model as MLflow's pyfunc flavour loads it, in the framework's environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .assembly import build_model, load_adapter
from .inputs import Preprocessing, test_batches
from .job import Job
from .training import EVALUATION_BATCH


class SavedModel:
    """A trained model that classifies raw images, which it preprocesses like the test set."""

    def __init__(self, folder: Path) -> None:
        job = Job.read(folder / "job.json")
        # The machine that loads the model may have no GPU and fewer processors.
        job.device, job.threads = "cpu", min(job.threads, os.cpu_count() or 1)
        for name, value in job.saved_environment.items():
            os.environ.setdefault(name, value)
        _, self._adapter, _ = build_model(job, load_adapter(job.adapter))
        statistics = json.loads((folder / "preprocessing.json").read_text())
        self._preprocessing = Preprocessing(job.training.preprocessing, statistics)
        self._adapter.load(folder)

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return class probabilities, float32 (N, classes), of uint8 images (N, height, width, channels)."""
        inputs = self._preprocessing.apply("test", np.asarray(images), self._adapter.layout)
        logits = self._adapter.predict(test_batches(self._adapter.to_native(inputs), EVALUATION_BATCH))
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: np.ndarray = exponents / exponents.sum(axis=1, keepdims=True)
        return probabilities


def classify(folder: Path, images: Path, probabilities: Path) -> None:
    """Classify the images in a .npy file with the model in ``folder`` and write the class probabilities as .npy."""
    np.save(probabilities, SavedModel(folder).predict(np.load(images, mmap_mode="r")))


def _load_pyfunc(path: str) -> SavedModel:
    """Return the model in the folder ``path``; MLflow calls this function.

    Raises:
        ImportError: the framework is not installed.
    """
    try:
        return SavedModel(Path(path))
    except ImportError as error:
        raise ImportError(
            f"{error}. This model needs its framework's own environment: `gtdl predict RUN images.npy` creates it"
        ) from error
