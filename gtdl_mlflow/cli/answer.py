"""``gtdl answer``: compare the frameworks on this machine within a few minutes."""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import output
from .common import CommandFailed, add_verb, translate_errors, write_output

if TYPE_CHECKING:
    from .common import Subparsers


def add(commands: Subparsers) -> None:
    """Add ``gtdl answer``."""
    # With the prefix "-", argparse would refuse a first word such as --hardware, which is an override of a run.
    answer = add_verb(
        commands,
        "answer",
        compare_frameworks,
        "rank the frameworks on this machine, in ten minutes",
        prefix_chars="\0",
        add_help=False,
    )
    answer.add_argument(
        "words",
        nargs="*",
        metavar="FRAMEWORK | KEY=VALUE",
        help="frameworks (default: all); minutes=10, device=cpu, output=gtdl_answer.html, and overrides as for a run; "
        "--key value is the same as key=value",
    )
    answer.set_defaults(print_help=answer.print_help)


def compare_frameworks(arguments: argparse.Namespace) -> None:
    if {"-h", "--help"} & set(arguments.words):
        arguments.print_help()
        return

    from .. import config
    from ..__main__ import to_overrides

    options, overrides = {"minutes": "10", "output": "gtdl_answer.html", "framework": ""}, []
    frameworks = []
    started_ms = time.time() * 1000
    with translate_errors():
        for override in to_overrides(arguments.words):
            key, equals, value = override.partition("=")
            if not equals:
                frameworks.append(key)
            elif key in options:
                options[key] = value
            elif key == "device":
                overrides.append(f"hardware={value}")
            else:
                overrides.append(override)
        minutes = _minutes(options["minutes"])
        composed = config.compose(overrides)
        frameworks += options["framework"].split(",") if options["framework"] else []
        for name in frameworks:
            config.compose_unchecked([f"framework={name}", *overrides])

    # MLflow takes two seconds: a wrong request has been refused before.
    from ..report import page
    from ..report.runs import NothingFound, connect, load
    from ..sweeps import planner
    from ..tracking import store

    uri, experiment = composed.tracking.uri, composed.tracking.experiment
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
    with translate_errors(planner.AnswerImpossible, store.TrackingFailed, NothingFound):
        if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):  # set by `mlflow run`, and the runs go there
            with store.open_store(uri, timeout_s=30) as client:
                experiment = client.get_experiment(experiment_id).name
        remarks = planner.run(minutes, frameworks, overrides, experiment)
        with store.translate_errors(uri), store.http_timeouts(retries=2, timeout_s=30):
            loaded = load(uri, [experiment], f"attributes.start_time >= {started_ms:.0f}")
            remarks += loaded.remarks
            html = page.page(loaded, connect(uri), experiment, remarks)
    write_output(Path(options["output"]), html)
    output("\n".join([*(f"! {remark}" for remark in remarks), f"report: {options['output']}"]))


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < math.inf:
        raise CommandFailed(f"minutes={text}: expected a number above 0, such as minutes=10", status=2)
    return minutes
