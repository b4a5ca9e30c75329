"""An overall deadline for work that sends requests.

Timeouts of sockets do not bound it: a server that sends one byte a second never reaches them.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from .. import signals

INTERRUPT_GRACE_S = 10
"""Longest wait for the request in progress after an interruption."""

_threads: list[threading.Thread] = []
"""Threads whose deadline has passed. They may never end."""


class DeadlinePassed(Exception):
    """The work took longer than its deadline."""


class Deadline:
    """Deadline for work that runs in a thread; the caller waits until the work ends or the deadline passes.

    After the deadline, or an interruption of the wait, the thread goes on: a request cannot be withdrawn. What it does
    then has no effect here, because ``publish`` ends it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._passed = False

    def publish(self, change: Callable[[], None]) -> None:
        """Make the result of a step of the work visible to the thread that waits.

        Raises:
            DeadlinePassed: nobody waits any more; nothing is changed.
        """
        with self._lock:
            if self._passed:
                raise DeadlinePassed
            change()

    def run(self, work: Callable[[], None]) -> None:
        """Run ``work`` and raise its exception, if any.

        Raises:
            DeadlinePassed: the work has not ended within the deadline.
        """
        errors: list[BaseException] = []
        ended = threading.Event()

        def target() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)
            finally:
                ended.set()

        thread = threading.Thread(target=target, name="gtdl-delivery", daemon=True)
        thread.start()
        try:
            in_time = ended.wait(self._seconds)
        except BaseException:
            self._abandon(thread)
            # The request may be creating a run, which can be closed only after the response.
            ended.wait(INTERRUPT_GRACE_S)
            raise
        if not in_time:
            self._abandon(thread)
            raise DeadlinePassed(f"no complete response within {self._seconds:.0f} s")
        if errors:
            raise errors[0]

    def _abandon(self, thread: threading.Thread) -> None:
        with self._lock:
            self._passed = True
        _threads.append(thread)


def leave(status: int) -> NoReturn:
    """Exit with ``status``, without waiting for threads whose deadline has passed.

    The interpreter joins the threads of every executor at its exit, and clients of artifact stores upload with
    executors.
    """
    signals.ignore_at_exit()
    if not any(thread.is_alive() for thread in _threads):
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
