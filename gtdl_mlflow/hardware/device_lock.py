"""One timed job per device and machine: whoever comes second waits, whatever launcher or user it is.

A lock is an advisory one of the kernel's (``flock``): it ends with the process that holds it, however that ends, and
waiting for it costs the running job nothing. A job alone on the CPU has the file ``cpu`` to itself; jobs that may run
side by side share it, and have a file for each of their cores; so do those on a GPU, which need the CPU too.
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
"""Environment variable: the folder of the locks. Containers of one machine need one that they share."""


@contextmanager
def hold(hardware: Hardware) -> Iterator[float]:
    """Have the device of ``hardware`` for this block; gives the seconds that were waited for it."""
    started = time.monotonic()
    with ExitStack() as stack:
        for name, shared in _needed(hardware):
            stack.enter_context(_lock(name, shared))
        yield time.monotonic() - started


def _needed(hardware: Hardware) -> list[tuple[str, bool]]:
    """(lock, whether others may have it too), in an order that is the same for all: nobody waits in a circle."""
    if hardware.device == "gpu":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
        return [("cpu", True), (f"gpu-{visible}", False)]
    if hardware.side_by_side:
        return [("cpu", True), *((f"core-{core}", False) for core in sorted(hardware.usable_cores()))]
    return [("cpu", False)]


@contextmanager
def _lock(name: str, shared: bool) -> Iterator[None]:
    descriptor = _open(_place() / name)
    try:
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            info(f"waiting for {name}, which another run has" + (f" ({holder})" if holder else ""))
            fcntl.flock(descriptor, how)
        os.ftruncate(descriptor, 0)
        if not shared:  # who has it, for those who wait
            os.pwrite(descriptor, f"process {os.getpid()} of {_user()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Opened without asking to create it where it exists: in a sticky folder the kernel refuses that to other users."""
    while True:
        try:
            return os.open(path, os.O_RDWR)
        except FileNotFoundError:
            with suppress(FileExistsError):  # another was faster
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                os.fchmod(descriptor, 0o666)
                return descriptor


def _place() -> Path:
    """Not in GTDL_HOME, which every user has another of."""
    place = Path(os.environ.get(LOCKS_VARIABLE) or "/tmp/gtdl-locks")
    try:
        place.mkdir(parents=True)
        place.chmod(0o1777)
    except FileExistsError:
        pass
    return place


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"
