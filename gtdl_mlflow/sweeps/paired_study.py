"""The paired measurement of a sweep: after their whole runs, the frameworks of its cells take turns."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path

import psutil
from mlflow.entities import Run

from .. import cgroups, datasets, environments, modes
from ..config import Config, ConfigError, check, display
from ..console import aligned, info, status_line
from ..files import write_csv
from ..hardware import device_lock, interference
from ..paired import Contestant, MeasurementPlan, PairedMeasurement, link_groups
from ..reporting import ratios
from ..reporting.formats import count, format_number
from ..reporting.intervals import Ratio, Verdict, repeats_needed
from ..reporting.ranking import answers, group_by_conditions
from ..reporting.ratios import CPU, UNITS, WALL, MeasuredTurn, Ranked, Ranking
from ..reporting.runs import BenchmarkRun, read
from ..worker_process import WorkerFailed
from .studies import StudyResult

TURNS, RATIOS = "turns.csv", "ratios.csv"
"""Files of the study: every turn, and the ratio of each framework to the best."""

HEADER = ["measured", "clock", "framework", "ms", "x the best", "low", "high", "restarts", "verdict"]

MEMORY_SHARE = 0.9
"""Share of the free memory that the workers may use together."""

PEAK_MEMORY = "worker/peak_memory_mb"


class PairedStudy:
    """A paired measurement of the frameworks of ``configs``, and its conclusion.

    ``configs`` share the data set, the device and the threads. Each framework is measured once, with the first of its
    configurations. ``minutes`` is the time limit of the measurement. ``sweep_minutes``, if given, replaces it: it is
    the time limit of the whole sweep from the creation of this object.
    """

    fewest_restarts = MeasurementPlan.fewest

    def __init__(
        self, configs: Iterable[Config], minutes: float, folder: Path, sweep_minutes: float | None = None
    ) -> None:
        self._configs: dict[str, Config] = {}
        for each in configs:
            variant = display.variant(*_execution(each))
            self._configs.setdefault(f"{each.framework.label} {each.framework.version}{variant}", each)
        self._minutes, self._sweep_minutes, self._folder = minutes, sweep_minutes, folder
        self._started = time.monotonic()
        self._measurement: PairedMeasurement | None = None
        self._remarks: list[str] = []

    def run(self, runs: Iterable[Run] = (), memory_mb: float | None = None) -> None:
        """Measure until every ratio is resolved or the time is over.

        An interruption leaves what has been measured so far for ``conclude``.

        Args:
            runs: the sweep's runs, whose peak memory is what the workers need.
            memory_mb: memory that the workers may use together; None: what is free.
        """
        if self._sweep_minutes is not None:
            self._minutes = max(0.0, self._sweep_minutes - (time.monotonic() - self._started) / 60)
        contestants = self._contestants()
        if len(contestants) < 2:
            self._remarks.append(f"a paired measurement needs two frameworks; {len(contestants)} can run here")
            return
        hardware, threads = next((each.hardware, each.threads) for each in self._configs.values())
        clock = WALL if hardware.device == "gpu" else CPU
        memory_mb = memory_mb or free_memory_mb()
        plan = MeasurementPlan(60 * self._minutes, fewest=self.fewest_restarts, clock=clock, memory_mb=memory_mb)
        contestants = with_memory(contestants, self._by_label(runs))
        self._measurement = PairedMeasurement(contestants, threads, plan, self._folder / "paired")
        names = ", ".join(each.name for each in contestants)
        info(f"paired measurement of {names}: at most {self._minutes:.1f} min")
        with device_lock.hold(hardware):
            started, restart, resolved = time.monotonic(), -1, ""
            for turn in self._measurement.run():
                if turn.restart != restart:
                    restart = turn.restart
                    resolved = _resolved(self._measurement.rankings()) if restart else "nothing resolved yet"
                left = max(0.0, self._minutes - (time.monotonic() - started) / 60)
                status_line(f"paired measurement: restart {restart + 1}, {resolved}, at most {left:.1f} min left")
        status_line("")

    def _contestants(self) -> list[Contestant]:
        """Return the frameworks that can run here."""
        return [each for label in self._configs if (each := self._contestant(label))]

    def _contestant(self, label: str) -> Contestant | None:
        """Return a framework with its environment and data; None, with a remark, if it cannot run here."""
        config = self._configs[label]
        try:
            check(config)
            environment = environments.ensure(config.framework, config.hardware.device)
            data = datasets.prepare(config.dataset)
            with device_lock.hold(config.hardware):
                config, _ = modes.choose(config, environment, data, self._folder)
        except (ConfigError, environments.EnvironmentFailed, datasets.DatasetError, WorkerFailed) as error:
            self._remarks.append(f"{label} is left out: {error}")
            return None
        return modes.contestant(label, config, environment, data, self._folder / "paired")

    def _by_label(self, runs: Iterable[Run]) -> dict[str, list[BenchmarkRun]]:
        """Return the finished runs of each framework."""
        found: dict[str, list[BenchmarkRun]] = defaultdict(list)
        labels = {
            (each.framework.name, each.framework.version, *_execution(each)): label
            for label, each in self._configs.items()
        }
        for run in read(runs).runs:
            key = run.key
            label = labels.get((key.framework, run.requested_version, *key.execution))
            if run.finished and label:
                found[label].append(run)
        return found

    def conclude(self, runs: Iterable[Run] = ()) -> StudyResult:
        """Write the turns and the ratios, and return the rankings as text and as metrics of the parent run.

        ``runs`` are the whole runs of the sweep, which have the accuracy, the memory and the energy.
        """
        measurement = self._measurement
        if measurement is None or not measurement.turns:
            return StudyResult("\n".join(f"! {remark}" for remark in self._remarks))
        remarks = [f"{name} is left out: {reason}" for name, reason in measurement.failures.items()] + self._remarks
        if len(measurement.groups) > 1:
            first, *_ = measurement.groups[0]
            groups = "; ".join(", ".join(each.name for each in others) for _, *others in measurement.groups)
            remarks.append(f"too little memory for all at once: measured in groups with {first.name}: {groups}")
        rankings = [each for each in measurement.rankings() if each.frameworks]
        if unresolved := [each for each in rankings if not each.is_resolved]:
            minutes = minutes_needed(unresolved, measurement.restart_s)
            remarks.append(_not_resolved(unresolved, minutes))
            following = f"the same command with {self._option_for(minutes or self._minutes)}, or `gtdl report`"
        else:
            following = "`gtdl report` for one page with all runs, or `gtdl ui`"
        threads = next(iter(self._configs.values())).threads
        runs_by_label = self._by_label(runs)
        result = conclude(
            measurement.turns, threads, remarks, self._folder, measurement.clock, runs_by_label, self._plain()
        )
        return replace(result, text=f"{result.text}\nnext: {following}")

    def _plain(self) -> dict[str, str]:
        """Map the label of each framework to that of the framework that it runs on, if both are measured."""
        labels = {(each.framework.name, _execution(each)): label for label, each in self._configs.items()}
        pairs = {
            label: labels.get((each.framework.plain or "", _execution(each))) for label, each in self._configs.items()
        }
        return {label: plain for label, plain in pairs.items() if plain}

    def _option_for(self, more_minutes: float) -> str:
        """Return the option that gives the measurement so many more minutes."""
        if self._sweep_minutes is None:
            return f"sweep.paired_minutes={math.ceil(self._minutes + more_minutes)}"
        return f"minutes={math.ceil(self._sweep_minutes + more_minutes)}"


def _execution(config: Config) -> tuple[str, str, bool]:
    return config.mode, config.precision.value, config.deterministic


def free_memory_mb() -> float:
    """Return the memory in MB that the workers may use together."""
    free: int = psutil.virtual_memory().available
    limited = cgroups.memory_left()
    return MEMORY_SHARE * min(free, free if limited is None else limited) / 1e6


def with_memory(contestants: Iterable[Contestant], runs: Mapping[str, Sequence[BenchmarkRun]]) -> list[Contestant]:
    """Return the contestants with the memory that they need: the peak of their runs, or the largest that is known."""
    peaks = {name: max(run.metrics.get(PEAK_MEMORY, 0.0) for run in some) for name, some in runs.items() if some}
    largest = max(peaks.values(), default=0.0)
    return [replace(each, memory_mb=peaks.get(each.name) or largest) for each in contestants]


def minutes_needed(rankings: Iterable[Ranking], restart_s: float) -> int | None:
    """Return about how many more minutes resolve all ratios, rounded up.

    None if there are too few restarts to estimate that.
    """
    more = []
    for ranking in rankings:
        for each in ranking.frameworks[1:]:
            needed = repeats_needed(each.ratio, len(ranking.frameworks) - 1)
            if needed is None:
                return None
            more.append(needed - each.ratio.n)
    return math.ceil(max(more, default=0) * restart_s / 60)


def _not_resolved(rankings: Iterable[Ranking], minutes: int | None) -> str:
    units: dict[str, list[str]] = defaultdict(list)
    for ranking in rankings:
        for each in ranking.frameworks[1:]:
            if not each.ratio.is_resolved:
                units[each.framework].append(UNITS[ranking.activity])
    names = "; ".join(f"{name} ({', '.join(some)})" for name, some in units.items())
    estimate = "too few restarts to estimate the time" if minutes is None else f"about {count(minutes, 'more minute')}"
    return f"not final yet, {estimate}: {names}"


def _resolved(rankings: Iterable[Ranking]) -> str:
    """Return how many ratios to the best are resolved: ``5 of 12 ratios resolved``."""
    resolved = [each.ratio.is_resolved for ranking in rankings for each in ranking.frameworks[1:]]
    return f"{sum(resolved)} of {len(resolved)} ratios resolved"


def conclude(
    turns: Sequence[MeasuredTurn],
    threads: int,
    remarks: Iterable[str],
    folder: Path,
    clock: str = CPU,
    runs: Mapping[str, Sequence[BenchmarkRun]] | None = None,
    plain: Mapping[str, str] | None = None,
) -> StudyResult:
    """Write ``turns`` and their ratios to ``folder``, and return the rankings as text and as metrics.

    CPU time uses the turns with one thread. The wall clock uses the undisturbed turns with ``threads`` threads. If
    ``clock`` is the wall clock, as on a GPU, it is the only clock, and all turns with ``threads`` threads are used.

    Args:
        turns: the turns of all groups.
        threads: threads of the wall clock.
        remarks: lines that limit the result.
        folder: the sweep's folder.
        clock: clock that decides.
        runs: finished whole runs of each framework.
        plain: label of a framework to the label of the framework that it runs on.
    """
    counted = counted_turns(turns, threads, clock)
    rankings = [ratios.rank(some, each, by) for by, some in counted.items() for each in ratios.PHRASES]
    rankings = [each for each in rankings if each.frameworks]
    write_csv(folder / TURNS, [each.name for each in fields(MeasuredTurn)], map(astuple, turns))
    write_csv(folder / RATIOS, HEADER, [row for each in rankings for row in _rows(each)])
    finished = runs or {}
    lines = []
    for by, some in counted.items():
        if chosen := [each for each in rankings if each.clock == by]:
            lines += [f"{_title(by, some)}:", *_table(chosen, some, finished if by == clock else {})]
            lines += ["", *map(ratios.sentence, chosen), ""]
    costs = ratios.abstraction_costs(counted, plain or {})
    lines += [*costs_table(costs), ""] if costs else []
    lines += _accuracy(finished)
    lines += [f"! {remark}" for remark in [*interference_remarks(turns, threads, clock), *remarks]]
    metrics, series = _metrics(rankings, costs)
    return StudyResult("\n".join(lines), [TURNS, RATIOS], metrics, series)


def costs_table(costs: ratios.Costs) -> list[str]:
    """Return the lines of a table of the costs, with a column for each activity and clock."""
    columns = list(dict.fromkeys((activity, clock) for _, _, clock, activity in costs))
    rows = [["cost of the abstraction", *(f"{UNITS[activity]}, {ratios.CLOCKS[clock]}" for activity, clock in columns)]]
    for label, other in dict.fromkeys((label, other) for label, other, _, _ in costs):
        values = (costs.get((label, other, clock, activity)) for activity, clock in columns)
        rows.append([f"{label} / {other}", *(value.ratio.text if value else "" for value in values)])
    return aligned(rows)


def counted_turns(turns: Iterable[MeasuredTurn], threads: int, clock: str) -> dict[str, list[MeasuredTurn]]:
    """Return the turns that count by each clock, as if all had been in one group; arguments as for ``conclude``."""
    linked = link_groups(turns)
    all_threads = [turn for turn in linked if turn.threads == threads]
    return {WALL: all_threads} if clock == WALL else {CPU: linked, WALL: ratios.undisturbed(all_threads)}


def interference_remarks(turns: Iterable[MeasuredTurn], threads: int, clock: str) -> list[str]:
    """Return what disturbed the turns of the wall clock; arguments as for ``conclude``."""
    all_threads = [turn for turn in turns if turn.threads == threads]
    counted = set(ratios.undisturbed(all_threads))
    disturbed = [turn for turn in all_threads if turn not in counted]
    if not disturbed:
        return []
    effect = "were disturbed" if clock == WALL else "do not count for the wall clock"
    percent = 100 * len(disturbed) / len(all_threads)
    return [f"{percent:.0f} % of the turns {effect}: {ratios.interference_of(disturbed)}"]


def _title(clock: str, turns: Sequence[MeasuredTurn]) -> str:
    threads = (min if clock == CPU else max)(turn.threads for turn in turns)
    name = "CPU time" if clock == CPU else "wall clock"
    restarts = len({turn.restart for turn in turns})
    return f"{name}, {count(threads, 'thread')}, {count(restarts, 'restart')}, ratios to the best with their intervals"


def _table(
    rankings: Sequence[Ranking], turns: Sequence[MeasuredTurn], runs: Mapping[str, Sequence[BenchmarkRun]]
) -> list[str]:
    """Return the lines of the table, the best in the first activity first. Columns without a value are left out."""
    order = dict.fromkeys(each.framework for ranking in rankings for each in ranking.frameworks)
    columns = {"framework": list(order)}
    for each in rankings:
        cells = {ranked.framework: _cell(ranked, position) for position, ranked in enumerate(each.frameworks)}
        columns[UNITS[each.activity]] = [cells.get(name, "") for name in order]
    columns["accuracy, %"] = [_median(runs.get(name, ()), "accuracy_percent", ".2f") for name in order]
    columns["peak memory, MB"] = [_median(runs.get(name, ()), PEAK_MEMORY, ",.0f") for name in order]
    for device in ("cpu", "gpu"):
        metric = f"system/{device}_energy_j"
        columns[f"{device.upper()} energy of a run, J"] = [
            _median(runs.get(name, ()), metric, ",.0f") for name in order
        ]
    columns["other load, %"] = [_other_load([turn for turn in turns if turn.framework == name]) for name in order]
    shown = {header: cells for header, cells in columns.items() if any(cells)}
    return aligned([list(shown), *map(list, zip(*shown.values(), strict=True))])


def _cell(ranked: Ranked, position: int) -> str:
    """Return the time of the best, or a ratio to it: ``best: 4.31 ms``, ``1.15x [1.13, 1.17]``."""
    if position == 0:
        return f"best: {format_number(1e3 * ranked.unit_s)} ms"
    mark = {Verdict.same: " same", Verdict.unresolved: " ?"}.get(ranked.ratio.verdict, "")
    return f"{ranked.ratio.text}{mark}"


def _median(runs: Iterable[BenchmarkRun], metric: str, form: str) -> str:
    values = [run.metrics[metric] for run in runs if metric in run.metrics]
    return format(statistics.median(values), form) if values else ""


def _other_load(turns: Sequence[MeasuredTurn]) -> str:
    """Return the share of the machine's CPU time that other processes used meanwhile; empty if it does not matter."""
    percent = statistics.fmean(turn.foreign_percent for turn in turns)
    return f"{percent:.0f}" if percent > interference.FOREIGN_PERCENT else ""


