"""Paired measurement: the workers of several frameworks take turns of a fraction of a second, in random order.

Neighbouring turns run under equal conditions, so the ratio of two frameworks stays the same when other processes, the
clock frequency or the temperature change the speed of both (duet benchmarking: Bulej et al. 2020; randomised
interleaving: Abedi and Brecht 2017). Where memory lies and what is cached differ from process to process (Mytkowicz et
al. 2009), so new processes, a *restart*, are the independent repeats, not rounds (Kalibera and Jones 2013).
"""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .hardware.interference import Snapshot, metrics_between
from .reporting import ratios
from .reporting.intervals import FEWEST_RESTARTS
from .reporting.ratios import MeasuredTurn, Ranking
from .worker.events import Metadata
from .worker.job import Activity, Job
from .worker_process import WorkerFailed, WorkerProcess

TURN_S = 0.1
"""Seconds of a turn: long compared with the cost of a switch, short compared with drifts of the machine's speed."""

DISTURBED_RESTARTS = 2
"""Number of disturbed first restarts after which the wall clock is no longer measured. Several threads that compete
with other processes take many times as long, and their times would be discarded.
"""

WALL_CLOCK_EVERY = 3
"""The wall clock is measured in one of so many restarts: CPU time decides, and needs most of the time."""

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
    memory_mb: float = 0.0
    """Memory that its worker is expected to need, in MB; 0 if unknown."""


@dataclass(frozen=True)
class Compilation:
    """Compilation of a worker that takes turns."""

    seconds: float
    """Wall-clock time ahead of the first step, and of the first step beyond that of the second."""
    cache: str
    """``cold`` or ``warm``; empty without a cache."""


