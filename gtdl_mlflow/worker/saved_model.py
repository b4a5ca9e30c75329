"""The trained model, as MLflow's pyfunc flavour loads it, in the framework's environment."""

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
    """Classifies raw images, treated as the test set was."""

    def __init__(self, folder: Path) -> None:
        job = Job.read(folder / "job.json")
        # Where it is loaded need not look like where it was trained.
        job.device, job.threads = "cpu", min(job.threads, os.cpu_count() or 1)
        self._treatment, self._adapter, _ = build_model(job, load_adapter(job.adapter))
        self._treatment = Preprocessing(job.training.preprocessing, json.loads((folder / "treatment.json").read_text()))
        self._adapter.load(folder)

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Class probabilities, float32 (N, classes), of uint8 images (N, height, width, channels)."""
        raw = np.asarray(images)
        treated = self._adapter.to_native(self._treatment.apply("test", raw, self._adapter.layout))
        logits = self._adapter.predict(test_batches(treated, EVALUATION_BATCH))
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: np.ndarray = exponents / exponents.sum(axis=1, keepdims=True)
        return probabilities


def _load_pyfunc(path: str) -> SavedModel:
    """What MLflow calls."""
    return SavedModel(Path(path))
