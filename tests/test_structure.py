"""The structure of the package: imports point downwards, no cycles, no name twice."""

from __future__ import annotations

import ast
import builtins
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from helpers.project import ROOT

PACKAGE = "gtdl_mlflow"

LAYERS = (
    {"cli", "__main__", "api"},
    {"sweeps", "runner", "reporting", "prediction", "paired", "modes"},
    {"tracking", "environments", "datasets", "hardware", "charts", "progress", "worker_process"},
    {"config"},
    {"worker"},
    {"cgroups", "process_tree", "processor", "files", "console", "redaction", "signals", "metrics", "tags"},
)
"""Packages and top-level modules. A module may import from its own layer and the layers below it."""

FRAMEWORKS = {path.parent.name for path in (ROOT / PACKAGE / "worker" / "frameworks").glob("*/adapter.py")} - {
    "reference"
}
"""Importable in the worker's environments only."""

BACKENDS = {"keras": {"torch", "tensorflow", "jax"}}
"""Frameworks that another one computes with: its adapter may import them."""

NAMED = {
    ("hardware/peak.py", "torch"),  # measures the peak of the machine
    ("reporting/ranking.py", "reference"),  # is no framework to choose
}
"""Modules that name one framework, and why: everything else is in its yaml and its folder."""

DRIVER_ONLY = {"mlflow", "hydra", "omegaconf"}


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what, and where."""

    importer: str
    imported: str
    """Full name of the module or object."""
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules() -> dict[str, Path]:
    """Return the path of every module of the package by its full name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    """Return the full name of the module in ``from ... import``."""
    if node.level == 0:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


@cache
def imports() -> tuple[Import, ...]:
    """Return all imports of the package, those inside functions and for type checkers included."""
    return tuple(_imports())


