"""The NVIDIA GPU of a run: its state and counters, read through NVML."""

from __future__ import annotations

import os
from collections.abc import Callable

import pynvml

from ..process_tree import descendants


class Gpu:
    """The first GPU that CUDA would use. A value that this GPU does not report is None.

    Raises:
        pynvml.NVMLError: there is no driver, or no such GPU.
    """

    def __init__(self) -> None:
        pynvml.nvmlInit()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
        get_handle = pynvml.nvmlDeviceGetHandleByIndex if first.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
        self._handle = get_handle(int(first) if first.isdigit() else first)

    @classmethod
    def find(cls) -> Gpu | None:
        """Return the GPU; None if NVML finds none."""
        try:
            return cls()
        except pynvml.NVMLError:
            return None

    def driver(self) -> str:
        """Return the version of the driver."""
        return str(pynvml.nvmlSystemGetDriverVersion())

    def other_processes(self, worker: int) -> float | None:
        """Return the number of processes that compute on the GPU, without ``worker`` and its descendants."""
        own = {worker, *descendants(worker)}
        return _or_none(
            lambda: len({process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)} - own)
        )

    def mhz(self) -> float | None:
        """Return the current clock frequency of the multiprocessors in MHz."""
        return _or_none(lambda: float(pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM)))

    def throttled_s(self) -> float | None:
        """Return the total time of throttling by heat in seconds.

        Throttling by the power limit is not counted: under heavy work it is normal.
        """
        policy = pynvml.NVML_PERF_POLICY_THERMAL
        return _or_none(lambda: pynvml.nvmlDeviceGetViolationStatus(self._handle, policy).violationTime / 1e9)

    def joules(self) -> float | None:
        """Return the energy in joules that the GPU has used since the driver was loaded."""
        return _or_none(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3)


def _or_none(read: Callable[[], float]) -> float | None:
    try:
        return read()
    except pynvml.NVMLError:
        return None
