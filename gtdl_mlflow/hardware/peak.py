"""Peak performance of this machine: measured once by ``worker/peak.py`` and stored in ``GTDL_HOME/peaks``."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .. import environments
from ..config import Hardware
from ..console import info
from ..files import cache_dir, read_state, write_atomically
from ..worker_process import WORKER_MAIN, worker_environment
from . import host, interference

if sys.platform != "win32":  # there, no run starts
    import resource

LIBRARY = "torch"
"""Framework whose environment measures, if it exists: its matrix products and convolutions are the fastest."""

FALLBACK = "numpy"
"""Library that measures otherwise, in the driver's own interpreter."""

SCRIPT = WORKER_MAIN.with_name("peak.py")

MAX_MEASUREMENTS = 5
"""After so many measurements, the peak of a machine that is always busy is used as it is."""


@dataclass(frozen=True)
class Peak:
    """The best measured performance of a machine with a number of threads."""

    machine: str
    device: str
    threads: int
    library: str
    gflops: dict[str, float]
    """GFLOP/s by kernel."""
    gb_per_s: float
    """Copy bandwidth in GB/s; bytes read and bytes written both count."""
    doubtful: bool
    """Whether the machine may be faster: other processes used it during the measurement, or a run exceeded the peak."""
    measurements: int
    """Number of measurements so far; the best values count."""

    @property
    def measure_again(self) -> bool:
        """Whether the next run measures again."""
        return self.doubtful and self.measurements < MAX_MEASUREMENTS

    @property
    def flops_per_s(self) -> float:
        """Operations per second of the fastest kernel: the upper limit for a run."""
        return 1e9 * max(self.gflops.values())

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second of a copy."""
        return 1e9 * self.gb_per_s

    @property
    def text(self) -> str:
        """The peak as one line."""
        threads = f"{self.threads} thread" + ("" if self.threads == 1 else "s")
        kernels = ", ".join(f"{name} {value:,.0f}" for name, value in self.gflops.items())
        doubt = "; the machine may be faster" if self.doubtful else ""
        again = ", so the next run measures again" if self.measure_again else ""
        copy = f"copy {self.gb_per_s:,.1f} GB/s"
        return f"{self.device}, {threads}: {kernels} GFLOP/s; {copy} ({self.library}{doubt}{again})"


def get_or_measure(hardware: Hardware, threads: int) -> Peak | None:
    """Return the stored peak. Measure it first if there is none, or if it is doubtful.

    None if it cannot be measured. Beside other runs (``side_by_side``) nothing is measured.
    """
    stored = load(hardware.device, threads)
    if hardware.side_by_side or (stored is not None and not stored.measure_again):
        return stored
    return measure(hardware, threads) or stored


def load(device: str, threads: int) -> Peak | None:
    """Return the stored peak of this machine; None if there is none that this version can read."""
    path = _path(device, threads, _library(device)[0])
    values = read_state(path)
    with suppress(TypeError, AttributeError):  # written by another version
        peak = Peak(**(values or {}))
        numbers = [*peak.gflops.values(), peak.gb_per_s, peak.threads, peak.measurements]
        if peak.gflops and all(isinstance(number, (int, float)) and 0 < number < math.inf for number in numbers):
            return peak
    return None


def measure(hardware: Hardware, threads: int) -> Peak | None:
    """Measure for a few seconds, and store the better of the new and the old values. None if that is not possible."""
    library, python = _library(hardware.device)
    if hardware.device == "gpu" and library == FALLBACK:
        return None  # NumPy would measure the processor
    command: list[str | Path] = [python, "-I", SCRIPT, hardware.device, str(threads)]
    if hardware.cores is not None:
        command = ["taskset", "-c", ",".join(map(str, hardware.cores)), *command]
    before, children_before_s = interference.Snapshot.now(), _children_cpu_s()
    try:
        result = subprocess.run(
            command, env=worker_environment(threads, {}), capture_output=True, text=True, timeout=120, check=True
        )
        values = json.loads(result.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        info(f"the machine's peak could not be measured ({error}); the run has no peak_share_percent")
        return None
    worker_s = _children_cpu_s() - children_before_s
    metrics = interference.metrics_between(before, interference.Snapshot.now(), worker_s)
    doubtful = bool(interference.warnings(metrics))
    new = Peak(host.fingerprint(), hardware.device, threads, **values, doubtful=doubtful, measurements=1)
    if (old := load(hardware.device, threads)) is not None:
        new = replace(
            new,
            gflops={name: max(value, old.gflops.get(name, 0.0)) for name, value in new.gflops.items()},
            gb_per_s=max(new.gb_per_s, old.gb_per_s),
            doubtful=doubtful and old.doubtful,
            measurements=old.measurements + 1,
        )
    _store(new, library)
    return new


def mark_doubtful(peak: Peak) -> Peak:
    """Mark the stored ``peak`` as doubtful, because a run has exceeded it, and return it."""
    doubtful = replace(peak, doubtful=True)
    if load(peak.device, peak.threads) == peak:  # another run may have measured again meanwhile
        _store(doubtful, _library(peak.device)[0])
    return doubtful


def _store(peak: Peak, library: str) -> None:
    path = _path(peak.device, peak.threads, library)
    try:
        write_atomically(path, json.dumps(asdict(peak), indent=1))
    except OSError as error:
        info(f"{error.filename or path}: {error.strerror}: the machine's peak is measured again by the next run")


def _children_cpu_s() -> float:
    """Return the CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _library(device: str) -> tuple[str, Path]:
    """Return the key of the environment that measures, or ``FALLBACK`` without one, and its interpreter."""
    for environment in environments.list_environments():
        if (environment.framework, environment.device) == (LIBRARY, device):
            return environment.key, environment.python
    return FALLBACK, Path(sys.executable)


def _path(device: str, threads: int, library: str) -> Path:
    key = json.dumps([host.fingerprint(), device, threads, library])
    return cache_dir() / "peaks" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
