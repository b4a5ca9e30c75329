"""Save data sets in the form that workers read: a folder of ``.npy`` files and a ``dataset.json`` that describes them.

A folder gets its name only when it is complete. The name contains a hash of everything that determines the contents, so
that another configuration, or another version of this code, uses another folder.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from ..files import cache_dir, datasets_dir, hold_folder_lock
from . import source_files
from .base import Arrays, DatasetError, FilesNotFound, Split
from .splits import limit_images

FORMAT = 1
"""Version of the contents. Increment it when the same published files result in other arrays."""

METADATA = "dataset.json"

SPLIT = "split.csv"
"""Names of the publisher's images, as ``set,row,label,image``. Exists if this project defines the split."""

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

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


def prepare(dataset: Dataset) -> PreparedDataset:
    """Return the prepared data set. The first call creates it; later ones only check that it is complete.

    Raises:
        DatasetError: published files are missing or invalid, or the folder is not writable.
    """
    folder = _folder(dataset)
    return _open(dataset, folder) or _create(dataset, folder)


def verify(dataset: Dataset) -> str:
    """Read all files: compare the published ones with their MD5 and the prepared ones with their digest.

    Returns one line of report.

    Raises:
        DatasetError: a file is invalid, or there are neither published nor prepared files.
    """
    folder = _folder(dataset)
    prepared = _open(dataset, folder)
    if prepared is None and folder.exists():
        raise DatasetError(f"{folder}: damaged; the next run creates it again")
    published_digest = None
    try:
        published_digest = _digest(dataset, read(dataset, _source_folder(dataset)))
        # The contents of an archive have no published checksum: copies of different sizes are in use.
        state = f"{len(dataset.files)} file(s) as published" if dataset.files else "publisher's files readable"
        report = f"{dataset.name}: {state}"
    except FilesNotFound:
        if prepared is None:
            raise
        report = f"{dataset.name}: no published files"
    if prepared is None:
        return f"{report}, not prepared yet"
    try:
        digest = _digest(dataset, Arrays(*(np.load(_file(folder, name)) for name in ARRAYS)))
        split = _sha256(folder / SPLIT)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder}: damaged ({error}); delete it, and the next run creates it again") from error
    if (digest, split) != (prepared.digest, prepared.split) or published_digest not in (None, digest):
        raise DatasetError(f"{folder}: not what was prepared; delete it, and the next run creates it again")
    return f"{report}, prepared files intact (SHA-256 {digest})"


def locate(dataset: Dataset) -> str:
    """Return whether a data set is downloaded and prepared, in a few words. Reads no contents."""
    state = "prepared" if _open(dataset, _folder(dataset)) else "not prepared"
    try:
        if dataset.archives:
            source_files.find_source(dataset, _source_folder(dataset))
        else:
            source_files.find_files(dataset, _source_folder(dataset))
    except FilesNotFound:
        return f"not downloaded, {state}"
    built_in = not dataset.archives and all(":" in name for name in dataset.files)
    return f"{'built in' if built_in else 'downloaded'}, {state}"


def _source_folder(dataset: Dataset) -> Path:
    return datasets_dir() / dataset.name


def _source(dataset: Dataset) -> str:
    packaged = [name for name in dataset.files if ":" in name]
    return ", ".join(packaged) or str(_source_folder(dataset))


