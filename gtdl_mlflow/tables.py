"""Tables of words: for a terminal, and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def write(path: Path, header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> None:
    """As CSV, a row a line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
