"""Folders of prepared data sets: ``.npy`` files, ``split.csv`` and a ``dataset.json`` that describes them.

A folder gets its name only when it is complete. The name contains a hash of the configuration and one of the published
files that were read, so that another configuration, and another copy of the published files, uses another folder.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from ..files import cache_dir, datasets_dir, write_atomically
from ..worker.checksums import sha256
from ..worker.prepared_data import ARRAYS
from .base import Arrays, Split
from .published import PublishedFiles, Record, contents

FORMAT = 1
"""Version of the contents. Increment it when the same published files result in other arrays."""

METADATA = "dataset.json"

SPLIT = "split.csv"
"""Names of the publisher's images, as ``set,row,label,image``. Exists if this project defines the split."""

SETTINGS = {
    "labels": "labels",
    "split_seed": "split_seed",
    "train_per_class": "train_each",
    "test_per_class": "test_each",
    "train_limit": "train_limit",
    "test_limit": "test_limit",
}
"""Settings of the preparation and their names in digests, which must not change. The size of the images is not one of
them: it is part of their shape."""


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared data set: files ``{train,test}_{images,labels}.npy`` of uint8, images (N, H, W, C) and labels (N,)."""

    folder: Path
    digest: str
    """SHA-256 of the settings of the preparation and of all arrays: names, types, shapes and contents."""
    train_images: int
    test_images: int
    image_shape: tuple[int, int, int]
    """Height, width, channels."""
    classes: int
    source: str
    """Folder of the published files, or ``package:path``."""
    split: str | None
    """SHA-256 of ``split.csv``; None if the publisher defines the split."""
    sha256: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each ``.npy`` file, by the name of its array."""


@dataclass(frozen=True)
class Stored:
    """A complete folder in the cache directory."""

    prepared: PreparedDataset
    published: Record
    """The published files that were read."""
    metadata: dict[str, Any]
    written_ns: int

    def update(self, published: Record) -> None:
        """Record other times of the same published files, unless the folder is read-only or the files have changed."""
        if contents(published) == contents(self.published):
            with suppress(OSError):
                _write_metadata({**self.metadata, "published": published}, self.prepared.folder)


def source_folder(dataset: Dataset) -> Path:
    """Return the folder of the published files."""
    return datasets_dir() / dataset.name


def source(dataset: Dataset) -> str:
    """Return where the published files are, as ``PreparedDataset.source``."""
    packaged = [name for name in dataset.files if ":" in name]
    return ", ".join(packaged) or str(source_folder(dataset))


def prefix(dataset: Dataset) -> Path:
    """Return the path of a data set's folders without the hash of the published files."""
    fingerprint = json.dumps(_fingerprint(dataset), sort_keys=True)
    return cache_dir() / "prepared" / f"{dataset.name}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:12]}"


def folder(dataset: Dataset, published: Record) -> Path:
    """Return the folder of the data prepared from these published files."""
    path = prefix(dataset)
    files = json.dumps(contents(published), sort_keys=True)
    return path.with_name(f"{path.name}-{hashlib.sha256(files.encode()).hexdigest()[:12]}")


def folders(dataset: Dataset) -> list[Path]:
    """Return all folders of a data set: complete ones, damaged ones and those of older versions of this project."""
    path = prefix(dataset)
    pattern = re.compile(re.escape(path.name) + "(-[0-9a-f]{12})?")
    try:
        return sorted(each for each in path.parent.iterdir() if pattern.fullmatch(each.name))
    except OSError:  # it does not exist or is not readable: the attempt to write there explains why
        return []


def stored(dataset: Dataset) -> list[Stored]:
    """Return all complete folders of a data set, the one that was written last first."""
    found = [each for path in folders(dataset) if (each := load(dataset, path))]
    return sorted(found, key=lambda each: -each.written_ns)


def load(dataset: Dataset, path: Path) -> Stored | None:
    """Return the prepared data set in a folder; None if a file is missing, unreadable or has another size."""
    try:
        metadata = json.loads((path / METADATA).read_text(encoding="utf-8"))
        expected = {**_fingerprint(dataset), "checksum": _checksum(metadata)}
        if any(metadata[key] != value for key, value in expected.items()):
            return None
        if (path / SPLIT).exists() != (metadata["split"] is not None):
            return None
        train, test = metadata["images"]
        for name, shape in shapes(dataset, train, test).items():
            file = array_file(path, name)
            # Not np.load, which also opens zip files and pickles.
            array = np.lib.format.open_memmap(file, mode="r")
            end = array.offset + array.nbytes
            if array.shape != shape or array.dtype != np.uint8 or file.stat().st_size != end:
                return None
        height, width, channels = dataset.image_shape
        prepared = PreparedDataset(
            folder=path,
            digest=metadata["digest"],
            train_images=train,
            test_images=test,
            image_shape=(height, width, channels),
            classes=dataset.classes,
            source=metadata["source"],
            split=metadata["split"],
            sha256=metadata["arrays"],
        )
        return Stored(prepared, metadata["published"], metadata, (path / METADATA).stat().st_mtime_ns)
    except Exception:
        # NumPy's and Python's parsers raise many types. Any invalid contents mean the same: not a prepared data set.
        return None


