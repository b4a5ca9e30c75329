"""Checkpoints of a training: folders that appear under their names only when all that is in them is on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


class Checkpoints:
    """In ``folder``, which one training alone uses; only the newest is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self) -> Path | None:
        """The folder of the last checkpoint, or None if there is none."""
        return max(self._folder.glob("step-*"), key=_step, default=None)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """What ``write`` puts into an empty folder becomes the checkpoint after ``step`` steps."""
        part = self._folder / "part"
        shutil.rmtree(part, ignore_errors=True)  # left by a kill
        part.mkdir(parents=True)
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
