"""Types and errors of data set readers.

A reader is a function ``read(dataset: config.Dataset, folder: Path) -> Arrays`` that the data set's yaml names. It gets
its files from ``source_files.find_files`` or ``source_files.entries`` and validates everything that it reads from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..console import Failure

REMEDY = "replace it with the publisher's file"


class DatasetError(Failure):
    """A data set that cannot be used. The message is one line that names the file and the remedy."""


class FilesNotFound(DatasetError):
    """A data set of which published files are missing."""


@dataclass(frozen=True)
class Arrays:
    """A data set in memory: images (N, height, width, channels) and labels (N,)."""

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.uint8]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.uint8]
    split: Split | None = None
    """The images of each set; None if the publisher defines the split."""


@dataclass(frozen=True)
class Split:
    """The publisher's names of the training and of the test images, in the order of the arrays."""

    train: list[str]
    test: list[str]
