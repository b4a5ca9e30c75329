"""One virtual environment per framework, version and device, made by uv when it is first needed.

An environment is a folder ``NAME-VERSION-DEVICE-KEY``; the key is a hash of what was asked for, so a changed pin makes
another environment beside the old one. ``environment.json`` is written last: a folder without it is what a kill left.
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
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import uv
from packaging.specifiers import SpecifierSet

from ..console import info
from ..files import cache_dir, folder_lock, hold_folder_lock
from ..redaction import redact
from . import cmake_build, pip_settings, subprocesses
from .toolchain import PackagesMissing, Toolchain

if TYPE_CHECKING:  # the schema brings Hydra with it
    from .. import config

FINISHED = "environment.json"
FORMAT = 1  # of the folder and its environment.json; part of the key, so a new one never meets an old folder


class EnvironmentFailed(Exception):
    """One line: what was wanted, what failed, what to do."""


@dataclass(frozen=True)
class Environment:
    """A finished environment: the interpreter that runs a framework's worker, and what is installed beside it."""

    framework: str
    version: str
    device: str
    folder: Path | None
    """None: the driver's own interpreter."""
    python: Path
    """Never resolved: a virtual environment's python is a symlink, and resolving it would leave the environment."""
    python_version: str
    requirements: list[str]
    """Of the recipe that was taken."""
    packages: list[str]
    """Everything installed, as pip would freeze it; what was built here, and with what, follows in comments."""
    key: str


def ensure(framework: config.Framework, device: str) -> Environment:
    """The environment of ``framework`` on ``device``, made now if it is not there."""
    if device not in framework.devices:
        known = ", ".join(framework.devices) or "no device at all"
        raise EnvironmentFailed(f"{framework.name} says nothing about device {device}, only about: {known}")
    offer = framework.devices[device]
    if offer.unavailable:
        raise EnvironmentFailed(f"{framework.name} cannot run on {device}: {offer.unavailable}")
    try:
        return find(framework, device) or _make(framework, device)
    except pip_settings.SettingsUnreadable as error:
        raise EnvironmentFailed(f"{framework.name} {framework.version} cannot be installed: {error}") from error
    except OSError as error:
        raise EnvironmentFailed(
            f"the environment of {framework.name} {framework.version} cannot be made: {error.strerror or error}"
            f" ({error.filename or _place()}); make room or access there, or set GTDL_HOME to another folder"
        ) from error


def find(framework: config.Framework, device: str) -> Environment | None:
    """What ``ensure`` would give at once; None if it would have to make it, or cannot.

    Found by reading alone: asking uv which Pythons there are would cost a second.
    """
    offer = framework.devices.get(device)
    if offer is None or offer.unavailable:
        return None
    if not offer.recipes:
        return _drivers_own(framework, device)
    fitting = [
        environment
        for environment in list_environments()
        if (environment.framework, environment.device) == (framework.name, device)
        and environment.key == _key(offer, environment.python_version)
        and _supports(framework, environment.python_version)
    ]
    return max(fitting, key=lambda environment: _prefers(framework, environment.python_version), default=None)


def list_environments() -> list[Environment]:
    """Every finished environment in GTDL_HOME."""
    found = (_read(folder) for folder in _folders())
    return [environment for environment in found if environment]


def remove(framework_name: str) -> list[Path]:
    """Delete every environment of a framework, half-made ones too; returns the folders that are gone."""
    gone = []
    for folder in _folders():
        # The last three words of a folder's name hold no "-", see _folder().
        if folder.name.rsplit("-", 3)[0] != framework_name:
            continue
        try:
            with folder_lock(folder).acquire(timeout=0):
                (folder / FINISHED).unlink(missing_ok=True)  # first: a kill halfway must not leave it looking finished
                shutil.rmtree(folder)
        except filelock.Timeout as error:
            raise EnvironmentFailed(
                f"{folder} is just being made by another process; try again when it is done"
            ) from error
        except OSError as error:
            raise EnvironmentFailed(f"{folder} cannot be removed: {error.strerror} ({error.filename})") from error
        gone.append(folder)
    return gone


@functools.cache
def _drivers_packages() -> list[str]:
    """As pip would freeze them; reading a hundred packages' descriptions takes longer than a cell of a sweep may."""
    installed = {f"{package.metadata['Name']}=={package.version}" for package in importlib.metadata.distributions()}
    return sorted(installed, key=str.lower)


def _drivers_own(framework: config.Framework, device: str) -> Environment:
    return Environment(
        framework=framework.name,
        version=framework.version,
        device=device,
        folder=None,
        python=Path(sys.executable),
        python_version=platform.python_version(),
        requirements=[],
        packages=_drivers_packages(),
        key=_key(framework.devices[device], platform.python_version()),
    )


