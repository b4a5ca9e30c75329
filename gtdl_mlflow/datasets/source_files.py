"""Find, read and verify the files that a publisher distributes."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from . import archives
from .base import REMEDY, DatasetError, FilesNotFound

JUNK = re.compile(
    r"(?:.*/)?(?:"
    # Written by operating systems, file servers, notebooks, downloads and unpackers.
    r"\.DS_Store|\._[^/]*|(?:eh)?thumbs\.db|desktop\.ini|\.directory|\.nfs[^/]*|\.fuse_hidden[^/]*|\.git(?:keep|ignore)"
    r"|fetch\.partial/.*|[^/]+\.(?:part|partial|crdownload|aria2)"
    r"|(?:__MACOSX|\.ipynb_checkpoints|\.AppleDouble|\.Spotlight-V100|\.fseventsd|\.Trash[^/]*|@eaDir)/.*|\.?done"
    # Shipped by publishers beside the data.
    r"|(?:readme|licen[cs]e|copying|notice|citation|terms)[\w-]*(?:\.(?:txt|md|rst|html?|pdf|bib|cff))?"
    r"|(?:md5|sha1|sha256|sha512|check)[_-]?sums?(?:\.txt)?|[^/]+\.(?:md5|sha1|sha256|sha512|asc|sig)"
    r")",
    re.IGNORECASE,
)
"""Names of files that are not data of any data set. All other unknown files are refused."""

ROOT_DEPTH = 3
"""Levels of subfolders in which files are found: torchvision's MNIST/raw, or an archive in two folders."""


def find_files(dataset: Dataset, folder: Path) -> dict[str, Path]:
    """Return the path of each file in ``dataset.files``.

    ``package:path`` is a file of an installed top-level Python package; any other name is a file in ``folder`` or a
    subfolder, which may be compressed by gzip. If there are several, the first with the published contents is returned.

    Raises:
        FilesNotFound: at least one file is missing; the message names all of them.
    """
    return {
        name: paths[0] if len(paths) == 1 else next((path for path in paths if _has_md5(path, md5)), paths[0])
        for (name, paths), md5 in zip(_candidates(dataset, folder).items(), dataset.files.values(), strict=True)
    }


def _candidates(dataset: Dataset, folder: Path) -> dict[str, list[Path]]:
    """Return the paths at which each file in ``dataset.files`` exists, the preferred one first."""
    candidates = {name: _paths(name, folder) for name in dataset.files}
    missing = [name for name, paths in candidates.items() if not paths]
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
    return candidates


def _paths(name: str, folder: Path) -> list[Path]:
    package, _, inside = name.rpartition(":")
    # Finding a package without importing it keeps pandas and scikit-learn out of the driver.
    spec = find_spec(package) if package else None
    packages = [Path(root) for root in (spec and spec.submodule_search_locations) or ()]
    roots = packages if package else list(_roots(folder))
    # Some unpackers restore the name that MNIST's files had before they were compressed: train-images.idx3-ubyte.
    names = dict.fromkeys((inside, inside.replace("-idx", ".idx")))
    paths = (root / f"{each}{ending}" for root in roots for each in names for ending in ("", ".gz"))
    return [path for path in paths if path.is_file()]


def _roots(folder: Path) -> Iterator[Path]:
    """Yield ``folder`` and its subfolders, level by level, each sorted by name."""
    level = [folder]
    for depth in range(ROOT_DEPTH + 1):
        yield from level
        if depth < ROOT_DEPTH:
            # Folders with a dot in their name are unfinished downloads.
            folders = (path for parent in level for path in sorted(parent.glob("*/")))
            level = [path for path in folders if "." not in path.name and not JUNK.fullmatch(f"{path.name}/")]


def _has_md5(path: Path, md5: str) -> bool:
    digest = hashlib.md5(usedforsecurity=False)
    read = 0
    try:
        with _open_unpacked(path) as file:
            while block := file.read(2**20):
                digest.update(block)
                read += len(block)
                if read > archives.UNPACKED_LIMIT:
                    return False
    except (OSError, EOFError, zlib.error):
        return False
    return digest.hexdigest() == md5


def find_source(dataset: Dataset, folder: Path) -> Path:
    """Return ``folder`` if the data set was unpacked into it or a subfolder, otherwise the archive in it.

    A data set without archives is always unpacked.

    Raises:
        FilesNotFound: ``folder`` has neither.
    """
    if not dataset.archives:
        if folder.is_dir():
            return folder
        raise FilesNotFound(
            f"{dataset.name}: {folder} does not exist: put the files there, "
            f"or set GTDL_DATA to the folder that contains {folder.name}/"
        )
    unpacked = _plain(dataset.unpacked)
    for root in _roots(folder):
        if root.is_dir() and any(_plain(path.name) == unpacked for path in root.iterdir()):
            return folder
    if archive := _find_archive(dataset, folder):
        return archive
    raise FilesNotFound(
        f"{dataset.name}: {' or '.join(dataset.archives)} not found in {folder}, nor {dataset.unpacked} unpacked: "
        f"run `gtdl data fetch {dataset.name}`, or put the publisher's file there, "
        f"or set GTDL_DATA to the folder that contains {folder.name}/"
    )


def _plain(name: str) -> str:
    """Return a name in small letters and with unpadded numbers, as some tools write S01."""
    return re.sub(r"0*([0-9]+)", r"\1", name.casefold())


