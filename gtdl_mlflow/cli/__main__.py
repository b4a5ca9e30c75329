"""The command ``gtdl``: runs and sweeps, answers, reports, environments, data sets and undelivered runs.

A command is a function in one of the modules of ``cli``. Exit status: 0 success, 1 failure, 2 invalid request, 130
Ctrl-C. An error is one line.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

import click

from .. import __version__, files, signals
from ..console import Failure, conceal_arguments, fail
from ..tracking.deadline import leave
from . import answer, data, env, machine, predict, reports, results, runs, track, tune
from .common import Group

# Commands import what they need themselves, so that `gtdl --help` does not wait for Hydra, or one command for the
# libraries of another.


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gtdl")
def gtdl() -> None:
    """Compare deep-learning frameworks on this machine.

    \b
    gtdl run framework=torch                    one run: train, test, record in MLflow
    gtdl sweep framework=torch,mxnet seed=0,1   several runs, and a ranking
    gtdl answer --minutes 10                    which framework is fastest here
    gtdl tune framework=torch                   which execution mode is fastest here
    gtdl report                                 all results in one HTML file
    gtdl ui                                     all results in MLflow

    Options can be written as --minutes 10 and as minutes=10. Tab completion:

    \b
    eval "$(_GTDL_COMPLETE=bash_source gtdl)"          in ~/.bashrc
    eval "$(_GTDL_COMPLETE=zsh_source gtdl)"           in ~/.zshrc
    _GTDL_COMPLETE=fish_source gtdl | source           in fish's config.fish
    """


for _command in (
    *runs.COMMANDS,
    answer.answer,
    *reports.COMMANDS,
    *results.COMMANDS,
    predict.predict,
    env.env,
    data.data,
    track.track,
    machine.machine,
    tune.tune,
):
    gtdl.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``gtdl`` and return its exit status."""
    if argv is None:
        signals.interrupt_on_first()
        leave(main(sys.argv[1:]))  # a request that never ends must not hold this process
    gc.set_threshold(100_000)  # with the default, 700, collections take 0.9 s of the 1.4 s to read 300 runs
    # Set before MLflow is imported, which sets up its loggers.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    try:
        files.name_user()
        return gtdl.main(conceal_arguments(argv), prog_name="gtdl", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return fail(_one_line(error), status=2)
    except click.exceptions.Exit as end:
        return end.exit_code
    except Failure as error:
        return fail(str(error), status=error.status)
    except OSError as error:
        return fail(files.explain(error))
    except (KeyboardInterrupt, click.Abort):
        return fail("interrupted", status=signals.INTERRUPTED)


def _one_line(error: click.ClickException) -> str:
    """Return the message of an invalid request with the command that lists what is allowed."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "gtdl"
    return f"{message}; see `{command} --help`"


if __name__ == "__main__":
    main()
