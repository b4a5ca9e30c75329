"""``gtdl answer``: compare the frameworks on this machine within a few minutes."""

from __future__ import annotations

import argparse
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
    answer = add_verb(
        commands, "answer", compare_frameworks, "find the fastest and the most accurate framework here, in ten minutes"
    )
    answer.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="KEY=VALUE",
        help="minutes=10, framework=torch,mxnet (default: all), output=gtdl_answer.html, and overrides as for a run",
    )


def compare_frameworks(arguments: argparse.Namespace) -> None:
    from .. import config
    from ..__main__ import to_overrides

    options, overrides = {"minutes": "10", "output": "gtdl_answer.html", "framework": ""}, []
    started_ms = time.time() * 1000
    with translate_errors():
        for override in to_overrides(arguments.arguments):
            key, _, value = override.partition("=")
            if key in options:
                options[key] = value
            else:
                overrides.append(override)
        minutes = _minutes(options["minutes"])
        composed = config.compose(overrides)
        frameworks = options["framework"].split(",") if options["framework"] else []
        for name in frameworks:
            config.compose_unchecked([f"framework={name}", *overrides])

    # MLflow takes two seconds: a wrong request has been refused before.
    from ..report import page, ranking
    from ..report.runs import NothingFound, connect, load
    from ..sweeps import planner
    from ..tracking import store

    uri, experiment = composed.tracking.uri, composed.tracking.experiment
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
    with translate_errors(planner.NotEnoughTime, store.TrackingFailed, NothingFound):
        if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):  # set by `mlflow run`, and the runs go there
            with store.open_store(uri, timeout_s=30) as client:
                experiment = client.get_experiment(experiment_id).name
        remarks = planner.run(minutes, frameworks, overrides, experiment)
        with store.translate_errors(uri), store.http_timeouts(retries=2, timeout_s=30):
            loaded = load(uri, [experiment], f"attributes.start_time >= {started_ms:.0f}")
            remarks += loaded.remarks
            html = page.page(loaded.runs, connect(uri), experiment, remarks)
    output("\n".join([ranking.text(loaded.runs), *(f"! {remark}" for remark in remarks)]))
    write_output(Path(options["output"]), html)
    output(f"report: {options['output']}")


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not minutes > 0:
        raise CommandFailed(f"minutes={text}: expected a number above 0, such as minutes=10", status=2)
    return minutes
