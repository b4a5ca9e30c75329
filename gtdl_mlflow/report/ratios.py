"""Ratios of times with intervals and verdicts, from repeats that are restarts of the processes.

A restart has one value: the median over its rounds of the logarithm of the ratio of two neighbouring turns. The
interval is Student's t on these values, because restarts are the independent repeats (Kalibera and Jones 2013). In a
simulation with heavy tails, skewed restart effects and drift (``benchmarks/coverage.py``), the interval covers the true
ratio in 94 to 95 % of the data sets. A percentile bootstrap over restarts and rounds covers it in 97 to 100 %, because
its intervals are 1.4 to 3.6 times as wide.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy import stats

from ..hardware import interference

LEVEL = 0.95
"""Confidence level of all intervals of one comparison together."""

EQUAL_WITHIN = 0.02
"""Two times are the same if the interval of their ratio lies within this distance of 1: the smallest difference that
decides a choice.
"""

FEWEST_RESTARTS = 3
"""With fewer there is no interval."""


class RatioVerdict(str, Enum):
    """What a ratio's interval shows."""

    slower = "slower"
    """The first takes longer than the second."""
    faster = "faster"
    same = "same"
    """The same within ``EQUAL_WITHIN``: two one-sided tests (Schuirmann 1987)."""
    unresolved = "unresolved"


@dataclass(frozen=True)
class Ratio:
    """The time of one side divided by the time of another, with its interval."""

    value: float
    low: float
    """Lower end of the interval; 0 if there are too few restarts."""
    high: float
    """Upper end; infinite if there are too few restarts."""
    restarts: int

    @property
    def half_width(self) -> float:
        """Half of the interval's width, relative to the ratio: 0.02 is 2 %."""
        return math.sqrt(self.high / self.low) - 1 if self.low > 0 else math.inf

    @property
    def verdict(self) -> RatioVerdict:
        if self.low > 1 / (1 + EQUAL_WITHIN) and self.high < 1 + EQUAL_WITHIN:
            return RatioVerdict.same
        if self.low > 1:
            return RatioVerdict.slower
        return RatioVerdict.faster if self.high < 1 else RatioVerdict.unresolved

    @property
    def is_resolved(self) -> bool:
        """Whether the verdict is final: there is one, and the interval is narrow enough to state the ratio."""
        return self.verdict is not RatioVerdict.unresolved and self.half_width <= EQUAL_WITHIN


def ratio(log_ratios: Sequence[float], comparisons: int = 1) -> Ratio:
    """Return the ratio from one mean log ratio per restart.

    With ``comparisons`` ratios of one table, each interval has Bonferroni's level, so that all hold together.
    """
    values = np.asarray(log_ratios, float)
    value, count = float(values.mean()), len(values)
    if count < FEWEST_RESTARTS:
        return Ratio(math.exp(value), 0.0, math.inf, count)
    quantile = float(stats.t.ppf(1 - (1 - LEVEL) / (2 * comparisons), count - 1))
    half = quantile * float(values.std(ddof=1)) / math.sqrt(count)
    return Ratio(math.exp(value), math.exp(value - half), math.exp(value + half), count)


@dataclass(frozen=True)
class MeasuredTurn:
    """One turn of one framework."""

    restart: int
    threads: int
    activity: str
    round: int
    position: int
    """Place in the random order of the round, from 0."""
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


CPU, WALL = "cpu", "wall"
"""Clocks: CPU time with one thread, which other load hardly changes, and wall-clock time with all threads."""


@dataclass(frozen=True)
class Ranked:
    """One framework in a ranking."""

    framework: str
    unit_s: float
    """Median time of a unit (a training step, a test batch, an image) over the restarts."""
    ratio: Ratio
    """Its time divided by the best's; exactly 1 for the best."""


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
    times = _unit_times(turns, activity, clock)
    logs = {name: [float(np.median(list(rounds.values()))) for rounds in some.values()] for name, some in times.items()}
    names = sorted(logs, key=lambda name: float(np.mean(logs[name])))
    ranked = []
    for name in names:
        value = ratio(log_ratios(times[name], times[names[0]]), max(1, len(names) - 1))
        if name == names[0]:
            value = Ratio(1.0, 1.0, 1.0, value.restarts)
        ranked.append(Ranked(name, math.exp(float(np.median(logs[name]))), value))
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
    times = _unit_times(turns, activity, clock)
    return ratio(log_ratios(times[first], times[second]))


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


def _unit_times(turns: Iterable[MeasuredTurn], activity: str, clock: str) -> dict[str, Rounds]:
    some = [turn for turn in turns if turn.activity == activity]
    threads = (min if clock == CPU else max)((turn.threads for turn in some), default=1)
    times: dict[str, Rounds] = defaultdict(lambda: defaultdict(dict))
    for turn in some:
        seconds = turn.cpu_s if clock == CPU else turn.wall_s
        if turn.threads == threads and seconds > 0:
            times[turn.framework][turn.restart][turn.round] = math.log(seconds / turn.units)
    return times


VERBS = {"training": "trained", "testing": "classified the test set", "latency": "classified single images"}
"""Predicate of a sentence, by activity."""


def sentence(ranking: Ranking) -> str:
    """Return the ranking in words: the best, and every other framework's factor with its interval.

    Frameworks that take the same time as the best within ``EQUAL_WITHIN`` are named with it.
    """
    best, *others = ranking.frameworks
    verb = VERBS[ranking.activity]
    if not others:
        return f"{best.framework} {verb}; there is no other framework to compare it with."
    tied = [each for each in others if each.ratio.verdict is RatioVerdict.same]
    slower = [each for each in others if each.ratio.verdict is RatioVerdict.slower]
    unresolved = [each for each in others if each not in tied and each not in slower]
    names = _joined([each.framework for each in (best, *tied)])
    if tied:
        parts = [f"{names} {verb} in the same time, within {100 * EQUAL_WITHIN:g} %."]
    elif unresolved:
        parts = [f"{names} {verb} in the shortest time so far."]
    else:
        parts = [f"{names} {verb} fastest."]
    if slower:
        factors = [f"{each.framework} {factor(each.ratio)}" for each in slower]
        factors[0] = f"{slower[0].framework} took {factor(slower[0].ratio)} as long"
        parts.append(f"{', '.join(factors)}.")
    if unresolved:
        factors = [f"{each.framework} {factor(each.ratio)}" for each in unresolved]
        parts.append(f"Not resolved: {', '.join(factors)}.")
    return " ".join(parts)


def factor(value: Ratio) -> str:
    """Return a ratio with its interval: ``1.15x [1.13, 1.17]``; without an interval if there are too few restarts."""
    if not math.isfinite(value.high):
        return f"{value.value:.2f}x"
    return f"{value.value:.2f}x [{value.low:.2f}, {value.high:.2f}]"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
