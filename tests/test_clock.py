"""The clock, with a time that the test sets."""

from __future__ import annotations

from helpers.clock import FakeTime

from gtdl_mlflow.worker.clock import Clock


def test_clock_counts_only_while_it_runs() -> None:
    time = FakeTime()
    clock = Clock(time)
    assert clock.seconds == 0
    clock.start()
    time.advance(2)
    assert clock.seconds == 2
    assert clock.stop() == 2
    time.advance(100)
    assert clock.seconds == 2
    clock.start()
    time.advance(0.5)
    assert clock.stop() == 2.5


def test_clock_resolves_nanoseconds_after_a_century_of_uptime() -> None:
    time = FakeTime()
    time.nanoseconds = 2**62
    clock = Clock(time)
    clock.start()
    time.nanoseconds += 1
    assert clock.stop() == 1e-9


def test_clock_adds_time_of_an_earlier_clock() -> None:
    time = FakeTime()
    clock = Clock(time)
    clock.add(3.0, 1.5)
    clock.start()
    time.advance(1)
    assert clock.stop() == 4
    assert clock.cpu_seconds >= 1.5