# Where environments are, and which of them is the one.


def _place() -> Path:
    return cache_dir() / "environments"


def _folders() -> list[Path]:
    return sorted(path for path in _place().glob("*-*-*-*") if path.is_dir())


def _folder(framework: config.Framework, device: str, key: str) -> Path:
    words = (re.sub(r"[^\w.+]", "_", word) for word in (framework.version, device))
    return _place() / "-".join([framework.name, *words, key[:10]])


def _read(folder: Path) -> Environment | None:
    """What is in ``folder``, or None where it is not finished, or its base interpreter is gone."""
    python = folder / "bin" / "python"
    try:
        values = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if values.pop("format") != FORMAT or not python.exists():
        return None
    return Environment(folder=folder, python=python, **values)


def _key(offer: config.DeviceSupport, python_version: str) -> str:
    """A hash of all that decides what gets installed; not of the user's index, which is only where it comes from."""
    pinned = {
        "format": FORMAT,
        "recipes": [
            [recipe.requirements, recipe.options, *([vars(recipe.build)] if recipe.build else [])]
            for recipe in offer.recipes
        ],
        "python": ["cpython", *python_version.split(".")[:2]],
        "platform": [sys.platform, platform.machine()],
    }
    return hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()


def _supports(framework: config.Framework, python_version: str) -> bool:
    return SpecifierSet(framework.python.supported).contains(python_version, prereleases=True)


def _prefers(framework: config.Framework, python_version: str) -> bool:
    return f"{python_version}.".startswith(f"{framework.python.preferred}.")


# Making one.


def _make(framework: config.Framework, device: str) -> Environment:
    interpreter, python_version = _choose_python(framework)
    key = _key(framework.devices[device], python_version)
    folder = _folder(framework, device, key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold_folder_lock(folder):
        if made_meanwhile := find(framework, device):
            return made_meanwhile
        started = time.perf_counter()
        info(f"making {framework.name} {framework.version} ({device}, Python {python_version}) in {folder}")
        try:
            recipe, built = _install(framework, device, interpreter, folder)
            python = folder / "bin" / "python"
            made = Environment(
                framework=framework.name,
                version=framework.version,
                device=device,
                folder=folder,
                python=python,
                python_version=_version_of(python),
                requirements=[redact(requirement) for requirement in recipe.requirements],
                packages=[*_freeze(python), *(f"# {line}" for line in built)],
                key=key,
            )
            _finish(made, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        info(f"made {framework.name} {framework.version} in {time.perf_counter() - started:.1f} s")
    return made


def _finish(made: Environment, folder: Path) -> None:
    # Without the paths: they are where environment.json lies.
    values = {name: value for name, value in vars(made).items() if not isinstance(value, Path)}
    unfinished = folder / f"{FINISHED}.part"
    unfinished.write_text(json.dumps({"format": FORMAT, **values}, indent=1), encoding="utf-8")
    unfinished.replace(folder / FINISHED)


def _install(
    framework: config.Framework, device: str, interpreter: str, folder: Path
) -> tuple[config.Recipe, list[str]]:
    """Fill ``folder`` by the first recipe that works; returns that recipe, and an account of what was built."""
    settings = pip_settings.for_uv()
    *earlier, last = framework.devices[device].recipes
    failures = []
    for recipe in [*earlier, last]:
        _blank(framework, interpreter, folder)
        toolchain = Toolchain(recipe.system, folder / "bin" / "python")
        try:
            toolchain.demand()  # before anything is downloaded
        except PackagesMissing as error:
            raise EnvironmentFailed(
                f"{framework.name} {framework.version} needs what this machine lacks: {error}"
            ) from error
        install = ["pip", "install", "--python", str(folder / "bin" / "python")]
        install += [*settings.arguments, *recipe.options, *recipe.requirements]
        # Resolving tells quickly whether everything is in reach. Downloading then has uv's usual patience: one hiccup
        # in the middle of a CPU build must not end in the several times larger CUDA build.
        hurry = {} if recipe is last else _hurry()
        attempt = _uv([*install, "--dry-run"], {**settings.environment, **hurry})
        if attempt.returncode == 0:
            if recipe.note:
                info(f"{framework.name}: {recipe.note}")
            attempt = _uv(install, settings.environment, shown=sys.stderr.isatty())
        if attempt.returncode == 0:
            return recipe, _build(framework, recipe, toolchain)
        wanted = redact(" ".join([*recipe.requirements[:1], *recipe.options]))
        failures.append(f"{wanted} cannot be had ({_reason(attempt)})")
        if recipe is not last:
            info(textwrap.shorten(f"{failures[-1]}; trying the next way", 240, placeholder=" ..."))
    raise EnvironmentFailed(
        f"{framework.name} {framework.version} cannot be installed for {device}: {'; '.join(failures)}."
        " Check the network and the package index (pip's and uv's settings are used), then:"
        f" gtdl env create {framework.name}"
    )


def _build(framework: config.Framework, recipe: config.Recipe, toolchain: Toolchain) -> list[str]:
    if recipe.build is None:
        return []
    try:
        return cmake_build.install(recipe.build, toolchain, recipe.requirements)
    except cmake_build.BuildFailed as error:
        raise EnvironmentFailed(f"{framework.name} {framework.version} cannot be made: {error}") from error


def _blank(framework: config.Framework, interpreter: str, folder: Path) -> None:
    """A new virtual environment in ``folder``, in place of what a killed process or a failed recipe left there."""
    if folder.exists():
        shutil.rmtree(folder)
    created = _uv(["venv", "--no-project", "--python", interpreter, str(folder)])
    if created.returncode:
        raise EnvironmentFailed(
            f"{framework.name} needs a Python {framework.python.supported} (best: {framework.python.preferred}), and uv"
            f" could not set one up: {_reason(created)}. Install Python {framework.python.preferred} and try again"
        )


def _choose_python(framework: config.Framework) -> tuple[str, str]:
    """The interpreter, in words that ``uv venv --python`` takes, and its version."""
    drivers = platform.python_version()
    if _prefers(framework, drivers) and _supports(framework, drivers):
        return sys.executable, drivers
    if found := _installed_python(framework, f"cpython@{framework.python.preferred}"):
        return found
    if _supports(framework, drivers):
        return sys.executable, drivers
    if found := _installed_python(framework, f"cpython{framework.python.supported}"):
        return found
    # None is here: uv fetches it, unless the user has forbidden that.
    return f"cpython@{framework.python.preferred}", framework.python.preferred


def _installed_python(framework: config.Framework, request: str) -> tuple[str, str] | None:
    # pyenv's shims answer for the selected versions only, and uv does not look behind them.
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *sorted(map(str, pyenv.glob("*/bin")), reverse=True)])
    # --system: past the virtual environment that the driver itself runs in.
    found = _uv(["python", "find", "--system", "--no-project", "--no-python-downloads", request], {"PATH": search})
    if found.returncode:
        return None
    python_version = _version_of(Path(found.stdout.strip()))
    return (found.stdout.strip(), python_version) if _supports(framework, python_version) else None


