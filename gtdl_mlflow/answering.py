"""``gtdl answer``: which framework, on this machine, within the minutes that there are.

Every framework that can run here, interleaved over five seeds, on the digits that come with the benchmark and, where it
is at hand, on full MNIST; all under one setting (the parity track), and each under its own default (the default track).
How much of each training fits is found out by a few steps of each beforehand.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import config, datasets, devices, environments
from .benchmark import job_of
from .launch import WorkerFailed, launch
from .making import say
from .worker.events import Metrics
from .worker.inputs import split

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

LEAST = 0.01
"""Of a training: with less than that of each, nothing learns, so that rather fewer studies are made."""

CELL_S = 1.0
"""What the driver adds to a cell: the tracker, the model's files."""

SWEEP_S = 6.0
"""What a sweep takes before its first cell: imports, the store, the parent run."""

REPORT_S = 10.0
"""What the verdict and the report take at the end."""

MARGIN = 0.9
"""Of the time left that is planned with: machines are noisy."""


class NoTime(Exception):
    """Less time than the smallest study takes; one line."""


@dataclass(frozen=True)
class Study:
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
class Cost:
    """Of one run."""

    fixed_s: float
    """Whatever the budget is."""
    training_s: float
    """Of the full training and the looks at the accuracy in it."""


def able(device: str, wanted: Collection[str] = ()) -> tuple[list[str], list[str]]:
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
        if any(recipe.build for recipe in offer.recipes) and not environments.ready(framework, device):
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


def studies() -> list[Study]:
    """Those whose data are at hand, in the order in which they may be left out, the last first."""
    found = []
    for name in DATASETS:
        try:
            datasets.prepare(config.compose([f"dataset={name}"]).dataset)
        except datasets.DatasetError:
            continue
        found += [Study(name, COMMON), Study(name, "")]
    return found


@dataclass(frozen=True)
class Probe:
    """What a few steps of a framework under a setting took."""

    fixed_s: float
    """Import, data, build, first step, saving."""
    step_s: float
    test_image_s: float

    def cost(self, composed: config.Config) -> Cost:
        """Of a run of this, its own data set's size taken into account."""
        training, data = composed.training, datasets.prepare(composed.dataset)
        trained, _ = split(data.train_images, training)
        steps = training.steps(trained.stop - trained.start, 1.0)
        epochs = steps * training.batch_size / (trained.stop - trained.start)
        test_s = self.test_image_s * data.test_images
        looks = epochs / training.evaluate_every if training.evaluate_every else 0
        return Cost(self.fixed_s + test_s, steps * self.step_s + looks * test_s)


def probe(composed: config.Config) -> Probe:
    """Time a few steps of this, and its testing."""
    data = datasets.prepare(composed.dataset)
    environment = environments.ensure(composed.framework, composed.hardware.device)
    with tempfile.TemporaryDirectory(prefix="gtdl-answer-") as name, devices.held(composed.hardware):
        job = job_of(composed, data.folder, Path(name))
        few = replace(job.training, iterations=PROBE_STEPS, epochs=None, evaluate_every=0, early_stopping=None)
        job = replace(job, training=few, budget=1.0)
        began = time.monotonic()
        metrics: dict[str, float] = {}
        settings = composed.settings.environment
        for event in launch(job, environment.python, settings, Path(name), composed.limits.run_timeout_s):
            if isinstance(event, Metrics):
                metrics |= event.values
        wall_s = time.monotonic() - began
    return Probe(
        wall_s - metrics["training_time_s"] - metrics["testing_time_s"] + metrics["train/first_step_s"],
        job.training.batch_size / metrics["train/steady_images_per_s"],
        1 / metrics["test/images_per_s"],
    )


def budgets(costs: Sequence[Sequence[Cost]], seconds: float) -> list[float]:
    """For each study with the ``costs`` of its frameworks' runs, the share of their trainings that fits.

    All studies get the same part of the ``seconds`` that are left when the fixed costs are paid; what one cannot use
    goes to the others. Studies are left out, the last first, until each of several has ``LEAST`` of its training; the
    only one that is left may have less.
    """
    fixed = [SWEEP_S + SEEDS * sum(cost.fixed_s + CELL_S for cost in study) for study in costs]
    training = [SEEDS * sum(cost.training_s for cost in study) for study in costs]
    for count in range(len(costs), 0, -1):
        left = seconds - sum(fixed[:count])
        if left <= 0:
            continue
        found = [0.0] * count
        for place, index in enumerate(sorted(range(count), key=lambda index: training[index])):
            part = left / (count - place)
            found[index] = rounded(min(1.0, part / training[index]))
            left -= found[index] * training[index]
        if count == 1 or min(found) >= LEAST:
            return found
    return []


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
    names, remarks = able(device, wanted)
    planned = studies()
    say(f"timing a few steps of {', '.join(names)}")
    probes: dict[tuple[str, str], Probe] = {}
    for setting in dict.fromkeys(study.setting for study in planned):
        for name in list(names):
            composed = config.compose([*Study(DATASETS[0], setting).overrides(name), *overrides])
            try:
                probes[name, setting] = probe(composed)
                if probes[name, setting].fixed_s > COLD_S:
                    probes[name, setting] = probe(composed)
            except WorkerFailed as error:
                names.remove(name)
                remarks.append(f"{name} is left out: {error}")
    costs = [
        [probes[name, study.setting].cost(config.compose([*study.overrides(name), *overrides])) for name in names]
        for study in planned
    ]
    left_s = MARGIN * (60 * minutes - (time.monotonic() - began)) - REPORT_S
    shares = budgets(costs, left_s) if names else []
    if not shares:
        spent_s = time.monotonic() - began + REPORT_S + sum(cost.fixed_s + CELL_S for cost in costs[0]) * SEEDS
        raise NoTime(f"minutes={minutes:g}: too few for {SEEDS} runs of {', '.join(names) or 'nothing'} here; "
                     f"minutes={math.ceil(spent_s / 60 / MARGIN) + 1} may do")  # fmt: skip
    for study in planned[len(shares) :]:
        remarks.append(f"{study.text}: left out, there was no time for it; minutes={2 * minutes:g} may have it")
    for study, share in zip(planned, shares, strict=False):
        say(f"{study.text}, {share:.2g} of the training: {', '.join(names)}, {SEEDS} seeds each")
        _sweep(study, names, share, overrides, experiment)
    return remarks


def _sweep(study: Study, names: Sequence[str], share: float, overrides: Sequence[str], experiment: str) -> None:
    """A failed cell is a result: it is in the answer."""
    command = [sys.executable, "-m", "gtdl_mlflow", "-m", *study.overrides(",".join(names)),
               f"seed={','.join(map(str, range(SEEDS)))}", f"budget={share:g}", "sweep.rerun=all",
               f"tracking.experiment={experiment}", *overrides]  # fmt: skip
    # Of a project run of MLflow's there is one, and four sweeps: each makes its own run in the same experiment.
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
