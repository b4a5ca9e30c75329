"""The prepared data set of a job: ``.npy`` files, mapped into memory and compared with the job's SHA-256."""

from __future__ import annotations

import hashlib
import io
import mmap
from pathlib import Path

import numpy as np

from .job import Job

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

HEADER_LIMIT = 2**16
"""Largest header of an ``.npy`` file of version 1."""


class DataChanged(Exception):
    """The prepared data differ from those of the job. The message is one line that names the file and the remedy."""


def open_arrays(job: Job) -> dict[str, np.ndarray]:
    """Map the arrays of a job into memory and compare the SHA-256 of the mapped bytes with the job's.

    The data of a job without ``data_sha256``, such as one written by hand, are not checked.

    Raises:
        DataChanged: a file is missing, is not an ``.npy`` file or has another SHA-256.
    """
    return {name: _open(Path(job.data), name, job.data_sha256) for name in ARRAYS}


def _open(folder: Path, name: str, expected: dict[str, str]) -> np.ndarray:
    path = folder / f"{name}.npy"
    remedy = f"delete {folder}, and the next run prepares the data again"
    try:
        with path.open("rb") as file:
            contents = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if expected and (digest := hashlib.sha256(contents).hexdigest()) != expected.get(name):
            raise DataChanged(f"{path}: not what was prepared (SHA-256 {digest}); {remedy}")
        header = io.BytesIO(contents[:HEADER_LIMIT])
        np.lib.format.read_magic(header)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header)
        # np.load is not used, because it also opens zip files and pickles.
        return np.ndarray(shape, dtype, contents, header.tell(), order="F" if fortran_order else "C")
    except (OSError, ValueError, TypeError) as error:
        raise DataChanged(f"{path}: could not be read ({error}); {remedy}") from error
