"""``gtdl env``: the frameworks' virtual environments."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .common import CommandFailed, add_group, add_verb, translate_errors

if TYPE_CHECKING:
    from .common import Subparsers


def add(commands: Subparsers) -> None:
    """Add ``gtdl env``."""
    env = add_group(commands, "env", "manage the frameworks' virtual environments")
    add_verb(env, "list", list_environments, "list the environments with their sizes and folders")
    creation = add_verb(env, "create", create, "create a framework's environment before a run needs it")
    creation.add_argument("framework")
    creation.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="as for a run: framework.version=..., hardware=gpu"
    )
    packages = add_verb(env, "packages", list_packages, "list the Debian packages that environments need, one per line")
    packages.add_argument("framework", nargs="?", help="default: all frameworks")
    add_verb(env, "remove", remove, "delete all environments of a framework").add_argument("framework")


def list_environments(arguments: argparse.Namespace) -> None:
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


def create(arguments: argparse.Namespace) -> None:
    from .. import config, environments

    with translate_errors(environments.EnvironmentFailed):
        composed = config.compose([f"framework={arguments.framework}", *arguments.overrides])
        environment = environments.ensure(composed.framework, composed.hardware.device)
    if environment.folder is None:
        print(f"{environment.framework} needs no environment: it runs in {environment.python}")
    else:
        print(
            f"{environment.framework} {environment.version} ({environment.device}, Python "
            f"{environment.python_version}): {environment.folder}"
        )


def list_packages(arguments: argparse.Namespace) -> None:
    from .. import config

    packages: set[str] = set()
    for name in [arguments.framework] if arguments.framework else config.choices("framework"):
        with translate_errors():
            framework = config.compose([f"framework={name}"]).framework
        packages.update(*(recipe.system for device in framework.devices.values() for recipe in device.recipes))
    for package in sorted(packages):
        print(package)


def remove(arguments: argparse.Namespace) -> None:
    from .. import environments

    with translate_errors(environments.EnvironmentFailed):
        removed = environments.remove(arguments.framework)
    if not removed:
        existing = ", ".join(sorted({each.framework for each in environments.list_environments()})) or "no framework"
        raise CommandFailed(f"no environment of {arguments.framework} to remove; there are environments of: {existing}")
    for folder in removed:
        print(f"removed {folder}")
