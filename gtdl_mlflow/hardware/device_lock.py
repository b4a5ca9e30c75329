"""One timed run at a time per device of a machine, for all launchers and users.

A lock is an advisory lock of the kernel (``flock``): it ends with its process, whatever the cause, and waiting for it
costs the running process nothing. A run that uses the whole CPU locks the file ``cpu`` exclusively. Runs that may share
the CPU lock it as shared, and the file of each of their cores exclusively. Runs on a GPU share the CPU too.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..config import ConfigError, Hardware
from ..console import info

if sys.platform != "win32":  # there, no run starts
    import fcntl
    import pwd

LOCKS_VARIABLE = "GTDL_LOCKS"
"""Environment variable: the folder of the locks. Containers of one machine need a common one."""

DEFAULT_FOLDER = Path("/tmp/gtdl-locks")
"""Not in GTDL_HOME, which differs between users."""

REPAIR = f"remove it, or set {LOCKS_VARIABLE} to a folder that all users of this machine can write to"


@contextmanager
def hold(hardware: Hardware) -> Iterator[float]:
    """Hold the device of ``hardware``; yield the seconds spent waiting for it.

    Raises:
        ConfigError: the folder or the file of a lock cannot be used.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        for name, shared in _required_locks(hardware):
            stack.enter_context(_lock(name, shared))
        yield time.monotonic() - started


def in_use() -> bool:
    """Return whether a run holds a device of this machine."""
    with suppress(ConfigError, OSError):  # of the folder; the next run fails in the same way
        return any(_holder(path.stat()) for path in _folder().iterdir())
    return False


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
    descriptor = _open(name)
    try:
        operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.fstat(descriptor))
            info(f"waiting: another gtdl run{f' ({holder})' if holder else ''} is using {_describe(name)}")
            fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _describe(name: str) -> str:
    """Return the device of a lock in words: the CPU, core 3, GPU 0."""
    kind, _, number = name.partition("-")
    return "the CPU" if kind == "cpu" else f"{kind.replace('gpu', 'GPU')} {number}"


def _holder(lock: os.stat_result) -> str:
    """Return the process that holds a lock, for messages; empty if it is in another container.

    The kernel reports it. A text in the lock's file would be written into a file that may belong to another user.
    """
    file = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            # After the number: the kind, ADVISORY, READ or WRITE, the PID, the file. Those that wait have "->" first.
            if words[1] == "FLOCK" and words[5] == file and int(words[4]) > 0:
                return f"pid {words[4]}, user {_user(Path('/proc', words[4]).stat().st_uid)}"
    return ""


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # the user of a container may have no name
        return str(number)


def _open(name: str) -> int:
    """Open the file of a lock, which all users share. Nothing is written into it, and no link is followed.

    Raises:
        ConfigError: the file cannot be opened, or is no regular file.
    """
    path = _folder() / name
    try:
        descriptor = _open_or_create(path)
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else f"could not be opened: {error.strerror}"
        raise ConfigError(f"lock {path} {reason}; {REPAIR}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"lock {path} is not a regular file; {REPAIR}")
    return descriptor


def _open_or_create(path: Path) -> int:
    # Without O_NONBLOCK, opening a FIFO waits. O_CREAT only if the file is missing: in a sticky folder the kernel
    # refuses O_CREAT for another user's file.
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    while True:
        try:
            return os.open(path, os.O_RDWR | flags)
        except FileNotFoundError:
            with suppress(FileExistsError):  # another process created it meanwhile
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags)
                os.fchmod(descriptor, 0o666)
                return descriptor
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS, errno.EISDIR):
                raise
            return os.open(path, os.O_RDONLY | flags)  # suffices for a lock, except on NFS


def _folder() -> Path:
    """Return the folder of the locks, and create it for all users if it is missing.

    Raises:
        ConfigError: it cannot be created, or is a symbolic link of another user.
    """
    folder = Path(os.environ.get(LOCKS_VARIABLE) or DEFAULT_FOLDER)
    try:
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            folder.chmod(0o1777)
        status = folder.lstat()
    except OSError as error:
        raise ConfigError(f"locks folder {folder} could not be created: {error.strerror}; {REPAIR}") from error
    if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.getuid()):
        raise ConfigError(f"locks folder {folder} is a symbolic link of user {_user(status.st_uid)}; {REPAIR}")
    return folder