def _accuracy(runs: Mapping[str, Sequence[BenchmarkRun]]) -> list[str]:
    """Return the sentence about the accuracy under each set of conditions that two frameworks share."""
    every = [run for some in runs.values() for run in some]
    return [
        answer.sentence
        for frameworks in group_by_conditions(every).values()
        for answer in answers(frameworks)
        if answer.question.name == "accuracy_percent" and len(frameworks) > 1
    ]


def _rows(ranking: Ranking) -> list[list[str]]:
    rows = []
    for position, each in enumerate(ranking.frameworks):
        value = each.ratio
        rows.append(
            [
                ranking.activity,
                ranking.clock,
                each.framework,
                f"{1e3 * each.unit_s:.4g}",
                *(f"{number:.3f}" for number in (value.value, value.low, value.high)),
                str(value.n),
                ratios.VERDICTS[value.verdict] if position else "best",
            ]
        )
    return rows


def _metrics(rankings: Iterable[Ranking], costs: ratios.Costs) -> tuple[dict[str, float], dict[str, Sequence[float]]]:
    """Return the metrics of the parent run, and those with a value per restart."""
    metrics: dict[str, float] = {}
    series: dict[str, Sequence[float]] = {}
    for ranking in rankings:
        for each in ranking.frameworks:
            name = f"paired/{ranking.clock}/{ranking.activity}/{display.part_of_metric(each.framework)}"
            metrics |= _ratio_metrics(name, each.ratio) | {f"{name}/time_ms": 1e3 * each.unit_s}
            series[f"{name}/restart_ratio"] = each.restarts
    for (label, _, clock, activity), cost in costs.items():
        name = f"paired/{clock}/{activity}{ratios.OVER_PLAIN}/{display.part_of_metric(label)}"
        metrics |= _ratio_metrics(name, cost.ratio)
        series[f"{name}/restart_ratio"] = cost.restarts
    return metrics, series


def _ratio_metrics(name: str, ratio: Ratio) -> dict[str, float]:
    metrics = {f"{name}/ratio": ratio.value}
    if math.isfinite(ratio.high):
        metrics |= {f"{name}/ratio_low": ratio.low, f"{name}/ratio_high": ratio.high}
    return metrics
