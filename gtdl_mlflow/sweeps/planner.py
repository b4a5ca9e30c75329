"""``gtdl answer``: which framework, on this machine, within the minutes that there are.

Every framework that can run here, interleaved over five seeds, on the digits that come with the benchmark and, where it
is at hand, on full MNIST; all under one setting (the parity track), and each under its own default (the default track),
there without those whose training is too long. How much of each training fits is found out by a few steps of each
beforehand.
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
from ..worker.events import Metrics
from ..worker.inputs import split
from ..worker.job import Latency
from ..worker_process import WorkerFailed, run_worker

SEEDS = 5
"""Enough for a rank test to tell two frameworks apart (of 3 + 3 it never can)."""

DATASETS = ("mnist_5k", "mnist")

COMMON = "caffe_mnist"
"""The setting of the parity track: small, and at home in all five frameworks."""

PROBE_STEPS = 30

COLD_S = 6.0
"""A probe that takes longer besides training and testing is repeated: it was most likely the first run on this machine,
which reads a framework from the disk, compiles its Python files, or has Theano's C++ compiled.
"""

SMALLEST_BUDGET = 0.01
"""Of a training: with less than that of each, nothing learns, so that rather fewer studies are made, or a study with
fewer frameworks.
"""

CELL_S = 1.0
"""What the driver adds to a cell: the tracker, the model's files."""

SWEEP_S = 6.0
"""What a sweep takes before its first cell: imports, the store, the parent run."""

REPORT_S = 10.0
"""What the verdict and the report take at the end."""

MARGIN = 0.9
"""Of the time left that is planned with: machines are noisy."""


class NotEnoughTime(Exception):
    """Less time than the smallest study takes; one line."""


@dataclass(frozen=True)
class PlannedSweep:
    """One sweep: all frameworks on one data set, in one track."""

    dataset: str
    setting: str
    """Of all of them; empty for each framework's own default."""

    def overrides(self, framework: str) -> list[str]:
        own = [f"framework={framework}", f"dataset={self.dataset}"]
        return [*own, f"setting={self.setting}"] if self.setting else own

    @property
    def text(self) -> str:
        return f"{self.dataset}, {f'all under {self.setting}' if self.setting else 'each under its own default'}"


@dataclass(frozen=True)
class RunCost:
    """Of one run."""

    fixed_s: float
    """Whatever the budget is."""
    training_s: float
    """Of the full training and the looks at the accuracy in it."""

    def run_s(self, share: float) -> float:
        """Of a run with a ``share`` of the training, the driver's part included."""
        return self.fixed_s + CELL_S + share * self.training_s


