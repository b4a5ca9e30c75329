"""The paired measurement of a sweep: after their whole runs, the frameworks of its cells take turns."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from .. import datasets, environments
from ..config import Config, ConfigError, check
from ..config.job import create_job
from ..console import aligned, info, status_line
from ..files import write_csv
from ..hardware import device_lock
from ..report import ratios
from ..report.ratios import CPU, WALL, MeasuredTurn, Ranking
from .paired import Contestant, MeasurementPlan, PairedMeasurement
from .studies import StudyResult

TURNS, RATIOS = "turns.csv", "ratios.csv"
"""Files of the study: every turn, and the ratio of each framework to the best."""

CLOCKS = {CPU: "CPU time, 1 thread", WALL: "wall clock"}

HEADER = ["measured", "clock", "framework", "ms", "x the best", "low", "high", "restarts", "verdict"]


class PairedStudy:
    """A paired measurement of the frameworks of ``configs``, and its conclusion.

    ``configs`` share the data set, the device and the threads. Each framework is measured once, with the first of its
    configurations.
    """

    def __init__(self, configs: Iterable[Config], minutes: float, folder: Path) -> None:
        self._configs: dict[str, Config] = {}
        for each in configs:
            self._configs.setdefault(f"{each.framework.label} {each.framework.version}", each)
        self._minutes, self._folder = minutes, folder
        self._measurement: PairedMeasurement | None = None
        self._remarks: list[str] = []

    def run(self) -> None:
        """Measure until every ratio is resolved or the time is over.

        An interruption leaves what has been measured so far for ``conclude``.
        """
        contestants = [each for label in self._configs if (each := self._contestant(label))]
        if len(contestants) < 2:
            self._remarks.append(f"a paired measurement needs two frameworks; {len(contestants)} can run here")
            return
        hardware, threads = next((each.hardware, each.threads) for each in self._configs.values())
        info(f"paired measurement of {', '.join(each.name for each in contestants)}: at most {self._minutes:g} min")
        plan = MeasurementPlan(60 * self._minutes)
        self._measurement = PairedMeasurement(contestants, threads, plan, self._folder / "paired")
        with device_lock.hold(hardware):
            started = time.monotonic()
            for turn in self._measurement.run():
                minutes = (time.monotonic() - started) / 60
                status_line(f"paired measurement: restart {turn.restart + 1}, {minutes:.1f} of {self._minutes:g} min")
        status_line("")

    def _contestant(self, label: str) -> Contestant | None:
        """Return a framework with its environment and data; None, with a remark, if it cannot run here."""
        config = self._configs[label]
        try:
            check(config)
            environment = environments.ensure(config.framework, config.hardware.device)
            data = datasets.prepare(config.dataset)
        except (ConfigError, environments.EnvironmentFailed, datasets.DatasetError) as error:
            self._remarks.append(f"{label} is left out: {error}")
            return None
        job = create_job(config, data.folder, self._folder / "paired", data.sha256)
        return Contestant(label, environment.python, config.speed_settings.environment, job)

    def conclude(self) -> StudyResult:
        """Write the turns and the ratios, and return the rankings as text and as metrics of the parent run."""
        if self._measurement is None or not self._measurement.turns:
            return StudyResult("\n".join(self._remarks))
        left_out = [f"{name} is left out: {reason}" for name, reason in self._measurement.failures.items()]
        threads = next(iter(self._configs.values())).threads
        return conclude(self._measurement.turns, threads, [*left_out, *self._remarks], self._folder)


def conclude(turns: Sequence[MeasuredTurn], threads: int, remarks: Iterable[str], folder: Path) -> StudyResult:
    """Write ``turns`` and their ratios to ``folder``, and return the rankings as text and as metrics.

    The wall clock is that of the turns with ``threads`` threads which nothing else disturbed.
    """
    all_threads = [turn for turn in turns if turn.threads == threads]
    undisturbed = ratios.undisturbed(all_threads)
    rankings = [ratios.rank(turns, each, CPU) for each in ratios.VERBS]
    rankings += [ratios.rank(undisturbed, each, WALL) for each in ratios.VERBS]
    rankings = [each for each in rankings if each.frameworks]
    rows = [row for each in rankings for row in _rows(each)]
    write_csv(folder / TURNS, [each.name for each in fields(MeasuredTurn)], map(astuple, turns))
    write_csv(folder / RATIOS, HEADER, rows)
    lines = [*aligned([HEADER, *rows]), ""]
    lines += [f"{CLOCKS[each.clock]}: {ratios.sentence(each)}" for each in rankings]
    counted = set(undisturbed)
    if disturbed := [turn for turn in all_threads if turn not in counted]:
        share, reason = len(disturbed) / len(all_threads), ratios.interference_of(disturbed)
        remarks = [f"{share:.0%} of the turns do not count for the wall clock: {reason}", *remarks]
    lines += [f"! {remark}" for remark in remarks]
    return StudyResult("\n".join(lines), [TURNS, RATIOS], _metrics(rankings))


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
                str(value.restarts),
                value.verdict.value if position else "best",
            ]
        )
    return rows


def _metrics(rankings: Iterable[Ranking]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for ranking in rankings:
        for each in ranking.frameworks:
            name = f"paired/{ranking.clock}/{ranking.activity}/{each.framework.replace(' ', '-')}"
            metrics[f"{name}/ratio"] = each.ratio.value
            if math.isfinite(each.ratio.high):
                metrics |= {f"{name}/ratio_low": each.ratio.low, f"{name}/ratio_high": each.ratio.high}
    return metrics
