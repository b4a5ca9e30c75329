"""Record of the published files that a prepared data set was read from, to notice when they change."""

from __future__ import annotations

import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Dataset
from ..worker.checksums import sha256
from . import source_files
from .base import REMEDY, DatasetError

CLOCK_STEP_NS = 2 * 10**9
"""Coarsest time resolution of a file system (FAT). A file that changed more recently than this may change again and
keep the same timestamp."""

State = tuple[int, int, int]
"""Size in bytes and times of the last change of the contents and of the file, in nanoseconds.

The second time cannot be set by programs: copying, unpacking and ``touch`` set the first one only."""

Record = dict[str, dict[str, Any]]
"""Name of each file to ``size``, ``mtime_ns``, ``ctime_ns`` and ``sha256``, as ``dataset.json`` stores them."""


@dataclass(frozen=True)
class PublishedFiles:
    """The published files of a data set as they were when they were found."""

    dataset: Dataset
    folder: Path
    paths: dict[str, Path]
    states: dict[str, State]

    @classmethod
    def find(cls, dataset: Dataset, folder: Path) -> PublishedFiles:
        """Return the files that the data set's reader would read from ``folder``. Reads no contents.

        Raises:
            FilesNotFound: files are missing.
            DatasetError: the folder or a file is not readable.
        """
        try:
            paths = source_files.find_all(dataset, folder)
            return cls(dataset, folder, paths, {name: _state(path) for name, path in paths.items()})
        except OSError as error:
            raise DatasetError(f"{dataset.name}: could not be read ({error})") from error

    def unchanged_since(self, record: Record) -> bool:
        """Return whether these are the recorded files, judged by their names, sizes and times."""
        recorded = {name: (each["size"], each["mtime_ns"], each["ctime_ns"]) for name, each in record.items()}
        return recorded == self.states

    def may_equal(self, record: Record) -> bool:
        """Return whether the contents can be those of the recorded files, judged by names and sizes."""
        sizes = {name: size for name, (size, _, _) in self.states.items()}
        return {name: each["size"] for name, each in record.items()} == sizes

    def record(self) -> Record:
        """Return the record of these files. Reads their contents.

        Raises:
            DatasetError: a file is not readable or has changed since it was found.
        """
        result: Record = {}
        for name, path in self.paths.items():
            now_ns = time.time_ns()
            size, mtime_ns, ctime_ns = self.states[name]
            try:
                result[name] = {"size": size, "mtime_ns": mtime_ns, "ctime_ns": ctime_ns, "sha256": sha256(path)}
            except OSError as error:
                raise DatasetError(f"{path}: could not be read ({error.strerror})") from error
            if now_ns - ctime_ns < CLOCK_STEP_NS:
                result[name]["ctime_ns"] = 0  # no file has it: the contents are compared next time
        self.check_unchanged()
        return result

    def check_unchanged(self) -> None:
        """Raise DatasetError if a file was changed, added or removed since they were found."""
        now = self.find(self.dataset, self.folder).states
        if changed := sorted(self.states.items() ^ now.items()):
            raise DatasetError(
                f"{self.folder}: {changed[0][0]} changed while it was read; run the command again when nothing writes "
                "to this folder"
            )


def contents(record: Record) -> dict[str, str]:
    """Return name and SHA-256 of each recorded file."""
    return {name: each["sha256"] for name, each in record.items()}


def _state(path: Path) -> State:
    status = path.stat()
    # Opening a pipe would never end.
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError(f"{path}: not a regular file; {REMEDY}")
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
