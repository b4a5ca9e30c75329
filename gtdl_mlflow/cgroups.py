"""Limits on cores, CPU time and memory: by affinity, and by Linux control groups, versions 1 and 2.

Container runtimes and Slurm set them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
"""Folder that contains ``proc`` and ``sys``."""


@dataclass(frozen=True)
class Throttling:
    """How often, and how long, the groups of this process have been stopped because their CPU time was used up."""

    count: int
    """Number of periods, of 0.1 s by default."""
    seconds: float
    """Sum over all CPUs."""


@dataclass(frozen=True)
class _Group:
    """The limit of one control group."""

    cpus: float
    throttling: Throttling


def usable_cores() -> list[int]:
    """Return the CPU cores that this process may use: all, if the system cannot restrict a process to some."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the number of CPUs whose time this process may use: the smallest quota of its groups. None: no limit."""
    return min((group.cpus for group in _limited_groups(root)), default=None)


def throttling(root: Path = ROOT) -> Throttling | None:
    """Return the throttling so far of this process's groups; None without a quota."""
    groups = [group.throttling for group in _limited_groups(root)]
    return Throttling(sum(each.count for each in groups), sum(each.seconds for each in groups)) if groups else None


def threads_for(cores: int, root: Path = ROOT) -> int:
    """Return the number of threads that can run all the time on ``cores`` CPU cores.

    A quota of 1.5 CPUs is one thread: with two, both would be stopped for a part of every period.
    """
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _limited_groups(root: Path) -> Iterator[_Group]:
    for folder in _folders(root, "cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError, KeyError):
            if group := _read(folder):
                yield group


def memory_left(root: Path = ROOT) -> int | None:
    """Return the bytes of memory that this process's groups may still use; None without a limit.

    The kernel's cache of files counts as free where it has not been used lately, because it is given up first.
    """
    left = []
    for folder in _folders(root, "memory"):
        names = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        with suppress(OSError, ValueError, KeyError):
            limit, usage = names[0] if (folder / names[0][0]).is_file() else names[1]
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cache = int(statistics.get("total_inactive_file", statistics["inactive_file"]))
            left.append(int((folder / limit).read_text()) - int((folder / usage).read_text()) + cache)
    return min(left, default=None)  # "max" is no number; version 1 has a number above any memory for no limit


def _read(folder: Path) -> _Group | None:
    """Return the limit of the group in ``folder``; None without one."""
    if (folder / "cpu.max").is_file():  # version 2
        quota, period = (folder / "cpu.max").read_text().split()
        time, per_second = "throttled_usec", 1e6
    else:
        quota, period = ((folder / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        time, per_second = "throttled_time", 1e9
    if quota in ("max", "-1"):
        return None
    statistics = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    throttled = Throttling(int(statistics["nr_throttled"]), int(statistics[time]) / per_second)
    return _Group(int(quota) / int(period), throttled)


def _folders(root: Path, wanted: str) -> Iterator[Path]:
    """Yield the folders of this process's groups for the controller ``wanted``, and of all groups that contain them."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    paths: dict[str, str] = {}
    for line in memberships:  # such as "1:cpu,cpuacct:/user.slice", and "0::/user.slice" for version 2
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    for line in mounts:  # proc(5): the file system's type and options follow a dash
        fields, _, file_system = line.partition(" - ")
        _, _, _, part, mount, *_ = map(_unescape, fields.split())
        kind, _, options = file_system.split(maxsplit=2)
        controller = {"cgroup": wanted, "cgroup2": ""}.get(kind)
        if controller not in paths or (controller and controller not in options.split(",")):
            continue
        top = root / mount.lstrip("/")
        folder = top / _relative(paths[controller], part)
        if not folder.is_dir():  # in a container that has another view of the groups than of their folders
            folder = top
        yield folder
        if folder != top:
            yield from list(folder.parents)[: len(folder.relative_to(top).parts)]


def _relative(path: str, part: str) -> str:
    """Return the group ``path`` relative to the ``part`` of all groups that is mounted; empty if it is not in it."""
    group = PurePosixPath(path)
    if ".." in group.parts or not group.is_relative_to(part):
        return ""
    return str(group.relative_to(part))


def _unescape(text: str) -> str:
    """Return a field of mountinfo, which has octal codes for white space."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)
