"""Paired measurement: the workers of several frameworks take turns of a fraction of a second, in random order.

Neighbouring turns see the same machine, so that the ratio of two frameworks stays the same when other processes, the
clock frequency or the temperature change the speed of both (duet benchmarking: Bulej et al. 2020; randomised
interleaving: Abedi and Brecht 2017). Where memory lies and what is cached differ from process to process (Mytkowicz et
al. 2009), so new processes, a *restart*, are the independent repeats, not rounds (Kalibera and Jones 2013).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..hardware.interference import Snapshot, metrics_between
from ..report import ratios
from ..report.ratios import MeasuredTurn
from ..worker.job import Activity, Job
from ..worker_process import WorkerFailed, WorkerProcess

TURN_S = 0.1
"""Seconds of a turn: long beside the cost of a switch, short beside the time in which a machine changes its speed."""

DISTURBED_RESTARTS = 2
"""If other processes disturbed so many first restarts, the wall clock is not measured any more: several threads that
compete with other processes take many times as long, and their times would not count.
"""

TURN_LIMIT_S = 600.0
"""Longest time for a build or a turn. A worker that takes longer is ended and left out."""


@dataclass(frozen=True)
class Contestant:
    """One framework in a paired measurement."""

    name: str
    """Unique label in this measurement."""
    python: Path
    """Interpreter of the framework's environment."""
    environment: Mapping[str, str]
    """The framework's environment variables."""
    job: Job


class Restart:
    """The processes of one restart: all frameworks, built and warmed up, of which one runs at a time.

    A context manager: at its end, all workers have ended. A worker that fails is left out: ``failures`` has the
    reason, and the others go on.
    """

    def __init__(self, contestants: Sequence[Contestant], threads: int, folder: Path, number: int) -> None:
        self._contestants, self._threads, self._folder, self._number = contestants, threads, folder, number
        self._workers: dict[str, WorkerProcess] = {}
        self._stack = ExitStack()
        self.failures: dict[str, str] = {}
        """Reason for each framework that was left out."""

    def __enter__(self) -> Restart:
        with self._stack as stack:  # ends the workers if a step is interrupted
            for each in self._contestants:
                worker = WorkerProcess(self._folder / each.name, self._threads, dict(each.environment))
                self._workers[each.name] = stack.enter_context(worker)
                with self._leave_out_if_it_fails(each.name):
                    worker.start(each.python)
                    worker.begin_turns(replace(each.job, threads=self._threads), TURN_LIMIT_S)
            for name in list(self._workers):  # they build at the same time, which no clock measures
                with self._leave_out_if_it_fails(name):
                    self._workers[name].next_event()  # what the framework reports of itself: the model is built
                    self._workers[name].pause()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def turns(self, activities: Sequence[Activity], rounds: int, generator: random.Random) -> Iterator[MeasuredTurn]:
        """Do ``rounds`` rounds and yield every turn. In a round, each framework has one turn per activity.

        One turn of each is done and left out before: a worker warms up in its first one, and would count as other load.
        """
        for name in list(self._workers):
            with self._leave_out_if_it_fails(name):
                for activity in activities:
                    self._turn(name, activity, 0, 0)
        orders = {each: balanced_orders(list(self._workers), generator) for each in activities}
        for number in range(rounds):
            for activity in activities:
                order = [name for name in next(orders[activity]) if name in self._workers]
                for position, name in enumerate(order):
                    turn = None
                    with self._leave_out_if_it_fails(name):
                        turn = self._turn(name, activity, number, position)
                    if turn is not None:
                        yield turn

    def _turn(self, name: str, activity: Activity, number: int, position: int) -> MeasuredTurn:
        worker = self._workers[name]
        before = Snapshot.now()
        worker.resume()
        turn = worker.turn(activity, TURN_S)
        worker.pause()
        evidence = metrics_between(before, Snapshot.now(), turn.cpu_s)
        return MeasuredTurn(
            restart=self._number,
            threads=self._threads,
            activity=activity.value,
            round=number,
            position=position,
            framework=name,
            units=turn.units,
            wall_s=turn.wall_s,
            cpu_s=turn.cpu_s,
            waiting_cpu_s=turn.waiting_cpu_s,
            foreign_percent=evidence["interference/foreign_cpu_percent"],
            stolen_percent=evidence["interference/steal_percent"],
        )

    @contextmanager
    def _leave_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except WorkerFailed as error:
            self.failures[name] = str(error)
            del self._workers[name]


def balanced_orders(names: Sequence[str], generator: random.Random) -> Iterator[list[str]]:
    """Yield random orders without end. In each block of ``len(names)`` orders, a name has every position once."""
    while True:
        block = generator.sample(names, len(names))
        for shift in generator.sample(range(len(names)), len(names)):
            yield block[shift:] + block[:shift]


@dataclass(frozen=True)
class MeasurementPlan:
    """How long a paired measurement lasts."""

    seconds: float
    """Time limit. No restart begins that would probably exceed it, except the first ones up to ``FEWEST_RESTARTS``."""
    rounds: int = 12
    """Rounds per restart. Their noise is larger than that of restarts, and a restart takes as long as ten rounds."""
    fewest: int = 5
    """Restarts before the measurement may end because all ratios are resolved."""
    activities: tuple[Activity, ...] = tuple(Activity)


class PairedMeasurement:
    """Restart after restart, until all ratios to the best are resolved or the time is over.

    ``turns`` holds everything measured so far: after an interruption, that is the result.
    """

    def __init__(self, contestants: Sequence[Contestant], threads: int, plan: MeasurementPlan, folder: Path) -> None:
        self._contestants, self._plan, self._folder = list(contestants), plan, folder
        self._thread_counts = list(dict.fromkeys((1, threads)))
        self.turns: list[MeasuredTurn] = []
        self.failures: dict[str, str] = {}
        """Reason for each framework that was left out."""
        self.restarts = 0

    def run(self, seed: int = 0) -> Iterator[MeasuredTurn]:
        """Measure, and yield each turn as it ends."""
        generator, started = random.Random(seed), time.monotonic()
        while len(self._contestants) > 1:
            before = time.monotonic()
            yield from self._restart(generator)
            self.restarts += 1
            now = time.monotonic()
            over = now + (now - before) - started > self._plan.seconds
            if (over and self.restarts >= ratios.FEWEST_RESTARTS) or self.is_resolved:
                return

    def _restart(self, generator: random.Random) -> Iterator[MeasuredTurn]:
        """Measure with one thread, and with the threads asked for as long as that has a chance to count."""
        for threads in list(self._thread_counts):
            with Restart(
                self._contestants, threads, self._folder / f"{self.restarts}-{threads}", self.restarts
            ) as restart:
                for turn in restart.turns(self._plan.activities, self._plan.rounds, generator):
                    self.turns.append(turn)
                    yield turn
            self.failures |= restart.failures
            if (
                threads > 1
                and self.restarts + 1 >= DISTURBED_RESTARTS
                and not ratios.undisturbed(self.turns_with(threads))
            ):
                self._thread_counts.remove(threads)
            self._contestants = [each for each in self._contestants if each.name not in self.failures]

    def turns_with(self, threads: int) -> list[MeasuredTurn]:
        """Return the turns of the workers with this number of threads."""
        return [turn for turn in self.turns if turn.threads == threads]

    @property
    def is_resolved(self) -> bool:
        """Whether every ratio to the best is resolved, by CPU time."""
        if self.restarts < self._plan.fewest:
            return False
        return all(ratios.rank(self.turns, each.value, ratios.CPU).is_resolved for each in self._plan.activities)
