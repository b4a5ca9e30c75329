"""Files and commands on the pages of the guide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

STEP = re.compile(
    r"^(?:`(?P<file>[\w/.]+)`:\n\n)?```(?P<language>\w+)\n(?P<content>.*?)^```$", re.DOTALL | re.MULTILINE
)
"""A file with its name before it, or commands."""


def steps(page: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the page's steps in order: section, and a file's name and content or an empty name and a command."""
    sections = page.read_text(encoding="utf-8").split("\n## ")
    for section in sections:
        heading, _, body = section.partition("\n")
        for step in STEP.finditer(body):
            if step["language"] != "bash":
                assert step["file"], f"a block of {heading} has no file name before it"
                yield heading, step["file"], step["content"]
            else:
                yield from ((heading, "", line) for line in step["content"].splitlines())


def write_file(folder: Path, name: str, content: str) -> None:
    """Write a file of a page into a folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
