"""The form that workers read: one folder a data set, of ``.npy`` files and a ``dataset.json`` that says what they are.

A folder appears under its own name only when it is complete, and its name carries a hash of all that decides its
content: another configuration, or another way of preparing, is another folder.
"""

from __future__ import annotations

import dataclasses
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
from ..home import data_home, home
from . import published
from .base import Arrays, DatasetError, FilesNotFound

FORMAT = 1
"""Counted up whenever a reader, or anything here, makes other arrays of the same files."""

RECORD = "dataset.json"


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: uint8 ``{train,test}_{images,labels}.npy``, images (N, H, W, C), labels (N,)."""

    folder: Path
    digest: str
    """SHA-256 over all arrays: names, types, shapes and contents."""
    train_images: int
    test_images: int
    image_shape: tuple[int, int, int]
    """Height, width, channels."""
    classes: int
    source: str
    """What it was made from: a folder, or ``package:path``."""


def prepare(dataset: Dataset) -> Prepared:
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
        published_digest = _digest(_read(dataset))
        report = f"{dataset.name}: {len(dataset.files)} file(s) as published"
    except FilesNotFound:
        if prepared is None:
            raise
        report = f"{dataset.name}: publisher's files not here"
    if prepared is None:
        return f"{report}, not prepared yet"
    try:
        digest = _digest(Arrays(*(np.load(_file(folder, name)) for name in _shapes(dataset))))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder}: damaged ({error}); delete it, and the next run makes it again") from error
    if digest != prepared.digest or published_digest not in (None, digest):
        raise DatasetError(f"{folder}: not what was prepared; delete it, and the next run makes it again")
    return f"{report}, prepared form intact (SHA-256 {digest})"


def locate(dataset: Dataset) -> str:
    """Where the data set is, in a few words: the publisher's files, then the prepared form. Reads no contents."""
    state = "prepared" if _open(dataset, _folder(dataset)) else "not prepared"
    try:
        published.find(dataset, _published(dataset))
    except FilesNotFound:
        return f"not in {_source(dataset)}, {state}"
    built_in = all(":" in name for name in dataset.files)
    return f"{'built in' if built_in else f'in {_source(dataset)}'}, {state}"


def _published(dataset: Dataset) -> Path:
    return data_home() / dataset.name


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
    }


def _folder(dataset: Dataset) -> Path:
    facts = json.dumps(_facts(dataset), sort_keys=True)
    return home() / "prepared" / f"{dataset.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _shapes(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Array names, in the order of ``Arrays``, to the shapes they must have."""
    train, test = dataset.train_images, dataset.test_images
    return {
        "train_images": (train, *dataset.image_shape),
        "train_labels": (train,),
        "test_images": (test, *dataset.image_shape),
        "test_labels": (test,),
    }


def _open(dataset: Dataset, folder: Path) -> Prepared | None:
    """What is prepared in ``folder``; None if nothing is, or if a file is missing, unreadable or of another size."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        digest, source = record.pop("digest"), record.pop("source")
        if record != _facts(dataset):
            return None
        for name, shape in _shapes(dataset).items():
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
    return Prepared(
        folder=folder,
        digest=digest,
        train_images=dataset.train_images,
        test_images=dataset.test_images,
        image_shape=(height, width, channels),
        classes=dataset.classes,
        source=source,
    )


def _make(dataset: Dataset, folder: Path) -> Prepared:
    # Imported when there is something to make: it brings asyncio, and costs more than opening a data set.
    import filelock

    partial = folder.with_name(f"{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
            # Another process may have made it while this one waited.
            if prepared := _open(dataset, folder):
                return prepared
            arrays = _read(dataset)
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


def _read(dataset: Dataset) -> Arrays:
    """The arrays that the data set's reader makes of the publisher's files, of the shapes that its yaml promises."""
    module, _, function = dataset.reader.partition(":")
    try:
        read = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise DatasetError(f"dataset.reader={dataset.reader}: expected module:function ({error})") from error
    try:
        arrays: Arrays = read(dataset, _published(dataset))
    except OSError as error:
        raise DatasetError(f"{dataset.name}: cannot be read ({error})") from error
    for name, shape in _shapes(dataset).items():
        array = getattr(arrays, name)
        if array.shape != shape or array.dtype != np.uint8:
            raise DatasetError(
                f"{dataset.name}: {dataset.reader} returned {name} as {array.dtype} {array.shape}, "
                f"and the data set's yaml promises uint8 {shape}"
            )
    return arrays


def _save(dataset: Dataset, arrays: Arrays, folder: Path) -> None:
    folder.mkdir()
    for name, array in _contents(arrays):
        np.save(_file(folder, name), array)
    record = {**_facts(dataset), "digest": _digest(arrays), "source": _source(dataset)}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256(f"format {FORMAT}\n".encode())
    for name, array in _contents(arrays):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data.cast("B"))
    return digest.hexdigest()


def _contents(arrays: Arrays) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Names and arrays, these in row-major order, as they are hashed and written."""
    names = [field.name for field in dataclasses.fields(arrays)]
    return [(name, np.ascontiguousarray(getattr(arrays, name))) for name in names]
