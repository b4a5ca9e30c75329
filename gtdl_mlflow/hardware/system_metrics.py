"""Samples of the machine's and the worker's use over time, taken in a thread without any request to the tracker."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from mlflow.entities import Metric
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from ..console import info
from ..process_tree import descendants

POWERCAP = Path("/sys/class/powercap")
"""Linux's energy counters of the processor packages (RAPL); on most machines only root may read them."""

GAUGES = ("memory", "threads")
"""Values of ``ProcessUsage`` that are states; all others are counters."""

VALUES = (*GAUGES, "user_s", "system_s", "switches", "read", "written")


class Sampler:
    """Thread that samples MLflow's own system metrics and the worker's, and holds the samples until ``stop``.

    MLflow's own monitor sends a request to the tracker for every sample.
    """

    def __init__(self, interval_s: float, device: str) -> None:
        self._interval_s, self._device = interval_s, device
        self._stopped = threading.Event()
        self._metrics: list[Metric] = []
        self._thread: threading.Thread | None = None

    def start(self, worker: int) -> None:
        """Start to sample the machine and the descendants of the process ``worker``; nothing if the interval is 0."""
        if self._interval_s:
            self._thread = threading.Thread(target=self._sample, args=[worker], name="system metrics", daemon=True)
            self._thread.start()

    def stop(self) -> list[Metric]:
        """Stop and return the samples. A last sample is taken now, so that the shortest run has one."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._metrics

    def _sample(self, worker: int) -> None:
        # Created here, because they count from their creation on.
        monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        monitors[0].collect_metrics()  # psutil's first value is always 0 %
        monitors[0].clear_metrics()
        if self._device == "gpu":
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor  # imports NVML, which takes time

            try:
                monitors.append(GPUMonitor())
            except (ImportError, RuntimeError) as error:
                info(f"the GPU's use is not sampled: {error}")
        processes, energy = ProcessUsage(worker), CpuEnergy()
        step, stopped = 0, False
        while not stopped:
            stopped = self._stopped.wait(self._interval_s)
            at = round(time.time() * 1000)
            values = processes.sample() | energy.sample()
            for monitor in monitors:
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self._metrics += [Metric(f"system/{key}", value, at, step) for key, value in values.items()]
            step += 1
        if energy.joules:
            self._metrics.append(Metric("system/cpu_energy_j", energy.joules, at, 0))


class ProcessUsage:
    """CPU, disk and context switches of a worker and its children since the last sample; memory and threads now.

    ``worker`` is the process ID that ``WorkerProcess.start`` returns: of the parent of the worker, which only waits.
    """

    def __init__(self, worker: int) -> None:
        self._worker = worker
        # A worker that has not started yet has used nothing.
        self._last_s, self._last = time.monotonic(), self._counters() or dict.fromkeys(VALUES, 0.0)

    def sample(self) -> dict[str, float]:
        """Return the metrics since the last sample; an empty dict if the processes have ended."""
        now_s, now = time.monotonic(), self._counters()
        if now is None:
            return {}
        passed_s = max(now_s - self._last_s, 1e-9)
        # The counters of a child that has ended are missing from the sum.
        rates = {name: max(0.0, now[name] - self._last[name]) / passed_s for name in now if name not in GAUGES}
        self._last_s, self._last = now_s, now
        return {
            "worker_cpu_user_percent": 100 * rates["user_s"],
            "worker_cpu_system_percent": 100 * rates["system_s"],
            "worker_context_switches_per_s": rates["switches"],
            "worker_disk_read_mb_per_s": rates["read"] / 1e6,
            "worker_disk_write_mb_per_s": rates["written"] / 1e6,
            "worker_memory_mb": now["memory"] / 1e6,
            "worker_threads": now["threads"],
        }

    @property
    def cpu_s(self) -> float:
        """CPU time in seconds at the last sample."""
        return self._last["user_s"] + self._last["system_s"]

    def _counters(self) -> dict[str, float] | None:
        """Return the sums over the worker and its children; None if none of them is running."""
        total = dict.fromkeys(VALUES, 0.0)
        running = False
        for pid in descendants(self._worker):
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                with process.oneshot():
                    times, switches, disk = process.cpu_times(), process.num_ctx_switches(), process.io_counters()
                    values = {
                        "memory": process.memory_info().rss,
                        "threads": process.num_threads(),
                        "user_s": times.user,
                        "system_s": times.system,
                        "switches": switches.voluntary + switches.involuntary,
                        "read": disk.read_bytes,
                        "written": disk.write_bytes,
                    }
                    total = {name: total[name] + value for name, value in values.items()}
                    running = True
        return total if running else None


class CpuEnergy:
    """Energy of all processor packages, if the machine counts it and the user may read the counters."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        self.joules = 0.0
        """Energy from the creation of this object to the last sample."""
        self._packages = [path for path in folder.glob("*:[0-9]*") if path.name.count(":") == 1]
        self._last_s, self._last = time.monotonic(), self._read()

    def sample(self) -> dict[str, float]:
        """Return the mean power in watts since the last sample; an empty dict without counters."""
        now_s, now = time.monotonic(), self._read()
        passed_s = max(now_s - self._last_s, 1e-9)
        joules = 0.0
        for name, (value, limit) in now.items():
            before = self._last.get(name, (value, limit))[0]
            increase = value - before if value >= before else value + limit - before  # counters start again at 0
            joules += increase / 1e6
        self._last_s, self._last = now_s, now
        self.joules += joules
        return {"cpu_power_w": joules / passed_s} if now else {}

    def _read(self) -> dict[str, tuple[int, int]]:
        """Return the counter of each package and its limit, in microjoules."""
        counters = {}
        for package in self._packages:
            with suppress(OSError, ValueError):
                name = (package / "name").read_text().strip()
                if name.startswith("package"):
                    value, limit = (int((package / file).read_text()) for file in ("energy_uj", "max_energy_range_uj"))
                    counters[package.name] = (value, limit)
        return counters
