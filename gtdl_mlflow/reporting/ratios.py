"""Rankings from the turns of a paired measurement.

A restart has one value: the median over its rounds of the logarithm of the ratio of two neighbouring turns.
``intervals`` has the interval of their mean.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..hardware import interference
from .intervals import Ratio, Verdict, paired_ratio
from .sentences import of_times, ranking_sentence


@dataclass(frozen=True)
class MeasuredTurn:
    """One turn of one framework."""

    restart: int
    threads: int
    activity: str
    round: int
    position: int
    """Position in the random order of the round, from 0."""
    framework: str
    units: int
    """Training steps, test batches or images."""
    wall_s: float
    cpu_s: float
    """CPU time of all threads of the worker."""
    waiting_cpu_s: float
    """CPU time that the worker used since its last turn, while it waited."""
    foreign_percent: float
    """Share of the machine's CPU time that other processes used during the turn."""
    stolen_percent: float
    """Share of the CPU time that the host of a virtual machine withheld during the turn."""
    group: int = 0
    """Number of the group whose workers were in memory together."""


CPU, WALL = "cpu", "wall"
"""Clocks: CPU time with one thread, which other load hardly changes, and wall-clock time with all threads."""

CLOCKS = {CPU: "CPU time", WALL: "wall clock"}
"""Names of the clocks in tables and sentences."""


OVER_PLAIN = "_over_plain"
"""Follows the activity in the metrics of a paired measurement that compare a framework with the one that it runs on."""


@dataclass(frozen=True)
class AbstractionCost:
    """Time of a framework divided by that of the framework that it runs on."""

    ratio: Ratio
    restarts: tuple[float, ...]
    """The ratio in each restart."""


Costs = dict[tuple[str, str, str, str], AbstractionCost]
"""Cost of an abstraction by the label of the framework, that of the framework that it runs on, clock and activity."""


@dataclass(frozen=True)
class Ranked:
    """One framework in a ranking."""

    framework: str
    unit_s: float
    """Median time of a unit (a training step, a test batch, an image) over the restarts."""
    ratio: Ratio
    """Its time divided by the best's; exactly 1 for the best."""
    restarts: tuple[float, ...] = ()
    """That ratio in each restart."""


@dataclass(frozen=True)
class Ranking:
    """All frameworks in one activity by one clock, the best first."""

    activity: str
    clock: str
    frameworks: tuple[Ranked, ...]

    @property
    def is_resolved(self) -> bool:
        return all(each.ratio.is_resolved for each in self.frameworks[1:])


def rank(turns: Iterable[MeasuredTurn], activity: str, clock: str) -> Ranking:
    """Return the ranking of the frameworks in one activity by one clock."""
    times = unit_times(turns, activity, clock)
    logs = {name: [float(np.median(list(rounds.values()))) for rounds in some.values()] for name, some in times.items()}
    names = sorted(logs, key=lambda name: float(np.mean(logs[name])))
    ranked = []
    for name in names:
        restarts = log_ratios(times[name], times[names[0]])
        value = paired_ratio(restarts, max(1, len(names) - 1))
        if name == names[0]:
            value = Ratio(1.0, 1.0, 1.0, value.n)
        unit_s = math.exp(float(np.median(logs[name])))
        ranked.append(Ranked(name, unit_s, value, tuple(map(math.exp, restarts))))
    return Ranking(activity, clock, tuple(ranked))


def undisturbed(turns: Iterable[MeasuredTurn]) -> list[MeasuredTurn]:
    """Return the turns of those restarts and thread counts during which nothing else used the machine.

    The evidence is the mean over all turns: one turn has few ticks of the system's clock.
    """
    groups: dict[tuple[int, int], list[MeasuredTurn]] = defaultdict(list)
    for turn in turns:
        groups[turn.restart, turn.threads].append(turn)
    return [turn for some in groups.values() if not interference_of(some) for turn in some]


def interference_of(turns: Sequence[MeasuredTurn]) -> str:
    """Return what disturbed these turns in words; empty if nothing did."""
    return "; ".join(
        interference.warnings(
            {
                "interference/foreign_cpu_percent": float(np.mean([turn.foreign_percent for turn in turns])),
                "interference/steal_percent": float(np.mean([turn.stolen_percent for turn in turns])),
            }
        )
    )


def compare(turns: Iterable[MeasuredTurn], activity: str, clock: str, first: str, second: str) -> Ratio:
    """Return the time of framework ``first`` divided by that of ``second``."""
    times = unit_times(turns, activity, clock)
    return paired_ratio(log_ratios(times[first], times[second]))


def abstraction_costs(turns_by_clock: Mapping[str, Sequence[MeasuredTurn]], plain: Mapping[str, str]) -> Costs:
    """Return the time of each framework divided by that of the framework that it runs on."""
    costs: Costs = {}
    for clock, turns in turns_by_clock.items():
        for activity in PHRASES:
            measured = {turn.framework for turn in turns if turn.activity == activity}
            for label, other in plain.items():
                if {label, other} <= measured:
                    times = unit_times(turns, activity, clock)
                    restarts = log_ratios(times[label], times[other])
                    cost = AbstractionCost(paired_ratio(restarts), tuple(map(math.exp, restarts)))
                    costs[label, other, clock, activity] = cost
    return costs


Rounds = dict[int, dict[int, float]]
"""Logarithm of the seconds per unit, by restart and round."""


def log_ratios(first: Rounds, second: Rounds) -> list[float]:
    """Return, for each restart of both, the median over the common rounds of the difference of the logarithms."""
    values = []
    for restart in sorted(first.keys() & second.keys()):
        common = first[restart].keys() & second[restart].keys()
        if common:
            values.append(float(np.median([first[restart][each] - second[restart][each] for each in common])))
    return values


def unit_times(turns: Iterable[MeasuredTurn], activity: str, clock: str) -> dict[str, Rounds]:
    """Return the times of each framework in one activity by one clock."""
    some = [turn for turn in turns if turn.activity == activity]
    threads = (min if clock == CPU else max)((turn.threads for turn in some), default=1)
    times: dict[str, Rounds] = defaultdict(lambda: defaultdict(dict))
    for turn in some:
        seconds = turn.cpu_s if clock == CPU else turn.wall_s
        if turn.threads == threads and seconds > 0:
            times[turn.framework][turn.restart][turn.round] = math.log(seconds / turn.units)
    return times


PHRASES = {
    "training": of_times("trained"),
    "testing": of_times("classified the test set"),
    "latency": of_times("classified single images"),
}
"""Words of a sentence, by activity."""

RUN_METRICS = {"training": "training_time_s", "testing": "testing_time_s"}
"""Metric of a whole run that an activity decides."""

UNITS = {"training": "training step", "testing": "test batch", "latency": "single image"}
"""Name of the unit of an activity."""

VERDICTS = {
    Verdict.larger: "slower",
    Verdict.smaller: "faster",
    Verdict.same: "same",
    Verdict.unresolved: "not resolved",
}
"""Words for the verdict on a ratio."""


def sentence(ranking: Ranking) -> str:
    """Return the ranking in words: the best, and every other framework's factor with its interval."""
    best, *others = ranking.frameworks
    distances = [(each.framework, each.ratio) for each in others]
    return ranking_sentence(PHRASES[ranking.activity], best.framework, distances, "restart", {}, "", "")
