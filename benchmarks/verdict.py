"""How often the verdict of a measurement is right, for planted differences.

    python benchmarks/verdict.py [--trials 100] [--load 0] [--method paired] [--log FILE.csv]

A trial measures PyTorch, PyTorch again, and PyTorch slowed down by 3 % and by 10 %, with one thread, and compares the
last three with the first. Each comparison has the level of a single one. ``--load K`` keeps K other processes busy.

``--method paired`` is a paired measurement by CPU time. ``--method whole_runs`` does five whole runs of each with
different seeds, which take turns and last as long together, and compares the training times by Mann-Whitney's test.

Prints each trial, then every goal with what was reached, and exits with 1 if one is missed. ``whole_runs`` has no
goals. With ``--log``, each trial is a line of a CSV file, and the benchmark goes on after the last trial of an existing
file.
"""

from __future__ import annotations

import argparse
import csv
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from scipy import stats
from substitutes import interpreter

from gtdl_mlflow import config, datasets, environments
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.reporting import ratios
from gtdl_mlflow.reporting.intervals import LEVEL, Ratio, Verdict
from gtdl_mlflow.sweeps.paired import Contestant, MeasurementPlan, PairedMeasurement
from gtdl_mlflow.worker.events import Metrics
from gtdl_mlflow.worker.job import Activity
from gtdl_mlflow.worker_process import run_worker

ADAPTERS = Path(__file__).parent / "planted"

PLAIN = "plain"
PLANTED = {"again": 1.0, "slowed by 3 %": 1.03, "slowed by 10 %": 1.10}
"""True ratio of the time of each contestant to that of ``PLAIN``."""

SEEDS = 5
"""Whole runs of each contestant in a trial."""

FEWEST_STEPS = 100
"""Training steps of a whole run, even if it takes longer than its share of the time."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of one contestant with ``PLAIN``."""

    value: float
    """Measured ratio of the times."""
    low: float
    high: float
    """End of the interval; nan in a method without one."""
    repeats: int
    verdict: Verdict


@dataclass(frozen=True)
class Trial:
    """The result of one measurement of all contestants."""

    seconds: float
    comparisons: dict[str, Comparison]


def contestants(setting: str, folder: Path, overrides: Sequence[str] = ()) -> list[Contestant]:
    """Return PyTorch, PyTorch again, and PyTorch slowed down."""
    composed = config.compose(["framework=torch", f"setting={setting}", "hardware.threads=1", *overrides])
    python, environment = environments.ensure(composed.framework, "cpu").python, composed.speed_settings.environment
    data = datasets.prepare(composed.dataset)
    job = create_job(composed, data.folder, folder / "job", data.sha256)
    slowed_python, slowed = interpreter(python, ADAPTERS, folder), replace(job, adapter="slowed:Slowed")
    return [Contestant(PLAIN, python, environment, job)] + [
        Contestant(name, slowed_python, {**environment, "SLOWED": str(true_ratio)}, slowed)
        if true_ratio > 1
        else Contestant(name, python, environment, job)
        for name, true_ratio in PLANTED.items()
    ]


def paired(setting: str, seconds: float, number: int, folder: Path) -> dict[str, Comparison]:
    """Compare by one paired measurement."""
    plan = MeasurementPlan(seconds, activities=(Activity.training,))
    measurement = PairedMeasurement(contestants(setting, folder), 1, plan, folder)
    for _ in measurement.run(number):
        pass
    if measurement.failures:
        sys.exit(f"a worker failed: {measurement.failures}")

    def comparison(name: str) -> Comparison:
        ratio = ratios.compare(measurement.turns, Activity.training.value, ratios.CPU, name, PLAIN)
        return Comparison(ratio.value, ratio.low, ratio.high, ratio.n, ratio.verdict)

    return {name: comparison(name) for name in PLANTED}


def whole_runs(setting: str, seconds: float, number: int, folder: Path) -> dict[str, Comparison]:
    """Compare the training times of ``SEEDS`` whole runs of each, which take about ``seconds`` together."""
    steps = steps_of_a_run(setting, seconds / SEEDS / (1 + len(PLANTED)))
    times: dict[str, list[float]] = {name: [] for name in (PLAIN, *PLANTED)}
    for seed in range(SEEDS):
        for each in contestants(setting, folder, [*run_overrides(steps), f"seed={SEEDS * number + seed}"]):
            times[each.name].append(training_time_s(each, folder / f"{each.name} {seed}"))

    def comparison(name: str) -> Comparison:
        value = statistics.median(times[name]) / statistics.median(times[PLAIN])
        p = float(stats.mannwhitneyu(times[name], times[PLAIN]).pvalue)
        verdict = Verdict.unresolved if p >= 1 - LEVEL else Verdict.larger if value > 1 else Verdict.smaller
        return Comparison(value, float("nan"), float("nan"), SEEDS, verdict)

    return {name: comparison(name) for name in PLANTED}


@functools.cache
def steps_of_a_run(setting: str, seconds: float) -> int:
    """Return the number of training steps with which a whole run takes about ``seconds``."""
    with tempfile.TemporaryDirectory() as name:
        plain, *_ = contestants(setting, Path(name), run_overrides(FEWEST_STEPS))
        started = time.monotonic()
        training_s = training_time_s(plain, Path(name) / "run")
        start_up_s = time.monotonic() - started - training_s
    return max(FEWEST_STEPS, round(FEWEST_STEPS * (seconds - start_up_s) / training_s))


