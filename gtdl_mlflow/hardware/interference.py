"""What else went on while a worker ran: evidence that its times are the framework's, or that they are not.

Where a machine does not tell (clock frequency in a virtual one, throttling without a sensor) nothing is said of it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from .gpu import Gpu

FOREIGN_PERCENT = 5.0
"""Of the machine's CPU time, had by other processes than the run's own: with more, it has been disturbed. A neighbour
that keeps the cores busy was seen to cost from a third to five sixths of a training's speed.
"""

STEAL_PERCENT = 1.0
"""Of the machine's CPU time, kept by the host of a virtual machine."""

THROTTLES = "cpu*/thermal_throttle/*_throttle_count"
"""Counters of Linux, in ``/sys/devices/system/cpu``."""


@dataclass(frozen=True)
class Snapshot:
    """The counters of the machine and of this process."""

    time: float
    busy_s: float
    stolen_s: float
    total_s: float
    own_s: float
    """CPU time of this process, the driver."""
    load: float
    """Processes that ran or waited, the mean of the last minute."""
    mhz: float | None
    throttles: int | None
    gpu: GpuSnapshot | None = None

    @classmethod
    def now(cls, system: Path = Path("/sys/devices/system/cpu"), gpu: GpuSnapshot | None = None) -> Snapshot:
        times = psutil.cpu_times()
        waiting = times.idle + getattr(times, "iowait", 0.0)
        stolen = getattr(times, "steal", 0.0)
        # A guest's time is in the user's already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        frequency = psutil.cpu_freq()
        counters = [int(path.read_text()) for path in system.glob(THROTTLES)]
        return cls(time.monotonic(), total - waiting - stolen, stolen, total, time.process_time(), os.getloadavg()[0],
                   frequency.current if frequency and frequency.current else None,
                   sum(counters) if counters else None, gpu)  # fmt: skip


@dataclass(frozen=True)
class GpuSnapshot:
    """What a GPU tells of itself; None is what it does not."""

    others: float | None
    """Processes on it that are not the run's."""
    mhz: float | None
    throttled_s: float | None
    joules: float | None

    @classmethod
    def now(cls, gpu: Gpu, worker: int) -> GpuSnapshot:
        return cls(gpu.others(worker), gpu.mhz(), gpu.throttled_s(), gpu.joules())


def metrics_between(before: Snapshot, after: Snapshot, worker_s: float) -> dict[str, float]:
    """Metrics of the time between, in which the worker had ``worker_s`` of the CPU."""
    total_s = max(after.total_s - before.total_s, 1e-9)
    foreign_s = after.busy_s - before.busy_s - worker_s - (after.own_s - before.own_s)
    made = {
        "interference/load_before": before.load,
        "interference/load_after": after.load,
        "interference/foreign_cpu_percent": max(0.0, 100 * foreign_s / total_s),
        "interference/steal_percent": 100 * (after.stolen_s - before.stolen_s) / total_s,
        "interference/driver_cpu_percent": 100 * (after.own_s - before.own_s) / max(after.time - before.time, 1e-9),
    }
    if before.mhz is not None and after.mhz is not None:
        made |= {"interference/cpu_mhz_before": before.mhz, "interference/cpu_mhz_after": after.mhz}
    if before.throttles is not None and after.throttles is not None:
        made["interference/cpu_throttle_count"] = after.throttles - before.throttles
    return made if before.gpu is None or after.gpu is None else made | _gpu_figures(before.gpu, after.gpu)


def _gpu_figures(before: GpuSnapshot, after: GpuSnapshot) -> dict[str, float]:
    made = {}
    if before.others is not None and after.others is not None:
        made["interference/gpu_other_processes"] = max(before.others, after.others)
    if before.mhz is not None and after.mhz is not None:
        made |= {"interference/gpu_mhz_before": before.mhz, "interference/gpu_mhz_after": after.mhz}
    if before.throttled_s is not None and after.throttled_s is not None:
        made["interference/gpu_throttled_s"] = after.throttled_s - before.throttled_s
    if before.joules is not None and after.joules is not None:
        made["system/gpu_energy_j"] = after.joules - before.joules
    return made


def warnings(metrics: dict[str, float]) -> list[str]:
    """What disturbed a run, in words; nothing if it was alone."""
    found = []
    if (foreign := metrics.get("interference/foreign_cpu_percent", 0.0)) > FOREIGN_PERCENT:
        found.append(f"other processes had {foreign:.0f} % of the machine's CPU time")
    if (stolen := metrics.get("interference/steal_percent", 0.0)) > STEAL_PERCENT:
        found.append(f"the virtual machine's host kept {stolen:.0f} % of its CPU time")
    if throttles := metrics.get("interference/cpu_throttle_count", 0.0):
        found.append(f"the processor was throttled {throttles:.0f} times")
    if others := metrics.get("interference/gpu_other_processes", 0.0):
        found.append(f"other processes were on the GPU: {others:.0f}")
    if seconds := metrics.get("interference/gpu_throttled_s", 0.0):
        found.append(f"the GPU was throttled for {seconds:.2g} s")
    return found
