"""Checkpoints of a training: folders that get their names only when their content is on the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


class Checkpoints:
    """The checkpoints in ``folder``, of which only the newest is retained.

    A context manager: inside it, this process has exclusive use of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Checkpoints:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A worker whose driver was killed runs until its next event. A resumed run waits here until it has ended.
        self._lock = (self._folder / "worker.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def newest(self) -> Path | None:
        """Return the folder of the newest checkpoint, or None without one."""
        return max(self._folder.glob("step-*"), key=_step, default=None)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Save the checkpoint after ``step`` steps: the files that ``write`` puts into an empty folder."""
        part = self._folder / "part"
        shutil.rmtree(part, ignore_errors=True)  # left by a killed worker
        part.mkdir()
        write(part)
        for path in [*part.rglob("*"), part]:
            _sync(path)
        new = self._folder / f"step-{step}"
        part.replace(new)
        _sync(self._folder)
        for old in self._folder.glob("step-*"):
            if old != new:
                shutil.rmtree(old)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