def runnable_frameworks(device: str, wanted: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """The ``wanted`` frameworks, or all, that can run here now, their environments made; and why others cannot, a line
    each.

    One that has to be compiled first is left out until it is there: that takes longer than an answer may.
    """
    names, reasons = [], []
    for name in wanted or config.choices("framework"):
        framework = config.compose([f"framework={name}"]).framework
        offer = framework.devices.get(device)
        if offer is None or not (offer.recipes or offer.unavailable):
            continue  # the reference needs no environment, and is no framework
        if any(recipe.build for recipe in offer.recipes) and not environments.find(framework, device):
            reasons.append(f"{name} is left out: it has to be compiled first, for minutes; "
                           f"`gtdl env create {name}` does, and the next answer has it")  # fmt: skip
            continue
        try:
            environments.ensure(framework, device)
        except environments.EnvironmentFailed as error:
            reasons.append(str(error))
            continue
        names.append(name)
    return names, reasons


def possible_sweeps() -> list[PlannedSweep]:
    """Those whose data are at hand, in the order in which they are made, the first in any case."""
    found = []
    for name in DATASETS:
        try:
            datasets.prepare(config.compose([f"dataset={name}"]).dataset)
        except datasets.DatasetError:
            continue
        found += [PlannedSweep(name, COMMON), PlannedSweep(name, "")]
    return found


@dataclass(frozen=True)
class Probe:
    """What a few steps of a framework under a setting took."""

    fixed_s: float
    """Import, data, build, first step, saving."""
    step_s: float
    test_image_s: float

    def cost(self, composed: config.Config) -> RunCost:
        """Of a run of this, its own data set's size taken into account."""
        training, data = composed.training, datasets.prepare(composed.dataset)
        trained, _ = split(data.train_images, training)
        steps = training.steps(trained.stop - trained.start, 1.0)
        epochs = steps * training.batch_size / (trained.stop - trained.start)
        test_s = self.test_image_s * data.test_images
        looks = epochs / training.evaluate_every_epochs if training.evaluate_every_epochs else 0
        return RunCost(self.fixed_s + test_s, steps * self.step_s + looks * test_s)


def probe(composed: config.Config) -> Probe:
    """Time a few steps of this, and its testing."""
    data = datasets.prepare(composed.dataset)
    environment = environments.ensure(composed.framework, composed.hardware.device)
    with tempfile.TemporaryDirectory(prefix="gtdl-answer-") as name, device_lock.hold(composed.hardware):
        job = create_job(composed, data.folder, Path(name))
        few = replace(job.training, iterations=PROBE_STEPS, epochs=None, evaluate_every_epochs=0, early_stopping=None)
        job = replace(job, training=few, budget=1.0, latency=Latency(repeats=0))
        began = time.monotonic()
        metrics: dict[str, float] = {}
        settings = composed.settings.environment
        for event in run_worker(job, environment.python, settings, Path(name), composed.limits.run_timeout_s):
            if isinstance(event, Metrics):
                metrics |= event.values
        wall_s = time.monotonic() - began
    return Probe(
        wall_s - metrics["training_time_s"] - metrics["testing_time_s"] + metrics["train/first_step_s"],
        job.training.batch_size / metrics["train/steady_state_images_per_s"],
        1 / metrics["test/images_per_s"],
    )


@dataclass(frozen=True)
class Plan:
    """What is made of a study."""

    names: tuple[str, ...]
    """The frameworks in it."""
    share: float
    """Of their trainings."""


def plan(costs: Mapping[PlannedSweep, Mapping[str, RunCost]], seconds: float) -> dict[PlannedSweep, Plan]:
    """What fits, of studies with the ``costs`` of their frameworks' runs.

    As many studies as can have ``LEAST`` of every training in them, with as few frameworks left out as possible, rather
    of the last than of the first. The first study always has all; alone, it may have less than ``LEAST``.
    """
    first, *others = costs
    ways = itertools.product([costs[first]], *(_ways(study, costs[study]) for study in others))
    fitting = [way for way in ways if _seconds(way, SMALLEST_BUDGET) < seconds]
    best = max(fitting, key=lambda way: (sum(map(bool, way)), sum(map(len, way))), default=(costs[first],))
    if _seconds(best, 0) >= seconds:
        return {}
    made = {study: some for study, some in zip(costs, best, strict=False) if some}
    shares = budgets(list(made.values()), seconds)
    return {study: Plan(tuple(some), share) for (study, some), share in zip(made.items(), shares, strict=True)}


def _ways(study: PlannedSweep, costs: Mapping[str, RunCost]) -> Iterator[Mapping[str, RunCost]]:
    """Which frameworks a study can be made with: all, or without the most expensive ones, two at least, or none.

    One under a common setting is there to compare all of them.
    """
    yield costs
    if not study.setting:
        cheapest = sorted(costs, key=lambda name: costs[name].run_s(SMALLEST_BUDGET))
        for count in range(len(costs) - 1, 1, -1):
            yield {name: cost for name, cost in costs.items() if name in cheapest[:count]}
    yield {}


def without(study: PlannedSweep, costs: Mapping[str, RunCost], made: Plan) -> list[str]:
    """Which frameworks are not in it though they can run here, a line each."""
    left_out = {name: cost.run_s(SMALLEST_BUDGET) for name, cost in costs.items() if name not in made.names}
    return [f"{study.text}: {name} is left out, {100 * SMALLEST_BUDGET:g} % of its training would take {seconds:.0f} s a run"
            for name, seconds in left_out.items()]  # fmt: skip


def budgets(costs: Sequence[Mapping[str, RunCost]], seconds: float) -> list[float]:
    """For each study with the ``costs`` of its frameworks' runs, the share of their trainings that fits.

    All get ``LEAST``, if there is time for it, and the same part of the ``seconds`` that are left then; what one study
    cannot use goes to the others.
    """
    least = SMALLEST_BUDGET if _seconds(costs, SMALLEST_BUDGET) < seconds else 0.0
    training = [SEEDS * sum(cost.training_s for cost in study.values()) for study in costs]
    shares, left = [least] * len(costs), seconds - _seconds(costs, least)
    for place, index in enumerate(sorted(range(len(costs)), key=lambda index: training[index])):
        part = left / (len(costs) - place)
        shares[index] = rounded(min(1.0, least + part / training[index]))
        left -= (shares[index] - least) * training[index]
    return shares


def _seconds(costs: Iterable[Mapping[str, RunCost]], share: float) -> float:
    """What studies take with a ``share`` of each training; nothing if there is no framework in it."""
    return sum(SWEEP_S + SEEDS * sum(cost.run_s(share) for cost in study.values()) for study in costs if study)


def rounded(share: float) -> float:
    """Down to two digits: it is typed and read."""
    if share >= 1:
        return 1.0
    digits = f"{share:.6e}"
    return float(f"{digits[:3]}e{digits.split('e')[1]}")


def run(minutes: float, wanted: Sequence[str], overrides: Sequence[str], experiment: str) -> list[str]:
    """Plan and run it all, for the ``wanted`` frameworks or all, into an MLflow experiment; remarks that belong to the
    answer.

    Raises:
        ConfigError: an override is wrong.
        NoTime: not even the smallest study fits.
    """
    began = time.monotonic()
    device = config.compose(list(overrides)).hardware.device
    names, remarks = runnable_frameworks(device, wanted)
    planned = possible_sweeps()
    info(f"timing a few steps of {', '.join(names)}")
    found: dict[PlannedSweep, dict[str, RunCost]] = {}
    settings = list(dict.fromkeys(study.setting for study in planned))
    probing = time.monotonic()
    for place, setting in enumerate(settings, 1):
        probes: dict[str, Probe] = {}
        for name in list(names):
            composed = config.compose([*PlannedSweep(DATASETS[0], setting).overrides(name), *overrides])
            try:
                probes[name] = probe(composed)
                if probes[name].fixed_s > COLD_S:
                    probes[name] = probe(composed)
            except WorkerFailed as error:
                names.remove(name)
                remarks.append(f"{name} is left out: {error}")
        for study in planned:
            if study.setting == setting:
                composed_of = {name: config.compose([*study.overrides(name), *overrides]) for name in names}
                found[study] = {name: probes[name].cost(composed_of[name]) for name in names}
        now, first = time.monotonic(), {name: found[planned[0]][name] for name in names}
        left_s = MARGIN * (60 * minutes - (now - began)) - REPORT_S
        if not names or not plan({planned[0]: first}, left_s):
            other_probes_s = (now - probing) * (len(settings) - place) / place
            spent_s = now - began + other_probes_s + REPORT_S + _seconds([first], 0)
            raise NotEnoughTime(f"minutes={minutes:g}: too few for {SEEDS} runs of {', '.join(names) or 'nothing'} here; "
                         f"minutes={math.ceil(spent_s / 60 / MARGIN) + 1} may do")  # fmt: skip
    costs = {study: {name: found[study][name] for name in names} for study in planned}
    made = plan(costs, left_s)
    for study in planned:
        if study not in made:
            remarks.append(f"{study.text}: left out, there was no time for it; minutes={2 * minutes:g} may have it")
    for study, of_study in made.items():
        remarks += without(study, costs[study], of_study)
        info(f"{study.text}, {of_study.share:.2g} of the training: {', '.join(of_study.names)}, {SEEDS} seeds each")
        _sweep(study, of_study.names, of_study.share, overrides, experiment)
    return remarks


def _sweep(study: PlannedSweep, names: Sequence[str], share: float, overrides: Sequence[str], experiment: str) -> None:
    """A failed cell is a result: it is in the answer."""
    command = [sys.executable, "-m", "gtdl_mlflow", "-m", *study.overrides(",".join(names)),
               f"seed={','.join(map(str, range(SEEDS)))}", f"budget={share:g}", "sweep.rerun=all", "latency.repeats=0",
               f"tracking.experiment={experiment}", *overrides]  # fmt: skip
    # Of a project run of MLflow's there is one, and four sweeps: each makes its own run in the same experiment.
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
