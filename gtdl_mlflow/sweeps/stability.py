"""The stability study: compare each framework with itself to find how small a difference this machine can resolve."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
from mlflow.entities import Run

from ..console import aligned
from ..files import write_csv
from ..paired import Contestant
from ..reporting import ratios
from ..reporting.formats import count
from ..reporting.intervals import EQUAL_WITHIN, FEWEST_RESTARTS, POWER, Ratio, paired_ratio, restarts_for
from ..reporting.ratios import CPU, MeasuredTurn
from .paired_study import TURNS, PairedStudy, counted_turns, interference_remarks
from .studies import StudyResult

STABILITY_TABLE = "stability.csv"

SECOND_WORKER = " again"
"""End of the label of a framework's second worker."""

NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution, relative to its median absolute deviation."""

NOISE_HEADER = ["framework", "measured", "clock", "ms", "2nd / 1st worker", "rounds %", "restarts %", "half-width %",
                "restarts for 2 %", "min for 2 %"]  # fmt: skip


@dataclass(frozen=True)
class Noise:
    """Two workers of one framework in one activity by one clock: their true ratio is 1."""

    framework: str
    activity: str
    clock: str
    unit_s: float
    """Median time of a training step, a test batch or an image."""
    ratio: Ratio
    """Time of the second worker divided by that of the first."""
    rounds_percent: float
    """Standard deviation of the ratios of single rounds from the median of their restart, estimated from the median
    absolute deviation."""
    restarts_percent: float
    """Standard deviation of the restarts' ratios, which the interval follows from."""

    @property
    def restarts_needed(self) -> int:
        """Restarts of two frameworks with this noise that show a difference of ``EQUAL_WITHIN``."""
        return restarts_for(self.restarts_percent / 100, EQUAL_WITHIN)


def noise(turns: Iterable[MeasuredTurn], framework: str, activity: str, clock: str) -> Noise | None:
    """Return the noise between a framework's two workers; None if there are too few restarts of both."""
    times = ratios.unit_times(turns, activity, clock)
    first, second = times.get(framework, {}), times.get(framework + SECOND_WORKER, {})
    values = ratios.log_ratios(second, first)
    if len(values) < FEWEST_RESTARTS:
        return None
    deviations: list[float] = []
    for restart in first.keys() & second.keys():
        common = first[restart].keys() & second[restart].keys()
        logs = np.array([second[restart][each] - first[restart][each] for each in common])
        deviations += list(np.abs(logs - np.median(logs)))
    return Noise(
        framework,
        activity,
        clock,
        math.exp(float(np.median([value for rounds in first.values() for value in rounds.values()]))),
        paired_ratio(values),
        100 * NORMAL_MAD * float(np.median(deviations)),
        100 * float(np.std(values, ddof=1)),
    )


class StabilityStudy(PairedStudy):
    """A paired measurement with two workers of each framework in ``configs``. It always uses its whole time limit."""

    fewest_restarts = sys.maxsize

    def _contestants(self) -> list[Contestant]:
        """Return each framework twice."""
        return [replace(each, name=each.name + end) for each in super()._contestants() for end in ("", SECOND_WORKER)]

    def conclude(self, runs: Iterable[Run] = ()) -> StudyResult:
        """Write the turns and the noise, and return the noise as text and as metrics of the parent run."""
        measurement = self._measurement
        if measurement is None or not measurement.turns:
            return super().conclude(runs)
        failures = [f"{name} is left out: {reason}" for name, reason in measurement.failures.items()]
        threads = next(iter(self._configs.values())).threads
        remarks = failures + self._remarks
        return conclude(measurement.turns, threads, measurement.restart_s, remarks, self._folder, measurement.clock)


def conclude(
    turns: Sequence[MeasuredTurn],
    threads: int,
    restart_s: float,
    remarks: Iterable[str],
    folder: Path,
    clock: str = CPU,
) -> StudyResult:
    """Write ``turns`` and their noise to ``folder``, and return the noise as text and as metrics.

    Args:
        turns: the turns of all workers.
        threads: threads of the wall clock.
        restart_s: seconds of a restart.
        remarks: lines that limit the result.
        folder: the sweep's folder.
        clock: clock that decides a paired measurement.
    """
    frameworks = dict.fromkeys(turn.framework.removesuffix(SECOND_WORKER) for turn in turns)
    found = [
        each
        for framework in frameworks
        for by, some in counted_turns(turns, threads, clock).items()
        for activity in ratios.PHRASES
        if (each := noise(some, framework, activity, by))
    ]
    write_csv(folder / TURNS, [each.name for each in fields(MeasuredTurn)], map(astuple, turns))
    remarks = [f"! {remark}" for remark in [*interference_remarks(turns, threads, clock), *remarks]]
    if not found:
        few = f"fewer than {FEWEST_RESTARTS} restarts: the noise is unknown; sweep.paired_minutes= gives more time"
        return StudyResult("\n".join([f"! {few}", *remarks]), [TURNS])
    rows = [_row(each, restart_s) for each in found]
    write_csv(folder / STABILITY_TABLE, NOISE_HEADER, rows)
    activities = dict.fromkeys(each.activity for each in found)
    difference = f"{100 * EQUAL_WITHIN:g} %"
    restarts, workers = len({turn.restart for turn in turns}), len({turn.framework for turn in turns})
    lines = [
        f"every framework against itself: {count(restarts, 'restart')} of {restart_s:.0f} s with {workers} workers, "
        "true ratio 1",
        *aligned([NOISE_HEADER, *rows]),
        "rounds %, restarts %: standard deviation of the ratio between rounds, between restarts",
        "half-width %: half-width of the interval of the ratio",
        f"restarts, min for {difference}: needed to detect a difference of {difference} with {100 * POWER:g} % power",
        "",
        *(_sentence([each for each in found if each.activity == activity], restart_s) for activity in activities),
        *remarks,
    ]
    return StudyResult("\n".join(lines), [TURNS, STABILITY_TABLE], _metrics(found))


def _sentence(found: Sequence[Noise], restart_s: float) -> str:
    """Return how many restarts resolve a small difference in one activity, by the clock of ``found[0]``."""
    decides = found[0].clock
    noisiest = max((each for each in found if each.clock == decides), key=lambda each: each.restarts_percent)
    needed = noisiest.restarts_needed
    return (
        f"{noisiest.activity}: a difference of {100 * EQUAL_WITHIN:g} % by {ratios.CLOCKS[decides]} needs {needed} "
        f"restarts, about {needed * restart_s / 60:.0f} min ({noisiest.framework})"
    )


def _metrics(found: Iterable[Noise]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for each in found:
        name = f"stability/{each.clock}/{each.activity}/{each.framework.replace(' ', '-')}"
        metrics |= {
            f"{name}/round_noise_percent": each.rounds_percent,
            f"{name}/restart_noise_percent": each.restarts_percent,
            f"{name}/half_width_percent": 100 * each.ratio.half_width,
            f"{name}/restarts_needed": each.restarts_needed,
        }
    return metrics


def _row(each: Noise, restart_s: float) -> list[str]:
    return [
        each.framework,
        each.activity,
        each.clock,
        f"{1e3 * each.unit_s:.4g}",
        f"{each.ratio.value:.3f} [{each.ratio.low:.3f}, {each.ratio.high:.3f}]",
        f"{each.rounds_percent:.2f}",
        f"{each.restarts_percent:.2f}",
        f"{100 * each.ratio.half_width:.2f}",
        str(each.restarts_needed),
        f"{each.restarts_needed * restart_s / 60:.1f}",
    ]