def _version_of(python: Path) -> str:
    # Not platform.python_version(): some distributions append a "+" to it, which is no version.
    code = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
    return subprocess.run([python, "-I", "-S", "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _freeze(python: Path) -> list[str]:
    frozen = _uv(["pip", "freeze", "--python", str(python)])
    if frozen.returncode:
        raise EnvironmentFailed(f"what was installed beside {python} cannot be listed: {_reason(frozen)}")
    return redact(frozen.stdout).splitlines()


# Talking to uv.


def _hurry() -> Mapping[str, str]:
    """Give up quickly on an index that does not answer, unless the user has said how long to try."""
    hurry = {} if os.environ.get("UV_HTTP_RETRIES") else {"UV_HTTP_RETRIES": "0"}
    if not any(os.environ.get(name) for name in ("UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT")):
        hurry["UV_HTTP_TIMEOUT"] = "10"
    return hurry


def _uv(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, *, shown: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run uv; ``shown``: with its progress on the terminal instead of in the result."""
    try:
        command = [uv.find_uv_bin(), *arguments]
    except FileNotFoundError as error:
        raise EnvironmentFailed(
            f"uv, which makes the environments, is not installed ({error}); pip install uv"
        ) from error
    return subprocesses.run(command, {**os.environ, **(environment or {})}, stderr=None if shown else subprocess.PIPE)


def _reason(attempt: subprocess.CompletedProcess[str]) -> str:
    """uv's own account of a failure, on one line: what failed, and the deepest causes."""
    if attempt.stderr is None:
        return "uv says why above"
    lines = [re.sub(r"^(error|cause): ", "", line.strip()) for line in attempt.stderr.splitlines()]
    told = [line for line in lines if line and not line.startswith(("Using ", "Resolved ", "Prepared ", "hint: "))]
    words = ": ".join(textwrap.shorten(line, 200, placeholder=" ...") for line in [*told[:1], *told[1:][-2:]])
    return redact(words).rstrip(".") or f"uv ended with status {attempt.returncode}"
