"""What the driver imports, fetched from the disk before it is asked for.

A first run after a boot would spend half a second waiting for MLflow's files, one after the other. Which they are is
known from the run before. The framework's files are never among them: what its import takes, cold or warm, is measured.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from .home import home, write_whole


def begin() -> None:
    """Have a thread ask the kernel for the files, unless they are in memory; it waits for none of them."""
    if sys.platform != "linux":  # others do not tell what is in memory
        return
    with suppress(OSError):  # no run has been before
        names = _list().read_text(encoding="utf-8").splitlines()
        threading.Thread(target=_fetch, args=[names], name="read ahead", daemon=True).start()


def remember() -> None:
    """Keep the names of the files that were imported, if there are any that the list does not have."""
    names = [name for module in list(sys.modules.values()) if (name := _read_for(module))]
    place = _list()
    with suppress(OSError):  # a run has better things to complain about
        known = place.read_text(encoding="utf-8").splitlines() if place.exists() else []
        if not set(names) <= set(known):
            write_whole(place, "\n".join(names))


def _in_memory(name: str) -> bool:
    """Whether the kernel has the file's beginning at hand, asked without waiting; False where it does not tell."""
    try:
        with Path(name).open("rb", buffering=0) as file:
            return os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def _fetch(names: list[str]) -> None:
    if names and _in_memory(names[-1]):  # and so are the others, then
        return
    for name in names:
        with suppress(OSError), Path(name).open("rb", buffering=0) as file:  # it may be gone since
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _read_for(module: ModuleType) -> str | None:
    """The file that Python reads when it imports the module; None if there is none."""
    for name in (getattr(module, "__cached__", None), getattr(module, "__file__", None)):
        if isinstance(name, str) and Path(name).exists():
            return name
    return None


def _list() -> Path:
    """One for each environment that drives."""
    return home() / "imports" / f"{hashlib.sha256(sys.prefix.encode()).hexdigest()[:10]}.txt"
