"""The progress of a run and of a sweep on a terminal."""

from __future__ import annotations

from types import TracebackType

from .console import info, status_line
from .worker.events import Event, Phase, Progress, Remark


class ProgressLine:
    """One line on standard error with the phase of the run, or epoch, speed, loss and remaining time of its training.

    It is written only if standard error is a terminal, and erased at the end of the context.
    """

    def __init__(self, label: str) -> None:
        self._label = label

    def __enter__(self) -> ProgressLine:
        return self

    def show(self, event: Event) -> None:
        """Update the line if the event changes it. Print a remark."""
        if isinstance(event, Progress):
            status_line(line(self._label, event))
        elif isinstance(event, Phase):
            status_line(f"{self._label}: {event.name}")
        elif isinstance(event, Remark):
            status_line("")
            info(event.text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status_line("")


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
