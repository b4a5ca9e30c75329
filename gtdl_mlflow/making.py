"""What takes long to make is made by one process at a time, and says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock


def lock(folder: Path) -> filelock.FileLock:
    """The right to make or remove ``folder``; it lies beside it, and ends with the process that holds it."""
    return filelock.FileLock(folder.with_name(f"{folder.name}.lock"))


@contextmanager
def only_maker(folder: Path) -> Iterator[None]:
    """Hold the right to make ``folder``, after waiting for whoever has it now."""
    held = lock(folder)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        say(f"waiting for another process that is making {folder}")
        held.acquire()
    try:
        yield
    finally:
        held.release()


def say(text: str) -> None:
    """Tell the user what goes on."""
    print(f"gtdl: {text}", file=sys.stderr, flush=True)


def fail(reason: str, *, status: int = 1) -> int:
    """Tell the user why a command ends with ``status``, and return that."""
    say(reason)
    return status
