"""The binary version of CIFAR-10 and CIFAR-100: records of one or two label bytes and 3 x 32 x 32 pixels.

The "python version" holds pickles, which can run code when they are read. A reader that admits only harmless ones would
be one more thing to guard, for the same images: it is not read, and the error says which file to take instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..config import Dataset, Labels
from .base import REMEDY, Arrays, DatasetError, FilesNotFound
from .source_files import check_labels, counts, entries, place

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


def read_10(dataset: Dataset, folder: Path) -> Arrays:
    """CIFAR-10: five batches for training and one for testing; a record has one label."""
    return _read(dataset, folder, [f"data_batch_{number}" for number in range(1, 6)], "test_batch", [Labels.fine])


def read_100(dataset: Dataset, folder: Path) -> Arrays:
    """CIFAR-100: a file for training and one for testing; a record has a coarse label, then a fine one."""
    return _read(dataset, folder, ["train"], "test", [Labels.coarse, Labels.fine])


def _read(dataset: Dataset, folder: Path, train: list[str], test: str, labels: list[Labels]) -> Arrays:
    if dataset.image_shape != [32, 32, 3]:
        raise DatasetError(f"dataset.image_shape={dataset.image_shape}: images of {dataset.name} are 32 x 32 x 3")
    given = dataset.labels or Labels.fine
    if given not in labels:
        raise DatasetError(f"dataset.labels={given.value}: {dataset.name} has one kind of labels only")
    column = labels.index(given)
    train_count, test_count = counts(dataset)
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
    for name, content, where in _contents(dataset, folder, records, len(labels) + PIXELS):
        table = np.frombuffer(content, np.uint8).reshape(records[name], -1)
        check_labels(where, table[:, column], dataset.classes)
        images, found = (
            (arrays.test_images, arrays.test_labels) if name == test else (arrays.train_images, arrays.train_labels)
        )
        start = 0 if name == test else train.index(name) * records[name]
        rows = slice(start, start + records[name])
        found[rows] = table[:, column]
        images[rows] = table[:, len(labels) :].reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
    return arrays


def _contents(dataset: Dataset, folder: Path, records: dict[str, int], record: int) -> Iterator[tuple[str, bytes, str]]:
    """Each file's name without ``.bin``, its content, of the right length, and what to call it in a message."""
    missing = set(records)
    wanted = re.compile(rf"(?:.*/)?({'|'.join(records)})\.bin")
    try:
        for match, entry in entries(dataset, folder, wanted):
            name = match[1]
            size = record * records[name]
            content = entry.read(size)
            if len(content) != size:
                length = f"more than {size}" if len(content) > size else len(content)
                raise DatasetError(
                    f"{entry.where}: {length} bytes, expected {size}: {records[name]} records of {record}; {REMEDY}"
                )
            missing.remove(name)
            yield name, content, entry.where
    except FilesNotFound as error:
        pickles = sorted([*folder.glob("*-python*"), *folder.glob("*-batches-py")])
        if not pickles:
            raise
        raise FilesNotFound(
            f"{pickles[0]}: holds pickles, which can run code and are not read; take the publisher's binary version, "
            f"{dataset.archives[0]}"
        ) from error
    if missing:
        names = ", ".join(f"{name}.bin" for name in sorted(missing))
        raise DatasetError(f"{place(dataset, folder)}: lacks {names}; {REMEDY}")
