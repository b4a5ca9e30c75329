"""The environments in the cache directory: find, list and remove them.

An environment is a folder ``NAME-VERSION-DEVICE-REQUEST``. The last part is a hash of what was requested, so a changed
pin creates another environment beside the old one. ``environment.json`` is written last: a folder without it is
incomplete.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from packaging.specifiers import SpecifierSet

from ..console import Failure
from ..files import cache_dir, lock_for, read_state, set_aside, write_atomically
from . import installed, locks

if TYPE_CHECKING:  # the schema imports Hydra
    from .. import config

FINISHED = "environment.json"
FORMAT = 2
"""Version of the folder and its environment.json; part of the request, so that no version reads another's folder."""


class EnvironmentFailed(Failure):
    """An environment that is not available. The message is one line: what failed, why, and what to do."""


@dataclass(frozen=True)
class Environment:
    """A complete environment: the interpreter of a framework's worker, and the packages installed for it."""

    framework: str
    version: str
    device: str
    folder: Path | None
    """None: the driver's own interpreter."""
    python: Path
    """Never resolved: a virtual environment's python is a symlink, and its target is outside the environment."""
    python_version: str
    requirements: list[str]
    """Requirements of the recipe that was installed."""
    packages: list[str]
    """All installed packages as ``pip freeze`` prints them; then comments on what was compiled here, and with what."""
    key: str
    """Hash of what is installed, not of what was requested: equal on all machines for equal contents."""
    locked: str = locks.NONE
    """What the lock determined: ``versions and hashes``, ``versions`` or ``no``."""
    request: str = ""
    """Hash of everything that was requested, see ``request_of``; empty for the driver's own interpreter."""
    entries: Mapping[str, str] = field(default_factory=dict)
    """Listing of the site-packages when the environment was complete, see ``installed.listing``."""

    @property
    def compile_cache(self) -> Path | None:
        """Folder of the code that execution modes compile; it is deleted together with the environment."""
        return self.folder / "compiled" if self.folder else None

    def changes(self) -> str:
        """Return how the installed packages differ from those of the complete environment; empty if they do not."""
        return installed.changes(self.folder, self.entries) if self.folder else ""


def find(framework: config.Framework, device: str) -> Environment | None:
    """Return the environment that ``ensure`` would return without creating one; None if there is no such environment.

    An environment whose packages were changed afterwards does not count. No process is started: to list the Pythons of
    this machine with uv takes a second.
    """
    support = framework.devices.get(device)
    if support is None or support.unavailable:
        return None
    if not support.recipes:
        return _driver_environment(framework, device)
    matches = [
        environment
        for environment in list_environments()
        if (environment.framework, environment.device) == (framework.name, device)
        and environment.request == request_of(support, environment.python_version)
        and is_supported(framework, environment.python_version)
        and not environment.changes()
    ]
    return max(matches, key=lambda environment: is_preferred(framework, environment.python_version), default=None)


def list_environments() -> list[Environment]:
    """Return all complete environments in the cache directory."""
    environments = (read(folder) for folder in _folders())
    return [environment for environment in environments if environment]


def remove(framework_name: str) -> list[Path]:
    """Delete all environments of a framework, incomplete ones too, and return their folders.

    Raises:
        EnvironmentFailed: another process is creating one of them, or a folder cannot be deleted.
    """
    removed = []
    for folder in _folders():
        # The last three parts of a folder's name contain no "-", see folder_of().
        if folder.name.rsplit("-", 3)[0] != framework_name:
            continue
        try:
            with lock_for(folder).acquire(timeout=0):
                (folder / FINISHED).unlink(missing_ok=True)  # first: a kill must not leave a folder that looks complete
                shutil.rmtree(folder)
        except filelock.Timeout as error:
            raise EnvironmentFailed(f"another process is creating {folder}; try again when it has finished") from error
        except OSError as error:
            raise EnvironmentFailed(f"{folder} could not be removed: {error.strerror} ({error.filename})") from error
        removed.append(folder)
    return removed


