"""Locks: the versions and hashes of all packages that a recipe installs, in ``conf/framework/locks``.

A lock is a requirements file that ``scripts/lock_environments.py`` writes. Its first lines are comments that name the
platform and the versions of Python for which it was resolved.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:  # the schema imports Hydra
    from .. import config

VERIFY_HASHES = "GTDL_VERIFY_HASHES"
"""Environment variable; ``0`` installs the locked versions without a check of their hashes."""

HASHES, VERSIONS, NONE = "versions and hashes", "versions", "no"
"""What the lock of an environment determined; the value of ``Environment.locked``."""


@dataclass(frozen=True)
class Lock:
    """A lock that covers a recipe, and how it is used."""

    path: Path
    text: str
    verified: bool
    """Whether the hashes are verified."""

    @property
    def locked(self) -> str:
        """What is determined by the lock: ``HASHES`` or ``VERSIONS``."""
        return HASHES if self.verified else VERSIONS

    @property
    def digest(self) -> str:
        """Hash of the lock and its use, as part of an environment's request."""
        return hashlib.sha256(f"{self.locked}\n{self.text}".encode()).hexdigest()

    @property
    def arguments(self) -> list[str]:
        """Arguments of ``uv pip install``. Packages that only build other packages are locked as well."""
        check = "--require-hashes" if self.verified else "--no-verify-hashes"
        return [check, "--requirements", str(self.path), "--build-constraints", str(self.path)]


def find_lock(recipe: config.Recipe, python_version: str) -> Lock | None:
    """Return the lock of a recipe; None if it has none for this platform, this Python or these requirements."""
    if not recipe.lock:
        return None
    path = locks_dir() / f"{recipe.lock}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    header = dict(re.findall(r"^# (\w+): (.*)$", text, re.MULTILINE))
    minor = ".".join(python_version.split(".")[:2])
    if header.get("platform") != current_platform() or minor not in header.get("python", "").split():
        return None
    pins = [pin for pin in read_pins(text) if pin.marker is None or pin.marker.evaluate({"python_version": minor})]
    if not all(_is_pinned(requirement, pins) for requirement in recipe.requirements):
        return None
    return Lock(path, text, os.environ.get(VERIFY_HASHES, "").strip().lower() not in ("0", "false", "no", "off"))


def locks_dir() -> Path:
    """Return the folder of the locks."""
    from ..config.resolvers import CONF  # imports Hydra, which `gtdl env list` does not need

    return CONF / "framework" / "locks"


def current_platform() -> str:
    """Return the name of this platform as in the locks."""
    return f"{sys.platform} {platform.machine()}"


def read_pins(text: str) -> Iterator[Requirement]:
    """Yield the requirements of a lock, without their hashes."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield Requirement(line.partition(" --hash")[0])


def _is_pinned(requirement: str, pins: list[Requirement]) -> bool:
    """Return whether a pin determines the version of this requirement, and its extras."""
    try:
        wanted = Requirement(requirement)
    except InvalidRequirement:  # such as a path
        return False
    return not wanted.url and any(
        canonicalize_name(pin.name) == canonicalize_name(wanted.name)
        and pin.extras >= wanted.extras
        and all(wanted.specifier.contains(each.version, prereleases=True) for each in pin.specifier)
        for pin in pins
    )
