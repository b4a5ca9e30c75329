"""The paired measurement of a sweep: after their whole runs, the frameworks of its cells take turns."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path

import psutil
from mlflow.entities import Run

from .. import cgroups, datasets, environments, tags
from ..config import Config, ConfigError, check
from ..config.job import create_job
from ..console import aligned, info, status_line
from ..files import write_csv
from ..hardware import device_lock, interference
from ..report import ranking, ratios
from ..report.ratios import CPU, WALL, MeasuredTurn, Ranked, Ranking
from ..report.runs import BenchmarkRun, read
from ..report.statistics import EQUAL_WITHIN, Ratio, Verdict
from .paired import Contestant, MeasurementPlan, PairedMeasurement, link_groups
from .studies import StudyResult

TURNS, RATIOS = "turns.csv", "ratios.csv"
"""Files of the study: every turn, and the ratio of each framework to the best."""

HEADER = ["measured", "clock", "framework", "ms", "x the best", "low", "high", "restarts", "verdict"]

UNITS = {"training": "training step", "testing": "test batch", "latency": "single image"}
"""What is timed, by activity."""

MEMORY_SHARE = 0.9
"""Share of the free memory that the workers may use together."""

PEAK_MEMORY = "worker/peak_memory_mb"


class PairedStudy:
    """A paired measurement of the frameworks of ``configs``, and its conclusion.

    ``configs`` share the data set, the device and the threads. Each framework is measured once, with the first of its
    configurations. ``minutes`` is the time limit of the measurement, ``sweep_minutes`` that of the sweep, which begins
    now; the latter decides if it is given.
    """

    def __init__(
        self, configs: Iterable[Config], minutes: float, folder: Path, sweep_minutes: float | None = None
    ) -> None:
        self._configs: dict[str, Config] = {}
        for each in configs:
            self._configs.setdefault(f"{each.framework.label} {each.framework.version}", each)
        self._minutes, self._folder = minutes, folder
        self._option = "sweep.paired_minutes" if sweep_minutes is None else "minutes"
        self._ends = None if sweep_minutes is None else time.monotonic() + 60 * sweep_minutes
        self._measurement: PairedMeasurement | None = None
        self._remarks: list[str] = []

    def run(self, runs: Iterable[Run] = (), memory_mb: float | None = None) -> None:
        """Measure until every ratio is resolved or the time is over.

        An interruption leaves what has been measured so far for ``conclude``.

        Args:
            runs: the sweep's runs, whose peak memory is what the workers need.
            memory_mb: memory that the workers may use together; None: what is free.
        """
        if self._ends is not None:
            self._minutes = max(0.0, self._ends - time.monotonic()) / 60
        contestants = [each for label in self._configs if (each := self._contestant(label))]
        if len(contestants) < 2:
            self._remarks.append(f"a paired measurement needs two frameworks; {len(contestants)} can run here")
            return
        hardware, threads = next((each.hardware, each.threads) for each in self._configs.values())
        clock = WALL if hardware.device == "gpu" else CPU
        plan = MeasurementPlan(60 * self._minutes, clock=clock, memory_mb=memory_mb or free_memory_mb())
        contestants = with_memory(contestants, self._by_label(runs))
        self._measurement = PairedMeasurement(contestants, threads, plan, self._folder / "paired")
        names = ", ".join(each.name for each in contestants)
        info(f"paired measurement of {names}: at most {self._minutes:.1f} min")
        with device_lock.hold(hardware):
            started, restart, resolved = time.monotonic(), -1, ""
            for turn in self._measurement.run():
                if turn.restart != restart:
                    restart, resolved = turn.restart, _resolved(self._measurement.rankings())
                left = max(0.0, self._minutes - (time.monotonic() - started) / 60)
                status_line(f"paired measurement: restart {restart + 1}, {resolved}, at most {left:.1f} min left")
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

    def _by_label(self, runs: Iterable[Run]) -> dict[str, list[BenchmarkRun]]:
        """Return the finished runs of each framework."""
        found: dict[str, list[BenchmarkRun]] = defaultdict(list)
        labels = {(each.framework.name, each.framework.version): label for label, each in self._configs.items()}
        for run in read(runs).runs:
            label = labels.get((run.key.framework, run.requested_version))
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
            following = f"the same command with {self._option}={math.ceil(self._total_minutes + minutes)}"
            following += ", or `gtdl report` for all results in one file"
        else:
            following = "`gtdl report` writes all results to one file"
        threads = next(iter(self._configs.values())).threads
        result = conclude(measurement.turns, threads, remarks, self._folder, measurement.clock, self._by_label(runs))
        return StudyResult(f"{result.text}\nnext: {following}", result.artifacts, result.metrics)


def free_memory_mb() -> float:
    """Return the memory in MB that the workers may use together."""
    free = psutil.virtual_memory().available
    limited = cgroups.memory_left()
    return MEMORY_SHARE * min(free, free if limited is None else limited) / 1e6
