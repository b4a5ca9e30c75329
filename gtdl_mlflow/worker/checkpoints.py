"""Checkpoints of a training: folders that appear under their names only when all that is in them is on the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


class Checkpoints:
    """A context: in it, this process has ``folder`` for itself; only the newest checkpoint is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Checkpoints:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A worker whose driver was killed goes on until its next word; whoever follows it waits for that.
        self._lock = (self._folder / "worker.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def newest(self) -> Path | None:
        """The folder of the last checkpoint, or None if there is none."""
        return max(self._folder.glob("step-*"), key=_step, default=None)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """What ``write`` puts into an empty folder becomes the checkpoint after ``step`` steps."""
        part = self._folder / "part"
        shutil.rmtree(part, ignore_errors=True)  # left by a kill
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
