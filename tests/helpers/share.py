"""The share of slow combinations that a session of the tests runs."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")

VARIABLE = "GTDL_TEST_SHARE"
"""Environment variable with the number of the share, or ``all``. The processes of a session have the same."""

SHARES = 7
"""Days on which each combination runs once."""


def number() -> int | None:
    """Return the number of the share of this session, from 0, or None for all combinations."""
    value = os.environ.setdefault(VARIABLE, str(datetime.datetime.now(datetime.timezone.utc).toordinal() % SHARES))
    return None if value == "all" else int(value) % SHARES


def share(combinations: Iterable[T], always: Iterable[T]) -> Sequence[T]:
    """Return the combinations that run always, and those of this session's share, in their order."""
    every, fixed, chosen = list(combinations), list(always), number()
    rotating = [each for each in every if each not in fixed]
    return [each for each in every if each in fixed or chosen is None or rotating.index(each) % SHARES == chosen]


def only_in(chosen: int) -> pytest.MarkDecorator:
    """Return a mark that runs a test of several minutes in one of the shares only."""
    reason = f"takes minutes and runs in share {chosen + 1} of {SHARES}; {VARIABLE}=all runs it"
    return pytest.mark.skipif(number() not in (None, chosen), reason=reason)


def header() -> str:
    """Return the line of the report that names the share."""
    if (chosen := number()) is None:
        return "slow tests: all"
    return (
        f"slow tests: the defaults, and share {chosen + 1} of {SHARES} of the other combinations (CONTRIBUTING.md), "
        f"which changes every day; {VARIABLE}=all runs all"
    )
