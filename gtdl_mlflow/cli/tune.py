"""``gtdl tune``: measure a framework's execution modes, so that runs with ``mode=best`` take the fastest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from ..console import info
from .common import TAKES_OVERRIDES, Command, CommandFailed, overrides_argument

if TYPE_CHECKING:
    from ..config import Config

FEWEST_MINUTES = 0.1


@click.command(cls=Command, context_settings=TAKES_OVERRIDES)
@click.option(
    "--minutes",
    type=float,
    default=3.0,
    show_default=True,
    help="Time limit of the paired measurement of each framework.",
)
@overrides_argument()
def tune(minutes: float, overrides: tuple[str, ...]) -> int:
    """Measure the execution modes of a framework, and print them.

    OVERRIDES are those of a run, such as framework=torch setting=caffe_mnist; several frameworks may be given.
    Compilation is measured with an empty and with a filled cache. Runs with mode=best then take the mode with the
    shortest training.
    """
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    from .. import config, datasets, environments, modes
    from ..hardware import device_lock

    if not FEWEST_MINUTES <= minutes < math.inf:
        raise CommandFailed(f"--minutes {minutes:g}: expected a number of at least {FEWEST_MINUTES}", status=2)
    composed = [replace(each, mode=config.BEST) for each in _configs(overrides)]
    for each in composed:
        environment = environments.ensure(each.framework, each.hardware.device)
        data = datasets.prepare(each.dataset)
        with tempfile.TemporaryDirectory(prefix="gtdl-tune-") as name, device_lock.hold(each.hardware):
            names, skipped = modes.usable(each)
            study = modes.ModeStudy(each, environment)
            study.measure_all(names, 60 * minutes, data, Path(name))
        steps = modes.steps(each, data.train_images)
        threads = "1 thread" if each.threads == 1 else f"{each.threads} threads"
        print(f"{config.describe(each)}, {each.hardware.device}, {threads}:")
        print("\n".join(modes.table(study.costs, each.framework.modes, each.training.batch_size, steps)))
        for mode, reason in (skipped | study.failures).items():
            info(f"{each.framework.name}: {mode} is not measured: {reason}")
    return 0


def _configs(overrides: tuple[str, ...]) -> list[Config]:
    """Return the configuration of each framework in ``framework=A,B``."""
    from .. import config

    names = next((each.partition("=")[2].split(",") for each in overrides if each.startswith("framework=")), None)
    if names is None:
        return [config.compose(list(overrides))]
    others = [each for each in overrides if not each.startswith("framework=")]
    return [config.compose([f"framework={name}", *others]) for name in names]
