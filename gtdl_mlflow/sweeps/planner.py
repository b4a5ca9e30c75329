"""``gtdl answer``: which framework is best on this machine, within a time limit.

The answer is one sweep with a paired measurement. The frameworks that can run here train the same network on the same
data: first each in one whole run, for the accuracy, the memory and the energy, then in turns, for the times. A few
timed steps of each framework determine the budget of the whole runs.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import config, datasets, environments, modes
from ..config import display
from ..config.job import create_job
from ..console import Failure, info, status_line
from ..hardware import device_lock
from ..paired import TURN_S, MeasurementPlan
from ..reporting.formats import count
from ..reporting.intervals import EQUAL_WITHIN, FEWEST_RESTARTS
from ..worker.events import Metadata, Metrics
from ..worker.inputs import split
from ..worker.job import Activity, Latency
from ..worker_process import WorkerFailed, environment_variables, run_worker

DATASET = "mnist_5k"
"""Data set that is compared by default: digits that come with a Python package."""

RUNS_SHARE = 0.3
"""Share of the time that the whole runs take at most, unless the shortest ones take longer. The paired measurement
has the rest."""

MODES_SHARE = 0.2
"""Share of the time for paired measurements of the frameworks' execution modes, if they are not known yet."""

SMALLEST_BUDGET = 0.01
"""Smallest useful budget: below it, nothing is learned."""

PROBE_STEPS = 30
"""Training steps of a probe."""

CELL_S = 1.0
"""Seconds that the driver adds to a cell: the tracker, the model's files."""

SWEEP_S = 6.0
"""Seconds of a sweep before its first cell: imports, the store, the parent run."""

REPORT_S = 10.0
"""Seconds of the ranking and the report at the end."""

TURN_COST_S = 2 * TURN_S
"""Seconds of a turn with its untimed units, the signals and the evidence of interference."""

WARM_UP_S = 1.0
"""Seconds before the first turn of an activity: warm-up and calibration."""

RUN_MB = 10
"""Disk space of a run with its model and of its share of the paired measurement, in MB, rounded up."""

ENVIRONMENT_MB = 1500
"""Disk space of the largest environment for the CPU, in MB."""


class AnswerImpossible(Failure):
    """There is nothing to compare, or the time limit is too short; the message is one line."""


@dataclass(frozen=True)
class Cost:
    """Estimated time of one framework."""

    fixed_s: float
    """Seconds of a run that do not depend on the budget."""
    training_s: float
    """Seconds of the full training and its evaluations."""
    is_cold: bool = False
    """Whether files were read from the disk or compiled, which the next run does not repeat."""

    def run_s(self, budget: float) -> float:
        """Return the seconds of a run with this ``budget``, the driver's part included."""
        return self.fixed_s + CELL_S + budget * self.training_s


def candidates(device: str, wanted: Collection[str] = ()) -> tuple[list[config.Framework], list[str]]:
    """Return the ``wanted`` frameworks that can run on the device, and a line for each reason to leave others out.

    Without ``wanted``, these are the frameworks in development that run on no other framework. A framework that has to
    be compiled first is left out: that takes longer than the time limit of an answer.
    """
    chosen, reasons, others = [], [], []
    for name in wanted or config.choices("framework"):
        if not wanted and (display.last_release(name) or display.plain(name)):
            others.append(name)
            continue
        framework = config.compose([f"framework={name}"]).framework
        support = framework.devices.get(device)
        if support is None or not (support.recipes or support.unavailable):
            continue  # the NumPy reference has no environment of its own and is not compared
        if any(recipe.build for recipe in support.recipes) and not environments.find(framework, device):
            reasons.append(
                f"{name} is left out: it must be compiled first, which takes minutes; run `gtdl env create {name}` once"
            )
            continue
        chosen.append(framework)
    if others and chosen:
        command = f"gtdl answer {chosen[0].name} {others[0]}"
        reasons.append(f"{', '.join(others)}: left out by default; name frameworks to compare them: `{command}`")
    return chosen, reasons


def create_environments(frameworks: Iterable[config.Framework], device: str) -> tuple[list[str], list[str]]:
    """Create missing environments. Return the names of the frameworks, and a line for each without an environment."""
    names, reasons = [], []
    for framework in frameworks:
        try:
            environments.ensure(framework, device)
            names.append(framework.name)
        except environments.EnvironmentFailed as error:
            reasons.append(f"{framework.name} is left out: {error}")
    return names, reasons