def run_overrides(steps: int) -> list[str]:
    """Return the overrides of a whole run of so many steps."""
    return [f"training.iterations={steps}", "training.epochs=null", "training.evaluate_every_epochs=0",
            "latency.repeats=0"]  # fmt: skip


def training_time_s(contestant: Contestant, folder: Path) -> float:
    """Return the training time of one whole run."""
    values: dict[str, float] = {}
    for event in run_worker(contestant.job, contestant.python, dict(contestant.environment), folder, 3600):
        if isinstance(event, Metrics):
            values |= event.values
    return values["training_time_s"]


METHODS: dict[str, Callable[[str, float, int, Path], dict[str, Comparison]]] = {
    "paired": paired,
    "whole_runs": whole_runs,
}


class Log:
    """The trials so far, as lines of a CSV file if there is one."""

    def __init__(self, path: Path | None, options: dict[str, str]) -> None:
        """Read the trials of an existing file; exit if it has those of other options."""
        self._path, self._options = path, options
        self.trials: list[Trial] = []
        if path is None:
            return
        if path.exists():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if others := {key: row[key] for key, value in options.items() if row[key] != value}:
                        sys.exit(f"{path} has trials with {others}, not with {options}; give another --log")
                    self.trials.append(_trial(row))
        else:
            header = [f"{name} {column}" for name in PLANTED for column in Comparison.__annotations__]
            self._write([*options, "seconds", *header])

    def add(self, trial: Trial) -> None:
        self.trials.append(trial)
        values = [value for each in trial.comparisons.values() for value in vars(each).values()]
        self._write([*self._options.values(), trial.seconds, *values])

    def _write(self, row: Sequence[object]) -> None:
        if self._path is not None:
            with self._path.open("a", newline="") as file:
                csv.writer(file).writerow([each.value if isinstance(each, Verdict) else each for each in row])


def _trial(row: dict[str, str]) -> Trial:
    comparisons = {}
    for name in PLANTED:
        value, low, high, repeats, verdict = (row[f"{name} {column}"] for column in Comparison.__annotations__)
        comparisons[name] = Comparison(float(value), float(low), float(high), int(repeats), Verdict(verdict))
    return Trial(float(row["seconds"]), comparisons)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep ``count`` processes busy during the block."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="number of trials, with those of an existing --log")
    parser.add_argument("--load", type=int, default=0, metavar="K")
    parser.add_argument("--method", choices=METHODS, default="paired")
    parser.add_argument("--seconds", type=float, default=120.0, help="limit of a trial")
    parser.add_argument("--setting", default="caffe_mnist")
    parser.add_argument("--log", type=Path, metavar="FILE")
    options = parser.parse_args()
    log = Log(options.log, {name: str(getattr(options, name)) for name in ("method", "load", "setting")})
    with busy_processes(options.load):
        for number in range(len(log.trials), options.trials):
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                comparisons = METHODS[options.method](options.setting, options.seconds, number, Path(folder))
            trial = Trial(time.monotonic() - started, comparisons)
            log.add(trial)
            texts = [f"{name} {_text(each)}" for name, each in comparisons.items()]
            print(f"{number + 1} of {options.trials}: {', '.join(texts)}; {trial.seconds:.0f} s", flush=True)
    if not log.trials:
        parser.error("--trials: at least 1")
    reached = [goal(name, [trial.comparisons[name] for trial in log.trials]) for name in PLANTED]  # prints all of them
    seconds = statistics.mean(trial.seconds for trial in log.trials)
    print(f"{len(log.trials)} trials, {seconds:.0f} s each; load: {options.load} other processes")
    sys.exit(0 if all(reached) or options.method != "paired" else 1)


def _text(each: Comparison) -> str:
    return f"{Ratio(each.value, each.low, each.high, each.repeats).text} {ratios.VERDICTS[each.verdict]}"


def goal(name: str, results: Sequence[Comparison]) -> bool:
    """Print the goals for one contestant with what was reached; return whether all are reached."""
    true_ratio, count = PLANTED[name], len(results)
    verdicts = [each.verdict for each in results]
    if true_ratio == 1:
        same, wrong = verdicts.count(Verdict.same), verdicts.count(Verdict.larger) + verdicts.count(Verdict.smaller)
        print(f"against itself: {wrong} false differences in {count} (at most 5 %); {same} 'same'")
        reached = wrong <= 0.05 * count
    else:
        least = 1.0 if true_ratio >= 1.1 else 0.9
        slower, faster = verdicts.count(Verdict.larger), verdicts.count(Verdict.smaller)
        print(f"{name}: detected in {slower} of {count} (at least {100 * least:g} %); {faster} 'faster'")
        reached = slower >= least * count
    with_interval = [each for each in results if each.low == each.low]
    if with_interval:
        covered = sum(each.low <= true_ratio <= each.high for each in with_interval)
        width = statistics.median(100 * (each.high / each.low) ** 0.5 - 100 for each in with_interval)
        intervals = f"{covered} of {count} intervals (at least 90 %), whose median half-width is {width:.2f} %"
        print(f"  the true ratio is in {intervals}")
        reached &= covered >= 0.9 * count
    return reached


if __name__ == "__main__":
    main()
