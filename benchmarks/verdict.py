"""How often the verdict of a measurement is right, for planted differences.

    python benchmarks/verdict.py [--repeats 100] [--load 0] [--method paired] [--log FILE.csv]

A repeat measures PyTorch twice, and PyTorch slowed down by 3 % and by 10 %, with one thread. ``--load K`` runs K busy
processes at the same time. With ``--log``, each repeat is appended to a CSV file, and a later call continues an
existing file.

``--method paired``: a repeat is a restart of a paired measurement, with CPU times. ``--method whole_runs``: a repeat is
one whole run of each with a seed of its own, with training times.

Each of the last three is then compared with the first in as many trials as there are repeats. A trial begins at one
repeat and takes those that follow (after the last one comes the first). A paired trial ends when its ratio is resolved,
or after ``--most`` restarts. A trial of whole runs has five seeds and Mann-Whitney's test.

Prints each goal with the measured value. The exit status is 1 if a goal is missed. ``whole_runs`` has no goals.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from scipy import stats
from substitutes import interpreter

from gtdl_mlflow import config, datasets, environments
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.paired import Contestant, MeasurementPlan, Restart
from gtdl_mlflow.reporting import ratios
from gtdl_mlflow.reporting.intervals import LEVEL, Ratio, Verdict, paired_ratio
from gtdl_mlflow.worker.events import Metrics
from gtdl_mlflow.worker.job import Activity
from gtdl_mlflow.worker_process import run_worker

ADAPTERS = Path(__file__).parent / "planted"

PLAIN = "plain"
PLANTED = {"again": 1.0, "slowed by 3 %": 1.03, "slowed by 10 %": 1.10}
"""True ratio of the time of each contestant to that of ``PLAIN``."""

SEEDS = 5
"""Whole runs of each contestant in a trial."""

RUN_S = 5.0
"""Seconds of a whole run: five seeds of two contestants then take as long as a paired measurement of both."""

FEWEST_STEPS = 100
"""Training steps of a whole run, even if it takes longer than ``RUN_S``."""


@dataclass(frozen=True)
class Repeat:
    """One restart, or one whole run of each contestant."""

    seconds: float
    """How long it took."""
    times: Mapping[str, float]
    """Training time of each contestant, relative to that of ``PLAIN``, or in seconds."""


@dataclass(frozen=True)
class Trial:
    """The comparison of one contestant with ``PLAIN``."""

    low: float
    high: float
    """End of the interval of the ratio of the times; nan in a method without one."""
    repeats: int
    verdict: Verdict


def contestants(setting: str, folder: Path, overrides: Sequence[str] = ()) -> list[Contestant]:
    """Return PyTorch, PyTorch again, and PyTorch slowed down."""
    fixed = ["framework=torch", "mode=eager_tuned", "hardware.threads=1"]
    composed = config.compose([*fixed, f"setting={setting}", *overrides])
    python, environment = environments.ensure(composed.framework, "cpu").python, composed.execution.environment
    data = datasets.prepare(composed.dataset)
    job = create_job(composed, data.folder, folder / "job", data.sha256)
    slowed_python, slowed = interpreter(python, ADAPTERS, folder), replace(job, adapter="slowed:Slowed")
    return [Contestant(PLAIN, python, environment, job)] + [
        Contestant(name, slowed_python, {**environment, "SLOWED": str(true_ratio)}, slowed)
        if true_ratio > 1
        else Contestant(name, python, environment, job)
        for name, true_ratio in PLANTED.items()
    ]


def restart(setting: str, number: int, folder: Path) -> dict[str, float]:
    """Return the time of each contestant in one restart, relative to that of ``PLAIN``."""
    with Restart(contestants(setting, folder), 1, folder / "workers", number) as processes:
        turns = list(processes.turns((Activity.training,), MeasurementPlan.rounds, random.Random(number)))
    if processes.failures:
        sys.exit(f"a worker failed: {processes.failures}")
    times = ratios.unit_times(turns, Activity.training.value, ratios.CPU)
    return {name: math.exp(ratios.log_ratios(times[name], times[PLAIN])[0]) for name in (PLAIN, *PLANTED)}


def whole_runs(setting: str, number: int, folder: Path) -> dict[str, float]:
    """Return the training time of one whole run of each contestant."""
    overrides = [*run_overrides(steps_of_a_run(setting)), f"seed={number}"]
    return {each.name: training_time_s(each, folder / each.name) for each in contestants(setting, folder, overrides)}


@functools.cache
def steps_of_a_run(setting: str) -> int:
    """Return the number of training steps with which a whole run takes about ``RUN_S``."""
    with tempfile.TemporaryDirectory() as name:
        plain, *_ = contestants(setting, Path(name), run_overrides(FEWEST_STEPS))
        started = time.monotonic()
        training_s = training_time_s(plain, Path(name) / "run")
        start_up_s = time.monotonic() - started - training_s
    return max(FEWEST_STEPS, round(FEWEST_STEPS * (RUN_S - start_up_s) / training_s))


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


METHODS: dict[str, Callable[[str, int, Path], dict[str, float]]] = {"paired": restart, "whole_runs": whole_runs}


def trial(method: str, name: str, repeats: Sequence[Repeat], start: int, most: int) -> Trial:
    """Return the result of the trial that begins at the repeat ``start``."""

    def times(contestant: str, count: int) -> list[float]:
        return [repeats[(start + number) % len(repeats)].times[contestant] for number in range(count)]

    if method == "whole_runs":
        p = float(stats.mannwhitneyu(times(name, SEEDS), times(PLAIN, SEEDS)).pvalue)
        slower = statistics.median(times(name, SEEDS)) > statistics.median(times(PLAIN, SEEDS))
        verdict = Verdict.unresolved if p >= 1 - LEVEL else Verdict.larger if slower else Verdict.smaller
        return Trial(math.nan, math.nan, SEEDS, verdict)
    count = MeasurementPlan.fewest
    while not (ratio := paired_ratio([math.log(each) for each in times(name, count)])).is_resolved and count < most:
        count += 1
    return Trial(ratio.low, ratio.high, count, ratio.verdict)


class Log:
    """The repeats so far, as lines of a CSV file if there is one."""

    def __init__(self, path: Path | None, options: Mapping[str, str]) -> None:
        """Read the repeats of an existing file; exit if it has those of other options."""
        self._path, self._options = path, options
        self.repeats: list[Repeat] = []
        if path is None:
            return
        if path.exists():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if others := {key: row[key] for key, value in options.items() if row[key] != value}:
                        sys.exit(f"{path} has repeats with {others}, not with {dict(options)}; give another --log")
                    times = {name: float(row[name]) for name in (PLAIN, *PLANTED)}
                    self.repeats.append(Repeat(float(row["seconds"]), times))
        else:
            self._write([*options, "seconds", PLAIN, *PLANTED])

    def add(self, repeat: Repeat) -> None:
        self.repeats.append(repeat)
        self._write([*self._options.values(), repeat.seconds, *(repeat.times[name] for name in (PLAIN, *PLANTED))])

    def _write(self, row: Sequence[object]) -> None:
        if self._path is not None:
            with self._path.open("a", newline="") as file:
                csv.writer(file).writerow(row)


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
    parser.add_argument("--repeats", type=int, default=100, help="number of repeats, with those of an existing --log")
    parser.add_argument("--load", type=int, default=0, metavar="K")
    parser.add_argument("--method", choices=METHODS, default="paired")
    parser.add_argument("--most", type=int, default=20, metavar="RESTARTS")
    parser.add_argument("--setting", default="caffe_mnist")
    parser.add_argument("--log", type=Path, metavar="FILE")
    options = parser.parse_args()
    log = Log(options.log, {name: str(getattr(options, name)) for name in ("method", "load", "setting")})
    with busy_processes(options.load if len(log.repeats) < options.repeats else 0):
        for number in range(len(log.repeats), options.repeats):
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                times = METHODS[options.method](options.setting, number, Path(folder))
            log.add(Repeat(time.monotonic() - started, times))
            texts = [f"{name} {times[name] / times[PLAIN]:.3f}" for name in PLANTED]
            print(f"{number + 1} of {options.repeats}: {', '.join(texts)}", flush=True)
    if not log.repeats:
        parser.error("--repeats: at least 1")
    starts = range(len(log.repeats))
    reached = [  # prints all of them
        goal(name, [trial(options.method, name, log.repeats, start, options.most) for start in starts])
        for name in PLANTED
    ]
    seconds = statistics.mean(each.seconds for each in log.repeats)
    print(f"{len(log.repeats)} repeats, {seconds:.1f} s each; load: {options.load} other processes")
    sys.exit(0 if all(reached) or options.method != "paired" else 1)


def goal(name: str, trials: Sequence[Trial]) -> bool:
    """Print the goals for one contestant with what was reached; return whether all are reached."""
    true_ratio, count = PLANTED[name], len(trials)
    verdicts = [each.verdict for each in trials]
    if true_ratio == 1:
        same, wrong = verdicts.count(Verdict.same), verdicts.count(Verdict.larger) + verdicts.count(Verdict.smaller)
        print(f"against itself: {wrong} false differences in {count} (at most 5 %); {same} 'same'")
        reached = wrong <= 0.05 * count
    else:
        least = 1.0 if true_ratio >= 1.1 else 0.9
        slower, faster = verdicts.count(Verdict.larger), verdicts.count(Verdict.smaller)
        print(f"{name}: detected in {slower} of {count} (at least {100 * least:g} %); {faster} 'faster'")
        reached = slower >= least * count
    with_interval = [each for each in trials if not math.isnan(each.low)]
    if with_interval:
        covered = sum(each.low <= true_ratio <= each.high for each in with_interval)
        width = statistics.median(100 * Ratio(1.0, each.low, each.high, 0).half_width for each in with_interval)
        restarts = statistics.mean(each.repeats for each in trials)
        intervals = f"{covered} of {count} intervals (at least 90 %), whose median half-width is {width:.2f} %"
        print(f"  the true ratio is in {intervals}; {restarts:.1f} restarts")
        reached &= covered >= 0.9 * count
    return reached


if __name__ == "__main__":
    main()