def _fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Return everything that determines the contents of the arrays."""
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


def _folder(dataset: Dataset) -> Path:
    fingerprint = json.dumps(_fingerprint(dataset), sort_keys=True)
    return cache_dir() / "prepared" / f"{dataset.name}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:12]}"


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _shapes(dataset: Dataset, train: int, test: int) -> dict[str, tuple[int, ...]]:
    """Return the expected shape of each array for these numbers of images."""
    return {
        "train_images": (train, *dataset.image_shape),
        "train_labels": (train,),
        "test_images": (test, *dataset.image_shape),
        "test_labels": (test,),
    }


def _open(dataset: Dataset, folder: Path) -> PreparedDataset | None:
    """Return the prepared data set in ``folder``; None if a file is missing, unreadable or has another size."""
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        result = {key: metadata.pop(key) for key in ("digest", "source", "split", "images")}
        if metadata != _fingerprint(dataset) or (folder / SPLIT).exists() != (result["split"] is not None):
            return None
        train, test = result["images"]
        for name, shape in _shapes(dataset, train, test).items():
            path = _file(folder, name)
            # Not np.load, which also opens zip files and pickles.
            array = np.lib.format.open_memmap(path, mode="r")
            end = array.offset + array.nbytes
            if array.shape != shape or array.dtype != np.uint8 or path.stat().st_size != end:
                return None
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError):
        # Any invalid contents of these files mean the same: not a prepared data set.
        return None
    height, width, channels = dataset.image_shape
    return PreparedDataset(
        folder=folder,
        digest=result["digest"],
        train_images=train,
        test_images=test,
        image_shape=(height, width, channels),
        classes=dataset.classes,
        source=result["source"],
        split=result["split"],
    )


def _create(dataset: Dataset, folder: Path) -> PreparedDataset:
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_folder_lock(folder):
            # Another process may have created it while this one waited.
            if prepared := _open(dataset, folder):
                return prepared
            arrays = read(dataset, _source_folder(dataset))
            # A process that was killed may have left these.
            for leftover in (partial, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                _save(dataset, arrays, partial)
                partial.replace(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            prepared = _open(dataset, folder)
    except OSError as error:
        raise DatasetError(f"{folder}: could not be written ({error}); set GTDL_HOME to another folder") from error
    if prepared is None:
        raise DatasetError(f"{folder}: changed while it was written; set GTDL_HOME to another folder")
    return prepared


def read(dataset: Dataset, folder: Path) -> Arrays:
    """Read the published files in ``folder`` with the data set's reader.

    Raises:
        DatasetError: the reader does not exist, fails, or returns other shapes than the data set's yaml defines.
    """
    module, _, function = dataset.reader.partition(":")
    try:
        reader = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise DatasetError(f"dataset.reader={dataset.reader}: expected module:function ({error})") from error
    try:
        arrays: Arrays = reader(dataset, folder)
    except OSError as error:
        raise DatasetError(f"{dataset.name}: could not be read ({error})") from error
    _check_shapes(dataset, arrays)
    return limit_images(arrays, dataset)


def _check_shapes(dataset: Dataset, arrays: Arrays) -> None:
    train, test = dataset.train_images, dataset.test_images
    shapes = _shapes(
        dataset,
        len(arrays.train_images) if train is None else train,
        len(arrays.test_images) if test is None else test,
    )
    for name, shape in shapes.items():
        array = getattr(arrays, name)
        if array.shape != shape or array.dtype != np.uint8:
            raise DatasetError(
                f"{dataset.name}: {dataset.reader} returned {name} as {array.dtype} {array.shape}, "
                f"but the data set's yaml defines uint8 {shape}"
            )


def _save(dataset: Dataset, arrays: Arrays, folder: Path) -> None:
    folder.mkdir()
    for name, array in _named_arrays(arrays):
        np.save(_file(folder, name), array)
    if arrays.split:
        _save_split(arrays, arrays.split, folder / SPLIT)
    metadata = {
        **_fingerprint(dataset),
        "digest": _digest(dataset, arrays),
        "source": _source(dataset),
        "split": _sha256(folder / SPLIT),
        "images": [len(arrays.train_labels), len(arrays.test_labels)],
    }
    (folder / METADATA).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")


def _save_split(arrays: Arrays, split: Split, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["set", "row", "label", "image"])
        for row, (label, image) in enumerate(zip(arrays.train_labels, split.train, strict=True)):
            table.writerow(["train", row, label, image])
        for row, (label, image) in enumerate(zip(arrays.test_labels, split.test, strict=True)):
            table.writerow(["test", row, label, image])


def _sha256(path: Path) -> str | None:
    """Return the hash of a small file; None if it does not exist."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _digest(dataset: Dataset, arrays: Arrays) -> str:
    digest = hashlib.sha256(f"format {FORMAT}\n".encode())
    if settings := _settings(dataset):
        digest.update(f"{json.dumps(settings, sort_keys=True)}\n".encode())
    for name, array in _named_arrays(arrays):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data.cast("B"))
    return digest.hexdigest()


def _named_arrays(arrays: Arrays) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Return the names and the arrays in row-major order, as they are hashed and written."""
    return [(name, np.ascontiguousarray(getattr(arrays, name))) for name in ARRAYS]
