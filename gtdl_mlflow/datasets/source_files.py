"""Files as their publishers ship them: where they are, what is in them, whether it is what was published."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from . import archives
from .base import REMEDY, DatasetError, FilesNotFound


def find(dataset: Dataset, folder: Path) -> dict[str, Path]:
    """The publisher's files by their names in ``dataset.files``.

    ``package:path`` is a file that an installed top-level Python package ships; any other name is one in ``folder``.
    """
    found = {name: path for name in dataset.files if (path := _path(name, folder))}
    missing = [name for name in dataset.files if name not in found]
    if any(":" in name for name in missing):
        raise FilesNotFound(
            f"{dataset.name}: {', '.join(missing)}: no such file in that Python package; is it installed?"
        )
    if missing:
        raise FilesNotFound(
            f"{dataset.name}: {', '.join(missing)} not found in {folder}, neither as such nor as .gz: "
            f"`gtdl data fetch {dataset.name}` gets them; or put the publisher's files there, "
            f"or set GTDL_DATA to the folder that holds {folder.name}/"
        )
    return found


def _path(name: str, folder: Path) -> Path | None:
    package, _, inside = name.rpartition(":")
    # A package's files are data here: finding it without importing it keeps pandas and scikit-learn out of the driver.
    spec = find_spec(package) if package else None
    roots = [Path(root) for root in (spec and spec.submodule_search_locations) or ()] if package else [folder]
    # Some unpackers restore the name that MNIST's files had before they were compressed: train-images.idx3-ubyte.
    names = dict.fromkeys((inside, inside.replace("-idx", ".idx")))
    paths = (root / f"{each}{ending}" for root in roots for each in names for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def place(dataset: Dataset, folder: Path) -> Path:
    """Where a data set that is published as an archive is: the folder it was unpacked into, or one of its archives."""
    # Most archives unpack into a folder of their own. Names with a dot are downloads that are not finished.
    roots = [folder, *sorted(path for path in folder.glob("*/") if "." not in path.name)]
    for root in roots:
        if (root / dataset.unpacked).exists():
            return root
    for root in roots:
        for name in dataset.archives:
            if (root / name).is_file():
                return root / name
    raise FilesNotFound(
        f"{dataset.name}: {' or '.join(dataset.archives)} not found in {folder}, nor {dataset.unpacked} unpacked: "
        f"`gtdl data fetch {dataset.name}` gets it; or put the publisher's file there, "
        f"or set GTDL_DATA to the folder that holds {folder.name}/"
    )


def entries(
    dataset: Dataset, folder: Path, wanted: re.Pattern[str]
) -> Iterator[tuple[re.Match[str], archives.ArchiveEntry]]:
    """What is called as ``wanted`` in a data set that is published as an archive; each can be read until the next one.

    Raises:
        DatasetError: two files have the same groups in ``wanted``, or the archive is damaged or hostile.
    """
    source = place(dataset, folder)
    seen: set[tuple[str, ...]] = set()
    for entry in archives.entries(source, dataset.archives):
        if match := wanted.fullmatch(entry.name):
            if match.groups() in seen and not entry.name.endswith("/"):
                raise DatasetError(f"{entry.where}: is there twice; {REMEDY}")
            seen.add(match.groups())
            yield match, entry


def counts(dataset: Dataset) -> tuple[int, int]:
    """How many images for training and for testing were published, for a reader whose format does not say."""
    if dataset.train_images is None or dataset.test_images is None:
        raise DatasetError(f"dataset.train_images, dataset.test_images: must be given for {dataset.name}, not null")
    return dataset.train_images, dataset.test_images


def content(path: Path, limit: int) -> bytes:
    """What is in a file, unpacked if it is gzip; at most ``limit`` + 1 bytes, so that the caller sees there is more."""
    with path.open("rb") as file:
        # Not by the name: browsers unpack some downloads on the way and keep the .gz.
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            return file.read(limit + 1)
        try:
            with gzip.open(file) as unpacked:
                return unpacked.read(limit + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetError(f"{path}: cannot be unpacked ({error}); {REMEDY}") from error


def check_md5(path: Path, found: bytes, expected: str, remedy: str = REMEDY) -> None:
    """Raise DatasetError unless ``found``, the content of ``path``, has the ``expected`` MD5."""
    # Against accidents and mix-ups, not against attackers; some systems (FIPS) allow MD5 only when that is said.
    md5 = hashlib.md5(found, usedforsecurity=False).hexdigest()
    if md5 != expected:
        raise DatasetError(f"{path}: not the published content (MD5 {md5}, published {expected}); {remedy}")


def check_labels(path: Path | str, labels: npt.NDArray[np.uint8], classes: int) -> None:
    """Raise DatasetError unless the labels (N,) in ``path`` lie in 0 to ``classes`` - 1."""
    outside = np.flatnonzero(labels >= classes)
    if len(outside):
        first = int(outside[0])
        raise DatasetError(
            f"{path}: label {labels[first]} at position {first}, expected 0 to {classes - 1}; "
            f"{REMEDY}, or correct dataset.classes"
        )