def environments_dir() -> Path:
    """Return the folder of all environments."""
    return cache_dir() / "environments"


def folder_of(framework: config.Framework, device: str, request: str) -> Path:
    """Return the folder of the environment with this hash of its request, whether it exists or not."""
    parts = (re.sub(r"[^\w.+]", "_", part) for part in (framework.version, device))
    return environments_dir() / "-".join([framework.name, *parts, request[:10]])


def request_of(support: config.DeviceSupport, python_version: str) -> str:
    """Return a hash of everything that is requested of an environment. The package index is not part of it."""
    decisive = {
        "format": FORMAT,
        "recipes": [
            [
                recipe.requirements,
                recipe.options,
                lock.digest if (lock := locks.find_lock(recipe, python_version)) else "",
                *([vars(recipe.build)] if recipe.build else []),
            ]
            for recipe in support.recipes
        ],
        "python": ["cpython", *python_version.split(".")[:2]],
        "platform": [sys.platform, platform.machine()],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def is_supported(framework: config.Framework, python_version: str) -> bool:
    """Return whether the framework supports this version of Python."""
    return SpecifierSet(framework.python.supported).contains(python_version, prereleases=True)


def is_preferred(framework: config.Framework, python_version: str) -> bool:
    """Return whether this version of Python is the one that the framework prefers."""
    return f"{python_version}.".startswith(f"{framework.python.preferred}.")


def mark_complete(environment: Environment, folder: Path) -> None:
    """Write ``environment.json``; from now on the environment is listed and used."""
    # Without the paths, which follow from the folder.
    values = {name: value for name, value in vars(environment).items() if not isinstance(value, Path)}
    # A power failure must not leave this file beside files that are still empty.
    os.sync()
    write_atomically(folder / FINISHED, json.dumps({"format": FORMAT, **values}, indent=1))


def _folders() -> list[Path]:
    return sorted(path for path in environments_dir().glob("*-*-*-*") if path.is_dir())


def read(folder: Path) -> Environment | None:
    """Return the environment in ``folder``; None if it is incomplete, unreadable or of another version of this package,
    or if its base interpreter has been removed. An unreadable environment.json is set aside with a message."""
    python = folder / "bin" / "python"
    values = read_state(folder / FINISHED)
    if values is None or values.pop("format", None) != FORMAT or not python.exists():
        return None
    if invalid := _invalid(values):
        set_aside(folder / FINISHED, invalid)
        return None
    return Environment(folder=folder, python=python, **values)


def _invalid(values: Mapping[str, Any]) -> str:
    """Return why these are not the values of an environment; empty if they are."""
    types = {"list[str]": list, "str": str, "Mapping[str, str]": dict}
    expected = {each.name: types[str(each.type)] for each in fields(Environment) if str(each.type) in types}
    wrong = sorted({*expected} ^ {*values}) or [
        name for name, kind in expected.items() if not (isinstance(values[name], kind) and _all_texts(values[name]))
    ]
    return f"missing, unknown or invalid: {', '.join(wrong)}" if wrong else ""


def _all_texts(value: str | list[Any] | dict[str, Any]) -> bool:
    """Return whether the elements of a list, or the values of an object, are strings."""
    return all(isinstance(each, str) for each in (value.values() if isinstance(value, dict) else value))


@functools.cache
def _driver_packages() -> list[str]:
    """Return the driver's packages. Cached: to read the metadata of 100 packages takes longer than a cell may."""
    installed = {f"{package.metadata['Name']}=={package.version}" for package in importlib.metadata.distributions()}
    return sorted(installed, key=str.lower)


def _driver_environment(framework: config.Framework, device: str) -> Environment:
    return Environment(
        framework=framework.name,
        version=framework.version,
        device=device,
        folder=None,
        python=Path(sys.executable),
        python_version=platform.python_version(),
        requirements=[],
        packages=_driver_packages(),
        key=installed.driver_key(platform.python_version(), _driver_packages()),
    )
