"""A hand-written loop in place of an adapter, for the turns of a paired measurement."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gtdl_mlflow.worker.frameworks.base import Setup


class NativeLoop:
    """The part of an adapter's interface that a turn uses. It ignores the batches and reads its own data.

    ``setup.options`` has ``loop``, the name of a module, ``mode``, ``network`` and ``data``, the folder of its inputs.
    """

    layout, label_type = "NHWC", "int64"

    def __init__(self, setup: Setup) -> None:
        module, network, data = (setup.options[name] for name in ("loop", "network", "data"))
        loop = importlib.import_module(module)
        more = {} if setup.device == "cpu" else {"device": setup.device}  # few loops support a GPU
        if hasattr(loop, "MODES"):  # others have one mode, or differ in environment variables only
            more["mode"] = setup.options["mode"]
        self._size = setup.training.test_batch_size
        self._train, self._test, batch_size = loop.loop(network, Path(data), setup.threads, self._size, **more)
        if batch_size != setup.training.batch_size:
            raise ValueError(f"{network}: the loop's batches have {batch_size} images, not {setup.training.batch_size}")
        self._test_batches = len(np.load(Path(data) / "test_labels.npy", mmap_mode="r")) // self._size

    def compile(self) -> None:
        """Do nothing: a loop compiles when it is created or in its first step."""

    def to_native(self, array: np.ndarray) -> np.ndarray:
        return array

    def train(self, batches: object, rates: list[float]) -> None:
        """Do one step per learning rate."""
        self._train(len(rates))

    def predict(self, batches: Iterable[Any]) -> None:
        """Classify as many batches of the test set, which the loop repeats if they are more than it has."""
        count = sum(1 for _ in batches)
        for start in range(0, count, self._test_batches):
            self._test(min(self._test_batches, count - start) * self._size)

    def describe(self) -> dict[str, Any]:
        return {}
