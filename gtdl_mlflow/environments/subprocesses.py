"""Run a program to its end. No process that it starts outlives this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

# An orphan would continue to write into a folder that the next process creates again. Linux sends this guard a signal
# when its parent dies (PR_SET_PDEATHSIG), for whatever reason. The guard then kills its whole process group, including
# the compilers that `make` started. It is a process of its own because code between fork and exec is not safe with
# threads. It also ends what the program leaves behind, such as a build whose uv was killed.
_GUARD = """
import ctypes, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    status = os.spawnv(os.P_WAIT, sys.argv[2], sys.argv[2:])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    sys.exit(status if status >= 0 else 128 - status)
"""


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdout: IO[bytes] | int = subprocess.PIPE,
    stderr: IO[bytes] | int | None = subprocess.PIPE,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``command``, whose first word is a path, in ``folder`` (default: the working directory).

    Its whole process group is killed at the end, and if this process is interrupted.
    """
    guard = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid())] if sys.platform == "linux" else []
    with subprocess.Popen(
        [*guard, *command],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,  # a process group to kill
    ) as process:
        try:
            out, err = process.communicate()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def ending(status: int) -> str:
    """Return how a process with this exit status ended."""
    number = _signal(status)
    return f"was killed by {signal.Signals(number).name}" if number else f"exited with status {status}"


def is_killed(status: int) -> bool:
    """Return whether a process with this exit status was killed by a signal."""
    return _signal(status) is not None


def _signal(status: int) -> int | None:
    number = status - 128 if status > 128 else -status  # the guard adds 128 to the number of a signal
    return number if number in {each.value for each in signal.Signals} else None
