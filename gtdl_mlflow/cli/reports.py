"""``gtdl report``, ``compare``, ``check``, ``reproduction`` and ``ui``: they read the tracking store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import output
from .common import add_tracking_uri, add_verb, load_runs, tracking_store, translate_errors, write_output

if TYPE_CHECKING:
    from .common import Subparsers


def add(commands: Subparsers) -> None:
    """Add the commands that read the tracking store."""
    report = add_verb(commands, "report", write_report, "write all runs of an experiment into one HTML file")
    report.add_argument("--output", type=Path, default=Path("gtdl_report.html"), help="default: gtdl_report.html")
    comparison = add_verb(commands, "compare", compare, "compare two frameworks, searches or sets of runs")
    for name in ("first", "second"):
        comparison.add_argument(
            name, metavar=name.upper(), help="a framework (torch, torch=2.13.0), runs (ID,ID,...) or an MLflow search"
        )
    comparison.add_argument("--across-machines", action="store_true", help="compare runs of different machines")
    reproduction = add_verb(
        commands, "reproduction", write_reproduction, "compare GTDLBench's published tables with the measured runs"
    )
    reproduction.add_argument("--output", type=Path, help="Markdown file; default: standard output")
    for parser in (report, comparison, reproduction):
        add_tracking_uri(parser)
        parser.add_argument("--experiment", nargs="+", default=["gtdl"], help="MLflow experiments (default: gtdl)")

    checking = add_verb(commands, "check", check, "check whether the runs of an experiment may be published")
    checking.add_argument("experiment", nargs="*", default=["gtdl"], help="MLflow experiments (default: gtdl)")
    add_tracking_uri(checking)
    checking.add_argument("--json", action="store_true", help="print JSON")

    ui = add_verb(commands, "ui", open_ui, "open MLflow's own pages with the experiment's table arranged")
    add_tracking_uri(ui)
    ui.add_argument("--experiment", default="gtdl", help="MLflow experiment (default: gtdl)")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--no-browser", action="store_true", help="print the address and open no browser")


def write_report(arguments: argparse.Namespace) -> None:
    from ..report import page
    from ..report.runs import connect

    with tracking_store(arguments) as uri:
        loaded = load_runs(uri, arguments.experiment)
        html = page.page(loaded, connect(uri), ", ".join(arguments.experiment), loaded.remarks)
    write_output(arguments.output, html)
    output(f"{arguments.output}: {len(loaded.runs)} runs, {arguments.output.stat().st_size / 1e6:.1f} MB")


def compare(arguments: argparse.Namespace) -> None:
    from ..report import comparison
    from ..report.runs import load

    experiments, sides = arguments.experiment, (arguments.first, arguments.second)
    with tracking_store(arguments) as uri:
        loaded = load_runs(uri, experiments)
        rows = comparison.rows(
            loaded.runs, lambda search: load(uri, experiments, search).runs, *sides, arguments.across_machines
        )
    output(comparison.text(rows, *sides))


def check(arguments: argparse.Namespace) -> int:
    import json

    from ..report import check
    from ..report.runs import connect

    with tracking_store(arguments) as uri:
        loaded = load_runs(uri, arguments.experiment)
        verdict = check.check(loaded.runs, loaded.skipped)
        check.tag(verdict, loaded.runs, connect(uri))
    output(json.dumps(verdict.json(), indent=1) if arguments.json else verdict.text())
    return 0 if verdict.passed else 1


def write_reproduction(arguments: argparse.Namespace) -> None:
    from ..report import reproduction
    from ..report.runs import connect

    with tracking_store(arguments) as uri:
        cells = reproduction.group_by_cell(load_runs(uri, arguments.experiment, finished=True).runs)
        markdown = reproduction.markdown(cells, f"experiment {', '.join(arguments.experiment)}", connect(uri))
    if arguments.output is None:
        output(markdown.rstrip("\n"))
    else:
        write_output(arguments.output, markdown)


def open_ui(arguments: argparse.Namespace) -> int:
    from ..report import ui

    with tracking_store(arguments) as uri:
        path = ui.arrange(uri, arguments.experiment)
    with translate_errors(ui.UiFailed):
        return ui.serve(uri, path, arguments.port, browser=not arguments.no_browser)
