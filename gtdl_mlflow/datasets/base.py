"""What a reader returns, and how it fails.

A reader is a function ``read(dataset: config.Dataset, folder: Path) -> Arrays``, named in the data set's yaml. It finds
its files with ``published.find`` or ``published.entries``, which may lie in ``folder``, and checks everything that it
takes from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

REMEDY = "put the publisher's file in its place"


class DatasetError(Exception):
    """A data set cannot be used; one line that names the file and says what to do."""


class FilesNotFound(DatasetError):
    """Some of the publisher's files are not where they are looked for."""


@dataclass(frozen=True)
class Arrays:
    """A data set in memory: images (N, height, width, channels) and their labels (N,)."""

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.uint8]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.uint8]
    split: Split | None = None
    """None where the publisher says what is for training and what for testing."""


@dataclass(frozen=True)
class Split:
    """Which of the publisher's images, by their names, are for training and which for testing, in the arrays' order."""

    train: list[str]
    test: list[str]
