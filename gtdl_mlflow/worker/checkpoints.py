"""Checkpoints of training: folders that are renamed to their final names after their content is on the disk."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .checksums import sha256

MANIFEST = "files.json"
"""Name of the file that has the SHA-256 of every other file of a checkpoint, by relative path."""


class Checkpoints:
    """The checkpoints in ``folder``, of which only the newest is retained.

    A context manager: inside it, this process has exclusive use of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Checkpoints:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A worker whose driver was killed runs until its next event. A resumed run waits here until then.
        self._lock = (self._folder / "worker.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def newest(self, remark: Callable[[str], None]) -> Path | None:
        """Return the folder of the newest checkpoint, or None without one.

        A checkpoint whose content differs from what was saved, for example after a power failure, is set aside, and
        ``remark`` is called with a message for the user. No framework reads a damaged checkpoint, because some
        frameworks then end the process.
        """
        for path in sorted(self._all(), key=_step, reverse=True):
            if _is_intact(path):
                return path
            remark(f"the checkpoint after iteration {_step(path)} is damaged and is not used")
            self.set_aside(path)
        return None

    def set_aside(self, checkpoint: Path) -> None:
        """Rename a checkpoint, so that it is not read again. Only one such folder is retained."""
        kept = self._folder / "damaged"
        shutil.rmtree(kept, ignore_errors=True)
        with suppress(OSError):
            checkpoint.replace(kept)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Save the checkpoint after ``step`` steps: the files that ``write`` puts into an empty folder.

        If ``write`` raises an exception, the earlier checkpoint is retained.
        """
        part = self._folder / "part"
        shutil.rmtree(part, ignore_errors=True)  # left by a killed worker
        try:
            part.mkdir()
            write(part)
            (part / MANIFEST).write_text(json.dumps(_digests(part)))
            for path in [*part.rglob("*"), part]:
                _sync(path)
            new = self._folder / f"step-{step}"
            part.replace(new)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # free its space: the disk may be full
            raise
        _sync(self._folder)
        for old in self._all():
            if old != new:
                shutil.rmtree(old, ignore_errors=True)

    def _all(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if re.fullmatch(r"step-\d+", path.name, re.ASCII)]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _is_intact(checkpoint: Path) -> bool:
    with suppress(OSError, ValueError, RecursionError):
        return bool(json.loads((checkpoint / MANIFEST).read_bytes()) == _digests(checkpoint))
    return False


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
