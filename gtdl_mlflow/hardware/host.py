"""The description of this machine: everything that decides which results may be compared."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import psutil


@cache
def describe() -> dict[str, Any]:
    """Return the processor, cores, memory, GPUs and operating system. Results with equal ones may be compared."""
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "logical_cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def fingerprint() -> str:
    """Return the description as one readable line that ends with its hash."""
    description = describe()
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:8]
    cores, memory = f"{description['logical_cores']} cores", f"{description['memory_gib']} GiB"
    return f"{', '.join([description['cpu'], cores, memory, *description['gpus']])} ({digest})"


def _cpu() -> str:
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    try:
        result = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):  # also a folder of PATH that this user must not read
        return []
    return [line.strip() for line in result.stdout.splitlines()] if result.returncode == 0 else []
