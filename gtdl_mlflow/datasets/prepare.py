"""Prepare data sets for the workers, verify them, and list which are prepared.

``dataset.json`` records the published files. If a file is changed, replaced or added, the data are prepared again. If
the published files no longer exist, the existing prepared data are used.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np

from ..config import Dataset
from ..console import info
from ..files import hold_folder_lock
from ..worker.checksums import sha256
from ..worker.prepared_data import ARRAYS
from . import prepared as prepared_folders
from .base import Arrays, DatasetError, FilesNotFound
from .prepared import PreparedDataset, Stored, array_file, digest, shapes, source, source_folder, stored
from .published import PublishedFiles, contents
from .splits import limit_images


def prepare(dataset: Dataset) -> PreparedDataset:
    """Return the data set prepared from the published files as they are now. Create it if it does not exist.

    If the published files no longer exist, return the data prepared from them.

    Raises:
        DatasetError: published files are missing or invalid, or the folder is not writable.
    """
    try:
        published = PublishedFiles.find(dataset, source_folder(dataset))
    except FilesNotFound as error:
        return _without_published_files(dataset, error)
    found = _find(published, stored(dataset))
    if found is None:
        return _create(dataset)
    if not published.unchanged_since(found.published):
        found.update(published.record())  # so that the next call need not read the files
    return replace(found.prepared, source=source(dataset))


def verify(dataset: Dataset) -> str:
    """Read all files: compare the published ones with their MD5 and the prepared ones with their digest.

    Returns one line of report.

    Raises:
        DatasetError: a file is invalid, or there are neither published nor prepared files.
    """
    try:
        published = PublishedFiles.find(dataset, source_folder(dataset))
    except FilesNotFound as error:
        prepared = _without_published_files(dataset, error)
        _verify_arrays(dataset, prepared, None)
        return f"{dataset.name}: no published files, prepared files intact (SHA-256 {prepared.digest})"
    arrays = read(dataset, published.folder)
    folder = prepared_folders.folder(dataset, published.record())
    # The contents of an archive have no published checksum: copies of different sizes are in use.
    state = f"{len(dataset.files)} file(s) as published" if dataset.files else "files readable"
    report = f"{dataset.name}: {state}"
    everything = stored(dataset)
    if found := _find(published, everything):
        _verify_arrays(dataset, found.prepared, digest(dataset, arrays))
        return f"{report}, prepared files intact (SHA-256 {found.prepared.digest})"
    if folder in prepared_folders.folders(dataset):
        raise DatasetError(f"{folder}: damaged; the next run creates it again")
    if _changed(dataset, everything):
        return f"{report}, changed since they were prepared; the next run prepares them again"
    return f"{report}, not prepared yet"


def _verify_arrays(dataset: Dataset, prepared: PreparedDataset, published_digest: str | None) -> None:
    folder = prepared.folder
    remedy = "delete it, and the next run creates it again"
    try:
        arrays = Arrays(*(np.load(array_file(folder, name)) for name in ARRAYS))
        files = {name: sha256(array_file(folder, name)) for name in ARRAYS}
        split = prepared_folders.split_sha256(folder)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder}: damaged ({error}); {remedy}") from error
    if (digest(dataset, arrays), split, files) != (prepared.digest, prepared.split, prepared.sha256):
        raise DatasetError(f"{folder}: not what was prepared; {remedy}")
    if published_digest not in (None, prepared.digest):
        raise DatasetError(f"{folder}: not what the published files contain; {remedy}")


def locate(dataset: Dataset) -> str:
    """Return whether a data set is downloaded and prepared, in a few words.

    The contents of published files are read only if their times differ from those recorded and their sizes do not.
    """
    everything = stored(dataset)
    try:
        found = _find(PublishedFiles.find(dataset, source_folder(dataset)), everything)
    except FilesNotFound:
        return f"not downloaded, {'prepared' if everything else 'not prepared'}"
    except DatasetError as error:
        return f"not readable: {error}"
    built_in = bool(dataset.files) and all(":" in name for name in dataset.files)
    state = "prepared" if found else "changed since" if _changed(dataset, everything) else "not prepared"
    return f"{'built in' if built_in else 'downloaded'}, {state}"


def _find(published: PublishedFiles, everything: list[Stored]) -> Stored | None:
    """Return what was prepared from these published files. If only their times differ, their contents decide."""
    if found := next((each for each in everything if published.unchanged_since(each.published)), None):
        return found
    candidates = [each for each in everything if published.may_equal(each.published)]
    now = contents(published.record()) if candidates else {}
    return next((each for each in candidates if contents(each.published) == now), None)


def _changed(dataset: Dataset, everything: list[Stored]) -> bool:
    """Return whether data were prepared from the data set's own folder before the files in it changed."""
    return any(each.prepared.source == source(dataset) for each in everything)


