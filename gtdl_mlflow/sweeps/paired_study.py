"""The paired measurement of a sweep: after their whole runs, the frameworks of its cells take turns."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path

from .. import datasets, environments, files
from ..config import Config, Unavailable, check, display
from ..config.job import create_job
from ..console import aligned, info, status_line
from ..hardware import device_lock
from ..report import ratios
from ..report.ratios import CPU, WALL, Ranking
from .paired import Contestant, MeasurementPlan, PairedMeasurement, write_turns
from .studies import StudyResult

TURNS, RATIOS = "turns.csv", "ratios.csv"
"""Files of the study: every turn, and the ratio of each framework to the best."""

CLOCKS = {CPU: "CPU time, 1 thread", WALL: "wall clock"}


class PairedStudy:
    """A paired measurement of the frameworks of ``configs``, and its conclusion.

    ``configs`` share the data set, the device and the threads. Each framework is measured once, with the first of its
    configurations.
    """

    def __init__(self, configs: Iterable[Config], minutes: float, folder: Path) -> None:
        self._configs = {f"{each.framework.name} {each.framework.version}": each for each in reversed([*configs])}
        self._minutes, self._folder = minutes, folder
        self._measurement: PairedMeasurement | None = None
        self._threads = 1
        self.remarks: list[str] = []

    def run(self) -> None:
        """Measure until every ratio is resolved or the time is over.

        An interruption leaves what has been measured so far for ``conclude``.
        """
        some = [each for name, config in sorted(self._configs.items()) if (each := self._contestant(name, config))]
        if len(some) < 2:
            self.remarks.append(f"paired measurement: at least two frameworks are required, {len(some)} can run here")
            return
        config = next(iter(self._configs.values()))
        self._threads = config.threads
        info(f"paired measurement of {', '.join(each.name for each in some)}: at most {self._minutes:g} min")
        plan = MeasurementPlan(60 * self._minutes)
        self._measurement = PairedMeasurement(some, self._threads, plan, self._folder / "paired")
        with device_lock.hold(config.hardware):
            started = time.monotonic()
            for turn in self._measurement.run():
                minutes = (time.monotonic() - started) / 60
                status_line(f"paired measurement: restart {turn.restart + 1}, {minutes:.1f} of {self._minutes:g} min")
        status_line("")

    def _contestant(self, name: str, config: Config) -> Contestant | None:
        """Return a framework with its environment and data; None, with a remark, if it cannot run here."""
        try:
            check(config)
            environment = environments.ensure(config.framework, config.hardware.device)
            data = datasets.prepare(config.dataset)
            job = create_job(config, data.folder, self._folder / "paired" / name, data.sha256)
        except (Unavailable, environments.EnvironmentFailed, datasets.DatasetError) as error:
            self.remarks.append(f"{name} is left out: {error}")
            return None
        return Contestant(name, environment.python, config.speed_settings.environment, job)

    def conclude(self) -> StudyResult:
        """Write the turns and the ratios, and return the rankings as text and as metrics of the parent run."""
        measurement = self._measurement
        if measurement is None or not measurement.turns:
            return StudyResult("\n".join(self.remarks))
        turns = measurement.turns
        write_turns(self._folder / TURNS, turns)
        all_threads = measurement.turns_with(self._threads)
        calm = ratios.undisturbed(all_threads)
        rankings = [ratios.rank(turns, each, CPU) for each in ratios.VERBS]
        rankings += [ratios.rank(calm, each, WALL) for each in ratios.VERBS]
        rankings = [each for each in rankings if each.frameworks]
        labels = {name: display.label(name.partition(" ")[0]) + " " + name.partition(" ")[2] for name in self._configs}
        header = ["measured", "clock", "framework", "ms", "x the best", "low", "high", "restarts", "verdict"]
        rows = [row for each in rankings for row in _rows(each, labels)]
        files.write_csv(self._folder / RATIOS, header, rows)
        lines = [*aligned([header, *rows]), ""]
        for ranking in rankings:
            lines.append(f"{CLOCKS[ranking.clock]}: {ratios.sentence(ranking, labels)}")
        if disturbed := [turn for turn in all_threads if turn not in set(calm)]:
            share = len(disturbed) / len(all_threads)
            reason = ratios.interference_of(disturbed)
            lines.append(f"! {share:.0%} of the turns do not count for the wall clock: {reason}")
        lines += [f"! {name} is left out: {reason}" for name, reason in measurement.failures.items()]
        lines += [f"! {remark}" for remark in self.remarks]
        metrics: dict[str, float] = {}
        for each in rankings:
            for ranked in each.frameworks:
                name = f"paired/{each.clock}/{each.activity}/{ranked.framework.replace(' ', '-')}"
                metrics[f"{name}/ratio"] = ranked.ratio.value
                if math.isfinite(ranked.ratio.high):
                    metrics |= {f"{name}/ratio_low": ranked.ratio.low, f"{name}/ratio_high": ranked.ratio.high}
        return StudyResult("\n".join(lines), [TURNS, RATIOS], metrics)


def _rows(ranking: Ranking, labels: dict[str, str]) -> list[list[str]]:
    rows = []
    for position, each in enumerate(ranking.frameworks):
        value = each.ratio
        numbers = [f"{value.value:.3f}", f"{value.low:.3f}", f"{value.high:.3f}", str(value.restarts)]
        verdict = value.verdict.value if position else "best"
        rows.append(
            [ranking.activity, ranking.clock, labels[each.framework], f"{1e3 * each.unit_s:.4g}", *numbers, verdict]
        )
    return rows
