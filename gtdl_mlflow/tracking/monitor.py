"""Monitoring of the machine during a worker's job: system metrics and interference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow.entities import Metric

from ..hardware.interference import GpuSnapshot, Snapshot, metrics_between
from ..hardware.system_metrics import ProcessUsage, Sampler

if TYPE_CHECKING:
    from ..hardware.gpu import Gpu


class Monitor:
    """Monitor of a worker from ``start`` until ``stop``. It sends no request to the tracking server."""

    def __init__(self, device: str, interval_s: float) -> None:
        self._device = device
        self._sampler = Sampler(interval_s, device)
        self._before: Snapshot | None = None
        self._gpu: Gpu | None = None
        self._pid = 0
        self._cpu_before_s = 0.0
        """CPU time that the worker had used before it started its job."""

    @property
    def gpu_driver(self) -> str | None:
        """Version of the GPU's driver; None on a CPU, or if it is unknown."""
        return self._gpu.driver() if self._gpu else None

    def start(self, pid: int) -> None:
        """Start to monitor the worker with this process ID and its children."""
        self._pid = pid
        if self._device == "gpu":
            from ..hardware.gpu import Gpu  # imports NVML, which runs on a CPU do not need

            self._gpu = Gpu.find()
        self._sampler.start(pid)
        self._cpu_before_s = ProcessUsage(pid).cpu_s
        self._before = self._snapshot()

    def interference(self, worker_cpu_s: float) -> dict[str, float]:
        """Return the metrics of interference since ``start``; ``worker_cpu_s`` is all CPU time of the worker."""
        if self._before is None:
            return {}
        return metrics_between(self._before, self._snapshot(), worker_cpu_s - self._cpu_before_s)

    def stop(self) -> list[Metric]:
        """Stop, and return the samples."""
        return self._sampler.stop()

    def _snapshot(self) -> Snapshot:
        gpu = GpuSnapshot.now(self._gpu, self._pid) if self._gpu else None
        return Snapshot.now(gpu=gpu)