def _without_published_files(dataset: Dataset, error: FilesNotFound) -> PreparedDataset:
    """Return what was prepared from published files that no longer exist.

    Raises:
        FilesNotFound: there are no prepared data, or different data were prepared from other folders.
    """
    everything = stored(dataset)
    # The latest first: files that were prepared from the same folder before have been replaced.
    if own := [each.prepared for each in everything if each.prepared.source == source(dataset)]:
        return own[0]
    if len({each.prepared.digest for each in everything}) == 1:
        prepared = everything[0].prepared
        info(f"{dataset.name}: no files in {source_folder(dataset)}; using the data prepared from {prepared.source}")
        return prepared
    if everything:
        known = ", ".join(
            f"{each.prepared.source} ({each.prepared.train_images} + {each.prepared.test_images} images)"
            for each in everything
        )
        raise FilesNotFound(f"{error}; different data have been prepared from {known}") from error
    if unusable := prepared_folders.folders(dataset):
        raise FilesNotFound(
            f"{error}; {unusable[0]} is not used: it is damaged or of an older version of this project, which did not "
            "record the published files"
        ) from error
    read(dataset, source_folder(dataset))  # a reader may have a better error, for example for another packing
    raise error


def _create(dataset: Dataset) -> PreparedDataset:
    parent = prepared_folders.prefix(dataset)
    try:
        with hold_folder_lock(parent):
            # Another process may have created it, and the published files may have changed, while this one waited.
            published = PublishedFiles.find(dataset, source_folder(dataset))
            everything = stored(dataset)
            if found := _find(published, everything):
                return replace(found.prepared, source=source(dataset))
            arrays = read(dataset, published.folder)
            record = published.record()
            folder = prepared_folders.folder(dataset, record)
            if reason := _reason(dataset, everything, contents(record), folder):
                info(f"{dataset.name}: {reason}")
            prepared_folders.save(dataset, arrays, published, record, folder)
            result = prepared_folders.load(dataset, folder)
    except OSError as error:
        cause = f"{error.strerror}: {error.filename}" if error.filename else error.strerror or str(error)
        raise DatasetError(f"{parent}: could not be written ({cause}); set GTDL_HOME to another folder") from error
    if result is None:
        raise DatasetError(f"{folder}: changed while it was written; set GTDL_HOME to another folder")
    return result.prepared


def _reason(dataset: Dataset, everything: list[Stored], files: dict[str, str], folder: Path) -> str:
    """Return why data are prepared although others are in the cache directory; empty if there are none."""
    if folder in prepared_folders.folders(dataset):
        return f"{folder} is damaged; preparing the data again"
    if everything:
        own = [each for each in everything if each.prepared.source == source(dataset)]
        before = (own or everything)[0]
        changed = sorted({name for name, _ in contents(before.published).items() ^ files.items()})
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        if own:
            return f"published files have changed ({changed[0]}{more}); preparing the data again"
        return f"{source(dataset)} differs from {before.prepared.source} ({changed[0]}{more}); preparing it too"
    if unusable := prepared_folders.folders(dataset):
        return f"{unusable[0]} is damaged or of an older version of this project; preparing the data again"
    return ""


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
    expected = shapes(
        dataset,
        len(arrays.train_images) if train is None else train,
        len(arrays.test_images) if test is None else test,
    )
    for name, shape in expected.items():
        array = getattr(arrays, name)
        if array.shape != shape or array.dtype != np.uint8:
            raise DatasetError(
                f"{dataset.name}: {dataset.reader} returned {name} as {array.dtype} {array.shape}, "
                f"but the data set's yaml defines uint8 {shape}"
            )