def describe(frameworks: Sequence[config.Framework], composed: config.Config, minutes: float) -> list[str]:
    """Return the plan, one line each: what runs, how long, and how much disk space it needs."""
    device = composed.hardware.device
    missing = [each.name for each in frameworks if not environments.find(each, device)]
    names = ", ".join(f"{each.label} {each.version}" for each in frameworks)
    clock = "by CPU time with 1 thread, and by the wall clock if nothing disturbs it"
    if device == "gpu":
        clock = "by the wall clock"
    megabytes = RUN_MB * len(frameworks) + ENVIRONMENT_MB * len(missing)
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    lines = [
        f"plan: {names}; {composed.training.name} on {composed.dataset.name}, {device}, "
        f"{count(composed.threads, 'thread')}",
        f"  1. choose each framework's execution mode, unless it is known, and time {PROBE_STEPS} training steps",
        f"  2. train and test each framework once, for accuracy, memory and energy: "
        f"at most {RUNS_SHARE * minutes:.1f} min",
        f"  3. paired measurement of training, testing and single images, {clock}: "
        f"until every ratio to the best is resolved to {100 * EQUAL_WITHIN:g} %",
        f"  time: at most {minutes:g} min in all; disk: about {megabytes:,} MB ({free:,.0f} GB free)",
    ]
    if missing:
        lines.insert(1, f"  0. create the environments of {', '.join(missing)}, which the time does not include")
    return lines


def probe(composed: config.Config, modes_s: float, longest_s: float) -> Cost:
    """Time a few training steps and the testing of ``composed``, and return the cost of its whole run.

    The choice of its execution mode has ``modes_s`` seconds for a paired measurement. The whole run trains for
    ``longest_s`` seconds at most.

    Raises:
        WorkerFailed: the worker failed.
    """
    training, data = composed.training, datasets.prepare(composed.dataset)
    environment = environments.ensure(composed.framework, composed.hardware.device)
    with tempfile.TemporaryDirectory(prefix="gtdl-answer-") as name, device_lock.hold(composed.hardware):
        composed, _ = modes.choose(composed, environment, data, Path(name), modes_s, longest_s)
        job = create_job(composed, data.folder, Path(name), data.sha256, environment.compile_cache)
        few = replace(job.training, iterations=PROBE_STEPS, epochs=None, evaluate_every_epochs=0, early_stopping=None)
        job = replace(job, training=few, budget=1.0, latency=Latency(repeats=0))
        started = time.monotonic()
        metrics: dict[str, float] = {}
        metadata: dict[str, object] = {}
        variables = environment_variables(composed.execution, environment.compile_cache)
        for event in run_worker(job, environment.python, variables, Path(name), composed.limits.run_timeout_s):
            if isinstance(event, Metrics):
                metrics |= event.values
            elif isinstance(event, Metadata):
                metadata |= event.values
        wall_s = time.monotonic() - started
    fixed_s = wall_s - metrics["training_time_s"] + metrics["train/first_step_s"]
    trained, _ = split(data.train_images, training)
    images = trained.stop - trained.start
    steps, every = training.steps(images, 1.0), training.evaluate_every_epochs
    evaluations = steps * training.batch_size / images / every if every else 0
    step_s = training.batch_size / metrics["train/steady_state_images_per_s"]
    training_s = steps * step_s + evaluations * data.test_images / metrics["test/images_per_s"]
    return Cost(fixed_s, training_s, "cold" in (metadata.get("framework_files"), metadata.get("compile_cache")))


def probe_all(composed: Collection[config.Config], ends: float) -> tuple[dict[str, Cost], list[str]]:
    """Return the costs of the frameworks, and a line for each that failed.

    ``ends`` is the deadline of the answer, as a value of ``time.monotonic()``.
    """
    costs: dict[str, Cost] = {}
    failures = []
    share_s = (ends - time.monotonic()) / max(1, len(composed))
    modes_s, longest_s = MODES_SHARE * share_s, RUNS_SHARE * share_s
    for each in composed:
        name = each.framework.name
        status_line(f"timing a few steps of {name}, at most {max(0.0, ends - time.monotonic()) / 60:.1f} min left")
        try:
            costs[name] = probe(each, modes_s, longest_s)
            if costs[name].is_cold:
                costs[name] = probe(each, modes_s, longest_s)
        except WorkerFailed as error:
            costs.pop(name, None)
            failures.append(f"{name} is left out: {error}")
    status_line("")
    return costs, failures


def choose_budget(costs: Collection[Cost], seconds: float) -> float:
    """Return the budget with which one run of each framework takes ``seconds``, at least ``SMALLEST_BUDGET``."""
    left_s = seconds - sum(each.run_s(0) for each in costs)
    return round_down(max(SMALLEST_BUDGET, min(1.0, left_s / sum(each.training_s for each in costs))))


def round_down(budget: float) -> float:
    """Return ``budget`` rounded down to two significant digits, which people type and read; at most 1."""
    if budget >= 1:
        return 1.0
    digits = f"{budget:.6e}"
    return float(f"{digits[:3]}e{digits.split('e')[1]}")


def shortest_measurement_s(costs: Collection[Cost]) -> float:
    """Return the seconds of the fewest restarts that give an interval, by one clock."""
    turns = len(Activity) * (WARM_UP_S + TURN_COST_S * MeasurementPlan(0).rounds)
    return FEWEST_RESTARTS * (max(each.fixed_s for each in costs) + len(costs) * turns)


def needed_s(costs: Collection[Cost], budget: float = SMALLEST_BUDGET) -> float:
    """Return the seconds of the whole runs with this ``budget`` and of the shortest measurement."""
    return shortest_measurement_s(costs) + sum(each.run_s(budget) for each in costs)


