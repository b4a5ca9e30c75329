"""Shared parts of the commands: argument styles, errors, completion, the tracking store and output files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from .. import signals
from ..console import Failure, info, status_line
from ..files import write_atomically

if TYPE_CHECKING:
    from ..reporting.result_file import ResultFiles
    from ..reporting.runs import LoadedRuns, MetricHistories

F = TypeVar("F", bound=Callable[..., Any])

ALIASES = {"tracking.uri": "tracking_uri", "tracking.experiment": "experiment"}
"""Names of options in the configuration of a run."""


class CommandFailed(Failure):
    """A command cannot do its work; the message is one line."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Command(click.Command):
    """A command whose options can be written as ``--minutes 10`` and as ``minutes=10``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = {_key(each.opts[0]): each for each in self.params if isinstance(each, click.Option)}
        try:
            return super().parse_args(ctx, [_as_option(argument, options) for argument in args])
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # an option without its value has none, and the message names the command
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # click would print an empty line
            raise CommandFailed("interrupted", status=signals.INTERRUPTED) from error


def _key(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _as_option(argument: str, options: Mapping[str, click.Option]) -> str:
    """Return ``key=value`` as ``--key=value`` if the command has that option; a flag without its value if it is on."""
    key, equals, value = argument.partition("=")
    option = options.get(ALIASES.get(key, _key(key)))
    if not equals or argument.startswith("-") or option is None:
        return argument
    if not option.is_flag:
        return f"{option.opts[0]}={value}"
    if value.lower() not in ("true", "1"):
        raise click.UsageError(f"{argument}: expected {key}=true, or nothing")
    return option.opts[0]


class Group(click.Group):
    """A group of commands."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if ctx.parent is None and args[0] not in self.commands:
            from ..config import choices

            if "=" in args[0]:
                raise click.UsageError(f"{args[0]}: expected a command first, such as gtdl run {args[0]}", ctx)
            if args[0] in choices("framework"):
                raise click.UsageError(f"{args[0]}: write gtdl run framework={args[0]}", ctx)
            if args[0] in ("train", "fit", "benchmark", "test"):
                raise click.UsageError(f"{args[0]}: no such command; gtdl run trains and tests", ctx)
        return super().resolve_command(ctx, args)


# Completion.

GROUPS = ("framework", "dataset", "setting", "model", "training", "hardware", "experiment")
"""Config groups whose choices complete."""


def complete_choice(group: str) -> Callable[..., list[CompletionItem]]:
    """Return a completion of the choices of one group."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ..config import choices

        return [CompletionItem(name) for name in choices(group) if name.startswith(incomplete)]

    return complete


def complete_override(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete ``framework=torch``. Bash passes the words before and after ``=`` separately."""
    from ..config import choices

    words = [str(word) for word in ctx.params.get(str(param.name)) or ()]
    if words[-1:] == ["="]:
        group, prefix, value = words[-2], "", incomplete
    else:
        group, equals, value = incomplete.partition("=")
        if not equals:
            return [CompletionItem(f"{name}=") for name in GROUPS if name.startswith(incomplete)]
        prefix = f"{group}="
    before, comma, last = value.rpartition(",")
    names = choices(group) if group in GROUPS else []
    return [CompletionItem(f"{prefix}{before}{comma}{name}") for name in names if name.startswith(last)]


def overrides_argument(required: bool = False) -> Callable[[F], F]:
    """Add the argument for overrides as for a run."""
    return click.argument(
        "overrides", nargs=-1, type=click.UNPROCESSED, required=required, shell_complete=complete_override
    )


TAKES_OVERRIDES = {"ignore_unknown_options": True}
"""Context settings of a command that takes overrides: unknown options such as ``--seed 1`` are overrides too."""


# The tracking store.


def tracking_options(function: F) -> F:
    """Add the options of a command that reads the tracking store."""
    function = click.option(
        "--tracking-uri", metavar="URI", help="Tracking store (default: MLFLOW_TRACKING_URI, or mlflow.db here)."
    )(function)
    return click.option(
        "--experiment", multiple=True, default=["gtdl"], show_default=True, help="MLflow experiment; repeatable."
    )(function)


