"""The identity of the process that records a run, by which a later command finds dead runs."""

from __future__ import annotations

import os
import socket

import psutil

PROCESS_GONE = "its process no longer exists"
"""The reason recorded for a dead run."""


def this_process() -> str:
    """Return ``HOST PID START``, which identifies this process among all processes of all hosts."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.2f}"


def is_alive(process: str) -> bool | None:
    """Return whether a process still runs; None if it is unknown, because it belongs to another host."""
    words = process.split(" ")
    if len(words) != 3 or words[0] != socket.gethostname():
        return None
    try:
        return f"{psutil.Process(int(words[1])).create_time():.2f}" == words[2]
    except (psutil.NoSuchProcess, ValueError):
        return False
