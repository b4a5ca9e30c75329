"""What an environment contains: a hash of its files, and a short listing that shows later changes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ..worker.checksums import sha256

# Not part of what is installed: scripts and settings that contain the environment's path, files of virtual environments
# and installers, and compiled Python files, which contain times.
_OUTSIDE = {"bin", "lib64", "pyvenv.cfg"}
_VENV_FILES = {"_virtualenv.py", "_virtualenv.pth"}
_INSTALLER_FILES = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json"}
_COMPILED = "__pycache__"


def content_key(folder: Path, python_version: str, built: Sequence[str], built_packages: Collection[str]) -> str:
    """Return a hash of what is installed in the environment ``folder``; equal on all machines for equal contents.

    Args:
        folder: Folder of the environment.
        python_version: Version of its Python.
        built: What was compiled on this machine, and from which inputs.
        built_packages: Packages that were compiled. Their inputs count, not their files: compilers write paths into
            them.
    """
    contents = hashlib.sha256()
    for path in sorted(_files(folder, built_packages), key=lambda path: path.relative_to(folder).as_posix()):
        contents.update(
            f"{path.relative_to(folder).as_posix()}\0{_file_digest(path)}\n".encode(errors="surrogateescape")
        )
    return _hash({"python": python_version, "contents": contents.hexdigest(), "built": list(built)})


def driver_key(python_version: str, packages: Sequence[str]) -> str:
    """Return a hash of the driver's own environment. Only versions count: it is too large to read for every run."""
    return _hash({"python": python_version, "packages": sorted(packages)})


def listing(folder: Path) -> dict[str, str]:
    """Return the entries of the site-packages; those of installed distributions with a hash of their RECORD.

    An installed, removed or replaced package changes the listing. It is read in milliseconds.
    """
    entries = {}
    for site_packages in folder.glob("lib/python*/site-packages"):
        for entry in sorted(site_packages.iterdir()):
            if entry.name != _COMPILED:
                record = entry / "RECORD"
                entries[entry.name] = _file_digest(record)[:16] if record.is_file() else ""
    return entries


def changes(folder: Path, expected: Mapping[str, str]) -> str:
    """Return how the site-packages of ``folder`` differ from ``expected``, a listing; empty if they do not."""
    actual = listing(folder)
    differences = [
        *(f"{name} is missing" for name in expected if name not in actual),
        *(f"{name} was added" for name in actual if name not in expected),
        *(f"{name} was replaced" for name in actual if expected.get(name, actual[name]) != actual[name]),
    ]
    # Distributions first: their names have the versions.
    differences.sort(key=lambda each: ".dist-info " not in each)
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    return ", ".join(differences[:3]) + more


def _files(folder: Path, built_packages: Collection[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        path = Path(parent)
        in_site_packages = path.name == "site-packages"
        if path == folder:
            # Files at the top, such as CACHEDIR.TAG, belong to the virtual environment.
            folders[:] = [name for name in folders if name not in _OUTSIDE]
            continue
        folders[:] = [name for name in folders if name != _COMPILED]
        if in_site_packages:
            folders[:] = [name for name in folders if name not in built_packages]
        links = [name for name in folders if (path / name).is_symlink()]
        for name in [*names, *links]:
            if in_site_packages and name in _VENV_FILES:
                continue
            if path.suffix == ".dist-info" and name in _INSTALLER_FILES:
                continue
            yield path / name


def _file_digest(path: Path) -> str:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return sha256(path)


def _hash(values: dict[str, object]) -> str:
    values["platform"] = [sys.platform, platform.machine(), platform.python_implementation()]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
