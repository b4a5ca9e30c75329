"""``gtdl env``: the frameworks' virtual environments."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from .common import TAKES_OVERRIDES, CommandFailed, F, Group, complete_choice, overrides_argument


def framework_argument(required: bool = True) -> Callable[[F], F]:
    """Add the argument for the name of a framework, which may be written as an override: ``framework=torch``."""
    return click.argument(
        "framework",
        required=required,
        callback=lambda context, parameter, value: value and value.removeprefix("framework="),
        shell_complete=complete_choice("framework"),
    )


@click.group(cls=Group)
def env() -> None:
    """Manage the frameworks' virtual environments."""


@env.command("list")
def list_environments() -> None:
    """List the environments with their sizes and folders."""
    from .. import environments
    from ..console import aligned
    from ..files import cache_dir

    rows = [("FRAMEWORK", "VERSION", "DEVICE", "PYTHON", "SIZE", "FOLDER")]
    for each in environments.list_environments():
        assert each.folder is not None  # the driver's own interpreter is not listed
        size = f"{_size_bytes(each.folder) / 1e6:.0f} MB"
        changed = f" (changed after it was created: {changes})" if (changes := each.changes()) else ""
        rows.append(
            (each.framework, each.version, each.device, each.python_version, size, f"{each.folder.name}{changed}")
        )
    print("\n".join(aligned(rows)) if len(rows) > 1 else "no environments yet; a run creates what it needs")
    print(f"folder: {cache_dir() / 'environments'} (GTDL_HOME={cache_dir()})")


def _size_bytes(folder: Path) -> int:
    # Symbolic links are not followed: the interpreter itself belongs to the machine.
    return sum((Path(parent) / name).lstat().st_size for parent, _, names in os.walk(folder) for name in names)


@env.command(context_settings=TAKES_OVERRIDES)
@framework_argument()
@overrides_argument()
def create(framework: str, overrides: tuple[str, ...]) -> None:
    """Create a framework's environment before a run needs it.

    OVERRIDES are those of a run: framework.version=2.12.0 hardware=gpu.
    """
    from .. import config, environments

    if "," in framework:
        raise CommandFailed(f"{framework}: expected one framework at a time", status=2)
    composed = config.compose([f"framework={framework}", *overrides])
    environment = environments.ensure(composed.framework, composed.hardware.device)
    if environment.folder is None:
        print(f"{environment.framework} needs no environment: it runs in {environment.python}")
    else:
        print(
            f"{environment.framework} {environment.version} ({environment.device}, Python "
            f"{environment.python_version}): {environment.folder}"
        )


@env.command("packages")
@framework_argument(required=False)
def list_packages(framework: str | None) -> None:
    """List the Debian packages that environments need, one per line."""
    from .. import config

    packages: set[str] = set()
    for name in [framework] if framework else config.choices("framework"):
        devices = config.compose([f"framework={name}"]).framework.devices
        packages.update(*(recipe.system for device in devices.values() for recipe in device.recipes))
    for package in sorted(packages):
        print(package)


@env.command()
@framework_argument()
def remove(framework: str) -> None:
    """Delete all environments of a framework."""
    from .. import config, environments
    from ..config.errors import similar

    removed = environments.remove(framework)
    if not removed:
        existing = sorted({each.framework for each in environments.list_environments()})
        known = sorted({*config.choices("framework"), *existing})
        if framework not in known:
            raise CommandFailed(f"{framework}: expected one of {', '.join(known)}{similar(framework, known)}", status=2)
        others = ", ".join(existing) or "no framework"
        raise CommandFailed(f"no environment of {framework} to remove; there are environments of: {others}")
    for folder in removed:
        print(f"removed {folder}")
