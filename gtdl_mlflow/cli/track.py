"""``gtdl track``: runs that their tracking server has not received yet."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import add_group, add_verb

if TYPE_CHECKING:
    from .common import Subparsers


def add(commands: Subparsers) -> None:
    """Add ``gtdl track``."""
    track = add_group(commands, "track", "manage runs that their tracking server has not received")
    add_verb(track, "list", list_pending, "list undelivered runs with their servers and folders")
    add_verb(track, "replay", replay, "deliver undelivered runs; repeating this changes nothing")


def list_pending(arguments: argparse.Namespace) -> None:
    from ..tracking import outbox

    records = outbox.pending()
    for record in records:
        print(f"{record.name}: {record.status}, for {record.uri}, in {record.folder}")
    if not records:
        print("no undelivered runs")


def replay(arguments: argparse.Namespace) -> int:
    from ..console import fail
    from ..tracking import outbox, store

    status = 0
    with store.http_timeouts(retries=2, timeout_s=30):
        for result in outbox.replay():
            if result.failure:
                status = fail(f"{result.record.name}: still undelivered: {result.failure}")
            else:
                print(f"{result.record.name}: delivered, run {result.record.run_id}")
    return status
