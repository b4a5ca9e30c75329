"""Formats of numbers and of text from the tracking store, in the report and in the commands that print results."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from ..console import printable
from .intervals import FEWEST_RUNS, summarize

REASON = 300
"""Characters of a reason in one line of text."""


def format_number(value: float) -> str:
    """Return a measured value: ``1,234.5``, ``12.34``, ``0.123``."""
    if abs(value) >= 100:
        return f"{value:,.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:#.3g}"


def format_values(values: Sequence[float], mean: bool = False) -> str:
    """Return the median, or the mean, with its interval and the number of values: ``12.30 [11.90, 12.80], 5``.

    Fewer than ``FEWEST_RUNS`` have no interval, and are returned themselves: ``12.30; 12.41``.
    """
    if len(values) < FEWEST_RUNS:
        return "; ".join(map(format_number, values))
    summary = summarize(values, mean)
    interval = f"[{format_number(summary.low)}, {format_number(summary.high)}]"
    return f"{format_number(summary.center)} {interval}, {summary.n}"


def format_published(value: float) -> str:
    """Return a published value with its two decimals: ``11,555.43``."""
    return f"{value:,.2f}"


def format_ratio(ratio: float) -> str:
    """Return a ratio with three digits: ``0.502``, ``1.15``, ``12.3``, ``1,234``."""
    return f"{ratio:,.0f}" if ratio >= 99.95 else f"{ratio:#.3g}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is one: ``1 seed``, ``5 seeds``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shorten(text: str, length: int = 40) -> str:
    """Return the beginning of ``text`` from the store in one printable line."""
    line = printable(" ".join(text[: 4 * length].split()))
    return line if len(text) <= length else f"{line[:length]}..."


def one_line(text: str) -> str:
    """Return the first line of a reason from the store, shortened: later lines could pass for lines of ours."""
    lines = text.strip().splitlines()
    return shorten(lines[0], REASON) if lines else ""


def markdown(text: str) -> str:
    """Return text from the store as text of Markdown, in one line, without markup, HTML, links or table cells."""
    line = html.escape(printable(" ".join(text.split())), quote=False)
    return re.sub(r"([\\`*|\[\]~])", r"\\\1", line)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells are Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))
