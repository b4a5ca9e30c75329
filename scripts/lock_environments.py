#!/usr/bin/env python
"""Write the locks of the frameworks' recipes to conf/framework/locks: all versions, with the hashes of their files.

Usage: scripts/lock_environments.py [LOCK ...]   (default: all)

Resolves each recipe for Linux on x86-64 and each Python that its framework supports. Packages come from uv's default
index; for a recipe that needs another one, from the sources that pip and uv are configured with on this machine. A hash
that an earlier lock has for the same version is kept. A lock that cannot be resolved is left as it is, and the exit
status is 1.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from packaging.specifiers import SpecifierSet

from gtdl_mlflow import config
from gtdl_mlflow.environments import locks, pip_settings, uv_command

UV_PLATFORM, PLATFORM = "x86_64-manylinux_2_28", "linux x86_64"
PYTHONS = [f"3.{minor}" for minor in range(9, 15)]

Pins = dict[str, set[str]]
"""``NAME==VERSION`` to the hashes of its files."""


class NotResolved(Exception):
    """Requirements that uv cannot resolve; the message is uv's."""


def main(names: list[str]) -> int:
    """Write the locks and return the exit status."""
    recipes: dict[str, list[tuple[str, config.Recipe]]] = defaultdict(list)
    for choice in config.choices("framework"):
        framework = config.compose([f"framework={choice}"]).framework
        for device in framework.devices.values():
            for recipe in device.recipes:
                if recipe.lock:
                    recipes[recipe.lock].append((framework.python.supported, recipe))
    if unknown := set(names) - set(recipes):
        print(f"unknown: {', '.join(sorted(unknown))}; locks: {', '.join(sorted(recipes))}", file=sys.stderr)
        return 2
    failed = [name for name in names or sorted(recipes) if not write(name, recipes[name])]
    return 1 if failed else 0


def write(name: str, recipes: list[tuple[str, config.Recipe]]) -> bool:
    """Write one lock by the first of its recipes that can be resolved; return whether there is one.

    ``recipes`` has the supported versions of Python and the requirements.
    """
    path = locks.locks_dir() / f"{name}.txt"
    reasons = []
    for supported, recipe in recipes:
        pythons = [python for python in PYTHONS if SpecifierSet(supported).contains(f"{python}.99")]
        try:
            resolved = {python: resolve(recipe, python) for python in pythons}
        except NotResolved as error:
            reasons.append(str(error))
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(lock(resolved, path.read_text() if path.exists() else ""), encoding="utf-8")
        print(f"{path}: {len({pin for pins in resolved.values() for pin in pins})} versions")
        return True
    print(f"{path}: not resolved, left as it is: {'; '.join(reasons)}", file=sys.stderr)
    return False


def resolve(recipe: config.Recipe, python: str) -> Pins:
    """Return the versions and hashes that uv selects for one version of Python."""
    settings = pip_settings.for_uv()
    isolated = {"UV_DEFAULT_INDEX": "", "UV_INDEX": "", "UV_FIND_LINKS": "", "UV_CONSTRAINT": ""}
    for environment in (isolated, settings.environment):
        with tempfile.TemporaryDirectory() as folder:
            requirements, output = Path(folder) / "requirements.in", Path(folder) / "lock.txt"
            requirements.write_text("\n".join(recipe.requirements))
            command = ["pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
            command += ["--no-strip-extras", "--python-version", python, "--python-platform", UV_PLATFORM]
            command += [*recipe.options, "--output-file", str(output), str(requirements)]
            result = uv_command.run(command, environment)
            if result.returncode == 0:
                return read(output.read_text())
    raise NotResolved(f"Python {python}: {uv_command.failure_reason(result)}")


def read(text: str) -> Pins:
    """Return the versions and hashes in a requirements file."""
    pins: Pins = defaultdict(set)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            pin = re.split(r"\s*;|\s+--hash", line)[0].strip()
            pins[pin].update(re.findall(r"--hash=(\S+)", line))
    return pins


def lock(resolved: dict[str, Pins], earlier: str) -> str:
    """Return the contents of the lock: ``resolved`` for each Python, and the hashes that ``earlier`` has."""
    known = read(earlier)
    lines = [
        "# Written by scripts/lock_environments.py; do not edit.",
        f"# platform: {PLATFORM}",
        f"# python: {' '.join(resolved)}",
    ]
    for pin in sorted({pin for pins in resolved.values() for pin in pins}):
        pythons = [python for python, pins in resolved.items() if pin in pins]
        marker = " or ".join(f"python_version == '{python}'" for python in pythons)
        hashes = set(known.get(pin, ())).union(*(resolved[python][pin] for python in pythons))
        lines.append(
            " \\\n".join(
                [
                    pin + (f" ; {marker}" if len(pythons) < len(resolved) else ""),
                    *(f"    --hash={each}" for each in sorted(hashes)),
                ]
            )
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
