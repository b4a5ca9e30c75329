"""The descendants of a process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

HAS_CHILDREN = Path("/proc/thread-self/children").exists()
"""Whether the kernel lists the children of a thread (``CONFIG_PROC_CHILDREN``)."""


def descendants(pid: int) -> list[int]:
    """Return the process IDs of all descendants of ``pid``; none if it has ended.

    psutil's ``children`` reads all processes of the machine and compares creation times, so that it may find none while
    the clock is being set.
    """
    if not HAS_CHILDREN:
        with suppress(psutil.NoSuchProcess):
            return [each.pid for each in psutil.Process(pid).children(recursive=True)]
        return []
    found: list[int] = []
    parents = [pid]
    while parents:
        tasks: list[Path] = []
        with suppress(OSError):
            tasks = list(Path(f"/proc/{parents.pop()}/task").iterdir())
        for task in tasks:
            with suppress(OSError):  # the thread has ended
                children = [int(word) for word in (task / "children").read_text().split()]
                found += children
                parents += children
    return found
