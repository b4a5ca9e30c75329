"""Choice of a framework's execution mode: ``mode=best`` is the fastest one for this work, machine and number of steps.

Each mode is measured once per machine: first its compilation and its steady-state step separately, then the modes of
similar speed in a paired measurement. The results are stored in ``GTDL_HOME/modes`` and determine the choice for a
number of steps.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .config import Config, Mode, Unavailable, missing_tools
from .config.job import create_job
from .console import aligned, info, status_line
from .datasets import PreparedDataset
from .environments import Environment
from .files import cache_dir, read_state, write_atomically
from .hardware import host
from .paired import Compilation, Contestant, MeasurementPlan, PairedMeasurement, Restart, link_groups
from .reporting import ratios
from .reporting.intervals import Ratio
from .reporting.ratios import CPU, WALL, MeasuredTurn
from .tracking.identity import worker_code_version
from .worker.job import Activity
from .worker_process import WorkerFailed, environment_variables

COMPILATION_PAYS_S = {"cpu": 60.0, "gpu": 10.0}
"""Training time by device below which modes that compile are not measured. On CPUs, no mode has been found whose
compilation saves more than 11 % of a step: PyTorch's, which compiles for 8 to 10 s with a warm cache."""

CLOSE = 1.25
"""A mode takes part in the paired measurement if its estimated training time is at most this multiple of the shortest.
Two separate measurements of one mode differed by up to 15 % on a busy machine."""

ROUNDS = 3
"""Turns of a mode in each of the two processes that measure it alone."""

PAIRED_S = 60.0
"""Time limit, in seconds, of the paired measurement before a run. The measurement also takes at most as long as the
training, apart from the minimum number of restarts. ``gtdl tune --minutes`` has its own limit."""

IRRELEVANT = ("name", "order", "validation", "epochs", "iterations", "learning_rate", "schedule", "early_stopping",
              "evaluate_every_epochs", "target_accuracy_percent", "checkpoint_every_s")  # fmt: skip
"""Keys of ``training`` that do not change the time of a step."""


@dataclass(frozen=True)
class ModeCost:
    """Measured cost of training in one mode."""

    step_s: float
    """Seconds of a training step: CPU time with one thread, wall clock otherwise."""
    compile_s: float = 0.0
    """Seconds of compilation, ahead and in the first step, with what an earlier run left in the cache."""
    cold_compile_s: float | None = None
    """The same with an empty cache; None if it was not empty."""
    ratio: float = math.nan
    """Time of a step relative to the mode with the fastest step."""
    low: float = math.nan
    high: float = math.nan
    """Interval of ``ratio``; nan if the mode was measured alone only."""
    restarts: int = 0
    """Restarts of the paired measurement."""

    def total_s(self, steps: int) -> float:
        """Return the seconds of a training with ``steps`` steps."""
        return self.compile_s + steps * self.step_s

    @property
    def ratio_text(self) -> str:
        """The ratio with its interval, if there is one: ``1.04x [1.01, 1.07]``."""
        if math.isnan(self.low) or self.low == self.high:
            return f"{self.ratio:.2f}x"
        return Ratio(self.ratio, self.low, self.high, self.restarts).text


@dataclass(frozen=True)
class Choice:
    """The execution mode of a run, and how it compares with the others."""

    name: str
    costs: Mapping[str, ModeCost]
    """Measured modes, by name; empty if there was nothing to choose."""
    skipped: Mapping[str, str]
    """Reason for each mode that was not measured."""
    steps: int = 0

    @property
    def text(self) -> str:
        """The candidates in one line, the chosen mode first: ``graph 1.00x (12 ms/step); xla 1.8x (21 ms/step)``."""
        order = sorted(self.costs, key=lambda name: (name != self.name, self.costs[name].total_s(self.steps)))
        parts = [f"{name} {_candidate(self.costs[name])}" for name in order]
        parts += [f"{name} not measured: {reason}" for name, reason in self.skipped.items()]
        return "; ".join(parts)


def _candidate(cost: ModeCost) -> str:
    compilation = f", compilation {cost.compile_s:.1f} s" if cost.compile_s >= 0.1 else ""
    return f"{cost.ratio_text} ({1e3 * cost.step_s:.3g} ms/step{compilation})"


