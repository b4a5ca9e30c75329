"""``gtdl answer``: compare the frameworks on this machine within a few minutes."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import click

from ..console import output as print_output
from .common import (
    TAKES_OVERRIDES,
    Command,
    check_output,
    complete_choice,
    output_option,
    write_output,
)


@click.command(cls=Command, context_settings=TAKES_OVERRIDES)
@click.option(
    "--minutes",
    type=click.FloatRange(0, 10_000, min_open=True),
    default=10,
    show_default=True,
    help="Time limit, without the creation of environments.",
)
@click.option("--framework", metavar="NAME,...", default="", help="The same as NAMES.")
@click.option("--device", metavar="HARDWARE", help="The same as hardware=HARDWARE.")
@output_option("gtdl_answer.html", "HTML report.")
@click.argument("words", metavar="[NAMES...] [OVERRIDES...]", nargs=-1, shell_complete=complete_choice("framework"))
def answer(minutes: float, framework: str, device: str | None, output: Path, words: tuple[str, ...]) -> None:
    """Rank the frameworks on this machine within a time limit (default: ten minutes).

    NAMES are frameworks (default: those that are still developed and run on no other framework), OVERRIDES those of
    a run.
    """
    from .. import config
    from ..__main__ import to_overrides

    if math.isnan(minutes):
        raise click.BadParameter("nan: expected a number above 0", param_hint="'--minutes'")
    check_output(output)
    started_ms = time.time() * 1000
    every = to_overrides(list(words))
    frameworks = [*filter(None, framework.split(",")), *(each for each in every if "=" not in each)]
    if number := next((name for name in frameworks if name.isdigit()), None):
        raise click.UsageError(f"{number}: a number needs its option, such as --minutes {number}")
    overrides = [each for each in every if "=" in each] + ([f"hardware={device}"] if device else [])
    composed = config.compose(overrides)
    for name in frameworks:
        config.compose_unchecked([f"framework={name}", *overrides])

    # MLflow takes two seconds: an invalid request has been refused before.
    from ..reporting import page
    from ..reporting.runs import connect, load
    from ..sweeps import planner
    from ..tracking import store

    uri, experiment = composed.tracking.uri, composed.tracking.experiment
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):  # set by `mlflow run`, and the runs go there
        with store.open_store(uri, timeout_s=30) as client:
            experiment = client.get_experiment(experiment_id).name
    remarks = planner.run(minutes, frameworks, overrides, experiment)
    with store.reading(uri):
        loaded = load(uri, [experiment], f"attributes.start_time >= {started_ms:.0f}")
        remarks += loaded.remarks
        html = page.page(loaded, connect(uri), experiment, remarks)
    write_output(output, html)
    print_output("\n".join([*(f"! {remark}" for remark in remarks), f"report: {output}"]))
