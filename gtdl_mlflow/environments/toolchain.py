"""What compiles for an environment: programs, headers and libraries of the operating system, and the interpreter's own.

Nothing of it is ever installed here: what is missing is named, all of it at once, with the packages that have it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the schema brings Hydra with it
    from .. import config

COMPILER = "c++"

_ASK = """
import json, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "abi": sysconfig.get_config_var("SOABI"),
    "headers": sysconfig.get_path("include"),
    "site_packages": sysconfig.get_path("platlib"),
}))
"""


class PackagesMissing(Exception):
    """What was not found, and the command that installs it; one line."""


class Toolchain:
    """The system's tools as ``packages`` describe them, for the environment that ``python`` belongs to."""

    def __init__(self, packages: Mapping[str, config.SystemPackage], python: Path) -> None:
        asked = json.loads(subprocess.check_output([python, "-I", "-c", _ASK], text=True))
        self.python = python
        self.site_packages = Path(asked["site_packages"])
        self._packages = packages
        self._abi = asked["abi"]
        self._words = {
            "{environment}": str(python.parents[1]),
            "{python}": asked["version"],
            "{python_tag}": asked["version"].replace(".", ""),
        }
        # Flags and choices of compilers left over in somebody's shell would change what is measured.
        own = ("CC", "CXX")
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not (name in own or name.startswith("CMAKE_") or name.endswith("FLAGS"))
        }
        self.environ["LC_ALL"] = "C"
        includes = [asked["headers"], *(package.include for package in packages.values() if package.include)]
        self._search_first("CPATH", *includes)

    def fill(self, text: str) -> str:
        """``text`` with ``{environment}`` (its folder), ``{python}`` (3.11) and ``{python_tag}`` (311) filled in."""
        for word, value in self._words.items():
            text = text.replace(word, value)
        return text

    def demand(self) -> None:
        """Check that everything is there; takes a tenth of a second.

        Raises:
            PackagesMissing: it is not.
        """
        headers = self._headers_there()
        lacking: dict[str, list[str]] = {}
        for name, package in self._packages.items():
            # Without a compiler nobody can say where headers and libraries are: all count as missing, as a package
            # named once too often is passed over by apt-get.
            lacking[name] = [
                *(f"program {tool}" for tool in package.tools if not shutil.which(tool)),
                *(f"header {header}" for header in package.headers if header not in headers),
                *(f"library {self.fill(library)}" for library in package.libraries if not self.library(library)),
            ]
        if things := [thing for lacks in lacking.values() for thing in lacks]:
            packages = " ".join(name for name, lacks in lacking.items() if lacks)
            raise PackagesMissing(f"not found: {', '.join(things)}; on Debian: apt-get install {packages}")

    def library(self, name: str) -> Path | None:
        """The file that the linker takes for ``-lNAME``."""
        file = f"lib{self.fill(name)}.so"
        answer = self._ask_compiler([f"-print-file-name={file}"])
        return None if answer in ("", file) else Path(answer)

    def search_libraries_in(self, folder: Path) -> None:
        """Let the linker look into ``folder`` first."""
        self._search_first("LIBRARY_PATH", str(folder))

    def describe(self) -> dict[str, Any]:
        """What a result depends on: the versions of the tools, and those of the libraries by their full names."""
        tools = {tool: _version(tool) for package in self._packages.values() for tool in package.tools}
        names = [name for package in self._packages.values() for name in package.libraries]
        found = {name: self.library(name) for name in names}
        return {
            "abi": self._abi,
            "tools": tools,
            "libraries": {self.fill(name): str(path.resolve()) for name, path in found.items() if path},
        }

    def _headers_there(self) -> set[str]:
        wanted = [header for package in self._packages.values() for header in package.headers]
        if not wanted:
            return set()
        questions = "".join(f"#if __has_include(<{header}>)\n{header}\n#endif\n" for header in wanted)
        return set(self._ask_compiler(["-E", "-P", "-x", "c++", "-"], questions).split())

    def _ask_compiler(self, arguments: list[str], text: str = "") -> str:
        compiler = shutil.which(COMPILER)
        if compiler is None:
            return ""
        asked = subprocess.run([compiler, *arguments], input=text, env=self.environ, capture_output=True, text=True)
        return asked.stdout.strip()

    def _search_first(self, variable: str, *folders: str) -> None:
        there = self.environ.get(variable)
        self.environ[variable] = os.pathsep.join([*folders, *([there] if there else [])])


def _version(tool: str) -> str:
    program = shutil.which(tool)
    assert program is not None  # after demand()
    said = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return said.stdout.partition("\n")[0].strip()
