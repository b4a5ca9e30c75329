"""The IDX format of MNIST and its relatives: a magic number, the dimensions, then the values, all big-endian."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from .base import REMEDY, Arrays, DatasetError
from .source_files import check_labels, check_md5, content, counts, find

UNSIGNED_BYTE = 0x08
"""The magic number is two zero bytes, the type of the values, and the number of dimensions."""


def read(dataset: Dataset, folder: Path) -> Arrays:
    """MNIST's four files."""
    paths = find(dataset, folder)
    height, width, channels = dataset.image_shape
    if channels != 1:
        raise DatasetError(f"dataset.image_shape={dataset.image_shape}: images in IDX files have one channel")

    def values(name: str, *shape: int) -> npt.NDArray[np.uint8]:
        if name not in paths:
            raise DatasetError(f"dataset.files: lacks {name}, which holds a part of {dataset.name}")
        return _array(paths[name], shape, dataset.files[name])

    def labels(name: str, count: int) -> npt.NDArray[np.uint8]:
        found = values(name, count)
        check_labels(paths[name], found, dataset.classes)
        return found

    train, test = counts(dataset)
    return Arrays(
        train_images=values("train-images-idx3-ubyte", train, height, width)[..., np.newaxis],
        train_labels=labels("train-labels-idx1-ubyte", train),
        test_images=values("t10k-images-idx3-ubyte", test, height, width)[..., np.newaxis],
        test_labels=labels("t10k-labels-idx1-ubyte", test),
    )


def _array(path: Path, shape: tuple[int, ...], md5: str) -> npt.NDArray[np.uint8]:
    """The values in an IDX file of unsigned bytes, which must be of this shape and have this MD5."""
    header = 4 + 4 * len(shape)
    size = header + math.prod(shape)
    found = content(path, size)
    if len(found) < header:
        raise DatasetError(f"{path}: {len(found)} bytes unpacked, expected {size}; {REMEDY}")
    # From the particular to the general: a mixed-up file should hear what it is, not that its MD5 differs.
    magic, *dimensions = struct.unpack_from(f">{1 + len(shape)}I", found)
    if magic != UNSIGNED_BYTE << 8 | len(shape):
        raise DatasetError(f"{path}: magic number {magic}, expected {UNSIGNED_BYTE << 8 | len(shape)}; {REMEDY}")
    if tuple(dimensions) != shape:
        raise DatasetError(f"{path}: holds {_product(dimensions)} values, expected {_product(shape)}; {REMEDY}")
    if len(found) != size:
        length = f"more than {size}" if len(found) > size else len(found)
        raise DatasetError(f"{path}: {length} bytes unpacked, expected {size}; {REMEDY}")
    check_md5(path, found, md5)
    return np.frombuffer(found, np.uint8, offset=header).reshape(shape)


def _product(dimensions: list[int] | tuple[int, ...]) -> str:
    return " x ".join(map(str, dimensions))
