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

from .. import cgroups, processor

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Modes of transparent huge pages, with the selected one in brackets."""


@cache
def has_bfloat16() -> bool:
    """Return whether the processor has instructions for bfloat16, as far as Linux reports them."""
    features = processor.features()
    return not features or not features.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


@cache
def describe() -> dict[str, Any]:
    """Return the processor, cores, memory, GPUs and operating system, and the limits of this process on its cores.

    Results are comparable if their descriptions are equal. Entries for limits exist only if there is a limit. Virtual
    machines report one name for processors of several generations; the family, model and stepping distinguish them.
    The vector extensions show whether the host of a virtual machine withholds some of them.
    """
    usable_cores, quota = len(cgroups.usable_cores()), cgroups.cpu_quota()
    logical_cores = psutil.cpu_count() or usable_cores
    cpu = processor.first()
    description: dict[str, Any] = {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_model": "-".join(cpu[key] for key in processor.MODEL if key in cpu),
        "vector_extensions": " ".join(
            sorted(each for each in processor.features() if each.startswith(processor.VECTOR))
        ),
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
    return {
        "distribution": distribution,
        "kernel": re.sub(r"[^\d.].*", "", platform.release()),
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


def _gpus() -> list[str]:
    try:
        result = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):  # also a folder of PATH that this user must not read
        return []
    return [line.strip() for line in result.stdout.splitlines()] if result.returncode == 0 else []
