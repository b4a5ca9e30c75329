"""Time for tests of what is measured."""

from __future__ import annotations


class FakeTime:
    """A time source for ``Clock`` that changes only by ``advance``."""

    def __init__(self) -> None:
        self.nanoseconds = 0

    def __call__(self) -> int:
        return self.nanoseconds

    def advance(self, seconds: float) -> None:
        self.nanoseconds += round(seconds * 1e9)
