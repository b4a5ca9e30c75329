"""Reader of the binary versions of CIFAR-10 and CIFAR-100: records of one or two label bytes and 3 x 32 x 32 pixels.

The "python version" contains pickles, which can run code when they are read. It has the same images and is refused with
an error that names the binary version.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import Dataset, Labels
from .base import REMEDY, Arrays, DatasetError, FilesNotFound
from .file_types import describe_length
from .source_files import check_labels, entries, find_source, image_counts

OTHER_NAME = re.compile(
    # Class names, backup copies that the publisher shipped by accident, and the python version.
    r"(?:.*/)?(?:batches\.meta\.txt|(?:coarse|fine)_label_names\.txt|[^/]+~|cifar-10{1,2}-(?:python.*|batches-py/.*))",
    re.IGNORECASE,
)
"""Other files of the publisher."""

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
    for part, labels in (("training", arrays.train_labels), ("test", arrays.test_labels)):
        _check_balance(dataset, folder, part, labels)
    return arrays


def _check_balance(dataset: Dataset, folder: Path, part: str, labels: npt.NDArray[np.uint8]) -> None:
    """Raise DatasetError unless all classes have the same number of images: a file of another set was copied."""
    counts = np.bincount(labels, minlength=dataset.classes)
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] - counts[least] > 1:
        raise DatasetError(
            f"{find_source(dataset, folder)}: {counts[least]} {part} images with the label {least} and {counts[most]} "
            f"with the label {most}, but all classes of {dataset.name} have the same number; {REMEDY}"
        )


def _read_files(
    dataset: Dataset, folder: Path, records: dict[str, int], record_size: int
) -> Iterator[tuple[str, bytes, str]]:
    """Return the name without ``.bin``, the contents and the name for error messages of each file in ``records``."""
    missing = set(records)
    wanted = re.compile(rf"(?:.*/)?({'|'.join(records)})\.bin", re.IGNORECASE)
    known: dict[bytes, str] = {}
    try:
        for match, entry in entries(dataset, folder, wanted, OTHER_NAME):
            name = match[1].lower()
            size = record_size * records[name]
            contents = entry.read(size)
            if len(contents) != size:
                raise DatasetError(
                    f"{entry.where}: {describe_length(contents, size)}, expected {size}: {records[name]} records of "
                    f"{record_size}; {REMEDY}"
                )
            digest = hashlib.sha256(contents).digest()
            if digest in known:
                raise DatasetError(f"{entry.where}: the same contents as {known[digest]}.bin; {REMEDY}")
            known[digest] = name
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
