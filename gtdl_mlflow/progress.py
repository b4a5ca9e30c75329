"""The progress of a run and of a sweep on a terminal."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from .console import info, report_every_minute, status_line
from .worker.events import Event, Phase, Progress, Remark

PHASES = {
    "interpreter": "starting",
    "import": "importing the framework",
    "build": "building the network",
    "ahead-of-time compilation": "compiling",
    "data verification": "verifying the data",
    "data": "preprocessing the images",
    "saving": "saving the model",
}
"""Words for a phase, if its name is not enough."""


class ProgressLine:
    """One line on standard error with the phase of the run, or epoch, speed, loss and remaining time of its training.

    On a terminal, the line is updated in place, and erased at the end of the context. Elsewhere it is printed once a
    minute.
    """

    def __init__(self, label: str) -> None:
        self._text = self._label = label
        self._stack = ExitStack()

    def __enter__(self) -> ProgressLine:
        self._stack.enter_context(report_every_minute(lambda: self._text))
        return self

    def show(self, event: Event) -> None:
        """Update the line if the event changes it. Print a remark."""
        if isinstance(event, Progress):
            self._text = line(self._label, event)
        elif isinstance(event, Phase):
            self._text = f"{self._label}: {PHASES.get(event.name, event.name)}"
        elif isinstance(event, Remark):
            info(event.text)
            return
        else:
            return
        status_line(self._text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status_line("")
        self._stack.close()


class SweepProgress:
    """The number of cells of a sweep that are done, and an estimate of the time that the others take."""

    def __init__(self, cells: int | None, ending: str = "left") -> None:
        """``cells`` is the number of cells, None if it is unknown; ``ending`` follows the estimate."""
        self._cells, self._ending = cells, ending
        self._done = 0
        self._times_s: list[float] = []

    def add_time(self, seconds: float) -> None:
        """Add the time of a cell that ran and finished. Skipped and failed cells have none."""
        self._times_s.append(seconds)

    def next(self) -> str:
        """Count a cell as done and return the line to print, such as ``7 of 25 done, about 12 min left``.

        It is empty after the last cell.
        """
        self._done += 1
        if self._cells is None:
            return f"{self._done} done"
        left = self._cells - self._done
        if left <= 0:
            return ""
        text = f"{self._done} of {self._cells} done"
        if not self._times_s:
            return text
        mean_s = sum(self._times_s) / len(self._times_s)
        return f"{text}, about {_rounded_duration(left * mean_s)} {self._ending}"


def line(label: str, event: Progress) -> str:
    """Return the line, such as ``torch on mnist_5k: epoch 3.2, 41%, 1,234 images/s, loss 0.1234, 12 s left``."""
    share = event.iteration / event.iterations
    left = (event.iterations - event.iteration) * event.batch_size / event.images_per_s
    return (
        f"{label}: epoch {event.epoch:.1f}, {share:.0%}, {event.images_per_s:,.0f} images/s, "
        f"loss {event.loss:.4f}, {_duration(left)} left"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _rounded_duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
