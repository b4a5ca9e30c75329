"""Durable outbox: stores the records that MLflow has not accepted completely, as files of the cache directory."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import typing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any

import filelock
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from .. import tags
from ..console import info
from ..files import cache_dir, lock_for, read_state, set_aside, write_atomically
from ..redaction import redact
from . import delivery
from .processes import PROCESS_GONE, is_alive
from .record import STAGING, Record, saved_path
from .store import RequestRefused, TrackingFailed


def _refused_path(key: str) -> Path:
    return saved_path(key).with_name(f"{key}.json.refused")


def save(record: Record) -> None:
    """Write the record to disk, for a later delivery by any process.

    If the cache directory cannot be written, the record is written to the run's folder, with a message.
    """
    record.maybe_created = True
    path, text = saved_path(record.key), json.dumps(dataclasses.asdict(record))
    try:
        write_atomically(path, text)
    except OSError as error:
        problem, fallback = f"{path.parent}: {error.strerror}", Path(record.folder) / path.name
        try:
            write_atomically(fallback, text)
        except OSError as other:
            problem += f"; {fallback.parent}: {other.strerror}"
            info(f"{problem}: {record.name} could not be saved for a later delivery")
        else:
            info(f"{problem}: {record.name} is saved as {fallback}; move it there before `gtdl track replay`")


def discard(record: Record) -> None:
    """Delete the saved record and the staged files after a delivery. Refused items are saved and reported."""
    with suppress(OSError):
        saved_path(record.key).unlink(missing_ok=True)
    if record.status == "RUNNING":
        return
    if not record.refused:
        shutil.rmtree(Path(record.folder) / STAGING, ignore_errors=True)
        return
    first, kept = record.refused[0], _refused_path(record.key)
    try:
        write_atomically(kept, json.dumps(dataclasses.asdict(record)))
    except OSError as error:
        where = f"could not be saved ({error.strerror})"
    else:
        where = f"saved in {kept}"
    count = len(record.refused)
    what = f"{first['item']} refused" if count == 1 else f"{count} items refused, the first is {first['item']}"
    info(f"{record.name}: {what}: {first['reason']}; {where}")


def conclude(record: Record, uri: str) -> str:
    """Deliver a record with its final status; return why MLflow does not have all of it, or an empty string.

    The record is saved during the delivery: if this process is killed, ``replay`` completes it.
    """
    with _hold(record.key):
        with suppress(OSError):
            write_atomically(saved_path(record.key), json.dumps(dataclasses.asdict(record)))
        try:
            delivery.deliver(record, uri)
        except TrackingFailed as error:
            save(record)
            return str(error)
        discard(record)
        return ""


@contextmanager
def _hold(key: str) -> Iterator[bool]:
    """Hold the lock of a saved record; yield False if another process delivers it."""
    try:
        lock = lock_for(saved_path(key))
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    except OSError:  # the cache directory cannot be written: there is no saved record either
        yield True
        return
    try:
        yield True
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def pending() -> list[Record]:
    """Return all saved records, those of sweeps before those of their runs."""
    records = [record for path in cache_dir().glob("undelivered/*.json") if (record := _read(path)) is not None]
    return sorted(records, key=lambda record: (record.parent != "", record.started_ms))


def _read(path: Path) -> Record | None:
    """Return a saved record; None if it has just been delivered, or if it is not a record of this version.

    The latter is set aside.
    """
    values = read_state(path)
    if values is None:
        return None
    hints = typing.get_type_hints(Record)
    for name in ("metrics", "model_metrics"):
        if isinstance(values.get(name), list):
            values[name] = [tuple(point) if isinstance(point, list) else point for point in values[name]]
    required = {each.name for each in fields(Record) if each.default is MISSING and each.default_factory is MISSING}
    wrong = sorted(values.keys() - hints.keys() | required - values.keys())
    wrong = wrong or [name for name in values if not _matches(values[name], hints[name])]
    if wrong:
        set_aside(path, f"not a record of this version: {', '.join(wrong)}")
        return None
    return Record(**values)


def _matches(value: Any, hint: Any) -> bool:
    """Return whether a value read from JSON has the type ``hint``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is UnionType:
        return any(_matches(value, each) for each in arguments)
    if origin is list:
        return isinstance(value, list) and all(_matches(each, arguments[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_matches(each, arguments[1]) for each in value.values())
    if origin is tuple:
        return (
            isinstance(value, tuple)
            and len(value) == len(arguments)
            and all(itertools.starmap(_matches, zip(value, arguments, strict=True)))
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is hint


@dataclass(frozen=True)
class ReplayResult:
    """Result of delivering one saved record."""

    record: Record
    failure: str = ""
    """Why MLflow does not have all of it; empty if it was delivered."""


def replay(uri: str) -> Iterator[ReplayResult]:
    """Deliver the saved records for the tracker at ``uri`` and yield the result of each.

    A run whose process no longer exists is ended as KILLED. A run whose process exists, or may exist on another host,
    is left to it. A record that the tracker refuses for good is set aside.
    """
    for record in pending():
        if not is_for(record, uri) or (record.status == "RUNNING" and is_alive(record.process) is not False):
            continue
        with _hold(record.key) as held:
            # Another process may have delivered it, or more of it, meanwhile.
            current = _read(saved_path(record.key)) if held else None
            if current is not None:
                yield _replay(current, uri)


def is_for(record: Record, uri: str) -> bool:
    """Return whether a record is for the tracker at ``uri``."""
    return record.uri == redact(uri)


def _replay(record: Record, uri: str) -> ReplayResult:
    if record.status == "RUNNING":
        record.finish("KILLED")
        record.tags |= {tags.FAILURE: PROCESS_GONE, MLFLOW_RUN_NOTE: f"KILLED: {PROCESS_GONE}"}
    try:
        delivery.deliver(record, uri, delivery.REPLAY_DEADLINE_S)
    except RequestRefused as error:
        save(record)
        with suppress(OSError):
            saved_path(record.key).replace(_refused_path(record.key))
        return ReplayResult(record, f"{error}; the record is set aside as {_refused_path(record.key)}")
    except TrackingFailed as error:
        save(record)
        return ReplayResult(record, f"still undelivered: {error}")
    discard(record)
    return ReplayResult(record)