def _imports() -> Iterator[Import]:
    for module, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                yield from (Import(module, alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = absolute(module, path, node)
                yield from (Import(module, f"{source}.{alias.name}", node.lineno) for alias in node.names)


def part(name: str) -> str:
    """Return the package or top-level module that a full name belongs to; empty for the package's ``__init__``."""
    known = set().union(*LAYERS)
    words = name.split(".")
    return words[1] if len(words) > 1 and words[1] in known else ""


def is_ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE


def framework(statement: Import) -> str:
    """Return the framework that a statement imports; empty if it imports none."""
    name = statement.imported.partition(".")[0]
    return name if name in FRAMEWORKS else ""


def edges() -> dict[str, dict[str, Import]]:
    """Return the imports between parts: importing part, imported part, one of the statements."""
    graph: dict[str, dict[str, Import]] = {}
    for each in imports():
        importer, imported = part(each.importer), part(each.imported)
        if is_ours(each.imported) and importer and imported and importer != imported:
            graph.setdefault(importer, {}).setdefault(imported, each)
    return graph


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


def cycle(graph: dict[str, dict[str, Import]]) -> list[Import]:
    """Return the imports of one cycle; empty if there is none."""
    finished: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for target in graph.get(name, {}):
            if loop := search(target, [*path, name]):
                return loop
        finished.add(name)
        return []

    for start in graph:
        if loop := search(start, []):
            return [graph[importer][imported] for importer, imported in itertools.pairwise(loop)]
    return []


def test_no_module_names_a_framework() -> None:
    names = {path.stem for path in (ROOT / "conf" / "framework").glob("*.yaml")}
    found = set()
    for path in modules().values():
        place = path.relative_to(ROOT / PACKAGE).as_posix()
        if not place.startswith("worker/frameworks/"):
            constants = (node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant))
            found |= {(place, value) for value in constants if isinstance(value, str) and value in names}
    assert found == NAMED


def test_every_package_and_top_level_module_has_a_layer() -> None:
    names = {module.split(".")[1] for module in modules() if module != PACKAGE}
    assert names <= set().union(*LAYERS)


def test_packages_do_not_import_each_other_in_a_cycle() -> None:
    loop = cycle(edges())
    assert not loop, "\n".join(map(str, loop))


def test_a_cycle_is_found() -> None:
    statements = {name: Import("x", name, 1) for name in "abc"}
    assert cycle({"a": {"b": statements["b"]}, "b": {"c": statements["c"]}, "c": {}}) == []
    assert len(cycle({"a": {"b": statements["b"]}, "b": {"c": statements["c"]}, "c": {"b": statements["b"]}})) == 2


def test_imports_point_downwards() -> None:
    upward = [
        each
        for importer, targets in edges().items()
        for imported, each in targets.items()
        if layer(imported) < layer(importer)
    ]
    assert not upward, "\n".join(map(str, upward))


@pytest.mark.parametrize(("importer", "imported"), [("report", "sweeps"), ("environments", "hardware")])
def test_neighbours_that_must_stay_apart(importer: str, imported: str) -> None:
    assert imported not in edges().get(importer, {})


def test_the_worker_imports_only_itself_the_metrics_and_its_framework() -> None:
    allowed = {"worker", "metrics"}
    wrong = [
        each
        for each in imports()
        if part(each.importer) == "worker"
        and (
            each.imported.partition(".")[0] in DRIVER_ONLY
            or (is_ours(each.imported) and part(each.imported) not in allowed)
        )
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_frameworks_are_imported_in_the_worker_only() -> None:
    wrong = [each for each in imports() if framework(each) and part(each.importer) != "worker"]
    assert not wrong, "\n".join(map(str, wrong))


def test_an_adapter_imports_no_other_framework() -> None:
    adapters = f"{PACKAGE}.worker.frameworks."
    wrong = []
    for each in imports():
        adapter = each.importer.removeprefix(adapters).partition(".")[0]
        if each.importer.startswith(adapters) and framework(each) not in {"", adapter, *BACKENDS.get(adapter, ())}:
            wrong.append(each)
    assert not wrong, "\n".join(map(str, wrong))


BUILT_IN = {name for name, each in vars(builtins).items() if isinstance(each, type) and issubclass(each, Exception)}
"""Names of the exceptions of Python itself."""

CAUGHT = {"MalformedRun", "DeadlinePassed", "SettingsUnreadable", "PackagesMissing", "BuildFailed"}
"""Exceptions of the driver that its own functions catch. No command ends with them."""


def test_every_other_exception_of_the_driver_is_a_failure_that_a_command_prints() -> None:
    found = set()
    for module, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and part(module) != "worker":
                bases = {ast.unparse(base) for base in node.bases}
                if bases & BUILT_IN and "Failure" not in bases:
                    found.add(node.name)
    assert found == CAUGHT | {"Failure"}


WRITTEN_ONCE = {("environments/cmake_build.py", name) for name in ("log_file", "requirements", "constraints", "file")}
"""Files of modules with state files that are written in place: they are read by no later command."""


def test_state_files_are_written_atomically() -> None:
    written = set()
    for path in modules().values():
        calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
        if any(ast.unparse(call.func) in ("read_state", "files.read_state") for call in calls):
            place = path.relative_to(ROOT / PACKAGE).as_posix()
            written |= {(place, ast.unparse(call.func.value)) for call in calls if writes_in_place(call)}
    assert written == WRITTEN_ONCE


def writes_in_place(call: ast.Call) -> bool:
    """Return whether a call writes a file at its final path: ``path.write_text(...)``, ``path.open("w")``."""
    if not isinstance(call.func, ast.Attribute):
        return False
    modes = [
        each.value for each in [*call.args, *(key.value for key in call.keywords)] if isinstance(each, ast.Constant)
    ]
    opened = call.func.attr == "open" and any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)
    return opened or call.func.attr in ("write_text", "write_bytes")


def test_no_module_shadows_the_standard_library() -> None:
    names = {module.rpartition(".")[2] for module in modules()} - {"__main__"}
    assert not names & sys.stdlib_module_names


def test_no_two_public_classes_have_the_same_name() -> None:
    defined: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined.setdefault(node.name, []).append(module)
    assert {name: where for name, where in defined.items() if len(where) > 1} == {}
