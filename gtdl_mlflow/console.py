"""Messages on the terminal, and the failures that end a command with one."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from .redaction import VARIABLE, conceal, redact

MINUTE_S = 60.0
"""Seconds between two messages of something that takes long."""


class Failure(Exception):
    """An expected failure. Its message is one line, which the command ``gtdl`` prints before it exits."""

    status = 1
    """Exit status of the command: 1 for a failure, 2 for an invalid request."""


def info(text: str) -> None:
    """Print a message on standard error, without control characters and secrets of addresses."""
    status_line("")
    _write(f"gtdl: {printable(redact(text))}\n", sys.stderr)


def output(text: str) -> None:
    """Print a result on standard output, without control characters and secrets of addresses."""
    status_line("")
    _write(f"{printable(redact(text))}\n", sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    """Write text at once. If the terminal or the pipe was closed, all output of this process is discarded from now on.

    A run goes on: its results are in the tracking store.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        with suppress(OSError), Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())


def printable(text: str) -> str:
    """Return ``text`` without the control characters that could move a terminal's cursor or hide text.

    Line breaks and tabs stay. Text from the tracking store, from lock files and from a worker may contain anything.
    """
    return "".join(each if each in "\n\t" or each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def conceal_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the secrets of its addresses concealed, before anything prints or stores it."""
    concealed = [conceal(argument) for argument in arguments]
    if concealed != list(arguments) and (run_id := os.environ.get("MLFLOW_RUN_ID")):
        info(
            f"`mlflow run` has stored the password of an address as a param of run {run_id}: change the password; "
            f"set {VARIABLE} instead of -P tracking.uri"
        )
    return concealed


def status_line(text: str) -> None:
    """Replace the current line of the terminal by ``text``, until a message follows. Elsewhere, nothing is printed."""
    if sys.stderr.isatty():
        _write(f"\r\x1b[K{text}", sys.stderr)


@contextmanager
def report_every_minute(text: Callable[[], str]) -> Iterator[None]:
    """Print ``text()`` every minute during the block if standard error is no terminal, such as a log or a notebook.

    The time since the beginning of the block follows the text.
    """
    if sys.stderr.isatty():
        yield
        return
    started, ended = time.monotonic(), threading.Event()

    def report() -> None:
        while not ended.wait(MINUTE_S):
            info(f"{text()} ({(time.monotonic() - started) / MINUTE_S:.0f} min)")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def fail(reason: str, *, status: int = 1) -> int:
    """Print why a command fails and return its exit status."""
    info(reason)
    return status


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per row, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
