"""The cores of the tests: each process of pytest-xdist has its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

ALL = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
"""Cores that this session may use."""


def pin_test_process() -> None:
    """Pin a process of pytest-xdist to its own cores.

    Two trainings that share their cores wait for each other's threads at every step, and take many times as long.
    """
    number, count = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if number and 1 < count <= len(ALL):
        os.sched_setaffinity(0, sorted(ALL)[int(number.removeprefix("gw")) :: count])


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """Use the cores of the whole session, also in processes that are started meanwhile."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
