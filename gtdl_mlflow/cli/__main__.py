"""The command ``gtdl``: environments, data sets, undelivered runs, the machine, and reports.

A verb is a function in one of the modules of ``ADD_VERBS`` and one line in that module's ``add``. Exit status:
0 success, 1 failure, 2 wrong request. An error is one line.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence

from .. import files, signals
from ..console import conceal_arguments, fail
from ..tracking.deadline import leave
from . import answer, data, env, machine, reports, track
from .common import CommandFailed

# Verbs import what they need themselves, so that `gtdl --help` does not wait for Hydra, or one verb for the libraries
# of another.

ADD_VERBS = (env.add, data.add, track.add, machine.add, answer.add, reports.add)
"""Functions that add the verbs of a module to the parser."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``gtdl``."""
    root = argparse.ArgumentParser(prog="gtdl", description="Commands of the gtdl benchmark beside its runs.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for add in ADD_VERBS:
        add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``gtdl`` and return its exit status."""
    if argv is None:
        signals.interrupt_on_first()
        leave(main(sys.argv[1:]))  # a request that never ends must not hold this process
    arguments = parser().parse_args(conceal_arguments(argv))
    gc.set_threshold(100_000)  # with the default, 700, collections take 0.9 s of the 1.4 s to read 300 runs
    # Set before MLflow is imported, which sets up its loggers.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    try:
        files.name_user()
        return arguments.verb(arguments) or 0
    except CommandFailed as error:
        return fail(str(error), status=error.status)
    except OSError as error:
        return fail(files.explain(error))
    except KeyboardInterrupt:
        return fail("interrupted", status=signals.INTERRUPTED)


if __name__ == "__main__":
    main()
