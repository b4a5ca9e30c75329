"""Signals that stop a run: the first one interrupts it, and no signal interrupts the delivery of its results."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if sys.platform != "win32" else []))
"""Ctrl-C, a scheduler's request, and a closed terminal."""

INTERRUPTED = 130
"""Exit status of a command that a signal has stopped, as shells report Ctrl-C."""

RETRY_S = 0.01


def exit_on_first() -> None:
    """Exit with one line at the first stopping signal. Use this only while there is nothing to close."""
    _install(_exit)


def interrupt_on_first() -> None:
    """Let the first stopping signal raise KeyboardInterrupt in the main thread, and ignore all later ones.

    Later signals must not interrupt the delivery of the results.
    """
    _install(_interrupt)


def _repeat_lost_interrupt(lost: Any) -> None:
    """Repeat an interrupt that a destructor or a callback, such as that of a weak reference, has swallowed.

    Other exceptions there are ignored: the interrupt has left objects incomplete.
    """
    if lost.exc_type is KeyboardInterrupt:
        _install(_interrupt)
        _repeat(signal.SIGINT)


def ignore() -> None:
    """Ignore stopping signals from now on: the process is about to end by itself."""
    _install(_ignore)


def ignore_at_exit() -> None:
    """Ignore stopping signals while the interpreter ends, which would give them their default effect again."""
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)


def _install(handler: Callable[[int, FrameType | None], None]) -> None:
    """Install a handler for the stopping signals.

    A signal that the parent process ignores, as ``nohup`` does with SIGHUP, stays ignored. One for which a launcher has
    installed a handler is left to it.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python permits handlers to the main thread only
    for number in STOPPING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _exit, _interrupt, _ignore):
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> None:
    # Not by print or by an exception: this may be inside of a print, or in a module that swallows exceptions.
    with suppress(OSError):
        os.write(2, b"gtdl: stopped\n")
    os._exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        _repeat(number)
        return
    ignore()
    sys.unraisablehook = _repeat_lost_interrupt
    raise KeyboardInterrupt


def _repeat(number: int) -> None:
    """Raise a signal again in ``RETRY_S`` seconds."""
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
    signal.setitimer(signal.ITIMER_REAL, RETRY_S)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing. Unlike SIG_IGN, a handler is not inherited by the programs that this process starts."""


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether an exception would leave a module half imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


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
