"""The form that workers read: one folder a data set, of ``.npy`` files and a ``dataset.json`` that says what they are.

A folder appears under its own name only when it is complete, and its name carries a hash of all that decides its
content: another configuration, or another way of preparing, is another folder.
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
from ..files import cache_dir, datasets_dir
from . import source_files
from .base import Arrays, DatasetError, FilesNotFound, Split
from .splits import limited

FORMAT = 1
"""Counted up whenever a reader, or anything here, makes other arrays of the same files."""

RECORD = "dataset.json"

SPLIT = "split.csv"
"""Which of the publisher's images are where: ``set,row,label,image``; there where the split is this project's own."""

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

SETTINGS = ("labels", "split_seed", "train_per_class", "test_per_class", "train_limit", "test_limit")
"""What a user can choose about a data set's preparation, beside the size of its images, which shows in their shape."""


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared data set: uint8 ``{train,test}_{images,labels}.npy``, images (N, H, W, C), labels (N,)."""

    folder: Path
    digest: str
    """SHA-256 over the settings of the preparation and all arrays: names, types, shapes and contents."""
    train_images: int
    test_images: int
    image_shape: tuple[int, int, int]
    """Height, width, channels."""
    classes: int
    source: str
    """What it was made from: a folder, or ``package:path``."""
    split: str | None
    """SHA-256 of the split's file, ``split.csv``; None where the publisher's split is used."""


def prepare(dataset: Dataset) -> PreparedDataset:
    """The data set in the form that workers read; made on first use, opened (not read) from then on."""
    folder = _folder(dataset)
    return _open(dataset, folder) or _make(dataset, folder)


def verify(dataset: Dataset) -> str:
    """Read everything there is: the publisher's files against their MD5, the prepared form against its digest.

    Returns one line of report; raises DatasetError for what is wrong, and if there is nothing at all.
    """
    folder = _folder(dataset)
    prepared = _open(dataset, folder)
    if prepared is None and folder.exists():
        raise DatasetError(f"{folder}: damaged; the next run makes it again")
    published_digest = None
    try:
        published_digest = _digest(dataset, read(dataset, _published(dataset)))
        # What comes in an archive has no checksum of its contents: copies of different sizes are in use.
        state = f"{len(dataset.files)} file(s) as published" if dataset.files else "publisher's files readable"
        report = f"{dataset.name}: {state}"
    except FilesNotFound:
        if prepared is None:
            raise
        report = f"{dataset.name}: publisher's files not here"
    if prepared is None:
        return f"{report}, not prepared yet"
    try:
        digest = _digest(dataset, Arrays(*(np.load(_file(folder, name)) for name in ARRAYS)))
        split = _sha256(folder / SPLIT)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder}: damaged ({error}); delete it, and the next run makes it again") from error
    if (digest, split) != (prepared.digest, prepared.split) or published_digest not in (None, digest):
        raise DatasetError(f"{folder}: not what was prepared; delete it, and the next run makes it again")
    return f"{report}, prepared form intact (SHA-256 {digest})"


def locate(dataset: Dataset) -> str:
    """Return the state of a data set's files and of its prepared arrays in a few words. Read no contents."""
    state = "prepared" if _open(dataset, _folder(dataset)) else "not prepared"
    try:
        if dataset.archives:
            source_files.place(dataset, _published(dataset))
        else:
            source_files.find(dataset, _published(dataset))
    except FilesNotFound:
        return f"not downloaded, {state}"
    built_in = not dataset.archives and all(":" in name for name in dataset.files)
    return f"{'built in' if built_in else 'downloaded'}, {state}"


def _published(dataset: Dataset) -> Path:
    return datasets_dir() / dataset.name


def _source(dataset: Dataset) -> str:
    shipped = [name for name in dataset.files if ":" in name]
    return ", ".join(shipped) or str(_published(dataset))


def _facts(dataset: Dataset) -> dict[str, Any]:
    """All that decides what the arrays hold."""
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
    """Only those that are set: a setting that a data set does not have cannot change its digest."""
    values = {name: value for name in SETTINGS if (value := getattr(dataset, name)) is not None}
    # As it is in JSON, where an enumeration's member is a string.
    settings: dict[str, Any] = json.loads(json.dumps(values))
    return settings


