"""The progress of a run and of a sweep: what is done, and the time left."""

from __future__ import annotations

import io
import sys
import time

import pytest

from gtdl_mlflow import console
from gtdl_mlflow.progress import ProgressLine, SweepProgress, line
from gtdl_mlflow.worker.events import Event, Metrics, Phase, Progress, Remark

EVENTS: list[Event] = [
    Phase("import"), Metrics({"setup/import_s": 1.5}), Phase("data"), Phase("training"),
    Progress(30, 120, 50, 0.25, 2.302585, 1234.5), Phase("testing"),
]  # fmt: skip


class Terminal(io.StringIO):
    """A standard error that is, or is not, a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> str:
    """Return what is written for ``EVENTS``."""
    stream = Terminal(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressLine("torch on mnist") as progress:
        for event in EVENTS:
            progress.show(event)
    return stream.getvalue()


def test_terminal_shows_phases_and_progress_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, terminal=True).split("\r\x1b[K")
    assert lines == [
        "",
        "torch on mnist: importing the framework",
        "torch on mnist: preprocessing the images",
        "torch on mnist: training",
        "torch on mnist: epoch 0.2, 25%, 1,234 images/s, loss 2.3026, 4 s left",
        "torch on mnist: testing",
        "",  # erased at the end
    ]


def test_remark_is_printed_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("torch on mnist") as progress:
        progress.show(Remark("no checkpoint after iteration 30\x1b[2J"))
    assert capsys.readouterr().err == "gtdl: no checkpoint after iteration 30\N{REPLACEMENT CHARACTER}[2J\n"


def test_a_short_run_writes_nothing_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False) == ""


def test_a_long_run_writes_a_line_every_minute_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "MINUTE_S", 0.2)
    with ProgressLine("torch on mnist") as progress:
        progress.show(Phase("import"))
        time.sleep(0.3)
        progress.show(EVENTS[4])
        time.sleep(0.2)
    time.sleep(0.3)
    assert capsys.readouterr().err.splitlines() == [
        "gtdl: torch on mnist: importing the framework (1 min)",
        "gtdl: torch on mnist: epoch 0.2, 25%, 1,234 images/s, loss 2.3026, 4 s left (2 min)",
    ]


@pytest.mark.parametrize(
    ("images_per_s", "left"), [(100.0, "45 s left"), (10.0, "7 min 30 s left"), (0.5, "2 h 30 min left")]
)
def test_remaining_time_has_units_of_its_size(images_per_s: float, left: str) -> None:
    assert line("run", Progress(30, 120, 50, 0.25, 0.5, images_per_s)).endswith(left)


def test_time_left_of_a_sweep_is_the_mean_of_the_cells_that_ran() -> None:
    progress = SweepProgress(5)
    assert progress.next() == "1 of 5 done", "a skipped or failed cell has no time"
    progress.add_time(60)
    assert progress.next() == "2 of 5 done, about 3 min left"
    progress.add_time(180)
    assert progress.next() == "3 of 5 done, about 4 min left"
    assert progress.next() == "4 of 5 done, about 2 min left"
    assert progress.next() == "", "the summary follows the last cell"


def test_sweep_of_unknown_length_has_no_time_left() -> None:
    progress = SweepProgress(None)
    progress.add_time(60)
    assert [progress.next(), progress.next()] == ["1 done", "2 done"]


@pytest.mark.parametrize(("seconds", "left"), [(4.4, "4 s"), (99, "99 s"), (750, "12 min"), (9000, "2.5 h")])
def test_estimate_is_rounded_to_its_size(seconds: float, left: str) -> None:
    progress = SweepProgress(2)
    progress.add_time(seconds)
    assert progress.next() == f"1 of 2 done, about {left} left"
