"""Processes that tests start and read from."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import IO

from helpers.project import ROOT


def start_script(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python script that can import this checkout, with pipes for its input, output and errors."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_line(process: subprocess.Popen[str], stream: IO[str] | None, timeout_s: float = 60) -> str:
    """Return the next line of the process's ``stream``. After ``timeout_s``, kill the process: the line is empty."""
    assert stream is not None
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        return stream.readline()
    finally:
        timer.cancel()


def kill(*processes: subprocess.Popen[str]) -> None:
    """Kill processes and wait for their end."""
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate(timeout=30)
