"""Build a framework that is published as source code only: download with pip, compile with CMake, reuse the result.

A build is a folder ``NAME-VERSION-KEY`` in ``GTDL_HOME/builds``. The key is a hash of all inputs, so another option or
another version of a library creates another build beside the old one. A build is created in a temporary folder and
moved to its own when it is complete. Environments get a copy, so that a build can be deleted later.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .. import cgroups
from ..console import info, report_every_minute
from ..files import cache_dir, hold_folder_lock, read_state, write_atomically
from ..redaction import redact
from . import pip_settings, subprocesses
from .toolchain import Toolchain

if TYPE_CHECKING:  # the schema imports Hydra
    from .. import config

FINISHED = "build.json"
FORMAT = 1
"""Version of a build's folder; part of the key."""

BUILD_TOOLS = ("setuptools==75.8.0", "wheel==0.45.1")
"""Tools that pip installs to read the name of a source package. pip accepts no hashes for them."""

CAUSE = re.compile(r"\berror: |^CMake Error|undefined reference|cannot find -l|^ERROR: |^\w+Error: ")
"""Matches the line of a log that names the cause: a compiler's, CMake's, the linker's, pip's or Python's."""


class BuildFailed(Exception):
    """A build that failed. The message is one line: what failed, why, and where the log is."""


def install(build: config.Build, toolchain: Toolchain, requirements: Sequence[str]) -> list[str]:
    """Install ``build`` into the toolchain's environment, in which ``requirements`` are installed.

    Returns:
        What was compiled, with which tools, libraries and options; one line each.

    Raises:
        BuildFailed: the sources could not be downloaded, compiled or imported.
    """
    inputs = {
        "format": FORMAT,
        "build": vars(build),
        "requirements": list(requirements),  # the sources may include headers of these packages
        "platform": [sys.platform, platform.machine()],
        **toolchain.describe(),
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    folder = cache_dir() / "builds" / f"{build.source.replace('==', '-')}-{key[:10]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold_folder_lock(folder):
        if read_state(folder / FINISHED) is None:
            _create(build, toolchain, folder, inputs)
    name = Path(build.package).name
    shutil.copytree(folder / name, toolchain.site_packages / name)
    return _describe(build, inputs)


def _describe(build: config.Build, inputs: Mapping[str, Any]) -> list[str]:
    return [
        f"{build.source} (sha256 {build.sha256}), built on this machine with",
        *(f"  {version}" for version in inputs["tools"].values()),
        *(f"  {path}" for path in inputs["libraries"].values()),
        f"  cmake {' '.join(build.options)}",
        *(f"  {name}: {new}" for name, changes in build.edits.items() for new in changes.values()),
    ]


def _create(build: config.Build, toolchain: Toolchain, folder: Path, inputs: Mapping[str, Any]) -> None:
    started = time.perf_counter()
    work, log_file = folder.with_name(f"{folder.name}.part"), folder.with_name(f"{folder.name}.log")
    info(f"building {build.source}; log: {log_file}")
    for incomplete in (work, folder):
        if incomplete.exists():
            shutil.rmtree(incomplete)
    try:
        with log_file.open("wb") as log, report_every_minute(lambda: f"still building {build.source}"):
            source = _download(build, work, log)
            _edit(build, source)
            _compile(build, toolchain, source, work, log)
            complete = work / "complete"
            name = Path(build.package).name
            shutil.copytree(work / "installed" / build.package, complete / name)
            # A library that cannot be loaded must not become a complete build.
            code = "import sys; sys.path.insert(0, sys.argv[1]); __import__(sys.argv[2])"
            check = [str(toolchain.python), "-I", "-B", "-c", code, str(complete), name]
            _run(check, toolchain.environ, log, f"{build.source} was built, but {name} cannot be imported")
        os.sync()  # a power failure must not leave build.json beside files that are still empty
        write_atomically(complete / FINISHED, json.dumps(inputs, indent=1))
        complete.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    info(f"built {build.source} in {time.perf_counter() - started:.0f} s")


def _download(build: config.Build, work: Path, log: IO[bytes]) -> Path:
    """Download and unpack the sources into the new folder ``work``; return the folder of the sources."""
    work.mkdir()
    # pip checks the hash before it runs any code of the package, but only for packages in a requirements file.
    requirements, downloads = work / "requirements.txt", work / "downloads"
    requirements.write_text(f"{build.source} --hash=sha256:{build.sha256}\n", encoding="utf-8")
    download = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps", "--dest", str(downloads)]
    download += ["--no-binary", build.source.partition("==")[0], "--requirement", str(requirements)]
    constraints = work / "constraints.txt"
    constraints.write_text("\n".join(BUILD_TOOLS), encoding="utf-8")
    locked = dict.fromkeys(("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"), str(constraints))
    environment = {**os.environ, **pip_settings.for_pip(os.environ), **locked}
    _run(download, environment, log, f"{build.source} could not be downloaded (the settings of pip and uv are used)")
    [archive] = downloads.iterdir()
    with tarfile.open(archive) as sources:
        # As the documentation of tarfile recommends for versions of Python that may lack the filter.
        sources.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        sources.extractall(work / "unpacked")
    [source] = (work / "unpacked").iterdir()
    return source


def _edit(build: config.Build, source: Path) -> None:
    for name, changes in build.edits.items():
        file = source / name
        text = file.read_text(encoding="utf-8")
        for old, new in changes.items():
            if (count := text.count(old)) != 1:
                raise BuildFailed(
                    f"{build.source} could not be edited: {name} contains {old!r} {count} times; expected once"
                )
            text = text.replace(old, new)
        file.write_text(text, encoding="utf-8")


def _compile(build: config.Build, toolchain: Toolchain, source: Path, work: Path, log: IO[bytes]) -> None:
    """Configure, build, and install into the folder ``work / "installed"``."""
    aliases = work / "aliases"
    aliases.mkdir()
    for alias, name in build.aliases.items():
        library = toolchain.find_library(name)
        assert library is not None, f"build.aliases.{alias}: {name} is in no package of the recipe's system"
        (aliases / f"lib{alias}.so").symlink_to(library.absolute())
    toolchain.search_libraries_in(aliases)
    cmake = shutil.which("cmake")
    assert cmake is not None, "the recipe's system names no package with cmake"
    options = [toolchain.substitute(option) for option in build.options]
    binary, parallel = str(work / "binary"), str(len(cgroups.usable_cores()))
    for command in (
        [cmake, "-S", str(source), "-B", binary, *options],
        [cmake, "--build", binary, "--target", build.target, "--parallel", parallel],
        [cmake, "--install", binary, "--prefix", str(work / "installed")],
    ):
        _run(command, toolchain.environ, log, f"{build.source} could not be built")


def _run(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], failure: str) -> None:
    log.write(f"$ {' '.join(command)}\n".encode())
    log.flush()
    start = log.tell()
    if subprocesses.run(command, environment, stdout=log, stderr=subprocess.STDOUT).returncode:
        with Path(log.name).open("rb") as file:
            file.seek(start)
            output = file.read().decode(errors="replace")
        raise BuildFailed(f"{failure}: {_cause(output)}; log: {log.name}")


def _cause(output: str) -> str:
    """Return the first line that names a cause and the line after it; without such a line, the last two."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if CAUSE.search(line)), -2)
    cause = lines[first:][:2] or ["no output"]
    return " | ".join(textwrap.shorten(redact(line), 300, placeholder=" ...") for line in cause)
