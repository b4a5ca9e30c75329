"""The progress line on a terminal."""

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
