"""Files and commands on the pages of the guide."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import click
import yaml

from gtdl_mlflow import config
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.config import CONF

from .project import ROOT

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
                yield from ((heading, "", without_comment(line)) for line in step["content"].splitlines())


def without_comment(line: str) -> str:
    """Return a line of a shell script without its comment."""
    return f" {line}".partition(" #")[0].strip()


def write_file(folder: Path, name: str, content: str) -> None:
    """Write a file of a page into a folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


SHELL = (
    "python3 -m venv",
    "pip install",
    "apt-get install",
    "export MLFLOW_TRACKING_",
    "export GTDL_DATA=",
    "read -rs MLFLOW_TRACKING_PASSWORD",
    "uvx",
    "pytest",
    "python -m pytest",
)
"""Prefixes of commands of other programs, which are not checked."""


def commands(page: Path) -> list[str]:
    """Return the commands of a page's bash blocks without comments; ``a && b`` is two commands."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [without_comment(line) for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def composes(words: list[str]) -> None:
    """Compose every value of every choice, one by one, together with the first value of the others."""
    values = {key: ["0.1"] if "interval(" in value else [value] if value.startswith("[") else value.split(",")
              for key, _, value in (word.partition("=") for word in words)}  # fmt: skip
    first = {key: several[0] for key, several in values.items() if not key.startswith("hydra")}
    for key, several in values.items():
        for value in several:
            if key.startswith("hydra/"):
                assert value == "optuna" or (CONF / key / f"{value}.yaml").exists(), f"{key}={value}"
            elif not key.startswith("hydra."):
                compose_once(*sorted(f"{name}={each}" for name, each in {**first, key: value}.items()))


@cache
def compose_once(*overrides: str) -> None:
    """Compose a configuration, which takes 0.15 s. It may be unavailable on this machine."""
    with suppress(config.Unavailable):
        config.compose([*overrides])


def check_command(command: str) -> None:
    """Check a command of the guide.

    Raises:
        AssertionError, click.ClickException, config.ConfigError: one of our programs would refuse it.
    """
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "gtdl_mlflow"]:
        composes([word for word in words[3:] if word not in ("-m", "--help")])
    elif words[0] == "gtdl":
        command_line, subcommand = words[1:], cli.gtdl
        while isinstance(subcommand, click.Group):
            assert command_line[0] in subcommand.commands, command
            subcommand = subcommand.commands[command_line.pop(0)]
        arguments = subcommand.make_context(subcommand.name, command_line).params
        composes([word for word in arguments.get("overrides") or arguments.get("words") or () if "=" in word])
    elif words[:3] == ["mlflow", "run", "."]:
        entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
        assert words[words.index("-e") + 1] in entry_points if "-e" in words else True
        composes([word for flag, word in itertools.pairwise(words) if flag == "-P"])
    elif words[0] == "python" and words[1].startswith(("benchmarks/", "scripts/")):
        assert (ROOT / words[1]).is_file()
    elif words[0].startswith("scripts/"):
        assert (ROOT / words[0]).is_file()
    else:
        assert command.startswith(SHELL) or command == ". .venv/bin/activate", command
