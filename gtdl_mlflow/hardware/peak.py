"""What a machine can do at most, measured once and kept in ``GTDL_HOME``; ``worker/peak.py`` measures."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .. import environments
from ..config import Hardware
from ..console import info
from ..files import cache_dir, write_atomically
from ..worker_process import WORKER_MAIN, worker_environment
from . import host, interference

LIBRARY = "torch"
"""The framework whose environment measures where there is one: its matrix products and convolutions are the fastest."""

NUMPY = "numpy"
"""Otherwise this one, of the driver's own interpreter."""

SCRIPT = WORKER_MAIN.with_name("peak.py")


TRIES = 5
"""After so many a machine that is never quiet is taken as it is."""


@dataclass(frozen=True)
class Peak:
    """The best of each that was seen on a machine with so many threads."""

    machine: str
    device: str
    threads: int
    library: str
    gflops: dict[str, float]
    """By kernel."""
    gb_per_s: float
    disturbed: bool
    """Whether it may do better: other processes had so much of the CPU meanwhile, or a run has computed more since."""
    tries: int

    @property
    def measured_again(self) -> bool:
        """Whether the next run does."""
        return self.disturbed and self.tries < TRIES

    @property
    def flops_per_s(self) -> float:
        """Of the fastest kernel: nothing can be expected to compute more."""
        return 1e9 * max(self.gflops.values())

    @property
    def bytes_per_s(self) -> float:
        return 1e9 * self.gb_per_s

    @property
    def text(self) -> str:
        """One line."""
        kernels = ", ".join(f"{name} {value:,.0f}" for name, value in self.gflops.items())
        doubt = "; may do better" if self.disturbed else ""
        again = ", so the next run measures again" if self.measured_again else ""
        return (f"{self.device}, {self.threads} {'thread' if self.threads == 1 else 'threads'}: {kernels} GFLOP/s; "
                f"copy {self.gb_per_s:,.1f} GB/s ({self.library}{doubt}{again})")  # fmt: skip


def get_or_measure(hardware: Hardware, threads: int) -> Peak | None:
    """Of this machine, measured now if it has not been, or was disturbed; None where that cannot be, or must not be,
    beside other runs.
    """
    found = load(hardware.device, threads)
    if hardware.side_by_side or (found is not None and not found.measured_again):
        return found
    return measure(hardware, threads) or found


def load(device: str, threads: int) -> Peak | None:
    """What was measured of this machine before; None if nothing was that this version can read."""
    place = _place(device, threads, _library(device)[0])
    with suppress(FileNotFoundError, ValueError, TypeError):
        return Peak(**json.loads(place.read_text(encoding="utf-8")))
    return None


def measure(hardware: Hardware, threads: int) -> Peak | None:
    """Measure, a few seconds, and keep what is better than what was measured before."""
    library, python = _library(hardware.device)
    if hardware.device == "gpu" and library == NUMPY:
        return None  # it would be the processor's
    command: list[str | Path] = [python, "-I", SCRIPT, hardware.device, str(threads)]
    if hardware.cores is not None:
        command = ["taskset", "-c", ",".join(map(str, hardware.cores)), *command]
    before, used_s = interference.Snapshot.now(), _used_s()
    try:
        done = subprocess.run(
            command, env=worker_environment(threads, {}), capture_output=True, text=True, timeout=120, check=True
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        info(f"the machine's peak cannot be measured ({error}); runs go without their share of it")
        return None
    disturbed = bool(
        interference.warnings(interference.metrics_between(before, interference.Snapshot.now(), _used_s() - used_s))
    )
    new = Peak(host.fingerprint(), hardware.device, threads, **found, disturbed=disturbed, tries=1)
    if (old := load(hardware.device, threads)) is not None:
        gflops = {name: max(value, old.gflops.get(name, 0.0)) for name, value in new.gflops.items()}
        new = replace(new, gflops=gflops, gb_per_s=max(new.gb_per_s, old.gb_per_s),
                      disturbed=disturbed and old.disturbed, tries=old.tries + 1)  # fmt: skip
    _keep(new, library)
    return new


def mark_doubtful(peak: Peak) -> Peak:
    """The ``peak``, no longer sure, and kept so: a run has computed more."""
    doubted = replace(peak, disturbed=True)
    if load(peak.device, peak.threads) == peak:  # another run may have measured again meanwhile
        _keep(doubted, _library(peak.device)[0])
    return doubted


def _keep(peak: Peak, library: str) -> None:
    write_atomically(_place(peak.device, peak.threads, library), json.dumps(asdict(peak), indent=1))


def _used_s() -> float:
    """CPU time of the processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _library(device: str) -> tuple[str, Path]:
    """The library that measures, and its interpreter."""
    for made in environments.list_environments():
        if (made.framework, made.device) == (LIBRARY, device):
            return made.key, made.python
    return NUMPY, Path(sys.executable)


def _place(device: str, threads: int, library: str) -> Path:
    what = json.dumps([host.fingerprint(), device, threads, library])
    return cache_dir() / "peaks" / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