def usable(config: Config) -> tuple[list[str], dict[str, str]]:
    """Return the modes that ``config`` allows and that can run here, and the reason for each that cannot run."""
    names, reasons = [], {}
    for name in config.mode_names:
        if missing := missing_tools(config.framework.modes[name]):
            reasons[name] = f"{', '.join(missing)} is not on the PATH"
        else:
            names.append(name)
    return names, reasons


def recall(config: Config, environment: Environment) -> Config | None:
    """Return ``config`` with its execution mode if no measurement is needed for it; None if it is not known."""
    names, _ = usable(config)
    images = config.dataset.training_images
    if len(names) == 1:
        return replace(config, mode=names[0])
    study = ModeStudy(config, environment)
    if not names or images is None or study.missing(names, count := steps(config, images)):
        return None
    return replace(config, mode=study.best(names, count))


def choose(
    config: Config,
    environment: Environment,
    data: PreparedDataset,
    folder: Path,
    paired_s: float = PAIRED_S,
    longest_s: float = math.inf,
) -> tuple[Config, Choice]:
    """Return ``config`` with its execution mode, and the choice. The caller holds the device.

    Modes that were never measured for this work on this machine are measured first; their files go to ``folder``, and
    their paired measurement takes about ``paired_s`` seconds at most. ``longest_s`` is a limit of the training time:
    modes that compile are measured only if a training of so many seconds can save their compilation.

    Raises:
        Unavailable: no mode can run on this machine.
        WorkerFailed: no mode finished its measurement.
    """
    names, skipped = usable(config)
    if not names:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise Unavailable(f"mode={config.mode}: framework={config.framework.name} has no mode that can run: {reasons}")
    if len(names) == 1:
        return replace(config, mode=names[0]), Choice(names[0], {}, skipped)
    count = steps(config, data.train_images)
    study = ModeStudy(config, environment, longest_s)
    study.measure(names, count, data, folder / "modes", paired_s)
    best = study.best(names, count)
    costs = {name: cost for name, cost in study.costs.items() if name in names}
    return replace(config, mode=best), Choice(best, costs, skipped | study.reasons(names, count), count)


def steps(config: Config, images: int) -> int:
    """Return the number of training steps of a run on a data set with so many training images."""
    return config.training.steps(images - config.training.validation.count(images), config.budget)


