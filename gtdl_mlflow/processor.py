"""The processor, as Linux describes it in ``/proc/cpuinfo``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

PROCESSORS = Path("/proc/cpuinfo")

MODEL = ("cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant", "CPU revision")
"""Keys of the model, on x86 and ARM."""

VECTOR = ("sse", "ssse", "avx", "amx", "fma", "f16c", "asimd", "sve")
"""Beginnings of the names of vector extensions, on x86 and ARM."""

OPENBLAS_KERNELS = {
    "SkylakeX": {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"},
    "Haswell": {"avx2", "fma"},
}
"""Types of OpenBLAS's kernels, the fastest first, with the vector extensions that they need."""


def first() -> dict[str, str]:
    """Return the keys and values of the first processor; none if the file cannot be read."""
    with suppress(OSError):
        text, _, _ = PROCESSORS.read_text(encoding="utf-8").partition("\n\n")
        pairs = (line.partition(":") for line in text.splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}
    return {}


def features() -> set[str]:
    """Return the names of the features of the first processor, such as ``avx2``."""
    found = first()
    return {*found.get("flags", found.get("Features", "")).split()}


def openblas_kernels() -> str:
    """Return the type of OpenBLAS's kernels for the processor's vector extensions; empty if it has none of them.

    OpenBLAS itself selects kernels by the processor's model, and the slowest ones for a model that is newer than it.
    """
    known = features()
    return next((kernels for kernels, needed in OPENBLAS_KERNELS.items() if needed <= known), "")