@contextmanager
def tracking_store(tracking_uri: str | None) -> Iterator[str]:
    """Yield the address of the tracking store that a command reads; raise CommandFailed if it cannot be read."""
    status_line("reading the tracking store")
    try:
        from .. import config
        from ..tracking import store

        uri = tracking_uri or config.compose_unchecked([]).tracking.uri
        config.check_tracker(uri, "--tracking-uri " if tracking_uri else "tracking.uri=")
        with store.reading(uri):
            yield uri
    finally:
        status_line("")


def load_runs(uri: str, experiments: Sequence[str], finished: bool = False) -> LoadedRuns:
    """Return the runs of some experiments, or those that finished, and print one line about those that are skipped.

    Raises:
        NothingFound: an experiment does not exist, or no run in it can be used.
    """
    from ..reporting.runs import NothingFound, load

    try:
        loaded = load(uri, experiments, "attributes.status = 'FINISHED'" if finished else "")
        if not loaded.runs:
            reason = "".join(loaded.remarks) or f"no {'finished run' if finished else 'run yet'}"
            raise NothingFound(f"experiment {', '.join(experiments)}: {reason}")
    except NothingFound as error:
        raise NothingFound(f"{error}{other_experiments(uri, experiments)}") from error
    for remark in loaded.remarks:
        info(remark)
    return loaded


@contextmanager
def results(
    files: Sequence[Path], tracking_uri: str | None, experiments: Sequence[str], finished: bool = False
) -> Iterator[tuple[LoadedRuns, MetricHistories]]:
    """Yield the runs of result files, or without any those of a tracking store, and the history of their metrics."""
    if files:
        found = result_files(files)
        yield found.loaded, found
    else:
        with tracking_store(tracking_uri) as uri:
            from ..reporting.runs import connect

            yield load_runs(uri, experiments, finished), connect(uri)


def other_experiments(uri: str, experiments: Sequence[str]) -> str:
    """Return the end of a message that names other experiments with runs; empty if there are none."""
    from ..reporting.runs import experiments_with_runs

    others = [name for name in experiments_with_runs(uri) if name not in experiments]
    return f"; there are runs in {', '.join(others)}: --experiment {others[0]}" if others else ""


# Result files.


def result_files_argument(required: bool = False) -> Callable[[F], F]:
    """Add the argument for result files."""
    kind = click.Path(path_type=Path, exists=True, dir_okay=False)
    return click.argument("files", metavar="FILE...", nargs=-1, type=kind, required=required)


def result_files(paths: Sequence[Path]) -> ResultFiles:
    """Return the runs of result files; raise CommandFailed if they cannot be used."""
    from ..reporting.result_file import ResultFiles

    found = ResultFiles(paths)
    if not found.loaded.runs:
        reasons = "".join(f": {each}" for each in found.loaded.remarks)
        raise CommandFailed(f"{', '.join(map(str, paths))}: no run that can be used{reasons}")
    return found


# Output files.


def check_output(path: Path) -> None:
    """Raise CommandFailed if a file cannot be written, before the work begins. A missing folder is not created."""
    folder = path.parent
    if not folder.is_dir():
        raise CommandFailed(f"{path}: the folder {folder} does not exist", status=2)
    if path.is_dir():
        raise CommandFailed(f"{path}: is a folder; expected the name of a file", status=2)
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise CommandFailed(f"{path}: no permission to write it")


def write_output(path: Path, text: str) -> None:
    """Write a file completely or not at all; raise CommandFailed if this is impossible."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from error


def output_option(default: str, help: str) -> Callable[[F], F]:
    """Add the option for the file that a command writes; ``-`` is standard output."""
    return click.option(
        "--output", type=click.Path(path_type=Path, dir_okay=True), default=default, show_default=True, help=help
    )
