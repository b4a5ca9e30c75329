"""``gtdl report``, ``compare``, ``check``, ``reproduction`` and ``ui``: they read the tracking store."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import output as print_output
from ..console import status_line
from .common import (
    Command,
    check_output,
    complete_choice,
    load_runs,
    other_experiments,
    output_option,
    result_files_argument,
    results,
    tracking_options,
    tracking_store,
    write_output,
)


@click.command(cls=Command)
@output_option("gtdl_report.html", "HTML file; Markdown with the sentences and tables if it ends in .md.")
@tracking_options
@result_files_argument()
def report(output: Path, experiment: tuple[str, ...], tracking_uri: str | None, files: tuple[Path, ...]) -> None:
    """Write all runs of an experiment, or of result files, into one HTML file, or their tables into Markdown."""
    check_output(output)
    with results(files, tracking_uri, experiment) as (loaded, histories):
        title = ", ".join([path.name for path in files] or experiment)
        if output.suffix == ".md":
            from ..reporting.markdown_report import markdown

            text = markdown(loaded, title)
        else:
            from ..reporting import page

            status_line("drawing the report")
            text = page.page(loaded, histories, title, loaded.remarks)
    write_output(output, text)
    print_output(f"{output}: {len(loaded.runs)} runs, {output.stat().st_size / 1e6:.1f} MB")


@click.command(cls=Command)
@click.argument("first", shell_complete=complete_choice("framework"))
@click.argument("second", shell_complete=complete_choice("framework"))
@click.option("--across-machines", is_flag=True, help="Compare runs of different machines.")
@tracking_options
def compare(
    first: str, second: str, across_machines: bool, experiment: tuple[str, ...], tracking_uri: str | None
) -> None:
    """Compare two frameworks, searches or sets of runs.

    A side is a framework (torch, torch=2.13.0), runs (ID,ID,...) or an MLflow search.
    """
    with tracking_store(tracking_uri) as uri:
        from ..reporting import comparison
        from ..reporting.runs import load

        loaded = load_runs(uri, experiment)
        rows = comparison.rows(
            loaded.runs, lambda search: load(uri, experiment, search).runs, first, second, across_machines
        )
    print_output(comparison.text(rows, first, second))


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@tracking_options
@result_files_argument()
def check(as_json: bool, experiment: tuple[str, ...], tracking_uri: str | None, files: tuple[Path, ...]) -> int:
    """Check whether the runs of an experiment, or of result files, may be published."""
    import json

    with results(files, tracking_uri, experiment) as (loaded, histories):
        from mlflow.tracking import MlflowClient

        from ..reporting import check

        verdict = check.check(loaded.runs, loaded.skipped)
        if isinstance(histories, MlflowClient):
            check.tag(verdict, loaded.runs, histories)
    print_output(json.dumps(verdict.json(), indent=1) if as_json else verdict.text())
    return 0 if verdict.passed else 1


@click.command(cls=Command)
@click.option("--output", type=click.Path(path_type=Path), help="Markdown file (default: standard output).")
@tracking_options
@result_files_argument()
def reproduction(
    output: Path | None, experiment: tuple[str, ...], tracking_uri: str | None, files: tuple[Path, ...]
) -> None:
    """Compare GTDLBench's published tables with the measured runs of an experiment, or of result files."""
    if output is not None:
        check_output(output)
    with results(files, tracking_uri, experiment, finished=True) as (loaded, histories):
        from ..reporting import reproduction

        cells = reproduction.group_by_cell(run for run in loaded.runs if run.finished)
        source = ", ".join(path.name for path in files) or f"experiment {', '.join(experiment)}"
        markdown = reproduction.markdown(cells, source, histories)
    if output is None:
        print_output(markdown.rstrip("\n"))
    else:
        write_output(output, markdown)


@click.command(cls=Command)
@click.option("--experiment", default="gtdl", show_default=True, help="MLflow experiment.")
@click.option("--tracking-uri", metavar="URI", help="Tracking store (default: MLFLOW_TRACKING_URI, or mlflow.db here).")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port of the server.")
@click.option("--no-browser", is_flag=True, help="Print the address and open no browser.")
def ui(experiment: str, tracking_uri: str | None, port: int, no_browser: bool) -> int:
    """Open MLflow's own pages with the experiment's table arranged."""
    from ..reporting import ui
    from ..reporting.runs import NothingFound

    with tracking_store(tracking_uri) as uri:
        try:
            view = ui.arrange(uri, experiment)
        except NothingFound as error:
            raise NothingFound(f"{error}{other_experiments(uri, [experiment])}") from error
    return ui.serve(uri, view, port, browser=not no_browser)


COMMANDS = (report, compare, check, reproduction, ui)
