"""``gtdl machine``: the machine and its measured peak."""

from __future__ import annotations

import click

from .common import TAKES_OVERRIDES, Command, overrides_argument


@click.command(cls=Command, context_settings=TAKES_OVERRIDES)
@overrides_argument()
def machine(overrides: tuple[str, ...]) -> int:
    """Describe this machine and measure its peak computing and copying speed.

    OVERRIDES are those of a run: hardware=cpu_1core.
    """
    from .. import config
    from ..hardware import device_lock, host, interference, peak

    composed = config.compose(list(overrides))
    print(host.fingerprint())
    with device_lock.hold(composed.hardware):
        measured = peak.measure(composed.hardware, composed.threads)
    if measured is None:
        return 1  # the reason has been printed
    print(measured.text)
    now = interference.Snapshot.now()
    print(f"load average (1 min): {now.load:.2f}" + (f"; clock frequency: {now.mhz:,.0f} MHz" if now.mhz else ""))
    return 0
