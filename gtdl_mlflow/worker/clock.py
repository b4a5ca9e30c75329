"""The clock of all reported times.

The training clock starts and stops in ``Trainer.train`` (``training.py``), the testing clock in ``test``
(``experiment.py``), and those of setup and saving in ``_Timed`` (``experiment.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Stopwatch on a monotonic clock with nanosecond resolution; it can be stopped and started again.

    It also measures the CPU time of all threads of this process (``cpu_seconds``), up to the last stop.
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
        """Stop the clock and return its total running time in seconds."""
        assert self._since is not None
        self._sum += self._now() - self._since
        self._since = None
        self.cpu_seconds += time.process_time()
        return self.seconds

    def add(self, seconds: float, cpu_seconds: float) -> None:
        """Add time that another clock has measured."""
        self._sum += round(seconds * 1e9)
        self.cpu_seconds += cpu_seconds

    @property
    def seconds(self) -> float:
        """Total running time so far, in seconds."""
        running = 0 if self._since is None else self._now() - self._since
        return (self._sum + running) / 1e9
