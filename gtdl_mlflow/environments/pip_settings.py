"""Translate pip's settings (indexes, find-links, constraints, certificates) for uv, and uv's for pip.

uv does not read pip's configuration: without this, a company's index or a folder of wheels that pip uses would be
missed. The user's settings for uv itself have priority.
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

SECTIONS = ("global", "install", ":env:")
"""Sections of pip's configuration, lowest precedence first. Other commands' (download, wheel) do not apply here."""

ALIASES = {"default-timeout": "timeout", "pypi-url": "index-url"}
"""Second names of pip's options; a configuration may use either."""


class SettingsUnreadable(Exception):
    """pip failed to list its settings. An installation without them could use the wrong index."""


class UvSettings(NamedTuple):
    """What to add to uv's environment variables and to the arguments of ``uv pip install``."""

    environment: dict[str, str]
    arguments: list[str]


def for_uv() -> UvSettings:
    """Return the settings that pip would use, for uv. Takes 0.5 s, because pip runs in a process of its own.

    Raises:
        SettingsUnreadable: pip's configuration is invalid.
    """
    result = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise SettingsUnreadable(f"pip's settings could not be read ({redact(lines[-1])}); run `pip config list`")
    return translate(parse(result.stdout), os.environ)


def parse(listing: str) -> dict[str, str]:
    """Return the value that ``pip install`` would use for each option in the output of ``pip config list``."""
    values: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        key, equals, literal = line.partition("=")
        section, dot, option = key.rpartition(".")
        if not (equals and dot and section in values):
            continue
        try:
            value = str(ast.literal_eval(literal))
        except (ValueError, SyntaxError):
            value = literal
        # Like pip, ignore an empty value and use that of the next lower section.
        if value.strip():
            values[section][ALIASES.get(option, option)] = value
    return {option: value for section in SECTIONS for option, value in values[section].items()}


def translate(settings: Mapping[str, str], environ: Mapping[str, str]) -> UvSettings:
    """Return pip's ``settings`` for uv, without those that ``environ`` already sets for uv."""
    environment: dict[str, str] = {}

    def export(variable: str, value: str, *, unless: tuple[str, ...] = ()) -> None:
        if value and not any(environ.get(name) for name in (variable, *unless)):
            environment[variable] = value

    def words(option: str) -> list[str]:
        return settings.get(option, "").split()

    def path(option: str) -> str:
        return os.path.expanduser(settings.get(option, "").strip())  # noqa: PTH111 (may be empty, which a Path cannot)

    # As environment variables: an index's address may contain a password, and `ps` shows all users the arguments.
    export("UV_DEFAULT_INDEX", settings.get("index-url", "").strip(), unless=("UV_INDEX_URL",))
    export("UV_INDEX", " ".join(words("extra-index-url")), unless=("UV_EXTRA_INDEX_URL",))
    if "UV_INDEX" in environment:
        # pip takes the best version of all indexes. uv by default reads only the first index that has the package, so
        # a company's index that mirrors some versions of a package would hide the others.
        export("UV_INDEX_STRATEGY", "unsafe-best-match")
    export("UV_FIND_LINKS", ",".join(_existing_find_links(words("find-links"))))
    export("UV_CONSTRAINT", " ".join(os.path.expanduser(word) for word in words("constraint")))  # noqa: PTH111 (or URL)
    export("UV_INSECURE_HOST", " ".join(words("trusted-host")))
    timeout_s = settings.get("timeout", "").partition(".")[0].strip()
    export("UV_HTTP_TIMEOUT", timeout_s, unless=("UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT"))
    export("SSL_CERT_FILE", path("cert"))
    export("SSL_CLIENT_CERT", path("client-cert"))
    export("ALL_PROXY", settings.get("proxy", "").strip(), unless=("all_proxy",))

    no_index = settings.get("no-index", "").strip().lower() in {"1", "true", "yes", "on", "y", "t"}
    return UvSettings(environment, ["--no-index"] if no_index else [])


def _existing_find_links(locations: list[str]) -> list[str]:
    """Return the addresses and the existing folders. pip ignores a folder that does not exist; uv would fail."""
    existing = []
    for location in locations:
        if "://" in location:
            existing.append(location)
        elif (folder := Path(location).expanduser()).is_dir():
            existing.append(str(folder))
    return existing


def for_pip(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that ``environ`` has for uv, as environment variables for pip."""
    settings: dict[str, str] = {}
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
            settings.setdefault(option, " ".join(re.sub(r"^[\w.-]+=(?=\w+:)", "", word) for word in words))
    return settings