def _find_archive(dataset: Dataset, folder: Path) -> Path | None:
    paths = (root / name for root in _roots(folder) for name in _archive_names(dataset))
    return next((path for path in paths if path.is_file()), None)


def _archive_names(dataset: Dataset) -> list[str]:
    # Some browsers decompress a download and drop the ending.
    names = [each for name in dataset.archives for each in (name, re.sub(r"\.(gz|Z)$", "", name))]
    return list(dict.fromkeys(names))


def find_all(dataset: Dataset, folder: Path) -> dict[str, Path]:
    """Return every file that determines what the data set's reader returns: name to path.

    Names are relative to ``folder``, or ``package:name``.

    Raises:
        FilesNotFound: files of the data set are missing.
    """
    if dataset.files:
        return {
            f"{name.rpartition(':')[0]}:{path.name}" if ":" in name else path.relative_to(folder).as_posix(): path
            for name, paths in _candidates(dataset, folder).items()
            for path in paths
        }
    source = find_source(dataset, folder)
    if source.is_file():
        return {source.relative_to(folder).as_posix(): source}
    files = {entry.name: source / entry.name for entry in _entries(dataset, source) if not entry.name.endswith("/")}
    if not files:
        raise FilesNotFound(f"{dataset.name}: no file in {source}: put the files there")
    return files


def entries(
    dataset: Dataset, folder: Path, wanted: re.Pattern[str], ignored: re.Pattern[str] | None = None
) -> Iterator[tuple[re.Match[str], archives.ArchiveEntry]]:
    """Return the entries of a data set's folder or archive whose names match ``wanted`` as a whole.

    Other files must match ``ignored`` or ``JUNK``. The contents of an entry can be read until the next one is
    requested.

    Raises:
        DatasetError: a file is unknown, two files have the same groups in ``wanted`` (apart from capital letters if
            it ignores case), the archive is damaged or hostile, or the folder lacks files of the archive beside it.
    """
    source = find_source(dataset, folder)
    seen: set[tuple[str, ...]] = set()
    too_deep = None
    for entry in _entries(dataset, source):
        is_folder = entry.name.endswith("/")
        if match := wanted.fullmatch(entry.name):
            key = _key(match)
            if key in seen and not is_folder:
                raise DatasetError(f"{entry.where}: occurs twice; {REMEDY}")
            seen.add(key)
            yield match, entry
        elif not is_folder and not (ignored and ignored.fullmatch(entry.name)):
            remedy = "move it to another folder" if source.is_dir() else REMEDY
            raise DatasetError(f"{entry.where}: not a file of {dataset.name}; {remedy}")
        if is_folder and source.is_dir() and entry.name.count("/") >= archives.DEPTH_LIMIT:
            too_deep = too_deep or (entry.where if any((source / entry.name).iterdir()) else None)
    # At the end: where a link leads back to its own folder, the file that occurs twice is the better error.
    if too_deep:
        raise DatasetError(f"{too_deep}: more than {archives.DEPTH_LIMIT} levels of folders; move it to another folder")
    if source.is_dir() and (archive := _find_archive(dataset, folder)):
        _check_unpacked(dataset, source, archive, wanted, seen)


def _key(match: re.Match[str]) -> tuple[str, ...]:
    """Return the key of a file: the groups of its name, case folded if its pattern ignores case."""
    groups = match.groups(default="")
    return tuple(group.casefold() for group in groups) if match.re.flags & re.IGNORECASE else groups


def _entries(dataset: Dataset, source: Path) -> Iterator[archives.ArchiveEntry]:
    """Yield the entries of a folder or archive, without junk and without archives beside their unpacked files."""
    packings: set[str] = set()
    if source.is_dir():
        packings = {*_archive_names(dataset), *(download.file for download in dataset.downloads.values())}
    for entry in archives.entries(source, dataset.archives):
        if not JUNK.fullmatch(entry.name) and entry.name.rpartition("/")[2] not in packings:
            yield entry


def _check_unpacked(
    dataset: Dataset, source: Path, archive: Path, wanted: re.Pattern[str], unpacked: set[tuple[str, ...]]
) -> None:
    """Raise DatasetError if ``archive`` has files that were not unpacked. A damaged archive proves nothing."""
    missing: list[str] = []
    try:
        for entry in _entries(dataset, archive):
            match = wanted.fullmatch(entry.name)
            if match and _key(match) not in unpacked and not entry.name.endswith("/"):
                missing.append(entry.name)
    except DatasetError:
        return
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DatasetError(
            f"{source}: {missing[0]}{more} of {archive} missing; unpack the archive again, delete what was unpacked, "
            "or move the archive to another folder"
        )


def image_counts(dataset: Dataset) -> tuple[int, int]:
    """Return the published numbers of training and test images, for a format that does not contain them."""
    if dataset.train_images is None or dataset.test_images is None:
        raise DatasetError(f"dataset.train_images, dataset.test_images: required for {dataset.name}, not null")
    return dataset.train_images, dataset.test_images


def read_file(path: Path, limit: int) -> bytes:
    """Return the contents of a file, decompressed if it is gzip, cut to ``limit`` + 1 bytes so that more is noticed."""
    try:
        with _open_unpacked(path) as file:
            return file.read(limit + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path}: could not be read ({error}); {REMEDY}") from error


@contextmanager
def _open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        # The name does not decide: browsers unpack some downloads in transit and keep the .gz.
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.open(file) as unpacked:
            yield cast("IO[bytes]", unpacked)


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
