"""``gtdl track``: runs that their tracking server has not received yet."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING

from .common import add_group, add_tracking_uri, add_verb, tracking_store

if TYPE_CHECKING:
    from .common import Subparsers


def add(commands: Subparsers) -> None:
    """Add ``gtdl track``."""
    track = add_group(commands, "track", "manage runs that their tracking server has not received")
    add_verb(track, "list", list_pending, "list undelivered runs with their servers and folders")
    replay_verb = add_verb(track, "replay", replay, "deliver undelivered runs; repeating this changes nothing")
    replay_verb.add_argument(
        "uri", metavar="URI", nargs="?", help="address whose runs are delivered (default: the configured one)"
    )
    add_tracking_uri(replay_verb)


def list_pending(arguments: argparse.Namespace) -> None:
    from ..console import printable
    from ..tracking import outbox

    records = outbox.pending()
    for record in records:
        print(printable(f"{record.name}: {record.status}, for {record.uri}, in {record.folder}"))
    if not records:
        print("no undelivered runs")


def replay(arguments: argparse.Namespace) -> int:
    from ..console import fail, printable
    from ..tracking import outbox, store

    status = 0
    arguments.tracking_uri = arguments.uri or arguments.tracking_uri
    with tracking_store(arguments) as uri, store.http_timeouts(retries=2, timeout_s=30):
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
