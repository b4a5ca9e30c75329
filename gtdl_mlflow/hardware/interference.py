"""Interference: other load, throttling and stolen CPU time while a worker ran, which make its times doubtful.

Values that the machine does not report are left out, such as the clock frequency on many virtual machines and the
throttling of a processor without a sensor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from .. import cgroups
from . import device_lock

if TYPE_CHECKING:
    from .gpu import Gpu

FOREIGN_PERCENT = 5.0
"""Highest share of the machine's CPU time that processes outside the run may use without a warning. Measured: another
process that keeps the cores busy costs one third to five sixths of a training's speed.
"""

BUSY_PERCENT = 10.0
"""Largest share of the machine's CPU time that other processes may use before a run without a warning. It is measured
during an import of one to two seconds. Over so short a time, smaller shares are common.
"""

STEAL_PERCENT = 1.0
"""Highest share of the CPU time that the host of a virtual machine may withhold without a warning."""

THROTTLE_COUNTERS = "cpu*/thermal_throttle/*_throttle_count"
"""Counters of Linux in ``/sys/devices/system/cpu``."""


@dataclass(frozen=True)
class Snapshot:
    """Counters of the machine and of this process at one moment."""

    time: float
    """Seconds on the monotonic clock."""
    busy_s: float
    """CPU time of all processes since boot, in seconds."""
    stolen_s: float
    """CPU time that the host of a virtual machine withheld."""
    total_s: float
    """CPU time of all cores: busy, idle and stolen."""
    driver_s: float
    """CPU time of this process, the driver."""
    load: float
    """Processes that ran or waited, averaged over the last minute."""
    mhz: float | None
    """Clock frequency of the processor."""
    throttle_count: int | None
    quota: cgroups.Throttling | None = None
    """Throttling by a limit on the CPU time of this process and its worker; None without a limit."""
    gpu: GpuSnapshot | None = None

    @classmethod
    def now(cls, system: Path = Path("/sys/devices/system/cpu"), gpu: GpuSnapshot | None = None) -> Snapshot:
        """Read the counters now."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        stolen = getattr(times, "steal", 0.0)
        # The time of guests is included in the user's time.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        frequency = psutil.cpu_freq()
        counts = [int(path.read_text()) for path in system.glob(THROTTLE_COUNTERS)]
        return cls(
            time=time.monotonic(),
            busy_s=total - idle - stolen,
            stolen_s=stolen,
            total_s=total,
            driver_s=time.process_time(),
            load=os.getloadavg()[0],
            mhz=frequency.current if frequency and frequency.current else None,
            throttle_count=sum(counts) if counts else None,
            quota=cgroups.throttling(),
            gpu=gpu,
        )


@dataclass(frozen=True)
class GpuSnapshot:
    """State and counters of a GPU at one moment; None where it does not report a value."""

    other_processes: float | None
    """Number of processes on it that do not belong to the run."""
    mhz: float | None
    throttled_s: float | None
    joules: float | None

    @classmethod
    def now(cls, gpu: Gpu, worker: int) -> GpuSnapshot:
        """Read the state and the counters now; ``worker`` is the run's process ID."""
        return cls(gpu.other_processes(worker), gpu.mhz(), gpu.throttled_s(), gpu.joules())


def metrics_between(before: Snapshot, after: Snapshot, worker_s: float) -> dict[str, float]:
    """Return the metrics of the time between two snapshots, in which the worker used ``worker_s`` of CPU time."""
    total_s = max(after.total_s - before.total_s, 1e-9)
    driver_s = after.driver_s - before.driver_s
    foreign_s = after.busy_s - before.busy_s - worker_s - driver_s
    metrics = {
        "interference/load_before": before.load,
        "interference/load_after": after.load,
        "interference/foreign_cpu_percent": max(0.0, 100 * foreign_s / total_s),
        "interference/steal_percent": 100 * (after.stolen_s - before.stolen_s) / total_s,
        "interference/driver_cpu_percent": 100 * driver_s / max(after.time - before.time, 1e-9),
    }
    if before.mhz is not None and after.mhz is not None:
        metrics |= {"interference/cpu_mhz_before": before.mhz, "interference/cpu_mhz_after": after.mhz}
    if before.throttle_count is not None and after.throttle_count is not None:
        metrics["interference/cpu_throttle_count"] = after.throttle_count - before.throttle_count
    if before.quota is not None and after.quota is not None:
        metrics["interference/quota_throttle_count"] = after.quota.count - before.quota.count
        metrics["interference/quota_throttled_s"] = after.quota.seconds - before.quota.seconds
    if before.gpu is not None and after.gpu is not None:
        metrics |= _gpu_metrics(before.gpu, after.gpu)
    return metrics


def busy_warning(before: Snapshot) -> str:
    """Return a warning if other processes have used more than ``BUSY_PERCENT`` since ``before``; empty otherwise.

    This process must not have started a worker since then. The warning is empty, too, while another run holds a device
    of this machine: the next run waits until that one has ended.
    """
    percent = metrics_between(before, Snapshot.now(), 0)["interference/foreign_cpu_percent"]
    if percent <= BUSY_PERCENT or device_lock.in_use():
        return ""
    cores = psutil.cpu_count()
    return (
        f"this machine is busy (other processes use {percent / 100 * cores:.1f} of {cores} cores): times will not be "
        "reliable; stop other work, or compare frameworks with experiment=paired"
    )


def _gpu_metrics(before: GpuSnapshot, after: GpuSnapshot) -> dict[str, float]:
    metrics = {}
    if before.other_processes is not None and after.other_processes is not None:
        metrics["interference/gpu_other_processes"] = max(before.other_processes, after.other_processes)
    if before.mhz is not None and after.mhz is not None:
        metrics |= {"interference/gpu_mhz_before": before.mhz, "interference/gpu_mhz_after": after.mhz}
    if before.throttled_s is not None and after.throttled_s is not None:
        metrics["interference/gpu_throttled_s"] = after.throttled_s - before.throttled_s
    if before.joules is not None and after.joules is not None:
        metrics["system/gpu_energy_j"] = after.joules - before.joules
    return metrics


def warnings(metrics: Mapping[str, float]) -> list[str]:
    """Return one warning per kind of interference; an empty list if the run was undisturbed."""
    texts = []
    if (foreign := metrics.get("interference/foreign_cpu_percent", 0.0)) > FOREIGN_PERCENT:
        texts.append(f"other processes used {foreign:.0f} % of the machine's CPU time")
    if (stolen := metrics.get("interference/steal_percent", 0.0)) > STEAL_PERCENT:
        texts.append(f"the host withheld {stolen:.0f} % of this virtual machine's CPU time")
    if count := metrics.get("interference/cpu_throttle_count", 0.0):
        texts.append(f"the processor was throttled {count:.0f} times")
    if count := metrics.get("interference/quota_throttle_count", 0.0):
        seconds = metrics.get("interference/quota_throttled_s", 0.0)
        texts.append(f"the limit on CPU time stopped the run {count:.0f} times, for {seconds:.2g} s")
    if processes := metrics.get("interference/gpu_other_processes", 0.0):
        texts.append(f"other processes computed on the GPU: {processes:.0f}")
    if seconds := metrics.get("interference/gpu_throttled_s", 0.0):
        texts.append(f"the GPU was throttled for {seconds:.2g} s")
    return texts


def unreliable(metrics: Mapping[str, float]) -> str:
    """Return one line with everything that disturbed a run; empty if nothing did."""
    texts = warnings(metrics)
    return f"{'; '.join(texts)}: these times are not reliable" if texts else ""
