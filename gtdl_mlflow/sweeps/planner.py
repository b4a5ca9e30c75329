"""``gtdl answer``: which framework is best on this machine, within a time limit.

The planner runs up to four sweeps over all frameworks that can run here, interleaved over five seeds. The data sets are
the digits that come with the benchmark and, if it is downloaded, full MNIST. On each, one sweep uses the same setting
for all frameworks (parity track) and one uses each framework's own default (default track). The planner first times a
few steps of each framework, and chooses budgets that fit. It may leave the most expensive frameworks out of the default
track.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import config, datasets, environments
from ..config.job import create_job
from ..console import info
from ..hardware import device_lock
from ..report.statistics import SEEDS_TO_PUBLISH
from ..worker.events import Metrics
from ..worker.inputs import split
from ..worker.job import Latency
from ..worker_process import WorkerFailed, run_worker

DATASETS = ("mnist_5k", "mnist")

COMMON_SETTING = "caffe_mnist"
"""Setting of the parity track: small, and every framework can run it."""

PROBE_STEPS = 30
"""Training steps of a probe."""

COLD_S = 6.0
"""A probe is repeated if it takes longer than this besides training and testing. It was probably the first run on this
machine, which reads the framework from disk, compiles its Python files, or compiles Theano's C++ code.
"""

SMALLEST_BUDGET = 0.01
"""Smallest useful budget: below it, nothing is learned. Drop frameworks or sweeps instead."""

CELL_S = 1.0
"""Seconds that the driver adds to a cell: the tracker, the model's files."""

SWEEP_S = 6.0
"""Seconds of a sweep before its first cell: imports, the store, the parent run."""

REPORT_S = 10.0
"""Seconds of the verdict and the report at the end."""

MARGIN = 0.9
"""Share of the remaining time that is planned with: the speed of a machine varies."""


class NotEnoughTime(Exception):
    """The time limit is too short for the smallest sweep; the message is one line."""


@dataclass(frozen=True)
class PlannedSweep:
    """One sweep: all frameworks on one data set, in one track."""

    dataset: str
    setting: str
    """The setting of all frameworks; empty for each framework's own default."""

    def overrides(self, framework: str) -> list[str]:
        """Return the overrides that select this sweep; ``framework`` may be a comma-separated list."""
        overrides = [f"framework={framework}", f"dataset={self.dataset}"]
        return [*overrides, f"setting={self.setting}"] if self.setting else overrides

    @property
    def label(self) -> str:
        return f"{self.dataset}, {f'all with setting {self.setting}' if self.setting else 'each with its own default'}"


@dataclass(frozen=True)
class RunCost:
    """Estimated time of one run."""

    fixed_s: float
    """Seconds that do not depend on the budget."""
    training_s: float
    """Seconds of the full training and its evaluations."""

    def run_s(self, budget: float) -> float:
        """Return the seconds of a run with this ``budget``, the driver's part included."""
        return self.fixed_s + CELL_S + budget * self.training_s


Costs = Mapping[str, RunCost]
"""Framework to the cost of one of its runs, in one sweep."""


