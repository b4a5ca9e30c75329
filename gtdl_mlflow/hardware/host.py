"""The description of this machine: everything that decides which results may be compared."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from .. import cgroups

PROCESSORS = Path("/proc/cpuinfo")

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Modes of transparent huge pages, with the selected one in brackets."""

KERNELS = {
    "SkylakeX": {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"},
    "Haswell": {"avx2", "fma"},
}
"""Types of OpenBLAS's kernels, the fastest first, with the vector extensions that they need."""

VECTOR = ("sse", "ssse", "avx", "amx", "fma", "f16c", "asimd", "sve")
"""Beginnings of the names of vector extensions in ``/proc/cpuinfo``, on x86 and ARM."""


@cache
def has_bfloat16() -> bool:
    """Return whether the processor has instructions for bfloat16, as far as Linux reports them."""
    features = _features(_first_processor())
    return not features or not features.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def openblas_kernels() -> str:
    """Return the type of OpenBLAS's kernels for the vector extensions of this processor; empty if it has none of them.

    OpenBLAS itself selects kernels by the processor's model, and the slowest ones for a model that is newer than it.
    """
    features = _features(_first_processor())
    return next((kernels for kernels, needed in KERNELS.items() if needed <= features), "")


@cache
def describe() -> dict[str, Any]:
    """Return the processor, cores, memory, GPUs and operating system, and the limits of this process on its cores.

    Results are comparable if their descriptions are equal. Entries for limits exist only if there is a limit. Virtual
    machines give processors of several generations the same name: the family, model and stepping distinguish them, and
    the vector extensions those that a host withholds.
    """
    usable_cores, quota = len(cgroups.usable_cores()), cgroups.cpu_quota()
    logical_cores = psutil.cpu_count() or usable_cores
    processor = _first_processor()
    description: dict[str, Any] = {
        "cpu": processor.get("model name") or platform.processor() or platform.machine(),
        "cpu_model": "-".join(processor[key] for key in ("cpu family", "model", "stepping") if key in processor),
        "vector_extensions": " ".join(sorted(each for each in _features(processor) if each.startswith(VECTOR))),
        "cores": psutil.cpu_count(logical=False) or logical_cores,
        "logical_cores": logical_cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if usable_cores < logical_cores:
        description["usable_cores"] = usable_cores
    if quota is not None and quota < usable_cores:
        description["cpu_quota"] = round(quota, 2)
    return description


def software() -> dict[str, str]:
    """Return the distribution, the versions of Linux and glibc, and the mode of transparent huge pages.

    An entry that cannot be read is empty. No comparison depends on them.
    """
    distribution, pages = "", ""
    with suppress(OSError):
        distribution = platform.freedesktop_os_release()["PRETTY_NAME"]
    with suppress(OSError):
        _, _, pages = HUGE_PAGES.read_text(encoding="utf-8").partition("[")
    kernel = re.match(r"[\d.]*", platform.release())
    return {
        "distribution": distribution,
        "kernel": kernel[0] if kernel else "",
        "glibc": platform.libc_ver()[1],
        "huge_pages": pages.partition("]")[0],
    }


def fingerprint() -> str:
    """Return the description as one readable line that ends with its hash."""
    description = describe()
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:8]
    model = f" ({description['cpu_model']})" if description["cpu_model"] else ""
    parts = [f"{description['cpu']}{model}", f"{description['logical_cores']} cores"]
    if usable_cores := description.get("usable_cores"):
        parts.append(f"{usable_cores} of them usable")
    if quota := description.get("cpu_quota"):
        parts.append(f"limited to {quota:g} CPUs")
    parts += [f"{description['memory_gib']} GiB", *description["gpus"]]
    return f"{', '.join(parts)} ({digest})"


def _first_processor() -> dict[str, str]:
    """Return the keys and values of the first processor in Linux's ``/proc/cpuinfo``; none elsewhere."""
    with suppress(OSError):
        first, _, _ = PROCESSORS.read_text(encoding="utf-8").partition("\n\n")
        pairs = (line.partition(":") for line in first.splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}
    return {}


def _features(processor: dict[str, str]) -> set[str]:
    return {*processor.get("flags", processor.get("Features", "")).split()}


def _gpus() -> list[str]:
    try:
        result = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):  # also a folder of PATH that this user must not read
        return []
    return [line.strip() for line in result.stdout.splitlines()] if result.returncode == 0 else []