def _folder(dataset: Dataset) -> Path:
    facts = json.dumps(_facts(dataset), sort_keys=True)
    return cache_dir() / "prepared" / f"{dataset.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _shapes(dataset: Dataset, train: int, test: int) -> dict[str, tuple[int, ...]]:
    """Array names to the shapes they must have when there are so many images."""
    return {
        "train_images": (train, *dataset.image_shape),
        "train_labels": (train,),
        "test_images": (test, *dataset.image_shape),
        "test_labels": (test,),
    }


def _open(dataset: Dataset, folder: Path) -> PreparedDataset | None:
    """What is prepared in ``folder``; None if nothing is, or if a file is missing, unreadable or of another size."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        made = {key: record.pop(key) for key in ("digest", "source", "split", "images")}
        if record != _facts(dataset) or (folder / SPLIT).exists() != (made["split"] is not None):
            return None
        train, test = made["images"]
        for name, shape in _shapes(dataset, train, test).items():
            path = _file(folder, name)
            # Not np.load, which takes a zip or a pickle for what it says it is.
            array = np.lib.format.open_memmap(path, mode="r")
            end = array.offset + array.nbytes
            if array.shape != shape or array.dtype != np.uint8 or path.stat().st_size != end:
                return None
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError):
        # Whatever stands in these files instead, the answer is the same: not a prepared data set.
        return None
    height, width, channels = dataset.image_shape
    return PreparedDataset(
        folder=folder,
        digest=made["digest"],
        train_images=train,
        test_images=test,
        image_shape=(height, width, channels),
        classes=dataset.classes,
        source=made["source"],
        split=made["split"],
    )


def _make(dataset: Dataset, folder: Path) -> PreparedDataset:
    # Imported when there is something to make: it brings asyncio, and costs more than opening a data set.
    import filelock

    partial = folder.with_name(f"{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
            # Another process may have made it while this one waited.
            if prepared := _open(dataset, folder):
                return prepared
            arrays = read(dataset, _published(dataset))
            # Under the lock, what is there was left by a process that was killed.
            for left in (partial, folder):
                shutil.rmtree(left, ignore_errors=True)
            try:
                _save(dataset, arrays, partial)
                partial.replace(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            prepared = _open(dataset, folder)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be written ({error}); GTDL_HOME chooses another place") from error
    if prepared is None:
        raise DatasetError(f"{folder}: not what was written there a moment ago; GTDL_HOME chooses another place")
    return prepared


def read(dataset: Dataset, folder: Path) -> Arrays:
    """What the data set's reader makes of the publisher's files in ``folder``, of the shapes that its yaml promises."""
    module, _, function = dataset.reader.partition(":")
    try:
        reader = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise DatasetError(f"dataset.reader={dataset.reader}: expected module:function ({error})") from error
    try:
        arrays: Arrays = reader(dataset, folder)
    except OSError as error:
        raise DatasetError(f"{dataset.name}: cannot be read ({error})") from error
    _check_promise(dataset, arrays)
    return limited(arrays, dataset)


def _check_promise(dataset: Dataset, arrays: Arrays) -> None:
    """Raise DatasetError unless these arrays are what the data set's yaml says."""
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
                f"and the data set's yaml promises uint8 {shape}"
            )


def _save(dataset: Dataset, arrays: Arrays, folder: Path) -> None:
    folder.mkdir()
    for name, array in _contents(arrays):
        np.save(_file(folder, name), array)
    if arrays.split:
        _save_split(arrays, arrays.split, folder / SPLIT)
    record = {
        **_facts(dataset),
        "digest": _digest(dataset, arrays),
        "source": _source(dataset),
        "split": _sha256(folder / SPLIT),
        "images": [len(arrays.train_labels), len(arrays.test_labels)],
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _save_split(arrays: Arrays, split: Split, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["set", "row", "label", "image"])
        for row, (label, image) in enumerate(zip(arrays.train_labels, split.train, strict=True)):
            table.writerow(["train", row, label, image])
        for row, (label, image) in enumerate(zip(arrays.test_labels, split.test, strict=True)):
            table.writerow(["test", row, label, image])


def _sha256(path: Path) -> str | None:
    """Of a small file; None if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _digest(dataset: Dataset, arrays: Arrays) -> str:
    digest = hashlib.sha256(f"format {FORMAT}\n".encode())
    if settings := _settings(dataset):
        digest.update(f"{json.dumps(settings, sort_keys=True)}\n".encode())
    for name, array in _contents(arrays):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data.cast("B"))
    return digest.hexdigest()


def _contents(arrays: Arrays) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Names and arrays, these in row-major order, as they are hashed and written."""
    return [(name, np.ascontiguousarray(getattr(arrays, name))) for name in ARRAYS]
