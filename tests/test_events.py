"""Events: written as one line and read back unchanged; any other line is refused."""

from __future__ import annotations

import io
import json
import math

import pytest

from gtdl_mlflow.worker import events
from gtdl_mlflow.worker.events import ConfusionMatrix, Event, Finished, Metadata, Metrics, Phase, Progress

EVENTS = [
    Metadata({"version": "2.13.0", "threads": 2, "tf32": False, "gpu": None, "note": 'a "quoted"\nline, ü'}),
    Phase("import"),
    Progress(3, 100, 50, 0.5, 2.25, 1234.5),
    Progress(3, 100, 50, 0.5, math.inf, -math.inf),
    Metrics({"train/loss": 0.5, "count": 3}, 7, 1.5),
    ConfusionMatrix([[3, 1], [0, 4]]),
    Finished(12.5),
]


@pytest.mark.parametrize("event", EVENTS)
def test_event_is_read_as_it_was_written(event: Event) -> None:
    stream = io.StringIO()
    events.write(stream, event)
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert events.parse(line) == event


def test_nan_loss_is_written_as_valid_json() -> None:
    stream = io.StringIO()
    events.write(stream, Metrics({"train/loss": math.nan}))
    json.loads(stream.getvalue(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    event = events.parse(stream.getvalue())
    assert isinstance(event, Metrics)
    assert math.isnan(event.values["train/loss"])


@pytest.mark.parametrize(
    "line",
    [
        "", "\n", "Segmentation fault", "3", "null", "[]", '["event"]', "{}", '{"event": "no such"}', '{"event": []}',
        '{"event": "metrics"}', '{"event": "finished", "more": 1}', '{"event": "metrics", "values": {"a": 1}',
        '{"event": "progress", "iteration": 1}', '{"event": "metrics", "values": 3}',
        '{"event": "metrics", "values": {"a": "fast"}}',
    ],
)  # fmt: skip
def test_line_that_is_not_an_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="invalid event"):
        events.parse(line)