class ModeStudy:
    """Measured costs of a framework's modes for one network, batch size, device and number of threads.

    What was measured before on this machine is read from ``GTDL_HOME``. ``longest_s`` is a limit of the training time.
    """

    def __init__(self, config: Config, environment: Environment, longest_s: float = math.inf) -> None:
        self._config, self._environment, self._longest_s = config, environment, longest_s
        self._modes, self._threads = config.framework.modes, config.threads
        self._clock = CPU if config.hardware.device == "cpu" and self._threads == 1 else WALL
        self._generator = random.Random(0)
        self.costs: dict[str, ModeCost] = {}
        self.failures: dict[str, str] = {}
        """Reason for each mode that could not be measured. It is not tried again, except by ``gtdl tune``."""
        stored = read_state(self._path) or {}
        with suppress(TypeError, AttributeError, KeyError):  # written by another version
            costs = {name: ModeCost(**values) for name, values in stored["costs"].items()}
            self.costs, self.failures = costs, {**stored["failures"]}

    def missing(self, names: Sequence[str], steps: int) -> list[str]:
        """Return the modes to measure next to find the best one for ``steps`` steps; empty if it is known."""
        fast = self._fast(names)
        unknown = [name for name in names if name not in self.costs and name not in self.failures]
        training_s = min(self._training_s(fast, steps), self._longest_s)
        if training_s < COMPILATION_PAYS_S[self._config.hardware.device] or set(unknown) & set(fast):
            return [name for name in unknown if name in fast]
        return unknown

    def best(self, names: Iterable[str], steps: int) -> str:
        """Return the measured mode with the shortest training of ``steps`` steps."""
        return min((name for name in names if name in self.costs), key=lambda name: self.costs[name].total_s(steps))

    def reasons(self, names: Sequence[str], steps: int) -> dict[str, str]:
        """Return the reason for each mode that was not measured for a training of ``steps`` steps."""
        seconds = self._training_s(self._fast(names), steps)
        short = f"the training takes {seconds:.1f} s, too short to save the time of a compilation"
        return {name: self.failures.get(name, short) for name in names if name not in self.costs}

    def _fast(self, names: Sequence[str]) -> list[str]:
        """Return the modes that do not compile; all if all do."""
        return [name for name in names if not self._modes[name].compiles] or list(names)

    def _training_s(self, names: Iterable[str], steps: int) -> float:
        return min((self.costs[name].total_s(steps) for name in names if name in self.costs), default=math.inf)

    def _write(self) -> None:
        costs = {name: asdict(cost) for name, cost in self.costs.items()}
        try:
            write_atomically(self._path, json.dumps({"costs": costs, "failures": self.failures}, indent=1))
        except OSError as error:
            info(f"{error.filename or self._path}: {error.strerror}: the next run measures the modes again")

    @property
    def _path(self) -> Path:
        config = self._config
        values = config.to_dict()
        training = {key: value for key, value in values["training"].items() if key not in IRRELEVANT}
        modes = {name: {**mode, "description": ""} for name, mode in values["framework"]["modes"].items()}
        data = [config.dataset.image_shape, config.dataset.classes]
        work = [config.framework.name, modes, values["model"]["layers"], training, data]
        machine = [host.fingerprint(), self._environment.key, worker_code_version()]
        execution = [config.hardware.device, self._threads, config.precision.value, config.deterministic]
        key = hashlib.sha256(json.dumps([work, machine, execution], sort_keys=True).encode()).hexdigest()[:16]
        return cache_dir() / "modes" / f"{key}.json"

    # Measurement.

    def measure(
        self, names: Sequence[str], steps: int, data: PreparedDataset, folder: Path, paired_s: float = PAIRED_S
    ) -> None:
        """Measure the modes that are not known yet and that matter for a training of ``steps`` steps.

        Raises:
            WorkerFailed: no mode finished.
        """
        measured = False
        while new := self.missing(names, steps):
            self._measure_alone(new, data, folder)
            measured = True
        if measured:
            self._require_one()
            training_s = self._training_s(self.costs, steps)
            close = [name for name, cost in self.costs.items() if cost.total_s(steps) <= CLOSE * training_s]
            self._compare(close, min(paired_s, training_s), data, folder)
            self._write()

    def measure_all(self, names: Sequence[str], seconds: float, data: PreparedDataset, folder: Path) -> None:
        """Measure all modes anew, with an empty cache first, and all of them in a paired measurement of ``seconds``.

        Raises:
            WorkerFailed: no mode finished.
        """
        self.costs, self.failures = {}, {}
        empty = folder / "compiled"
        try:
            self._measure_alone(names, data, folder, empty)
        finally:
            shutil.rmtree(empty, ignore_errors=True)
        self._require_one()
        self._compare(list(self.costs), seconds, data, folder)
        self._write()

    def _require_one(self) -> None:
        if not self.costs:
            raise WorkerFailed(next(iter(self.failures.values())))

    def _measure_alone(
        self, names: Iterable[str], data: PreparedDataset, folder: Path, compile_cache: Path | None = None
    ) -> None:
        """Measure modes one by one, each in two processes: the second finds what the first has compiled."""
        for name in names:
            turns: list[MeasuredTurn] = []
            compilations: list[Compilation] = []
            for start in range(2):
                status_line(f"{self._config.framework.name}: measuring mode {name}")
                own = folder / f"{name}-{start}"
                alone = contestant(name, replace(self._config, mode=name), self._environment, data, own, compile_cache)
                with Restart([alone], self._threads, own, 0) as restart:
                    turns += restart.turns([Activity.training], ROUNDS, self._generator)
                if reason := restart.failures.get(name):
                    self.failures[name] = reason
                    break
                compilations.append(restart.compilation[name])
            else:
                first, second = compilations
                cold = first.seconds if first.cache == "cold" else None
                self.costs[name] = ModeCost(self._step_s(turns), min(first.seconds, second.seconds), cold)
        status_line("")
        self._add_ratios({})

    def _compare(self, names: Sequence[str], seconds: float, data: PreparedDataset, folder: Path) -> None:
        """Compare modes in a paired measurement of at most ``seconds``."""
        if len(names) < 2:
            return
        plan = MeasurementPlan(seconds, fewest=3, activities=(Activity.training,), clock=self._clock)
        contestants = [
            contestant(name, replace(self._config, mode=name), self._environment, data, folder) for name in names
        ]
        measurement = PairedMeasurement(contestants, self._threads, plan, folder / "paired")
        for turn in measurement.run():
            status_line(f"{self._config.framework.name}: comparing {', '.join(names)}: restart {turn.restart + 1}")
        status_line("")
        ranking = ratios.rank(link_groups(measurement.turns), Activity.training.value, self._clock)
        if ranking.frameworks:
            best_s = ranking.frameworks[0].unit_s
            paired = {each.framework: each.ratio for each in ranking.frameworks}
            for name, ratio in paired.items():
                self.costs[name] = replace(self.costs[name], step_s=best_s * ratio.value)
            self._add_ratios(paired)

    def _add_ratios(self, paired: Mapping[str, Ratio]) -> None:
        """Set the ratios to the fastest step: the ``paired`` ones, and those of the modes that were measured alone."""
        fastest = min((cost.step_s for cost in self.costs.values()), default=math.nan)
        for name, cost in self.costs.items():
            if ratio := paired.get(name):
                changes = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}
                self.costs[name] = replace(cost, **changes, restarts=ratio.n)
            else:
                self.costs[name] = replace(cost, ratio=cost.step_s / fastest, low=math.nan, high=math.nan, restarts=0)

    def _step_s(self, turns: Iterable[MeasuredTurn]) -> float:
        return statistics.median((turn.cpu_s if self._clock == CPU else turn.wall_s) / turn.units for turn in turns)


