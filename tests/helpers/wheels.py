"""Packages that tests install."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

DRIVER_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def write_wheel(folder: Path, name: str, version: str, *, requires: str = "", code: str = "") -> Path:
    """Write a wheel with one module, which has the attribute ``version``, and return its path."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n{code}")
        wheel.writestr(f"{info}/METADATA", metadata + f"Requires-Dist: {requires}\n" * bool(requires))
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path
