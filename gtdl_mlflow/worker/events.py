"""Events that a worker sends to the driver: one JSON object per line, on a file descriptor of its own."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass, field
from typing import IO, Any


@dataclass(frozen=True)
class Metadata:
    """Facts about the framework and the job that are not measurements, as text or numbers."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """The start of a phase of the run, for display."""

    name: str
    """A ``phase`` of ``metrics.PHASES``."""


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
class Finished:
    """The end of the job; no event follows."""

    cpu_s: float
    """CPU time of the worker and its children, user and system, in seconds."""


Event = Metadata | Phase | Progress | Metrics | ConfusionMatrix | Finished
_TYPES: dict[str, type] = {
    kind.__name__.lower(): kind for kind in (Metadata, Phase, Progress, Metrics, ConfusionMatrix, Finished)
}


def write(stream: IO[str], event: Event) -> None:
    """Write an event as one line and flush it. Numbers that JSON lacks (a loss of NaN) become text."""
    fields = {key: _encode(value) for key, value in dataclasses.asdict(event).items()}
    stream.write(json.dumps({"event": type(event).__name__.lower(), **fields}, allow_nan=False) + "\n")
    stream.flush()


def parse(line: str) -> Event:
    """Return the event of one line.

    Raises:
        ValueError: the line is not an event.
    """
    try:
        fields = json.loads(line)
        kind = _TYPES[fields.pop("event")]
        event: Event = kind(**{key: _decode(value) for key, value in fields.items()})
        if isinstance(event, Metrics) and not all(isinstance(value, (int, float)) for value in event.values.values()):
            raise ValueError("a metric must be a number")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"invalid event: {line.strip()[:200]!r}") from error
    return event


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    return float(value) if value in ("nan", "inf", "-inf") else value
