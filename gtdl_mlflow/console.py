"""Messages on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def info(text: str) -> None:
    """Print a message on standard error, without control characters."""
    print(f"gtdl: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return ``text`` without the control characters that could move a terminal's cursor or hide text.

    Line breaks stay. Text from the tracking store, from lock files and from a worker may contain anything.
    """
    return "".join(each if each == "\n" or each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def status_line(text: str) -> None:
    """Replace the current line of the terminal by ``text``. Without a terminal, nothing is printed."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def fail(reason: str, *, status: int = 1) -> int:
    """Print why a command fails and return its exit status."""
    info(reason)
    return status


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per row, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
