"""``gtdl machine``: the machine and its measured peak."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import add_verb, translate_errors

if TYPE_CHECKING:
    from .common import Subparsers


def add(commands: Subparsers) -> None:
    """Add ``gtdl machine``."""
    machine = add_verb(
        commands, "machine", measure, "describe this machine and measure its peak computing and copying speed"
    )
    machine.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for a run: hardware=cpu_1core")


def measure(arguments: argparse.Namespace) -> int:
    from .. import config
    from ..hardware import device_lock, host, interference, peak

    with translate_errors():
        composed = config.compose(arguments.overrides)
    print(host.fingerprint())
    with device_lock.hold(composed.hardware):
        measured = peak.measure(composed.hardware, composed.threads)
    if measured is None:
        return 1  # the reason has been printed
    print(measured.text)
    now = interference.Snapshot.now()
    print(f"load {now.load:.2f}" + (f", {now.mhz:,.0f} MHz" if now.mhz else ""))
    return 0
