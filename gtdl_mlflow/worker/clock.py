"""The only clock there is."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Seconds, on a monotonic clock of nanoseconds; it can be stopped and started.

    Beside them it counts what all threads of this process had of the CPU meanwhile, up to when it was last stopped.
    """

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns):
        self._now = now
        self._sum = 0
        self._since: int | None = None
        self.cpu_seconds = 0.0

    def start(self) -> None:
        self.cpu_seconds -= time.process_time()
        self._since = self._now()

    def stop(self) -> float:
        """The seconds it has run so far."""
        assert self._since is not None
        self._sum += self._now() - self._since
        self._since = None
        self.cpu_seconds += time.process_time()
        return self.seconds

    def add(self, seconds: float, cpu_seconds: float) -> None:
        """Count what another clock has measured before."""
        self._sum += round(seconds * 1e9)
        self.cpu_seconds += cpu_seconds

    @property
    def seconds(self) -> float:
        running = 0 if self._since is None else self._now() - self._since
        return (self._sum + running) / 1e9
