"""``gtdl export``, ``merge`` and ``publish``: results as files, beyond one tracking store."""

from __future__ import annotations

import itertools
from pathlib import Path

import click

from ..console import output as print_output
from ..console import status_line
from .common import (
    Command,
    CommandFailed,
    check_output,
    output_option,
    result_files,
    result_files_argument,
    tracking_options,
    tracking_store,
    write_output,
)


@click.command(cls=Command)
@output_option("results.csv", "Result file.")
@tracking_options
def export(output: Path, experiment: tuple[str, ...], tracking_uri: str | None) -> None:
    """Write the runs of an experiment into a result file.

    It has everything that a report needs, and neither addresses, nor folders, nor names of users.
    """
    check_output(output)
    with tracking_store(tracking_uri) as uri:
        from ..reporting import result_file

        text = result_file.export(uri, experiment)
    write_output(output, text)
    print_output(f"{output}: {len(text) / 1e6:.1f} MB")


@click.command(cls=Command)
@output_option("results.csv", "Result file.")
@result_files_argument(required=True)
def merge(output: Path, files: tuple[Path, ...]) -> None:
    """Check the runs of each machine in some result files, and write all into one file.

    Nothing is written if the runs of a machine break a rule of gtdl check.
    """
    check_output(output)
    from ..reporting import check, result_file, website
    from ..reporting.formats import count

    found = result_files(files)
    machines = website.by_machine(found.loaded)
    for machine, loaded in machines.items():
        verdict = check.check(loaded.runs)
        if not verdict.passed:
            print_output(f"{machine}\n{verdict.text()}")
            raise CommandFailed(f"nothing is merged: the runs of {machine} break the rules above")
    if found.loaded.skipped:
        raise CommandFailed(f"nothing is merged: {'; '.join(found.loaded.remarks)}")
    write_output(output, result_file.write((run, found) for run in found.runs))
    print_output(f"{output}: {count(len(found.loaded.runs), 'run')} of {count(len(machines), 'machine')}")


@click.command(cls=Command)
@click.option("--output", type=click.Path(path_type=Path), default="site", show_default=True, help="Folder.")
@result_files_argument(required=True)
def publish(output: Path, files: tuple[Path, ...]) -> None:
    """Write result files as a static site: an index, all results with filters, a page per machine, downloads."""
    from ..reporting import website

    for one, other in itertools.combinations(files, 2):
        if one.name == other.name:
            raise CommandFailed(f"{one} and {other}: two files of one name; rename one, or merge them first", status=2)
    found = result_files(files)
    status_line("drawing the pages")
    try:
        pages = website.write(found, files, output)
    except OSError as error:
        raise CommandFailed(f"{error.filename or output}: {error.strerror}") from error
    print_output(f"{output / 'index.html'}: {pages} pages")


COMMANDS = (export, merge, publish)
