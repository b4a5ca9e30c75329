"""Backend-specific functions of the Keras adapter: JAX."""

from __future__ import annotations

from typing import Any

import jax

from ..base import Setup
from ..jax.adapter import configure, describe_build

__all__ = ["configure", "describe", "peak_memory_mb", "synchronize"]


def synchronize(setup: Setup, variables: list[Any]) -> None:
    """Wait for the device, which computes asynchronously."""
    jax.block_until_ready([variable.value for variable in variables])


def peak_memory_mb() -> float:
    """Return the peak GPU memory in MB."""
    return float(jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e6)


def describe(variable: Any) -> dict[str, Any]:
    """Return device, threads and build as JAX reports them."""
    return {"backend_version": jax.__version__, **describe_build(variable.value.device)}
