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

from ..console import info, report_every_minute
from ..files import hold_folder_lock
from ..redaction import redact
from ..worker_process import WORKER_MAIN, environment_variables, worker_environment
from . import cmake_build, installed, locks, pip_settings, subprocesses, uv_command
from .environment import (
    Environment,
    EnvironmentFailed,
    environments_dir,
    find,
    folder_of,
    is_preferred,
    is_supported,
    mark_complete,
    read,
    request_of,
)
from .toolchain import PackagesMissing, Toolchain

if TYPE_CHECKING:  # the schema imports Hydra
    from .. import config

# Like a worker: the module makes this package importable, and nothing else of the driver's.
_IMPORT = "import importlib, runpy, sys; runpy.run_path(sys.argv[1]); importlib.import_module(sys.argv[2])"


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
    request = request_of(framework.devices[device], python_version)
    folder = folder_of(framework, device, request)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold_folder_lock(folder):
        if created_meanwhile := find(framework, device):
            return created_meanwhile
        if (existing := read(folder)) and (changes := existing.changes()):
            raise EnvironmentFailed(
                f"{framework.name} {framework.version}: packages in {folder} were changed after it was created"
                f" ({changes}); delete it with `gtdl env remove {framework.name}`, then the next run creates it again"
            )
        started = time.perf_counter()
        info(f"creating {framework.name} {framework.version} ({device}, Python {python_version}) in {folder}")
        try:
            python = folder / "bin" / "python"
            with report_every_minute(lambda: f"still creating {framework.name} {framework.version}"):
                recipe, lock, build_log = _install(framework, device, interpreter, folder, python_version)
            exact_version = _version_of(python)
            built_packages = [Path(recipe.build.package).name] if recipe.build else []
            key = installed.content_key(folder, exact_version, build_log, built_packages)
            _check_import(framework, python)
            environment = Environment(
                framework=framework.name,
                version=framework.version,
                device=device,
                folder=folder,
                python=python,
                python_version=exact_version,
                requirements=[redact(requirement) for requirement in recipe.requirements],
                packages=[*_freeze(python), *(f"# {line}" for line in build_log)],
                key=key,
                locked=lock.locked if lock else locks.NONE,
                request=request,
                entries=installed.listing(folder),
            )
            mark_complete(environment, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        info(f"created {framework.name} {framework.version} in {time.perf_counter() - started:.1f} s")
    return environment


def _install(
    framework: config.Framework, device: str, interpreter: str, folder: Path, python_version: str
) -> tuple[config.Recipe, locks.Lock | None, list[str]]:
    """Fill ``folder`` by the first recipe that works; return it, its lock, and a description of what was compiled."""
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
        install += [*settings.arguments, *recipe.options]
        variables = settings.environment
        if lock := locks.find_lock(recipe, python_version):
            install += lock.arguments
            # The lock determines all versions. A constraint could only make the installation fail, and uv refuses
            # ranges of versions beside hashes.
            variables = {**variables, "UV_CONSTRAINT": ""}
        else:
            install += recipe.requirements
        # Resolution shows quickly whether all packages can be reached, so it fails early if there is another recipe.
        # The download has uv's usual timeouts: one failed request in the middle of a CPU build must not end in the
        # CUDA build, which is several times larger.
        timeouts = {} if recipe is last else uv_command.short_timeouts()
        result = uv_command.run([*install, "--dry-run"], {**variables, **timeouts})
        if result.returncode == 0:
            if recipe.note:
                info(f"{framework.name}: {recipe.note}")
            result = uv_command.run(install, variables, show_progress=sys.stderr.isatty())
            if result.returncode and result.stderr is None:
                result = uv_command.run(install, variables)  # the reason of the failure decides what follows
        if result.returncode == 0:
            return recipe, lock, _compile(framework, recipe, toolchain)
        requested = redact(" ".join([*recipe.requirements[:1], *recipe.options]))
        failures.append(f"{requested} could not be installed: {uv_command.failure_reason(result)}")
        if lock and (package := uv_command.hash_mismatch(result)):
            raise EnvironmentFailed(
                f"{framework.name} {framework.version} could not be installed: the file of {package} has another hash"
                f" than {lock.path} names. If your package index offers rebuilt files, set {locks.VERIFY_HASHES}=0:"
                " the versions of the lock are then installed without a check, and the run records that"
            )
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


def _check_import(framework: config.Framework, python: Path) -> None:
    """Import the framework and its adapter as a worker does.

    Raises:
        EnvironmentFailed: the import failed.
    """
    module = framework.adapter.partition(":")[0]
    mode = framework.modes.get(framework.default_mode)
    environment = worker_environment(1, environment_variables(mode, python.parents[1] / "compiled") if mode else {})
    result = subprocesses.run([str(python), "-I", "-c", _IMPORT, str(WORKER_MAIN), module], environment)
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        known = lines and not subprocesses.is_killed(result.returncode)
        reason = lines[-1] if known else f"Python {subprocesses.ending(result.returncode)}"
        raise EnvironmentFailed(
            f"{framework.name} {framework.version} was installed, but {module} cannot be imported:"
            f" {textwrap.shorten(redact(reason), 300, placeholder=' ...')}"
        )


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
