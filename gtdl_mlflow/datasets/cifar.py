"""Reader of the binary versions of CIFAR-10 and CIFAR-100: records of one or two label bytes and 3 x 32 x 32 pixels.

The "python version" contains pickles, which can run code when they are read. It has the same images and is refused with
an error that names the binary version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..config import Dataset, Labels
from .base import REMEDY, Arrays, DatasetError, FilesNotFound
from .source_files import check_labels, entries, find_source, image_counts

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


def read_10(dataset: Dataset, folder: Path) -> Arrays:
    """Read CIFAR-10: five files for training and one for testing; a record has one label."""
    return _read(dataset, folder, [f"data_batch_{number}" for number in range(1, 6)], "test_batch", [Labels.fine])


def read_100(dataset: Dataset, folder: Path) -> Arrays:
    """Read CIFAR-100: one file for training and one for testing; a record has a coarse label, then a fine one."""
    return _read(dataset, folder, ["train"], "test", [Labels.coarse, Labels.fine])


def _read(dataset: Dataset, folder: Path, train: list[str], test: str, label_columns: list[Labels]) -> Arrays:
    if dataset.image_shape != [32, 32, 3]:
        raise DatasetError(f"dataset.image_shape={dataset.image_shape}: images of {dataset.name} are 32 x 32 x 3")
    chosen = dataset.labels or Labels.fine
    if chosen not in label_columns:
        raise DatasetError(f"dataset.labels={chosen.value}: {dataset.name} has one kind of labels only")
    column = label_columns.index(chosen)
    train_count, test_count = image_counts(dataset)
    if train_count % len(train):
        raise DatasetError(
            f"dataset.train_images={train_count}: {dataset.name} has them in {len(train)} files of one size"
        )
    records = {**dict.fromkeys(train, train_count // len(train)), test: test_count}
    arrays = Arrays(
        train_images=np.empty((train_count, 32, 32, 3), np.uint8),
        train_labels=np.empty(train_count, np.uint8),
        test_images=np.empty((test_count, 32, 32, 3), np.uint8),
        test_labels=np.empty(test_count, np.uint8),
    )
    for name, contents, where in _read_files(dataset, folder, records, len(label_columns) + PIXELS):
        table = np.frombuffer(contents, np.uint8).reshape(records[name], -1)
        check_labels(where, table[:, column], dataset.classes)
        images, labels = (
            (arrays.test_images, arrays.test_labels) if name == test else (arrays.train_images, arrays.train_labels)
        )
        start = 0 if name == test else train.index(name) * records[name]
        rows = slice(start, start + records[name])
        labels[rows] = table[:, column]
        images[rows] = table[:, len(label_columns) :].reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
    return arrays


def _read_files(
    dataset: Dataset, folder: Path, records: dict[str, int], record_size: int
) -> Iterator[tuple[str, bytes, str]]:
    """Return the name without ``.bin``, the contents and the name for error messages of each file in ``records``."""
    missing = set(records)
    wanted = re.compile(rf"(?:.*/)?({'|'.join(records)})\.bin")
    try:
        for match, entry in entries(dataset, folder, wanted):
            name = match[1]
            size = record_size * records[name]
            contents = entry.read(size)
            if len(contents) != size:
                length = f"more than {size}" if len(contents) > size else len(contents)
                raise DatasetError(
                    f"{entry.where}: {length} bytes, expected {size}: {records[name]} records of {record_size}; "
                    f"{REMEDY}"
                )
            missing.remove(name)
            yield name, contents, entry.where
    except FilesNotFound as error:
        pickles = sorted([*folder.glob("*-python*"), *folder.glob("*-batches-py")])
        if not pickles:
            raise
        raise FilesNotFound(
            f"{pickles[0]}: contains pickles, which can run code and are not read; use the publisher's binary version, "
            f"{dataset.archives[0]}"
        ) from error
    if missing:
        names = ", ".join(f"{name}.bin" for name in sorted(missing))
        raise DatasetError(f"{find_source(dataset, folder)}: {names} missing; {REMEDY}")
