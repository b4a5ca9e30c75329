"""Events: written as one line and read back unchanged; any other line is refused."""

from __future__ import annotations

import io
import json
import math

import pytest

from gtdl_mlflow.worker import events
from gtdl_mlflow.worker.events import ConfusionMatrix, Event, Finished, Metadata, Metrics, Phase, Progress, Remark

EVENTS = [
    Metadata({"version": "2.13.0", "threads": 2, "tf32": False, "gpu": None, "note": 'a "quoted"\nline, ü'}),
    Phase("import"),
    Progress(3, 100, 50, 0.5, 2.25, 1234.5),
    Progress(3, 100, 50, 0.5, -math.inf, math.inf),
    Metrics({"train/loss": 0.5, "count": 3}, 7, 1.5),
    ConfusionMatrix([[3, 1], [0, 4]]),
    Remark("no checkpoint"),
    Finished(12.5),
]


@pytest.mark.parametrize("event", EVENTS)
def test_event_is_read_as_it_was_written(event: Event) -> None:
    stream = io.StringIO()
    events.write(stream, event)
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert events.parse(line.encode()) == event


def test_nan_loss_is_written_as_valid_json() -> None:
    stream = io.StringIO()
    events.write(stream, Metrics({"train/loss": math.nan}))
    json.loads(stream.getvalue(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    event = events.parse(stream.getvalue().encode())
    assert isinstance(event, Metrics)
    assert math.isnan(event.values["train/loss"])


METRICS = '{"event": "metrics", "values": {"a": %s}, "step": %s, "time": %s}'
STATE = '"iteration": 1, "batch_size": 1, "epoch": 1, "loss": 1'
PROGRESS = '{"event": "progress", "iterations": %s, "images_per_s": %s, ' + STATE + "}"


@pytest.mark.parametrize(
    "line",
    [
        "", "\n", "Segmentation fault", "3", "null", "[]", '["event"]', "{}", '{"event": "no such"}', '{"event": []}',
        '{"event": "metrics"}', '{"event": "finished", "more": 1}', '{"event": "metrics", "values": {"a": 1}',
        '{"event": "progress", "iteration": 1}', '{"event": "metrics", "values": 3}',
        '{"event": "metadata", "values": [1]}', '{"event": "phase", "name": 3}', '{"event": "remark", "text": null}',
        METRICS % ('"fast"', 0, 1), METRICS % ("true", 0, 1), METRICS % ("null", 0, 1), METRICS % ("[1]", 0, 1),
        METRICS % ("NaN", 0, 1), METRICS % ("Infinity", 0, 1), METRICS % ("1" * 400, 0, 1),
        METRICS % ("9" * 5000, 0, 1), METRICS % (1, 1.5, 1), METRICS % (1, -1, 1), METRICS % (1, '"inf"', 1),
        METRICS % (1, 2**63, 1), METRICS % (1, 0, '"nan"'), METRICS % (1, 0, '"inf"'), METRICS % (1, 0, -1),
        METRICS % (1, 0, 1e300), METRICS % (1, 0, "false"),
        PROGRESS % (0, 1), PROGRESS % (1, 0), PROGRESS % (1, '"nan"'), PROGRESS % (1.5, 1),
        '{"event": "finished", "cpu_s": "nan"}', '{"event": "finished", "cpu_s": "12"}',
        '{"event": "confusionmatrix", "counts": 3}', '{"event": "confusionmatrix", "counts": [1, 2]}',
        '{"event": "confusionmatrix", "counts": [[1, 2]]}', '{"event": "confusionmatrix", "counts": [[1.5]]}',
        '{"event": "confusionmatrix", "counts": [[-1]]}',
        "[" * 200_000, '{"a":' * 200_000, '{"event": "metadata", "values": {"a": ' + "[" * 99_999 + "]" * 99_999 + "}}",
    ],
)  # fmt: skip
def test_line_that_is_not_an_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="invalid event") as refusal:
        events.parse(line.encode())
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("line", [b"\xff\xfe{", b'{"event": "phase", "name": "\xff"}', b"\x00" * 50])
def test_line_that_is_not_text_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="invalid event"):
        events.parse(line)


def test_exception_is_described_in_one_short_line() -> None:
    assert events.one_line(OSError(28, "No space left on device")) == "OSError: [Errno 28] No space left on device"
    text = events.one_line(RuntimeError("a\n\tb\n" + "c" * 5000))
    assert text.startswith("RuntimeError: a b ccc")
    assert len(text) == 300
