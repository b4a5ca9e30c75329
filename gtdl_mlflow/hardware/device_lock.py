"""One timed run at a time per device of a machine, for all launchers and users.

A lock is an advisory lock of the kernel (``flock``): it ends with its process, whatever the cause, and waiting for it
costs the running process nothing. A run that uses the whole CPU locks the file ``cpu`` exclusively. Runs that may share
the CPU lock it as shared, and the file of each of their cores exclusively. Runs on a GPU share the CPU too.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..config import Hardware
from ..console import info

LOCKS_VARIABLE = "GTDL_LOCKS"
"""Environment variable: the folder of the locks. Containers of one machine need a common one."""

DEFAULT_FOLDER = Path("/tmp/gtdl-locks")
"""Not in GTDL_HOME, which differs between users."""


@contextmanager
def hold(hardware: Hardware) -> Iterator[float]:
    """Hold the device of ``hardware``; yield the seconds spent waiting for it."""
    started = time.monotonic()
    with ExitStack() as stack:
        for name, shared in _required_locks(hardware):
            stack.enter_context(_lock(name, shared))
        yield time.monotonic() - started


def _required_locks(hardware: Hardware) -> list[tuple[str, bool]]:
    """Return (name, whether it may be shared) of each lock, in the same order for all runs: there is no deadlock."""
    if hardware.device == "gpu":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
        return [("cpu", True), (f"gpu-{visible}", False)]
    if hardware.side_by_side:
        return [("cpu", True), *((f"core-{core}", False) for core in sorted(hardware.usable_cores()))]
    return [("cpu", False)]


@contextmanager
def _lock(name: str, shared: bool) -> Iterator[None]:
    descriptor = _open(_folder() / name)
    try:
        operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            info(f"waiting: another gtdl run{f' ({holder})' if holder else ''} is using {_describe(name)}")
            fcntl.flock(descriptor, operation)
        os.ftruncate(descriptor, 0)
        if not shared:  # the holder's description, for the message of those that wait
            os.pwrite(descriptor, f"pid {os.getpid()}, user {_user()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _describe(name: str) -> str:
    """Return the device of a lock in words: the CPU, core 3, GPU 0."""
    kind, _, number = name.partition("-")
    return "the CPU" if kind == "cpu" else f"{kind.replace('gpu', 'GPU')} {number}"


def _open(path: Path) -> int:
    """Open a lock's file for all users. O_CREAT only if it is missing: in a sticky folder the kernel refuses O_CREAT
    for another user's file.
    """
    while True:
        try:
            return os.open(path, os.O_RDWR)
        except FileNotFoundError:
            with suppress(FileExistsError):  # another process created it meanwhile
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                os.fchmod(descriptor, 0o666)
                return descriptor


def _folder() -> Path:
    folder = Path(os.environ.get(LOCKS_VARIABLE) or DEFAULT_FOLDER)
    with suppress(FileExistsError):
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    return folder


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        return str(os.getuid())
