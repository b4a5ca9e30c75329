"""The identity of the process that records a run, by which a later command finds dead runs."""

from __future__ import annotations

import atexit
import hashlib
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..files import cache_dir

if sys.platform != "win32":  # there, no run starts
    import fcntl

PROCESS_GONE = "its process no longer exists"
"""The reason recorded for a dead run."""

PROC = Path("/proc")

MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))

UNKNOWN = "-"
"""A part of an identity that this system does not report."""


@dataclass(frozen=True)
class Process:
    """One process among those of all machines."""

    host: str
    pid: int
    start: str
    """Clock ticks from the boot to the start of the process. Steps of the clock do not change them."""
    namespaces: str
    """Namespaces of its PID and of its start: the same numbers mean something else in another container."""
    boot: str
    """ID of the boot of the kernel, which the containers of a machine share."""
    machine: str
    """ID of the installation."""

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """Return the process of an identity; None for one of another format, such as that of an earlier version."""
        words = text.split(" ")
        if len(words) != 6 or not words[1].isdecimal():
            return None
        return cls(words[0], int(words[1]), *words[2:])

    @property
    def text(self) -> str:
        """The identity as one line."""
        return " ".join((self.host, str(self.pid), self.start, self.namespaces, self.boot, self.machine))


def this_process() -> str:
    """Return ``HOST PID START NAMESPACES BOOT MACHINE``, which identifies this process among those of all machines.

    The process holds the lock of a file in the cache directory until it ends.
    """
    return _identity(os.getpid())


def is_alive(text: str) -> bool | None:
    """Return whether the process of an identity still runs; None if that is not certain.

    Only these count as evidence: the process table, for a process of this boot and of this PID namespace; otherwise the
    lock of the process, for a process of this machine. A reboot alone is no evidence: copies of a virtual machine or of
    a container may have the same machine ID and the same host name.
    """
    process, ours = Process.parse(text), _describe(os.getpid())
    if process is None:
        return None
    if process == ours:
        return True
    known = UNKNOWN not in (ours.boot, ours.namespaces)
    if known and (process.boot, process.namespaces) == (ours.boot, ours.namespaces):
        return _is_running(process)
    same_kernel = ours.boot != UNKNOWN and process.boot == ours.boot
    same_machine = ours.machine != UNKNOWN and (process.host, process.machine) == (ours.host, ours.machine)
    return _is_locked(process.text) if same_kernel or same_machine else None


def _is_running(process: Process) -> bool | None:
    """Look a process up in the process table. Its PID and its start are those of this PID namespace."""
    try:
        os.kill(process.pid, 0)
    except (ProcessLookupError, OverflowError):  # also with hidepid, which hides other users' processes in /proc only
        return False
    except PermissionError:
        pass
    fields = _stat_fields(process.pid)
    if fields is None:
        return None
    return fields[19] == process.start and fields[0] not in "ZX"  # a zombie has ended but has not been reaped


def _is_locked(identity: str) -> bool | None:
    """Return whether the process holds its lock; None if there is no such file in this cache directory."""
    try:
        descriptor = os.open(_lock_file(identity), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return False


@cache
def _identity(pid: int) -> str:
    identity = _describe(pid).text
    path = _lock_file(identity)
    # Without a writable cache directory, the process table has to suffice.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the process ends: nothing closes the descriptor
        atexit.register(_remove, path, pid)
    return identity


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # not a forked process
        with suppress(OSError):
            path.unlink()


def _lock_file(identity: str) -> Path:
    return cache_dir() / "processes" / hashlib.sha256(identity.encode()).hexdigest()[:32]


@cache
def _describe(pid: int) -> Process:
    """Return the identity of this process, whose PID is ``pid``."""
    fields = _stat_fields(pid)
    return Process(
        socket.gethostname().replace(" ", "_") or UNKNOWN,
        pid,
        UNKNOWN if fields is None else fields[19],
        UNKNOWN if fields is None else _namespaces(),
        _read([PROC / "sys/kernel/random/boot_id"]),
        _read(MACHINE_IDS),
    )


def _namespaces() -> str:
    """Return the PID and time namespaces of this process; unknown if /proc shows the processes of another one."""
    try:
        if (PROC / "self").readlink() != Path(str(os.getpid())):
            return UNKNOWN
        links = [(PROC / "self/ns/pid").readlink()]
        with suppress(FileNotFoundError):  # before Linux 5.6
            links.append((PROC / "self/ns/time").readlink())
    except OSError:
        return UNKNOWN
    return "/".join(link.name.partition("[")[2].rstrip("]") for link in links)


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` from the third, the state; None if they cannot be read."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the name of the program may contain spaces and parentheses


def _read(paths: list[Path] | tuple[Path, ...]) -> str:
    """Return the content of the first of ``paths`` that has one."""
    for path in paths:
        with suppress(OSError):
            if words := path.read_text(errors="replace").split():
                return words[0]
    return UNKNOWN
