"""``gtdl run`` and ``gtdl sweep``: the same as ``python -m gtdl_mlflow`` without and with ``-m``."""

from __future__ import annotations

import sys

import click

from .common import TAKES_OVERRIDES, Command, overrides_argument


@click.command(cls=Command, context_settings=TAKES_OVERRIDES)
@overrides_argument()
def run(overrides: tuple[str, ...]) -> None:
    """Train and test one network in one framework, and record it in MLflow.

    OVERRIDES are Hydra's, such as framework=torch dataset=mnist setting=caffe_mnist budget=0.1 seed=1; `--cfg job`
    prints the configuration.
    """
    _start(overrides)


@click.command(cls=Command, context_settings=TAKES_OVERRIDES)
@overrides_argument(required=True)
def sweep(overrides: tuple[str, ...]) -> None:
    """Run every combination of values, and rank the frameworks.

    OVERRIDES are those of a run, with several values: framework=torch,mxnet seed=0,1,2.
    """
    _start(("-m", *overrides))


def _start(arguments: tuple[str, ...]) -> None:
    from .. import __main__ as application

    sys.argv[1:] = arguments
    application.main()


COMMANDS = (run, sweep)