class Restart:
    """The processes of one restart: the frameworks of one group, built and warmed up, of which one runs at a time.

    A context manager: at its end, all workers have ended. A worker that fails is left out: ``failures`` has the
    reason, and the others go on.
    """

    def __init__(
        self, contestants: Sequence[Contestant], threads: int, folder: Path, number: int, group: int = 0
    ) -> None:
        self._contestants, self._threads, self._folder = contestants, threads, folder
        self._number, self._group = number, group
        self._workers: dict[str, WorkerProcess] = {}
        self._stack = ExitStack()
        self.failures: dict[str, str] = {}
        """Reason for each framework that was left out."""
        self.compilation: dict[str, Compilation] = {}
        """How long each framework compiled."""

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
                    event = self._workers[name].next_event()  # what the framework reports: the model is built
                    if isinstance(event, Metadata):
                        values = event.values
                        self.compilation[name] = Compilation(values["compile_s"], values.get("compile_cache", ""))
                    self._workers[name].pause()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def turns(self, activities: Sequence[Activity], rounds: int, generator: random.Random) -> Iterator[MeasuredTurn]:
        """Do ``rounds`` rounds and yield every turn. In a round, each framework has one turn per activity.

        Before the rounds, each framework does one turn per activity that is not yielded: it contains the warm-up.
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
        evidence = metrics_between(before, Snapshot.now(), turn.lead_in_cpu_s + turn.cpu_s)
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
            group=self._group,
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


def memory_groups(contestants: Sequence[Contestant], memory_mb: float) -> list[list[Contestant]]:
    """Return groups whose workers fit into ``memory_mb`` together: one group if all do.

    Otherwise, the first contestant is in every group. A contestant that does not fit beside the first is in none.
    """
    first, *others = contestants
    if sum(each.memory_mb for each in contestants) <= memory_mb:
        return [list(contestants)]
    groups: list[list[Contestant]] = []
    for each in others:
        for group in groups:
            if sum(member.memory_mb for member in [*group, each]) <= memory_mb:
                group.append(each)
                break
        else:
            if first.memory_mb + each.memory_mb <= memory_mb:
                groups.append([first, each])
    return groups


def link_groups(turns: Iterable[MeasuredTurn]) -> list[MeasuredTurn]:
    """Return the turns as if all frameworks had been in the first group of their restart.

    The times of another group are multiplied by those of the common member in the first group, and divided by those of
    the common member in the same round of their own group. The ratio of two frameworks of different groups is then that
    of their ratios to the common member. Turns without a turn of the common member in their round are left out.
    """
    turns = list(turns)
    members: dict[tuple[int, int, int], set[str]] = defaultdict(set)
    rounds: dict[tuple[int, int, int, str, int, str], MeasuredTurn] = {}
    for turn in turns:
        members[turn.restart, turn.threads, turn.group].add(turn.framework)
        rounds[turn.restart, turn.threads, turn.group, turn.activity, turn.round, turn.framework] = turn
    linked = []
    for turn in turns:
        if turn.group == 0:
            linked.append(turn)
            continue
        common = members[turn.restart, turn.threads, 0] & members[turn.restart, turn.threads, turn.group]
        for name in common - {turn.framework}:
            there, here = (
                rounds.get((turn.restart, turn.threads, group, turn.activity, turn.round, name))
                for group in (0, turn.group)
            )
            if there and here and min(there.cpu_s, here.cpu_s) > 0:
                units = here.units / there.units
                cpu_s, wall_s = units * there.cpu_s / here.cpu_s, units * there.wall_s / here.wall_s
                linked.append(replace(turn, cpu_s=turn.cpu_s * cpu_s, wall_s=turn.wall_s * wall_s))
    return linked


@dataclass(frozen=True)
class MeasurementPlan:
    """How long a paired measurement lasts, and what it may use."""

    seconds: float
    """Time limit. After ``FEWEST_RESTARTS`` restarts, no restart begins that would probably exceed it."""
    rounds: int = 5
    """Rounds per restart. More rounds hardly narrow the interval, which the differences between restarts decide; a
    restart takes as long as three to ten rounds.
    """
    fewest: int = 5
    """Restarts before the measurement may end because all ratios are resolved."""
    activities: tuple[Activity, ...] = tuple(Activity)
    clock: str = ratios.CPU
    """Clock whose ratios must be resolved: CPU time with one thread. For a GPU, whose work uses no CPU time, it is the
    wall clock with the requested number of threads, and CPU time is not measured.
    """
    memory_mb: float = math.inf
    """Memory that the workers may use together, in MB. If they need more, they are measured in groups."""


class PairedMeasurement:
    """A paired measurement: repeats restarts until all ratios to the best are resolved or the time limit is reached.

    ``turns`` holds everything measured so far: after an interruption, that is the result.
    """

    def __init__(self, contestants: Sequence[Contestant], threads: int, plan: MeasurementPlan, folder: Path) -> None:
        self._contestants, self._plan, self._folder = list(contestants), plan, folder
        self.clock = plan.clock
        self._thread_counts = list(dict.fromkeys((1, threads) if plan.clock == ratios.CPU else (threads,)))
        self.turns: list[MeasuredTurn] = []
        self.failures: dict[str, str] = {}
        """Reason for each framework that was left out."""
        self.restarts = 0
        self.restart_s = 0.0
        """Mean seconds of a restart."""
        self.groups = memory_groups(self._contestants, plan.memory_mb) if contestants else []
        """Frameworks that are in memory together."""
        fitting = {each.name for group in self.groups for each in group}
        for each in contestants:
            if each.name not in fitting:
                first = contestants[0]
                self.failures[each.name] = (
                    f"its worker needs {each.memory_mb:,.0f} MB of memory beside the {first.memory_mb:,.0f} MB of "
                    f"{first.name}; {plan.memory_mb:,.0f} MB are available"
                )
        self._leave_out_failures()

    def run(self, seed: int = 0) -> Iterator[MeasuredTurn]:
        """Measure, and yield each turn as it ends."""
        generator, started = random.Random(seed), time.monotonic()
        while len(self._contestants) > 1:
            yield from self._restart(generator)
            self.restarts += 1
            elapsed_s = time.monotonic() - started
            self.restart_s = elapsed_s / self.restarts
            over = elapsed_s + self.restart_s > self._plan.seconds
            if (over and self.restarts >= FEWEST_RESTARTS) or self.is_resolved:
                return

    def _restart(self, generator: random.Random) -> Iterator[MeasuredTurn]:
        """Measure with one thread, and with the requested threads unless interference has spoiled those restarts."""
        for threads in list(self._thread_counts):
            if threads != self._thread_counts[0] and self.restarts % WALL_CLOCK_EVERY:
                continue
            for number, group in enumerate(memory_groups(self._contestants, self._plan.memory_mb)):
                folder = self._folder / f"{self.restarts}-{threads}" / str(number)
                with Restart(group, threads, folder, self.restarts, number) as restart:
                    for turn in restart.turns(self._plan.activities, self._plan.rounds, generator):
                        self.turns.append(turn)
                        yield turn
                self.failures |= restart.failures
                self._leave_out_failures()
                if group[0].name in restart.failures:
                    break  # nothing links the other groups
            measured = self.turns_with(threads)
            if (
                self._plan.clock == ratios.CPU
                and threads > 1
                and len({turn.restart for turn in measured}) >= DISTURBED_RESTARTS
                and not ratios.undisturbed(measured)
            ):
                self._thread_counts.remove(threads)

    def _leave_out_failures(self) -> None:
        self._contestants = [each for each in self._contestants if each.name not in self.failures]

    def turns_with(self, threads: int) -> list[MeasuredTurn]:
        """Return the turns of the workers with this number of threads."""
        return [turn for turn in self.turns if turn.threads == threads]

    def rankings(self) -> list[Ranking]:
        """Return the ranking in each activity so far, by the clock that decides."""
        turns = link_groups(self.turns)
        return [ratios.rank(turns, each.value, self._plan.clock) for each in self._plan.activities]

    @property
    def is_resolved(self) -> bool:
        """Whether every ratio to the best is resolved."""
        return self.restarts >= self._plan.fewest and all(each.is_resolved for each in self.rankings())
