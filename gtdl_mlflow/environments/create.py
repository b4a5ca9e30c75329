"""Create the environment of a framework: choose a Python, create a virtual environment with uv, install a recipe."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import info
from ..files import hold_folder_lock
from ..redaction import redact
from . import cmake_build, pip_settings, uv_command
from .environment import (
    Environment,
    EnvironmentFailed,
    environments_dir,
    find,
    folder_of,
    is_preferred,
    is_supported,
    key_of,
    mark_complete,
)
from .toolchain import PackagesMissing, Toolchain

if TYPE_CHECKING:  # the schema imports Hydra
    from .. import config


def ensure(framework: config.Framework, device: str) -> Environment:
    """Return the environment of ``framework`` on ``device``. Create it if it does not exist.

    Raises:
        EnvironmentFailed: the framework cannot run on the device, or its environment could not be created.
    """
    if device not in framework.devices:
        defined = ", ".join(framework.devices) or "none"
        raise EnvironmentFailed(f"{framework.name} does not define device {device}; defined: {defined}")
    support = framework.devices[device]
    if support.unavailable:
        raise EnvironmentFailed(f"{framework.name} cannot run on {device}: {support.unavailable}")
    try:
        return find(framework, device) or _create(framework, device)
    except pip_settings.SettingsUnreadable as error:
        raise EnvironmentFailed(f"{framework.name} {framework.version} could not be installed: {error}") from error
    except OSError as error:
        raise EnvironmentFailed(
            f"the environment of {framework.name} {framework.version} could not be created:"
            f" {error.strerror or error} ({error.filename or environments_dir()}); free space or fix the permissions"
            " there, or set GTDL_HOME to another folder"
        ) from error


def _create(framework: config.Framework, device: str) -> Environment:
    interpreter, python_version = _choose_python(framework)
    key = key_of(framework.devices[device], python_version)
    folder = folder_of(framework, device, key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold_folder_lock(folder):
        if created_meanwhile := find(framework, device):
            return created_meanwhile
        started = time.perf_counter()
        info(f"creating {framework.name} {framework.version} ({device}, Python {python_version}) in {folder}")
        try:
            recipe, build_log = _install(framework, device, interpreter, folder)
            python = folder / "bin" / "python"
            environment = Environment(
                framework=framework.name,
                version=framework.version,
                device=device,
                folder=folder,
                python=python,
                python_version=_version_of(python),
                requirements=[redact(requirement) for requirement in recipe.requirements],
                packages=[*_freeze(python), *(f"# {line}" for line in build_log)],
                key=key,
            )
            mark_complete(environment, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        info(f"created {framework.name} {framework.version} in {time.perf_counter() - started:.1f} s")
    return environment


def _install(
    framework: config.Framework, device: str, interpreter: str, folder: Path
) -> tuple[config.Recipe, list[str]]:
    """Fill ``folder`` by the first recipe that works; return the recipe, and a description of what was compiled."""
    settings = pip_settings.for_uv()
    *earlier, last = framework.devices[device].recipes
    failures = []
    for recipe in [*earlier, last]:
        _create_venv(framework, interpreter, folder)
        toolchain = Toolchain(recipe.system, folder / "bin" / "python")
        try:
            toolchain.check()  # before anything is downloaded
        except PackagesMissing as error:
            raise EnvironmentFailed(
                f"{framework.name} {framework.version} requires system packages: {error}"
            ) from error
        install = ["pip", "install", "--python", str(folder / "bin" / "python")]
        install += [*settings.arguments, *recipe.options, *recipe.requirements]
        # Resolution shows quickly whether all packages can be reached, so it fails early if there is another recipe.
        # The download has uv's usual timeouts: one failed request in the middle of a CPU build must not end in the
        # CUDA build, which is several times larger.
        timeouts = {} if recipe is last else uv_command.short_timeouts()
        result = uv_command.run([*install, "--dry-run"], {**settings.environment, **timeouts})
        if result.returncode == 0:
            if recipe.note:
                info(f"{framework.name}: {recipe.note}")
            result = uv_command.run(install, settings.environment, show_progress=sys.stderr.isatty())
        if result.returncode == 0:
            return recipe, _compile(framework, recipe, toolchain)
        requested = redact(" ".join([*recipe.requirements[:1], *recipe.options]))
        failures.append(f"{requested} could not be installed: {uv_command.failure_reason(result)}")
        if recipe is not last:
            info(textwrap.shorten(f"{failures[-1]}; trying the next recipe", 240, placeholder=" ..."))
    raise EnvironmentFailed(
        f"{framework.name} {framework.version} for {device}: {'; '.join(failures)}."
        " Check the network and the package index (the settings of pip and uv are used), then:"
        f" gtdl env create {framework.name}"
    )


def _compile(framework: config.Framework, recipe: config.Recipe, toolchain: Toolchain) -> list[str]:
    if recipe.build is None:
        return []
    try:
        return cmake_build.install(recipe.build, toolchain, recipe.requirements)
    except cmake_build.BuildFailed as error:
        raise EnvironmentFailed(f"{framework.name} {framework.version} could not be installed: {error}") from error


def _create_venv(framework: config.Framework, interpreter: str, folder: Path) -> None:
    """Create a virtual environment in ``folder``; delete what a killed process or a failed recipe left there."""
    if folder.exists():
        shutil.rmtree(folder)
    result = uv_command.run(["venv", "--no-project", "--python", interpreter, str(folder)])
    if result.returncode:
        raise EnvironmentFailed(
            f"{framework.name} requires Python {framework.python.supported} (preferred: {framework.python.preferred}),"
            f" which uv could not provide: {uv_command.failure_reason(result)}. Install Python"
            f" {framework.python.preferred} and try again"
        )


def _choose_python(framework: config.Framework) -> tuple[str, str]:
    """Return the interpreter as an argument of ``uv venv --python``, and its version."""
    driver_version = platform.python_version()
    if is_preferred(framework, driver_version) and is_supported(framework, driver_version):
        return sys.executable, driver_version
    if preferred := _installed_python(framework, f"cpython@{framework.python.preferred}"):
        return preferred
    if is_supported(framework, driver_version):
        return sys.executable, driver_version
    if supported := _installed_python(framework, f"cpython{framework.python.supported}"):
        return supported
    # None is installed: uv downloads it, unless the user has forbidden downloads.
    return f"cpython@{framework.python.preferred}", framework.python.preferred


def _installed_python(framework: config.Framework, request: str) -> tuple[str, str] | None:
    # pyenv's shims run the selected versions only, and uv does not search pyenv's folder of all versions.
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *sorted(map(str, pyenv.glob("*/bin")), reverse=True)])
    # --system: not the virtual environment that the driver itself runs in.
    command = ["python", "find", "--system", "--no-project", "--no-python-downloads", request]
    result = uv_command.run(command, {"PATH": search})
    if result.returncode:
        return None
    interpreter = result.stdout.strip()
    python_version = _version_of(Path(interpreter))
    return (interpreter, python_version) if is_supported(framework, python_version) else None


def _version_of(python: Path) -> str:
    # Not platform.python_version(): some distributions append a "+", which is not valid in a version.
    code = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
    return subprocess.run([python, "-I", "-S", "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _freeze(python: Path) -> list[str]:
    result = uv_command.run(["pip", "freeze", "--python", str(python)])
    if result.returncode:
        raise EnvironmentFailed(f"the packages of {python} could not be listed: {uv_command.failure_reason(result)}")
    return redact(result.stdout).splitlines()
