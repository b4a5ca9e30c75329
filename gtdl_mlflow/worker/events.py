"""Events that a worker sends to the driver: one JSON object per line, on a separate file descriptor."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any


@dataclass(frozen=True)
class Metadata:
    """Run metadata: properties of the framework and the job that are not measurements, as text or numbers."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """The start of a phase of the run, for display."""

    name: str
    """The ``phase`` of a metric in ``metrics.PHASES``."""


@dataclass(frozen=True)
class Progress:
    """The state of training, for display."""

    iteration: int
    iterations: int
    batch_size: int
    epoch: float
    loss: float
    images_per_s: float


@dataclass(frozen=True)
class Metrics:
    """Measured values at a training iteration."""

    values: dict[str, float]
    step: int = 0
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""


@dataclass(frozen=True)
class ConfusionMatrix:
    """Number of test images by true class (outer list) and predicted class (inner lists)."""

    counts: list[list[int]]


@dataclass(frozen=True)
class Remark:
    """A warning for the user. The run continues."""

    text: str


@dataclass(frozen=True)
class Turn:
    """One turn of a paired measurement."""

    units: int
    """Number of timed training steps, test batches or images of the turn."""
    wall_s: float
    cpu_s: float
    """CPU time of all threads."""
    lead_in_cpu_s: float
    """CPU time of the untimed units before the timed ones: the lead-in, and the warm-up of an activity's first turn."""
    waiting_cpu_s: float
    """CPU time since the end of the previous turn."""


@dataclass(frozen=True)
class Finished:
    """The end of the job; no event follows."""

    cpu_s: float
    """CPU time of the worker and its children, user and system, in seconds."""


Event = Metadata | Phase | Progress | Metrics | ConfusionMatrix | Remark | Turn | Finished
_TYPES: dict[str, type] = {kind.__name__.lower(): kind for kind in Event.__args__}

REFUSED = 3
"""Exit status of a worker whose framework does not support the job or whose data have changed.

The last line of the worker's log has the reason.
"""

LONGEST_LINE = 2**24
"""Largest size of an event in bytes. A confusion matrix of 1000 classes fits."""

LARGEST = 2**63
"""Exclusive limit of the magnitude of whole numbers: a tracking store cannot hold larger ones."""


def write(stream: IO[str], event: Event) -> None:
    """Write an event as one line and flush it. Numbers that JSON lacks (NaN and infinity) become strings."""
    fields = {key: _encode(value) for key, value in dataclasses.asdict(event).items()}
    stream.write(json.dumps({"event": type(event).__name__.lower(), **fields}, allow_nan=False) + "\n")
    stream.flush()


def parse(line: bytes) -> Event:
    """Return the event of one line.

    Raises:
        ValueError: the line is not an event.
    """
    try:
        fields = json.loads(line.decode(), parse_constant=_refuse)
        kind = _TYPES[fields.pop("event")]
        event: Event = kind(**{key: _decode(value) for key, value in fields.items()})
        _check(event)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"invalid event: {line[:200].decode(errors='replace').strip()!r}") from error
    return event


def one_line(error: Exception) -> str:
    """Return an exception as one line of at most 300 characters. A traceback in its text is cut to its last line."""
    text = str(error)
    if "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1]
    return " ".join(f"{type(error).__name__}: {text}".split())[:300]


def _check(event: Event) -> None:
    """Raise ValueError if a value of the event has the wrong type or is out of range."""
    valid = all(_VALID[str(each.type)](getattr(event, each.name)) for each in dataclasses.fields(event))
    if valid and isinstance(event, Progress):
        valid = event.iterations > 0 and event.images_per_s > 0  # the remaining time is computed from them
    elif valid and isinstance(event, Metrics):
        valid = 0 <= event.time < 1e11
    elif valid and isinstance(event, Finished):
        valid = math.isfinite(event.cpu_s)
    elif valid and isinstance(event, Turn):
        valid = event.units > 0 and 0 < event.wall_s < math.inf and 0 <= event.cpu_s < math.inf
    if not valid:
        raise ValueError("a value is out of range")


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < LARGEST)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _is_square(rows: Any) -> bool:
    return type(rows) is list and all(
        type(row) is list and len(row) == len(rows) and all(map(_is_count, row)) for row in rows
    )


_VALID: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: type(value) is str,
    "int": _is_count,
    "float": _is_number,
    "dict[str, Any]": lambda value: type(value) is dict,
    "dict[str, float]": lambda value: type(value) is dict and all(map(_is_number, value.values())),
    "list[list[int]]": _is_square,
}
"""Check of a field's value, by the type annotation of the field."""


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    return float(value) if value in ("nan", "inf", "-inf") else value
