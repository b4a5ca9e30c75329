"""The operating system's compilers, headers and libraries, and the headers of an environment's interpreter.

Nothing is installed into the operating system. Everything that is missing is reported at once, with the Debian packages
that contain it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the schema imports Hydra
    from .. import config

COMPILER = "c++"

_PRINT_SETTINGS = """
import json, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "abi": sysconfig.get_config_var("SOABI"),
    "headers": sysconfig.get_path("include"),
    "site_packages": sysconfig.get_path("platlib"),
}))
"""


class PackagesMissing(Exception):
    """Missing system packages. The message is one line: what is missing, and the command that installs it."""


class Toolchain:
    """The system's tools that ``packages`` describe, for the environment of the interpreter ``python``."""

    def __init__(self, packages: Mapping[str, config.SystemPackage], python: Path) -> None:
        settings = json.loads(subprocess.check_output([python, "-I", "-c", _PRINT_SETTINGS], text=True))
        self.python = python
        self.site_packages = Path(settings["site_packages"])
        self._packages = packages
        self._abi = settings["abi"]
        self._substitutions = {
            "{environment}": str(python.parents[1]),
            "{python}": settings["version"],
            "{python_tag}": settings["version"].replace(".", ""),
        }
        # Compilers and flags that are set in the user's shell would change what is measured.
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not (name in ("CC", "CXX") or name.startswith("CMAKE_") or name.endswith("FLAGS"))
        }
        self.environ["LC_ALL"] = "C"
        includes = [settings["headers"], *(package.include for package in packages.values() if package.include)]
        self._prepend("CPATH", *includes)

    def substitute(self, text: str) -> str:
        """Replace ``{environment}`` by its folder, ``{python}`` by its version (3.11), ``{python_tag}`` by 311."""
        for placeholder, value in self._substitutions.items():
            text = text.replace(placeholder, value)
        return text

    def check(self) -> None:
        """Check that all programs, headers and libraries exist. Takes 0.1 s.

        Raises:
            PackagesMissing: some do not.
        """
        headers = self._existing_headers()
        missing: dict[str, list[str]] = {}
        for name, package in self._packages.items():
            # Headers and libraries are searched by the compiler: without one, all of them count as missing. To name a
            # package that is installed does no harm, as apt-get skips it.
            missing[name] = [
                *(f"program {tool}" for tool in package.tools if not shutil.which(tool)),
                *(f"header {header}" for header in package.headers if header not in headers),
                *(f"library {self.substitute(each)}" for each in package.libraries if not self.find_library(each)),
            ]
        if everything := [each for parts in missing.values() for each in parts]:
            packages = " ".join(name for name, parts in missing.items() if parts)
            raise PackagesMissing(f"not found: {', '.join(everything)}; on Debian: apt-get install {packages}")

    def find_library(self, name: str) -> Path | None:
        """Return the file that the linker uses for ``-lNAME``; None if it finds none."""
        file = f"lib{self.substitute(name)}.so"
        path = self._run_compiler([f"-print-file-name={file}"])
        return None if path in ("", file) else Path(path)

    def search_libraries_in(self, folder: Path) -> None:
        """Make the linker search ``folder`` first."""
        self._prepend("LIBRARY_PATH", str(folder))

    def describe(self) -> dict[str, Any]:
        """Return what a build depends on: the versions of the tools, and the libraries with their versioned paths."""
        tools = {tool: _version(tool) for package in self._packages.values() for tool in package.tools}
        names = [name for package in self._packages.values() for name in package.libraries]
        libraries = {self.substitute(name): self.find_library(name) for name in names}
        return {
            "abi": self._abi,
            "tools": tools,
            "libraries": {name: str(path.resolve()) for name, path in libraries.items() if path},
        }

    def _existing_headers(self) -> set[str]:
        headers = [header for package in self._packages.values() for header in package.headers]
        if not headers:
            return set()
        source = "".join(f"#if __has_include(<{header}>)\n{header}\n#endif\n" for header in headers)
        return set(self._run_compiler(["-E", "-P", "-x", "c++", "-"], source).split())

    def _run_compiler(self, arguments: list[str], source: str = "") -> str:
        """Return the compiler's output; empty if there is no compiler."""
        compiler = shutil.which(COMPILER)
        if compiler is None:
            return ""
        result = subprocess.run([compiler, *arguments], input=source, env=self.environ, capture_output=True, text=True)
        return result.stdout.strip()

    def _prepend(self, variable: str, *folders: str) -> None:
        existing = self.environ.get(variable)
        self.environ[variable] = os.pathsep.join([*folders, *([existing] if existing else [])])


def _version(tool: str) -> str:
    program = shutil.which(tool)
    assert program is not None, f"{tool} is missing: call check() first"
    result = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return result.stdout.partition("\n")[0].strip()
