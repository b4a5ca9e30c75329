"""What machine this is, as far as it bears on a measurement."""

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
    """Processor, cores, memory, GPUs and operating system; two equal descriptions are one machine to compare on."""
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "logical_cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def fingerprint() -> str:
    """One line for a person, with a hash at its end for a machine."""
    facts = describe()
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    parts = [facts["cpu"], f"{facts['logical_cores']} cores", f"{facts['memory_gib']} GiB", *facts["gpus"]]
    return f"{', '.join(parts)} ({digest})"


def _cpu() -> str:
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in listed.stdout.splitlines()] if listed.returncode == 0 else []
