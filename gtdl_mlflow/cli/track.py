"""``gtdl track``: runs that their tracking server has not received yet."""

from __future__ import annotations

from collections import Counter

import click

from .common import Group, tracking_store


@click.group(cls=Group)
def track() -> None:
    """Manage runs that their tracking server has not received."""


@track.command("list")
def list_pending() -> None:
    """List undelivered runs with their servers and folders."""
    from ..console import printable
    from ..tracking import outbox

    records = outbox.pending()
    for record in records:
        print(printable(f"{record.name}: {record.status}, for {record.uri}, in {record.folder}"))
    if not records:
        print("no undelivered runs")


@track.command()
@click.argument("uri", required=False)
@click.option("--tracking-uri", metavar="URI", help="The same as URI.")
def replay(uri: str | None, tracking_uri: str | None) -> int:
    """Deliver undelivered runs to URI (default: the configured one). Repeating this changes nothing."""
    from ..console import fail, printable
    from ..tracking import outbox

    status = 0
    with tracking_store(uri or tracking_uri) as uri:
        for result in outbox.replay(uri):
            name = result.record.name
            if result.failure:
                status = fail(f"{name}: {result.failure}")
            else:
                print(printable(f"{name}: delivered, run {result.record.run_id}"))
        others = Counter(record.uri for record in outbox.pending() if not outbox.is_for(record, uri))
    for other, count in others.items():
        print(
            printable(f"{count} undelivered {'run' if count == 1 else 'runs'} for {other}: gtdl track replay {other}")
        )
    return status
