"""Reader of the IDX format of MNIST and its relatives: a magic number, the dimensions, then the values, big-endian."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from .base import REMEDY, Arrays, DatasetError
from .file_types import describe, describe_length
from .source_files import check_labels, check_md5, find_files, image_counts, read_file

UNSIGNED_BYTE = 0x08
"""Type of the values; the magic number is two zero bytes, this byte and the number of dimensions."""


def read(dataset: Dataset, folder: Path) -> Arrays:
    """Read MNIST's four files."""
    paths = find_files(dataset, folder)
    height, width, channels = dataset.image_shape
    if channels != 1:
        raise DatasetError(f"dataset.image_shape={dataset.image_shape}: images in IDX files have one channel")

    def values(name: str, *shape: int) -> npt.NDArray[np.uint8]:
        if name not in paths:
            raise DatasetError(f"dataset.files: {name} is missing, which contains a part of {dataset.name}")
        return _read_array(paths[name], shape, dataset.files[name])

    def labels(name: str, count: int) -> npt.NDArray[np.uint8]:
        array = values(name, count)
        check_labels(paths[name], array, dataset.classes)
        return array

    train, test = image_counts(dataset)
    return Arrays(
        train_images=values("train-images-idx3-ubyte", train, height, width)[..., np.newaxis],
        train_labels=labels("train-labels-idx1-ubyte", train),
        test_images=values("t10k-images-idx3-ubyte", test, height, width)[..., np.newaxis],
        test_labels=labels("t10k-labels-idx1-ubyte", test),
    )


def _read_array(path: Path, shape: tuple[int, ...], md5: str) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes that must have this shape and this MD5."""
    header = 4 + 4 * len(shape)
    size = header + math.prod(shape)
    contents = read_file(path, size)
    expected = UNSIGNED_BYTE << 8 | len(shape)
    # The MD5 comes last: for a mixed-up file, the error that states its kind and shape helps more.
    if contents.startswith(expected.to_bytes(4, "little")):
        raise DatasetError(f"{path}: an IDX file in little-endian byte order, expected big-endian; {REMEDY}")
    if contents[:2] != bytes(2):
        raise DatasetError(f"{path}: not an IDX file ({describe(contents)}); {REMEDY}")
    if len(contents) < header:
        raise DatasetError(f"{path}: {len(contents)} bytes unpacked, expected {size}; {REMEDY}")
    magic, *dimensions = struct.unpack_from(f">{1 + len(shape)}I", contents)
    if magic != expected:
        raise DatasetError(f"{path}: magic number {magic}, expected {expected}; {REMEDY}")
    if tuple(dimensions) != shape:
        raise DatasetError(f"{path}: contains {_product(dimensions)} values, expected {_product(shape)}; {REMEDY}")
    if len(contents) != size:
        raise DatasetError(f"{path}: {describe_length(contents, size)} unpacked, expected {size}; {REMEDY}")
    check_md5(path, contents, md5)
    return np.frombuffer(contents, np.uint8, offset=header).reshape(shape)


def _product(dimensions: Iterable[int]) -> str:
    return " x ".join(map(str, dimensions))