def save(dataset: Dataset, arrays: Arrays, published: PublishedFiles, record: Record, path: Path) -> None:
    """Write a folder, completely or not at all.

    A damaged folder is repaired file by file: other processes may read the intact ones.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # a process that was killed may have left it
    try:
        _write(dataset, arrays, record, partial)
        published.check_unchanged()
        if path.is_dir() and not path.is_symlink():
            for file in sorted(partial.iterdir(), key=lambda each: each.name == METADATA):
                shutil.rmtree(path / file.name, ignore_errors=True)  # only if it is a folder
                file.replace(path / file.name)
        else:
            path.unlink(missing_ok=True)
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(dataset: Dataset, arrays: Arrays, record: Record, path: Path) -> None:
    path.mkdir()
    for name, array in _named_arrays(arrays):
        with array_file(path, name).open("wb") as file:
            # Not np.save, which does not report a full disk as one.
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(array.data)
            file.flush()
            os.fsync(file.fileno())
    if arrays.split:
        _write_split(arrays, arrays.split, path / SPLIT)
    metadata = {
        **_fingerprint(dataset),
        "digest": digest(dataset, arrays),
        "source": source(dataset),
        "split": split_sha256(path),
        "images": [len(arrays.train_labels), len(arrays.test_labels)],
        "arrays": {name: sha256(array_file(path, name)) for name in ARRAYS},
        "published": record,
    }
    _write_metadata(metadata, path)


def _write_metadata(metadata: dict[str, Any], path: Path) -> None:
    metadata = {**metadata, "checksum": _checksum(metadata)}
    write_atomically(path / METADATA, json.dumps(metadata, indent=1) + "\n")


def _checksum(metadata: dict[str, Any]) -> str:
    """Return the SHA-256 of everything in ``dataset.json`` but the checksum itself."""
    values = {key: value for key, value in metadata.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _write_split(arrays: Arrays, split: Split, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["set", "row", "label", "image"])
        for row, (label, image) in enumerate(zip(arrays.train_labels, split.train, strict=True)):
            table.writerow(["train", row, label, image])
        for row, (label, image) in enumerate(zip(arrays.test_labels, split.test, strict=True)):
            table.writerow(["test", row, label, image])


def split_sha256(path: Path) -> str | None:
    """Return the SHA-256 of the ``split.csv`` in a folder; None if there is none."""
    return sha256(path / SPLIT) if (path / SPLIT).exists() else None


def array_file(path: Path, name: str) -> Path:
    return path / f"{name}.npy"


def shapes(dataset: Dataset, train: int, test: int) -> dict[str, tuple[int, ...]]:
    """Return the expected shape of each array for these numbers of images."""
    return {
        "train_images": (train, *dataset.image_shape),
        "train_labels": (train,),
        "test_images": (test, *dataset.image_shape),
        "test_labels": (test,),
    }


def digest(dataset: Dataset, arrays: Arrays) -> str:
    """Return ``PreparedDataset.digest``."""
    result = hashlib.sha256(f"format {FORMAT}\n".encode())
    if settings := _settings(dataset):
        result.update(f"{json.dumps(settings, sort_keys=True)}\n".encode())
    for name, array in _named_arrays(arrays):
        result.update(f"{name} {array.dtype} {array.shape}\n".encode())
        result.update(array.data.cast("B"))
    return result.hexdigest()


def _named_arrays(arrays: Arrays) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Return the names and the arrays in row-major order, as they are hashed and written."""
    return [(name, np.ascontiguousarray(getattr(arrays, name))) for name in ARRAYS]


def _fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Return everything in the configuration that determines the contents of the arrays."""
    return {
        "format": FORMAT,
        "name": dataset.name,
        "reader": dataset.reader,
        "files": dict(dataset.files),
        "train_images": dataset.train_images,
        "test_images": dataset.test_images,
        "image_shape": list(dataset.image_shape),
        "classes": dataset.classes,
        **_settings(dataset),
    }


def _settings(dataset: Dataset) -> dict[str, Any]:
    """Return the settings that are not None, so that new settings do not change the digests of other data sets."""
    values = {key: value for name, key in SETTINGS.items() if (value := getattr(dataset, name)) is not None}
    # JSON turns the members of an enumeration into strings.
    settings: dict[str, Any] = json.loads(json.dumps(values))
    return settings
