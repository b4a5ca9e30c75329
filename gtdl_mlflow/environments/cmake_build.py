"""A framework that is published as source alone: fetched with pip, built with CMake, once for all its environments.

A build is a folder ``NAME-VERSION-KEY`` in ``GTDL_HOME/builds``; the key is a hash of all that goes into it, so another
option or another version of a library makes another build beside the old one. It is made in a folder of its own and
moved into place when it is done. Environments get a copy: they need no build that is removed later.
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

from .. import redaction
from ..console import info
from ..files import cache_dir, hold_folder_lock
from . import pip_settings, subprocesses
from .toolchain import Toolchain

if TYPE_CHECKING:  # the schema brings Hydra with it
    from .. import config

FINISHED = "build.json"
FORMAT = 1  # of the folder; part of the key

# What a line says that names the cause: a compiler's, CMake's, the linker's, pip's, Python's.
CAUSE = re.compile(r"\berror: |^CMake Error|undefined reference|cannot find -l|^ERROR: |^\w+Error: ")


class BuildFailed(Exception):
    """One line: what was wanted, what failed, where the log is."""


def install(build: config.Build, toolchain: Toolchain, requirements: Sequence[str]) -> list[str]:
    """Put what ``build`` makes into the toolchain's environment, which holds ``requirements``.

    Returns what it was made from, a line each.

    Raises:
        BuildFailed: it could not be fetched, compiled or imported.
    """
    inputs = {
        "format": FORMAT,
        "build": vars(build),
        "requirements": list(requirements),  # the sources may read headers that came with them
        "platform": [sys.platform, platform.machine()],
        **toolchain.describe(),
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    folder = cache_dir() / "builds" / f"{build.source.replace('==', '-')}-{key[:10]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold_folder_lock(folder):
        if not (folder / FINISHED).exists():
            _make(build, toolchain, folder, inputs)
    name = Path(build.package).name
    shutil.copytree(folder / name, toolchain.site_packages / name)
    return _account(build, inputs)


def _account(build: config.Build, inputs: Mapping[str, Any]) -> list[str]:
    return [
        f"{build.source} (sha256 {build.sha256}), built here with",
        *(f"  {version}" for version in inputs["tools"].values()),
        *(f"  {path}" for path in inputs["libraries"].values()),
        f"  cmake {' '.join(build.options)}",
        *(f"  {name}: {new}" for name, changes in build.edits.items() for new in changes.values()),
    ]


def _make(build: config.Build, toolchain: Toolchain, folder: Path, inputs: Mapping[str, Any]) -> None:
    started = time.perf_counter()
    work, log_file = folder.with_name(f"{folder.name}.part"), folder.with_name(f"{folder.name}.log")
    info(f"building {build.source}, which can take minutes; what the compiler says is in {log_file}")
    for left_by_a_kill in (work, folder):
        if left_by_a_kill.exists():
            shutil.rmtree(left_by_a_kill)
    try:
        with log_file.open("wb") as log:
            source = _fetch(build, work, log)
            _edit(build, source)
            _compile(build, toolchain, source, work, log)
            done = work / "done"
            name = Path(build.package).name
            shutil.copytree(work / "installed" / build.package, done / name)
            # A library that cannot be loaded must not become a build that looks finished.
            code = "import sys; sys.path.insert(0, sys.argv[1]); __import__(sys.argv[2])"
            check = [str(toolchain.python), "-I", "-B", "-c", code, str(done), name]
            _run(check, toolchain.environ, log, f"{build.source} was built, but {name} cannot be imported")
        (done / FINISHED).write_text(json.dumps(inputs, indent=1), encoding="utf-8")
        done.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    info(f"built {build.source} in {time.perf_counter() - started:.0f} s")


def _fetch(build: config.Build, work: Path, log: IO[bytes]) -> Path:
    """The folder of the unpacked sources."""
    work.mkdir()
    # pip compares the hash before it runs anything of the package, which it only does with a file of requirements.
    wanted, downloaded = work / "requirements.txt", work / "downloaded"
    wanted.write_text(f"{build.source} --hash=sha256:{build.sha256}\n", encoding="utf-8")
    download = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps", "--dest", str(downloaded)]
    download += ["--no-binary", build.source.partition("==")[0], "--requirement", str(wanted)]
    environment = {**os.environ, **pip_settings.for_pip(os.environ)}
    _run(download, environment, log, f"{build.source} cannot be had (pip's and uv's settings are used)")
    [archive] = downloaded.iterdir()
    with tarfile.open(archive) as sources:
        # As the documentation of tarfile has it for Pythons that may lack the filter.
        sources.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        sources.extractall(work / "unpacked")
    [source] = (work / "unpacked").iterdir()
    return source


def _edit(build: config.Build, source: Path) -> None:
    for name, changes in build.edits.items():
        file = source / name
        text = file.read_text(encoding="utf-8")
        for old, new in changes.items():
            if (times := text.count(old)) != 1:
                raise BuildFailed(f"{build.source} cannot be edited: {name} has {old!r} {times} times, not once")
            text = text.replace(old, new)
        file.write_text(text, encoding="utf-8")


def _compile(build: config.Build, toolchain: Toolchain, source: Path, work: Path, log: IO[bytes]) -> None:
    """Configure, build, and install into the folder ``installed``."""
    aliases = work / "aliases"
    aliases.mkdir()
    for alias, library in build.aliases.items():
        found = toolchain.library(library)
        assert found is not None, f"build.aliases.{alias}: {library} is in no package of the recipe's system"
        (aliases / f"lib{alias}.so").symlink_to(found.absolute())
    toolchain.search_libraries_in(aliases)
    cmake = shutil.which("cmake")
    assert cmake is not None, "the recipe's system names no package that has cmake"
    options = [toolchain.fill(option) for option in build.options]
    binary, parallel = str(work / "binary"), str(len(os.sched_getaffinity(0)))
    for command in (
        [cmake, "-S", str(source), "-B", binary, *options],
        [cmake, "--build", binary, "--target", build.target, "--parallel", parallel],
        [cmake, "--install", binary, "--prefix", str(work / "installed")],
    ):
        _run(command, toolchain.environ, log, f"{build.source} cannot be built")


def _run(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], failure: str) -> None:
    log.write(f"$ {' '.join(command)}\n".encode())
    log.flush()
    start = log.tell()
    if subprocesses.run(command, environment, stdout=log, stderr=subprocess.STDOUT).returncode:
        with Path(log.name).open("rb") as written:
            written.seek(start)
            said = written.read().decode(errors="replace")
        raise BuildFailed(f"{failure}: {_cause(said)}; the log is {log.name}")


def _cause(said: str) -> str:
    """The first line that names a cause, and the one after it; the last two lines where none does."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if CAUSE.search(line)), -2)
    chosen = lines[first:][:2] or ["it said nothing"]
    return redaction.redact(" | ".join(textwrap.shorten(line, 300, placeholder=" ...") for line in chosen))
