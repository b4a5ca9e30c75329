"""The NVIDIA GPU that a run is on, as its driver tells through NVML."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

import psutil
import pynvml


class Gpu:
    """The first GPU that CUDA would take; where it does not tell something, that is None.

    Raises:
        pynvml.NVMLError: there is no driver, or no such GPU.
    """

    def __init__(self) -> None:
        pynvml.nvmlInit()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
        get = pynvml.nvmlDeviceGetHandleByIndex if first.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
        self._gpu = get(int(first) if first.isdigit() else first)

    @classmethod
    def find(cls) -> Gpu | None:
        """None where there is none that tells."""
        try:
            return cls()
        except pynvml.NVMLError:
            return None

    def driver(self) -> str:
        """The driver's version."""
        return str(pynvml.nvmlSystemGetDriverVersion())

    def others(self, worker: int) -> float | None:
        """How many processes compute on it that are neither ``worker`` nor started by it."""
        own = {worker}
        with suppress(psutil.Error):
            own |= {child.pid for child in psutil.Process(worker).children(recursive=True)}
        return _told(
            lambda: len({process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self._gpu)} - own)
        )

    def mhz(self) -> float | None:
        """The clock of its multiprocessors, now."""
        return _told(lambda: float(pynvml.nvmlDeviceGetClockInfo(self._gpu, pynvml.NVML_CLOCK_SM)))

    def throttled_s(self) -> float | None:
        """Seconds, ever, for which it was slowed down by heat. Its limit of power is no flaw: heavy work meets it."""
        return _told(
            lambda: pynvml.nvmlDeviceGetViolationStatus(self._gpu, pynvml.NVML_PERF_POLICY_THERMAL).violationTime / 1e9
        )

    def joules(self) -> float | None:
        """Of energy that it has taken, ever since the driver was loaded."""
        return _told(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) / 1e3)


def _told(ask: Callable[[], float]) -> float | None:
    try:
        return ask()
    except pynvml.NVMLError:
        return None
