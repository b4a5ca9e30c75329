"""PyTorch's adapter, slowed down by a known factor: the environment variable SLOWED is the ratio of the CPU times."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import numpy as np

from gtdl_mlflow.worker.frameworks.torch.adapter import Torch
from gtdl_mlflow.worker.inputs import Batch


class Slowed(Torch):
    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        started = time.process_time()
        losses = super().train(batches, rates)
        end = started + float(os.environ["SLOWED"]) * (time.process_time() - started)
        while time.process_time() < end:
            pass
        return losses
