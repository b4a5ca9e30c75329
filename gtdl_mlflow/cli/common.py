"""Shared parts of the commands: parsers, errors, the tracking store and output files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import info
from ..files import write_atomically

if TYPE_CHECKING:
    from ..report.runs import LoadedRuns

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

Verb = Callable[[argparse.Namespace], "int | None"]
"""A verb returns its exit status; None is 0."""


class CommandFailed(Exception):
    """A command cannot do its work; the message is one line."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
        """Exit status: 1 for a failure, 2 for a wrong request."""


@contextmanager
def translate_errors(*failures: type[Exception]) -> Iterator[None]:
    """Raise CommandFailed for a wrong configuration, with status 2, and for the exceptions of ``failures``."""
    from ..config import ConfigError

    try:
        yield
    except ConfigError as error:
        raise CommandFailed(str(error), status=2) from error
    except failures as error:
        raise CommandFailed(str(error)) from error


def add_verb(commands: Subparsers, name: str, verb: Verb, help: str, **options: Any) -> argparse.ArgumentParser:
    """Add a verb and return its parser, to add arguments. ``options`` are those of ``ArgumentParser``."""
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", **options)
    parser.set_defaults(verb=verb)
    return parser


def add_group(commands: Subparsers, name: str, help: str) -> Subparsers:
    """Add a command that has verbs, and return its subparsers."""
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    return parser.add_subparsers(required=True, metavar="VERB")


def add_tracking_uri(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="tracking store (default: MLFLOW_TRACKING_URI, or the file mlflow.db here)",
    )


@contextmanager
def tracking_store(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the address of the tracking store that a command reads; raise CommandFailed if it cannot be read."""
    from .. import config
    from ..report.runs import NothingFound
    from ..tracking import store

    with translate_errors(store.TrackingFailed, NothingFound):
        uri = arguments.tracking_uri or config.compose([]).tracking.uri
        with store.translate_errors(uri), store.http_timeouts(retries=2, timeout_s=30):
            yield uri


def load_runs(uri: str, experiments: list[str], finished: bool = False) -> LoadedRuns:
    """Return the runs of some experiments, or those that finished, and print one line about those that are skipped.

    Raises:
        NothingFound: an experiment does not exist, or no run in it can be used.
    """
    from ..report.runs import NothingFound, load

    loaded = load(uri, experiments, "attributes.status = 'FINISHED'" if finished else "")
    if not loaded.runs:
        reason = "".join(loaded.remarks) or f"no {'finished run' if finished else 'run yet'}"
        raise NothingFound(f"experiment {', '.join(experiments)}: {reason}")
    for remark in loaded.remarks:
        info(remark)
    return loaded


def write_output(path: Path, text: str) -> None:
    """Write a file completely or not at all, into a folder that exists; raise CommandFailed if this is impossible."""
    try:
        path.parent.stat()  # a mistyped folder is not created
        write_atomically(path, text)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from error
