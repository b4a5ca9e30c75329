"""Backend-specific functions of the Keras adapter: PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from ..base import Setup
from ..torch.adapter import configure, describe_build

__all__ = ["configure", "describe", "peak_memory_mb", "synchronize"]


def synchronize(setup: Setup, variables: list[Any]) -> None:
    """Wait for the GPU."""
    if setup.device == "gpu":
        torch.cuda.synchronize()


def peak_memory_mb() -> float:
    """Return the peak GPU memory in MB."""
    return float(torch.cuda.max_memory_allocated() / 1e6)


def describe(variable: Any) -> dict[str, Any]:
    """Return device, threads and build as PyTorch reports them."""
    return {"backend_version": torch.__version__, **describe_build(variable.value)}