def contestant(
    name: str,
    config: Config,
    environment: Environment,
    data: PreparedDataset,
    folder: Path,
    compile_cache: Path | None = None,
) -> Contestant:
    """Return a configuration with one execution mode as a contestant of a paired measurement.

    ``compile_cache`` is the folder of compiled code; None: the environment's own.
    """
    cache = compile_cache or environment.compile_cache
    job = create_job(config, data.folder, folder, data.sha256, cache)
    return Contestant(name, environment.python, environment_variables(config.execution, cache), job)


def break_even_steps(cost: ModeCost, other: ModeCost) -> float:
    """Return the steps after which a mode with a longer compilation has the shorter training; infinite if never."""
    saved_s = other.step_s - cost.step_s
    return max(0.0, cost.compile_s - other.compile_s) / saved_s if saved_s > 0 else math.inf


def table(costs: Mapping[str, ModeCost], modes: Mapping[str, Mode], batch_size: int, steps: int) -> list[str]:
    """Return the lines of a table of the modes, the fastest training of ``steps`` steps first."""
    uncompiled = [cost for name, cost in costs.items() if not modes[name].compiles]
    rows = [
        ["mode", "ms/step", "images/s", "x the fastest", "compile s cold", "warm", "pays after", f"{steps:,} steps"]
    ]
    for name, cost in sorted(costs.items(), key=lambda item: item[1].total_s(steps)):
        cold = "" if cost.cold_compile_s is None else f"{cost.cold_compile_s:.1f}"
        pays = ""
        if modes[name].compiles and uncompiled:
            after = break_even_steps(cost, min(uncompiled, key=lambda each: each.step_s))
            pays = "never" if math.isinf(after) else f"{after:,.0f} steps"
        speed = f"{batch_size / cost.step_s:,.0f}"
        total = f"{cost.total_s(steps):,.1f} s"
        rows.append(
            [name, f"{1e3 * cost.step_s:.3g}", speed, cost.ratio_text, cold, f"{cost.compile_s:.1f}", pays, total]
        )
    return aligned(rows)