def fit(costs: Mapping[str, Cost], seconds: float, budget: float) -> tuple[dict[str, Cost], list[str]]:
    """Return the frameworks that can be compared in ``seconds``, at least two, and those that are left out.

    The framework that needs the most time is left out first. ``budget`` is the smallest one of the whole runs.
    """
    kept, left_out = dict(costs), []
    while len(kept) > 2 and needed_s(kept.values(), budget) > seconds:
        without = {name: [kept[other] for other in kept if other != name] for name in kept}
        slowest = min(kept, key=lambda name: needed_s(without[name], budget))
        del kept[slowest]
        left_out.append(slowest)
    return kept, left_out


def enough_s(fixed_s: float, runs_s: float) -> float:
    """Return a time limit, in seconds, that suffices for a measurement.

    Args:
        fixed_s: seconds of all parts except the whole runs and the choice of modes, which scale with the limit.
        runs_s: seconds of the shortest whole runs.
    """
    return max(fixed_s + runs_s, fixed_s / (1 - RUNS_SHARE - MODES_SHARE))


def with_defaults(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with a data set and a setting before them, unless they select their own.

    The setting is that of ``experiment=paired`` for the data set.
    """
    typed = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    defaults = [] if "dataset" in typed else [f"dataset={DATASET}"]
    if not typed.keys() & {"setting", "model", "training"}:
        dataset = typed.get("dataset", DATASET)
        setting = config.compose_unchecked(["experiment=paired", f"dataset={dataset}"]).setting_name
        defaults.append(f"setting={setting}")
    return [*defaults, *overrides]


def run(minutes: float, wanted: Sequence[str], overrides: Sequence[str], experiment: str) -> list[str]:
    """Print the plan, measure, and print the ranking. Return remarks for the report, one line each.

    Args:
        minutes: time limit for everything but the creation of environments.
        wanted: frameworks to compare; empty for all.
        overrides: further overrides of every run.
        experiment: name of the MLflow experiment.

    Raises:
        ConfigError: an override is invalid.
        DatasetError: the data set is not available or cannot be read.
        AnswerImpossible: fewer than two frameworks can run, or the time limit is too short.
    """
    every = with_defaults(overrides)
    common = config.compose(every)
    device = common.hardware.device
    frameworks, remarks = candidates(device, wanted)
    for line in describe(frameworks, common, minutes):
        info(line)
    datasets.prepare(common.dataset)  # environments take minutes, and are of no use without the data
    names, failures = create_environments(frameworks, device)
    ends = time.monotonic() + 60 * minutes
    costs, failed_probes = probe_all([config.compose([f"framework={name}", *every]) for name in names], ends)
    remarks += failures + failed_probes
    for remark in remarks:
        info(remark)
    if len(costs) < 2:
        found = ", ".join(costs) or "none"
        raise AnswerImpossible(
            f"expected two frameworks that can run here, found {found}; name more: `gtdl answer torch jax`"
        )
    left_s = ends - time.monotonic() - REPORT_S - SWEEP_S
    given = any(override.startswith("budget=") for override in overrides)
    least = common.budget if given else SMALLEST_BUDGET
    if needed_s(costs.values(), least) > left_s:
        measurement_s = shortest_measurement_s(costs.values())
        runs_s = needed_s(costs.values(), least) - measurement_s
        enough = math.ceil(enough_s(60 * minutes - left_s + measurement_s, runs_s) / 60)
        kept, left_out = (costs, []) if wanted else fit(costs, left_s, least)
        if needed_s(kept.values(), least) > left_s:
            raise AnswerImpossible(f"minutes={minutes:g}: too short for {', '.join(costs)} here; try minutes={enough}")
        remarks.append(
            f"{', '.join(left_out)}: left out, because minutes={minutes:g} is too short; try minutes={enough}"
        )
        info(remarks[-1])
        costs = kept
    runs_s = min(RUNS_SHARE * 60 * minutes, left_s - shortest_measurement_s(costs.values()))
    budget = common.budget if given else choose_budget(costs.values(), runs_s)
    info(f"budget={budget:g}: each whole run does {100 * budget:g} % of the training")
    left_s = ends - time.monotonic() - REPORT_S
    if not given:
        every.append(f"budget={budget:g}")
    _run_sweep([f"framework={','.join(costs)}", *every, f"sweep.minutes={left_s / 60:.2f}"], experiment)
    return remarks


def _run_sweep(overrides: Sequence[str], experiment: str) -> None:
    """Run the sweep in a process of its own, which prints the ranking. The report shows failed cells."""
    command = [sys.executable, "-m", "gtdl_mlflow", "experiment=paired", *overrides]
    command += ["sweep.rerun=all", f"tracking.experiment={experiment}"]
    # `mlflow run` has created one run, and the sweep creates its own.
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    process = subprocess.Popen(command, env=environment)
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()  # Ctrl-C has reached it already, and it ignores a second signal
        process.wait()  # until it has printed the ranking of what is known and closed its runs
        raise
