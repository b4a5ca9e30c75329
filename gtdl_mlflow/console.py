"""Messages on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def info(text: str) -> None:
    """Print a message on standard error."""
    print(f"gtdl: {text}", file=sys.stderr, flush=True)


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
