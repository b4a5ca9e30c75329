"""Signals that stop a run: the first one interrupts it, and no signal interrupts the delivery of its results."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler's request, and a closed terminal."""


def interrupt_on_first() -> None:
    """Let the first stopping signal raise KeyboardInterrupt in the main thread, and ignore all later ones.

    The time after the first signal belongs to the delivery of what has been measured. A signal that the parent process
    ignores, as ``nohup`` does with SIGHUP, stays ignored.
    """
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[None]:
    """Hold back stopping signals until the block ends; then the first one takes effect.

    Outside the main thread, which alone receives signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    held = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in held:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
