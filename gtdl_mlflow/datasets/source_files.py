"""Find, read and verify the files that a publisher distributes."""

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


def find_files(dataset: Dataset, folder: Path) -> dict[str, Path]:
    """Return the path of each file in ``dataset.files``.

    ``package:path`` is a file of an installed top-level Python package; any other name is a file in ``folder``, which
    may be compressed by gzip.

    Raises:
        FilesNotFound: at least one file is missing; the message names all of them.
    """
    paths = {name: path for name in dataset.files if (path := _path(name, folder))}
    missing = [name for name in dataset.files if name not in paths]
    if any(":" in name for name in missing):
        raise FilesNotFound(
            f"{dataset.name}: {', '.join(missing)}: no such file in that Python package; is it installed?"
        )
    if missing:
        raise FilesNotFound(
            f"{dataset.name}: {', '.join(missing)} not found in {folder}, neither plain nor as .gz: "
            f"run `gtdl data fetch {dataset.name}`, or put the publisher's files there, "
            f"or set GTDL_DATA to the folder that contains {folder.name}/"
        )
    return paths


def _path(name: str, folder: Path) -> Path | None:
    package, _, inside = name.rpartition(":")
    # Finding a package without importing it keeps pandas and scikit-learn out of the driver.
    spec = find_spec(package) if package else None
    roots = [Path(root) for root in (spec and spec.submodule_search_locations) or ()] if package else [folder]
    # Some unpackers restore the name that MNIST's files had before they were compressed: train-images.idx3-ubyte.
    names = dict.fromkeys((inside, inside.replace("-idx", ".idx")))
    paths = (root / f"{each}{ending}" for root in roots for each in names for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def find_source(dataset: Dataset, folder: Path) -> Path:
    """Return the folder into which a data set was unpacked or, if there is no such folder, its archive.

    Raises:
        FilesNotFound: ``folder`` has neither.
    """
    # Most archives unpack into a folder of their own. Folders with a dot in their name are unfinished downloads.
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
        f"run `gtdl data fetch {dataset.name}`, or put the publisher's file there, "
        f"or set GTDL_DATA to the folder that contains {folder.name}/"
    )


def entries(
    dataset: Dataset, folder: Path, wanted: re.Pattern[str]
) -> Iterator[tuple[re.Match[str], archives.ArchiveEntry]]:
    """Return the entries of a data set's folder or archive whose names match ``wanted`` as a whole.

    The contents of an entry can be read until the next one is requested.

    Raises:
        DatasetError: two files have the same groups in ``wanted``, or the archive is damaged or hostile.
    """
    source = find_source(dataset, folder)
    seen: set[tuple[str, ...]] = set()
    for entry in archives.entries(source, dataset.archives):
        if match := wanted.fullmatch(entry.name):
            if match.groups() in seen and not entry.name.endswith("/"):
                raise DatasetError(f"{entry.where}: occurs twice; {REMEDY}")
            seen.add(match.groups())
            yield match, entry


def image_counts(dataset: Dataset) -> tuple[int, int]:
    """Return the published numbers of training and test images, for a format that does not contain them."""
    if dataset.train_images is None or dataset.test_images is None:
        raise DatasetError(f"dataset.train_images, dataset.test_images: required for {dataset.name}, not null")
    return dataset.train_images, dataset.test_images


def read_file(path: Path, limit: int) -> bytes:
    """Return the contents of a file, decompressed if it is gzip, cut to ``limit`` + 1 bytes so that more is noticed."""
    with path.open("rb") as file:
        # The name does not decide: browsers unpack some downloads in transit and keep the .gz.
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            return file.read(limit + 1)
        try:
            with gzip.open(file) as unpacked:
                return unpacked.read(limit + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetError(f"{path}: could not be read ({error}); {REMEDY}") from error


def check_md5(path: Path, contents: bytes, expected: str, remedy: str = REMEDY) -> None:
    """Raise DatasetError unless ``contents``, read from ``path``, has the ``expected`` MD5."""
    # Protects against accidents, not against attackers. FIPS systems allow MD5 only for such uses.
    md5 = hashlib.md5(contents, usedforsecurity=False).hexdigest()
    if md5 != expected:
        raise DatasetError(f"{path}: not the published contents (MD5 {md5}, published {expected}); {remedy}")


def check_labels(path: Path | str, labels: npt.NDArray[np.uint8], classes: int) -> None:
    """Raise DatasetError unless all labels (N,) read from ``path`` are in 0 to ``classes`` - 1."""
    outside = np.flatnonzero(labels >= classes)
    if len(outside):
        first = int(outside[0])
        raise DatasetError(
            f"{path}: label {labels[first]} at position {first}, expected 0 to {classes - 1}; "
            f"{REMEDY}, or correct dataset.classes"
        )
