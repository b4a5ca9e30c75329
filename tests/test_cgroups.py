"""Limits on CPU time: found in the control groups of versions 1 and 2, counted, and reported as interference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.project import Command, runs

from gtdl_mlflow import cgroups
from gtdl_mlflow.cgroups import Throttling

MIB = 2**20

V1 = "31 23 0:29 {part} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "32 23 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 {part} /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHER = "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"


def plant(root: Path, memberships: str, mounts: str, groups: dict[str, tuple[str, str, int]]) -> Path:
    """Write the files of the kernel. ``groups``: folder below ``/sys/fs/cgroup`` to quota, period and throttling."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(memberships)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, (quota, period, count) in groups.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        if name.startswith("cpu,cpuacct"):
            (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (folder / "cpu.cfs_period_us").write_text(f"{period}\n")
            (folder / "cpu.stat").write_text(f"nr_periods 90\nnr_throttled {count}\nthrottled_time {count}000000000\n")
        else:
            (folder / "cpu.max").write_text(f"{quota} {period}\n")
            (folder / "cpu.stat").write_text(f"usage_usec 7\nnr_throttled {count}\nthrottled_usec {count}000000\n")
    return root


@pytest.mark.parametrize(
    ("memberships", "mounts", "groups", "quota"),
    [
        # Version 2: the group's own limit, an ancestor's, the smaller of both, none.
        ("0::/a/b\n", V2.format(part="/"), {"a/b": ("150000", "100000", 3), "a": ("max", "100000", 0)}, 1.5),
        ("0::/a/b\n", V2.format(part="/"), {"a/b": ("max", "100000", 0), "a": ("50000", "100000", 3)}, 0.5),
        ("0::/a/b\n", V2.format(part="/"), {"a/b": ("60000", "100000", 1), "a": ("50000", "100000", 2)}, 0.5),
        ("0::/a/b\n", V2.format(part="/"), {"a/b": ("max", "100000", 0), "a": ("max", "100000", 0)}, None),
        # In a container of version 2: the top of its own groups has a limit.
        ("0::/\n", V2.format(part="/"), {".": ("10000", "100000", 3)}, 0.1),
        ("0::/../other\n", V2.format(part="/"), {".": ("10000", "100000", 3)}, 0.1),
        # Version 1, in a container with the host's view of the groups: only its own part is mounted.
        (
            "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1/x\n0::/\n",
            V1.format(part="/docker/1") + V1_MEMORY,
            {"cpu,cpuacct/x": ("-1", "100000", 0), "cpu,cpuacct": ("200000", "50000", 3)},
            4,
        ),
        ("3:cpu,cpuacct:/a\n", V1.format(part="/"), {"cpu,cpuacct/a": ("10000", "100000", 3)}, 0.1),
        ("3:cpu,cpuacct:/a\n", V1.format(part="/"), {"cpu,cpuacct/a": ("-1", "100000", 0)}, None),
        ("3:cpu,cpuacct:/a\n", V1_MEMORY, {}, None),
        # Both versions mounted, as systemd does: the controller is in version 1.
        (
            "3:cpu,cpuacct:/a\n0::/a\n",
            V1.format(part="/") + V2.format(part="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
            {"cpu,cpuacct/a": ("10000", "100000", 3)},
            0.1,
        ),
    ],
)
def test_smallest_quota_of_the_groups_counts(
    tmp_path: Path, memberships: str, mounts: str, groups: dict[str, tuple[str, str, int]], quota: float | None
) -> None:
    root = plant(tmp_path, memberships, OTHER + mounts, groups)
    assert cgroups.cpu_quota(root) == quota
    assert cgroups.throttling(root) == (None if quota is None else Throttling(3, 3.0))


@pytest.mark.parametrize("name", ["cpu.max", "cpu.stat"])
@pytest.mark.parametrize("content", ["", "max", "x y", "1 0", "nr_throttled x\nthrottled_usec 1\n", "\x00"])
def test_unreadable_limits_are_no_limits(tmp_path: Path, name: str, content: str) -> None:
    root = plant(tmp_path, "0::/a\n", V2.format(part="/"), {"a": ("10000", "100000", 3)})
    (root / "sys/fs/cgroup/a" / name).write_text(content)
    assert cgroups.cpu_quota(root) is None


def test_mount_point_with_a_space_is_found(tmp_path: Path) -> None:
    mounts = V2.format(part="/").replace("/sys/fs/cgroup", r"/sys/fs/cgroup/my\040groups")
    root = plant(tmp_path, "0::/a\n", mounts, {"my groups/a": ("10000", "100000", 3)})
    assert cgroups.cpu_quota(root) == 0.1


def test_machine_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert cgroups.cpu_quota(tmp_path) is None
    assert cgroups.throttling(tmp_path) is None
    assert cgroups.threads_for(4, tmp_path) == 4


@pytest.mark.parametrize(
    ("quota", "threads"), [("10000", 1), ("100000", 1), ("150000", 1), ("250000", 2), ("900000", 4)]
)
def test_threads_fit_into_the_quota(tmp_path: Path, quota: str, threads: int) -> None:
    root = plant(tmp_path, "0::/\n", V2.format(part="/"), {".": (quota, "100000", 0)})
    assert cgroups.threads_for(4, root) == threads


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A control group of version 1 with a tenth of a CPU."""
    folder = Path(f"/sys/fs/cgroup/cpu/gtdl-test-{os.getpid()}")
    try:
        folder.mkdir()
        set_quota(folder, 0.1)
    except OSError as error:
        pytest.skip(f"no control group can be created: {error}")
    yield folder
    folder.rmdir()


def set_quota(group: Path, cpus: float) -> None:
    (group / "cpu.cfs_quota_us").write_text(str(round(100_000 * cpus)))


def enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


@pytest.mark.slow
def test_real_group_limits_and_throttles(limited_group: Path) -> None:
    script = (
        "import os, sys; from gtdl_mlflow import cgroups, config\n"
        "from gtdl_mlflow.hardware import host, interference\n"
        "composed = config.compose([]); open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "before = interference.Snapshot.now()\n"
        "while not cgroups.throttling().count: sum(range(100_000))\n"
        "metrics = interference.metrics_between(before, interference.Snapshot.now(), 0)\n"
        "print(cgroups.cpu_quota(), composed.threads, host.describe()['cpu_quota']); print(host.fingerprint())\n"
        "print(interference.warnings(metrics)[-1])"
    )
    command = [sys.executable, "-c", script, limited_group]
    limits, machine, warning = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True
    ).stdout.splitlines()
    assert limits == "0.1 1 0.1"
    assert ", limited to 0.1 CPUs, " in machine
    assert warning.startswith("the limit on CPU time stopped the run ")


@pytest.mark.slow
def test_run_under_a_quota_records_it(limited_group: Path, gtdl: Command, store: str) -> None:
    # The runs of this process's children are in its group.
    assert gtdl("framework=reference", "training.epochs=1").returncode == 0
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    (own,) = (line.split(":", 2)[2] for line in groups if "cpu" in line.split(":")[1].split(","))
    set_quota(limited_group, 0.5)
    enter(limited_group)
    try:
        done = gtdl("framework=reference", "training.epochs=1")
    finally:
        enter(Path("/sys/fs/cgroup/cpu") / own.lstrip("/"))
    assert done.returncode == 0, done.stderr
    limited, free = runs(store)
    assert limited.data.params["hardware.threads"] == "1"
    assert limited.data.params["machine.cpu_quota"] == "0.5"
    assert limited.data.tags["gtdl.machine"] != free.data.tags["gtdl.machine"]
    throttled = limited.data.metrics["interference/quota_throttle_count"] > 0  # not if the machine is busy
    assert (limited.data.metrics["interference/quota_throttled_s"] > 0) == throttled
    assert ("the limit on CPU time stopped the run" in limited.data.tags["gtdl.interference"]) == throttled
    assert "machine.cpu_quota" not in free.data.params
    assert "interference/quota_throttle_count" not in free.data.metrics


@pytest.mark.parametrize(
    ("memberships", "mount", "names", "groups", "left"),
    [
        # Version 2: the group's own limit, an ancestor's that is nearer, none.
        ("0::/a/b\n", V2, ("memory.max", "memory.current"), {"a/b": ("500", 300, 50), "a": ("max", 900, 0)}, 250),
        ("0::/a/b\n", V2, ("memory.max", "memory.current"), {"a/b": ("500", 300, 0), "a": ("950", 900, 20)}, 70),
        ("0::/a/b\n", V2, ("memory.max", "memory.current"), {"a/b": ("max", 300, 0)}, None),
        # Version 1.
        ("4:memory:/a\n", V1_MEMORY, ("memory.limit_in_bytes", "memory.usage_in_bytes"),
         {"memory/a": ("500", 300, 10)}, 210),
        ("3:cpu,cpuacct:/a\n", V1_MEMORY, ("memory.limit_in_bytes", "memory.usage_in_bytes"),
         {"memory/a": ("500", 300, 10)}, None),
    ],
)  # fmt: skip
def test_memory_that_is_left(
    tmp_path: Path,
    memberships: str,
    mount: str,
    names: tuple[str, str],
    groups: dict[str, tuple[str, int, int]],
    left: int | None,
) -> None:
    """``groups``: folder to limit, use and unused cache of files, in MiB."""
    plant(tmp_path, memberships, mount.format(part="/") + OTHER, {})
    for name, (limit, usage, cache) in groups.items():
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit if limit == 'max' else int(limit) * MIB}\n")
        (folder / names[1]).write_text(f"{usage * MIB}\n")
        (folder / "memory.stat").write_text(f"anon 7\ninactive_file {cache * MIB}\n")
    assert cgroups.memory_left(tmp_path) == (None if left is None else left * MIB)
