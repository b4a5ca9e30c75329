"""pip's own settings (indexes, find-links, constraints, certificates), said again in uv's words.

uv reads none of pip's configuration, so a company's index or a folder of wheels that pip knows would be missed. What
the user has told uv itself stays as it is.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..redaction import redact

# pip's precedence, lowest first; sections of its other commands (download, wheel, ...) do not concern an installation.
SECTIONS = ("global", "install", ":env:")
# pip's options with two names, of which either may be in a configuration.
ALIASES = {"default-timeout": "timeout", "pypi-url": "index-url"}


class SettingsUnreadable(Exception):
    """pip would not say what its settings are: installing without them could go to the wrong index."""


class UvSettings(NamedTuple):
    """What to add to uv's environment and to the arguments of ``uv pip install``."""

    environment: dict[str, str]
    arguments: list[str]


def for_uv() -> UvSettings:
    """The settings pip would use here, for uv. Takes half a second: pip is asked, in a process of its own."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if asked.returncode:
        lines = asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"]
        raise SettingsUnreadable(f"pip's settings cannot be read ({redact(lines[-1])}); see `pip config list`")
    return translate(parse(asked.stdout), os.environ)


def parse(listing: str) -> dict[str, str]:
    """What ``pip config list`` prints, as the one value that ``pip install`` would use for each option."""
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        key, equals, literal = line.partition("=")
        section, dot, option = key.rpartition(".")
        if not (equals and dot and section in found):
            continue
        try:
            value = str(ast.literal_eval(literal))
        except (ValueError, SyntaxError):
            value = literal
        # pip, too, passes over an empty value to the next lower place.
        if value.strip():
            found[section][ALIASES.get(option, option)] = value
    return {option: value for section in SECTIONS for option, value in found[section].items()}


def translate(settings: Mapping[str, str], environ: Mapping[str, str]) -> UvSettings:
    """pip's ``settings`` for uv, less whatever ``environ`` already tells uv."""
    environment: dict[str, str] = {}

    def tell(variable: str, value: str, *, unless: tuple[str, ...] = ()) -> None:
        if value and not any(environ.get(name) for name in (variable, *unless)):
            environment[variable] = value

    def words(option: str) -> list[str]:
        return settings.get(option, "").split()

    def path(option: str) -> str:
        return os.path.expanduser(settings.get(option, "").strip())  # noqa: PTH111 (may be empty, which a Path cannot)

    # By environment variable: an index's address may hold a password, and `ps` shows a command's arguments to all.
    tell("UV_DEFAULT_INDEX", settings.get("index-url", "").strip(), unless=("UV_INDEX_URL",))
    tell("UV_INDEX", " ".join(words("extra-index-url")), unless=("UV_EXTRA_INDEX_URL",))
    if "UV_INDEX" in environment:
        # pip takes the best version of all indexes; uv by itself only looks into the first one that has the package,
        # and a company's index that mirrors half of a package would hide the rest.
        tell("UV_INDEX_STRATEGY", "unsafe-best-match")
    tell("UV_FIND_LINKS", ",".join(_find_links(words("find-links"))))
    tell("UV_CONSTRAINT", " ".join(os.path.expanduser(word) for word in words("constraint")))  # noqa: PTH111 (or a URL)
    tell("UV_INSECURE_HOST", " ".join(words("trusted-host")))
    tell(
        "UV_HTTP_TIMEOUT",
        settings.get("timeout", "").partition(".")[0].strip(),
        unless=("UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT"),
    )
    tell("SSL_CERT_FILE", path("cert"))
    tell("SSL_CLIENT_CERT", path("client-cert"))
    tell("ALL_PROXY", settings.get("proxy", "").strip(), unless=("all_proxy",))

    refuses_indexes = settings.get("no-index", "").strip().lower() in {"1", "true", "yes", "on", "y", "t"}
    return UvSettings(environment, ["--no-index"] if refuses_indexes else [])


def _find_links(places: list[str]) -> list[str]:
    """pip passes over a folder that is not there; uv would stop at it."""
    found = []
    for place in places:
        if "://" in place:
            found.append(place)
        elif (folder := Path(place).expanduser()).is_dir():
            found.append(str(folder))
    return found


def for_pip(environ: Mapping[str, str]) -> dict[str, str]:
    """What the user has told uv alone, for a pip that is run in its place."""
    told: dict[str, str] = {}
    for variable, option in (
        ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"),
        ("UV_INDEX_URL", "PIP_INDEX_URL"),
        ("UV_INDEX", "PIP_EXTRA_INDEX_URL"),
        ("UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
        ("UV_FIND_LINKS", "PIP_FIND_LINKS"),
        ("UV_INSECURE_HOST", "PIP_TRUSTED_HOST"),
    ):
        if value := environ.get(variable, "").strip():
            words = re.split(r"[\s,]+", value) if variable == "UV_FIND_LINKS" else value.split()
            # uv's indexes may have names: name=https://...
            told.setdefault(option, " ".join(re.sub(r"^[\w.-]+=(?=\w+:)", "", word) for word in words))
    return told
