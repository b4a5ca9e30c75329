"""Adapters of the benchmarks in place of the project's."""

from __future__ import annotations

from pathlib import Path

# A worker is isolated from PYTHONPATH; this interpreter adds the folder of the adapters.
INTERPRETER = """#!/bin/sh
shift 3  # -I -X faulthandler
exec {python} -I -X faulthandler -c 'import runpy, sys
sys.path.insert(0, "{adapters}")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""


def interpreter(python: Path, adapters: Path, folder: Path) -> Path:
    """Write an interpreter to ``folder`` that starts a worker which can import the modules in ``adapters``."""
    path = folder / "python"
    path.write_text(INTERPRETER.format(python=python, adapters=adapters))
    path.chmod(0o755)
    return path
