"""Backend-specific functions of the Keras adapter: TensorFlow."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ..base import Setup
from ..tensorflow.adapter import configure, describe_build

__all__ = ["configure", "describe", "peak_memory_mb", "synchronize"]


def synchronize(setup: Setup, variables: list[Any]) -> None:
    """Wait for the device."""
    tf.test.experimental.sync_devices()


def peak_memory_mb() -> float:
    """Return the peak GPU memory in MB."""
    return float(tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6)


def describe(variable: Any) -> dict[str, Any]:
    """Return device, threads and build as TensorFlow reports them."""
    return {"backend_version": tf.__version__, **describe_build(variable.value)}