def runnable_frameworks(device: str, wanted: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Create the environments of the ``wanted`` frameworks, or of all.

    Return the frameworks that can run here now, and one line for each of the others with the reason. A framework that
    has to be compiled first is not compiled: that takes longer than the time limit of an answer.
    """
    names, reasons = [], []
    for name in wanted or config.choices("framework"):
        framework = config.compose([f"framework={name}"]).framework
        support = framework.devices.get(device)
        if support is None or not (support.recipes or support.unavailable):
            continue  # the NumPy reference has no environment of its own and is not compared
        if any(recipe.build for recipe in support.recipes) and not environments.find(framework, device):
            reasons.append(
                f"{name} is left out: it must be compiled first, which takes minutes; run `gtdl env create {name}` once"
            )
            continue
        try:
            environments.ensure(framework, device)
        except environments.EnvironmentFailed as error:
            reasons.append(str(error))
            continue
        names.append(name)
    return names, reasons


def possible_sweeps() -> list[PlannedSweep]:
    """Return the sweeps whose data set is available, in the order in which they run."""
    sweeps = []
    for name in DATASETS:
        try:
            datasets.prepare(config.compose([f"dataset={name}"]).dataset)
        except datasets.DatasetError:
            continue
        sweeps += [PlannedSweep(name, COMMON_SETTING), PlannedSweep(name, "")]
    return sweeps


@dataclass(frozen=True)
class Probe:
    """Measured times of a few steps of one framework with one setting."""

    fixed_s: float
    """Seconds of import, data, build, first step and saving."""
    step_s: float
    test_image_s: float

    def cost(self, composed: config.Config) -> RunCost:
        """Return the cost of a run of ``composed``, scaled to the size of its data set."""
        training, data = composed.training, datasets.prepare(composed.dataset)
        trained, _ = split(data.train_images, training)
        images = trained.stop - trained.start
        steps = training.steps(images, 1.0)
        test_s = self.test_image_s * data.test_images
        every = training.evaluate_every_epochs
        evaluations = steps * training.batch_size / images / every if every else 0
        return RunCost(self.fixed_s + test_s, steps * self.step_s + evaluations * test_s)


def probe(composed: config.Config) -> Probe:
    """Time a few training steps and the testing of ``composed``.

    Raises:
        WorkerFailed: the worker failed.
    """
    data = datasets.prepare(composed.dataset)
    environment = environments.ensure(composed.framework, composed.hardware.device)
    with tempfile.TemporaryDirectory(prefix="gtdl-answer-") as name, device_lock.hold(composed.hardware):
        job = create_job(composed, data.folder, Path(name), data.sha256)
        few = replace(job.training, iterations=PROBE_STEPS, epochs=None, evaluate_every_epochs=0, early_stopping=None)
        job = replace(job, training=few, budget=1.0, latency=Latency(repeats=0))
        started = time.monotonic()
        metrics: dict[str, float] = {}
        settings = composed.speed_settings.environment
        for event in run_worker(job, environment.python, settings, Path(name), composed.limits.run_timeout_s):
            if isinstance(event, Metrics):
                metrics |= event.values
        wall_s = time.monotonic() - started
    return Probe(
        wall_s - metrics["training_time_s"] - metrics["testing_time_s"] + metrics["train/first_step_s"],
        job.training.batch_size / metrics["train/steady_state_images_per_s"],
        1 / metrics["test/images_per_s"],
    )


def _probe_all(frameworks: Iterable[str], setting: str, overrides: Sequence[str]) -> tuple[dict[str, Probe], list[str]]:
    """Return the probes of the frameworks with one setting, and one line for each framework that failed."""
    probes: dict[str, Probe] = {}
    failures = []
    for name in frameworks:
        composed = config.compose([*PlannedSweep(DATASETS[0], setting).overrides(name), *overrides])
        try:
            probes[name] = probe(composed)
            if probes[name].fixed_s > COLD_S:
                probes[name] = probe(composed)
        except WorkerFailed as error:
            probes.pop(name, None)
            failures.append(f"{name} is left out: {error}")
    return probes, failures


@dataclass(frozen=True)
class Plan:
    """The chosen frameworks and budget of one sweep."""

    frameworks: tuple[str, ...]
    budget: float


def plan(costs: Mapping[PlannedSweep, Costs], seconds: float) -> dict[PlannedSweep, Plan]:
    """Return the sweeps that fit into ``seconds``; empty if none does.

    The plan has as many sweeps as can have ``SMALLEST_BUDGET``. It then leaves out as few frameworks as possible, from
    the last sweep rather than from the first. The first sweep always has all frameworks; if it is the only one, its
    budget may be below ``SMALLEST_BUDGET``.
    """
    first, *others = costs
    options = itertools.product([costs[first]], *(_framework_subsets(sweep, costs[sweep]) for sweep in others))
    fitting = [option for option in options if _total_s(option, SMALLEST_BUDGET) < seconds]
    best = max(fitting, key=lambda option: (sum(map(bool, option)), sum(map(len, option))), default=(costs[first],))
    if _total_s(best, 0) >= seconds:
        return {}
    chosen = {sweep: subset for sweep, subset in zip(costs, best, strict=False) if subset}
    shares = budgets(list(chosen.values()), seconds)
    return {sweep: Plan(tuple(subset), budget) for (sweep, subset), budget in zip(chosen.items(), shares, strict=True)}


def _framework_subsets(sweep: PlannedSweep, costs: Costs) -> Iterator[Costs]:
    """Yield the sets of frameworks that a sweep may have: all, fewer by the most expensive, down to two, or none.

    A sweep with a common setting has all or none, because it compares all of them.
    """
    yield costs
    if not sweep.setting:
        cheapest = sorted(costs, key=lambda name: costs[name].run_s(SMALLEST_BUDGET))
        for count in range(len(costs) - 1, 1, -1):
            yield {name: cost for name, cost in costs.items() if name in cheapest[:count]}
    yield {}


def budgets(costs: Sequence[Costs], seconds: float) -> list[float]:
    """Return the budget of each sweep, so that together they fit into ``seconds``.

    Each gets ``SMALLEST_BUDGET`` if the time allows it, and an equal part of the remaining time. What one sweep cannot
    use goes to the others.
    """
    least = SMALLEST_BUDGET if _total_s(costs, SMALLEST_BUDGET) < seconds else 0.0
    training_s = [SEEDS_TO_PUBLISH * sum(cost.training_s for cost in of_sweep.values()) for of_sweep in costs]
    chosen, left_s = [least] * len(costs), seconds - _total_s(costs, least)
    shortest_first = sorted(range(len(costs)), key=lambda index: training_s[index])
    for done, index in enumerate(shortest_first):
        part_s = left_s / (len(costs) - done)
        chosen[index] = round_down(min(1.0, least + part_s / training_s[index]))
        left_s -= (chosen[index] - least) * training_s[index]
    return chosen


def _total_s(costs: Iterable[Costs], budget: float) -> float:
    """Return the seconds that sweeps take with one ``budget``. A sweep without frameworks takes none."""
    return sum(
        SWEEP_S + SEEDS_TO_PUBLISH * sum(cost.run_s(budget) for cost in of_sweep.values())
        for of_sweep in costs
        if of_sweep
    )


def round_down(budget: float) -> float:
    """Return ``budget`` rounded down to two significant digits, which people type and read; at most 1."""
    if budget >= 1:
        return 1.0
    digits = f"{budget:.6e}"
    return float(f"{digits[:3]}e{digits.split('e')[1]}")


def left_out(sweep: PlannedSweep, costs: Costs, chosen: Plan) -> list[str]:
    """Return one line for each framework that can run here and is not in the sweep."""
    missing = {name: cost.run_s(SMALLEST_BUDGET) for name, cost in costs.items() if name not in chosen.frameworks}
    return [
        f"{sweep.label}: {name} is left out, a run with budget={SMALLEST_BUDGET:g} takes {seconds:.0f} s"
        for name, seconds in missing.items()
    ]


def run(minutes: float, wanted: Sequence[str], overrides: Sequence[str], experiment: str) -> list[str]:
    """Plan the sweeps and run them into an MLflow experiment. Return remarks for the report, one line each.

    Args:
        minutes: time limit for everything, the report included.
        wanted: frameworks to compare; empty for all.
        overrides: further overrides of every run.
        experiment: name of the MLflow experiment.

    Raises:
        ConfigError: an override is wrong.
        NotEnoughTime: not even the smallest sweep fits.
    """
    started = time.monotonic()
    device = config.compose(list(overrides)).hardware.device
    frameworks, remarks = runnable_frameworks(device, wanted)
    sweeps = possible_sweeps()
    info(f"timing a few steps of {', '.join(frameworks)}")
    costs: dict[PlannedSweep, dict[str, RunCost]] = {}
    settings = list(dict.fromkeys(sweep.setting for sweep in sweeps))
    probing_started = time.monotonic()
    for done, setting in enumerate(settings, 1):
        probes, failures = _probe_all(frameworks, setting, overrides)
        frameworks, remarks = list(probes), remarks + failures
        for sweep in sweeps:
            if sweep.setting == setting:
                composed = {name: config.compose([*sweep.overrides(name), *overrides]) for name in frameworks}
                costs[sweep] = {name: probes[name].cost(composed[name]) for name in frameworks}
        costs = {sweep: {name: of_sweep[name] for name in frameworks} for sweep, of_sweep in costs.items()}
        now, first = time.monotonic(), sweeps[0]
        left_s = MARGIN * (60 * minutes - (now - started)) - REPORT_S
        if not frameworks or not plan({first: costs[first]}, left_s):
            other_probes_s = (now - probing_started) * (len(settings) - done) / done
            needed_s = now - started + other_probes_s + REPORT_S + _total_s([costs[first]], 0)
            names = ", ".join(frameworks) or "any framework"
            raise NotEnoughTime(
                f"minutes={minutes:g}: too short for {SEEDS_TO_PUBLISH} runs of {names} here; "
                f"try minutes={math.ceil(needed_s / 60 / MARGIN) + 1}"
            )
    ordered = {sweep: costs[sweep] for sweep in sweeps}
    plans = plan(ordered, left_s)
    remarks += [
        f"{sweep.label}: left out, not enough time; try minutes={2 * minutes:g}"
        for sweep in sweeps
        if sweep not in plans
    ]
    for sweep, chosen in plans.items():
        remarks += left_out(sweep, costs[sweep], chosen)
        info(f"{sweep.label}, budget={chosen.budget:g}: {', '.join(chosen.frameworks)}, {SEEDS_TO_PUBLISH} seeds each")
        _run_sweep(sweep, chosen, overrides, experiment)
    return remarks


def _run_sweep(sweep: PlannedSweep, chosen: Plan, overrides: Sequence[str], experiment: str) -> None:
    """Run one sweep in a process of its own. Its exit status is ignored: the report shows failed cells."""
    command = [
        sys.executable,
        "-m",
        "gtdl_mlflow",
        "-m",
        *sweep.overrides(",".join(chosen.frameworks)),
        f"seed={','.join(map(str, range(SEEDS_TO_PUBLISH)))}",
        f"budget={chosen.budget:g}",
        "sweep.rerun=all",
        "latency.repeats=0",
        f"tracking.experiment={experiment}",
        *overrides,
    ]
    # `mlflow run` has created one run, and there are up to four sweeps: each creates a run of its own.
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()  # Ctrl-C has reached it already, and it ignores a second signal
        process.wait()  # until it has closed its runs
        raise
