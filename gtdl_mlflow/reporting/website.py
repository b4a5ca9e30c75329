"""``gtdl publish``: result files as a static site."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from .. import __version__
from ..config import display
from ..files import write_atomically
from . import page, result_file
from .formats import count
from .result_file import ResultFiles
from .runs import BenchmarkRun, LoadedRuns

ALL = "all.html"
"""Page with the results of all machines."""


def write(files: ResultFiles, paths: Sequence[Path], folder: Path) -> int:
    """Write the pages and the result files, whose names differ, to ``folder``; return the number of pages.

    The result files are written from their runs, as ``gtdl export`` writes them. A copy would hold what other people
    have put into a file, such as formulas of a spreadsheet.

    Raises:
        OSError: a file cannot be written.
    """
    loaded = files.loaded
    machines = by_machine(loaded)
    pages = {ALL: page.page(loaded, files, "all machines", loaded.remarks)}
    links = []
    for machine, some in machines.items():
        name = f"{address(machine)}.html"
        pages[name] = page.page(some, files, machine, some.remarks)
        links.append((name, machine, _summary(some.runs)))
    pages["index.html"] = page.template("website.html").render(
        links=links, all=ALL, downloads=[path.name for path in paths], version=__version__
    )
    for name, html in pages.items():
        write_atomically(folder / name, html)
    for path in paths:
        write_atomically(folder / path.name, result_file.write((run, files) for run in files.runs_of(path)))
    return len(pages)


def by_machine(loaded: LoadedRuns) -> dict[str, LoadedRuns]:
    """Return the runs of each machine, in the order of the machines' names, with the sweeps that they belong to."""
    runs: dict[str, list[BenchmarkRun]] = defaultdict(list)
    for run in loaded.runs:
        runs[run.key.machine].append(run)
    return {machine: replace(loaded, runs=some, skipped=[]) for machine, some in sorted(runs.items())}


def address(machine: str) -> str:
    """Return the name of a machine as a part of an address, different for every machine."""
    words = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    return f"{words}-{hashlib.sha256(machine.encode()).hexdigest()[:6]}"


def _summary(runs: Iterable[BenchmarkRun]) -> list[str]:
    """Return the number of runs, the frameworks, the data sets and the devices."""
    every = list(runs)
    return [
        count(len(every), "run"),
        ", ".join(sorted({display.label(run.key.framework) for run in every})),
        ", ".join(sorted({run.key.dataset for run in every})),
        ", ".join(sorted({run.key.hardware for run in every})),
    ]
