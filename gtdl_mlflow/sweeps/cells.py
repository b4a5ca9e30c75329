"""The cells of a sweep: which of them are finished, and a summary of all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from .. import datasets, environments, tags
from ..config import Config, ConfigError, Rerun, check
from ..files import write_csv
from ..hardware import host
from ..metrics import HEADLINE
from ..tracking.identity import identity, worker_code_version
from ..tracking.processes import is_alive
from ..tracking.recorder import SweepPosition
from ..tracking.store import TrackingFailed, open_store, search_runs

VARIABLE = "GTDL_SWEEP"
"""Environment variable of a sweep's jobs, in any process: PARENT/SWEEP_ID."""

FINISHED, FAILED, UNAVAILABLE, RUNNING = "finished", "failed", "unavailable", "running"
"""States of a cell."""

SUMMARY = "summary.csv"
"""File with the cells of a sweep."""

DISTURBED = "*"
"""Mark of a cell that other load disturbed."""

COLUMNS = (tags.FRAMEWORK, tags.DATASET, tags.MODEL, tags.TRAINING, tags.DEVICE, tags.SEED, tags.BUDGET,
           tags.MODE_REQUESTED, tags.PRECISION)  # fmt: skip
"""Tags that are columns of the summary."""

NOT_DECISIVE = ("sweep.", "tracking.", "limits.", "hydra.", "hydra/", "+hydra.", "tracking=")
"""Prefixes of overrides that cannot change a result."""


def position(number: int) -> SweepPosition | None:
    """Return the position of this process's job in its sweep; None outside a sweep."""
    parent, _, sweep = os.environ.get(VARIABLE, "").rpartition("/")
    return SweepPosition(parent, sweep, number) if parent else None


def sweep_id(overrides: Iterable[str]) -> str:
    """Return the hash of the overrides (their order is ignored), the worker's code and the host."""
    decisive = sorted(override for override in overrides if not override.startswith(NOT_DECISIVE))
    return hashlib.sha256(json.dumps([decisive, worker_code_version(), host.fingerprint()]).encode()).hexdigest()[:16]


# Resuming a sweep: which cells are finished.


def find_completed(config: Config, position: SweepPosition) -> Run | None:
    """Return the run that completed this cell in an earlier start of the sweep, and reparent it to this start's parent.

    None if the cell has to run, or if the tracker, the data set or the environment is not available.
    """
    try:
        candidates = previous_attempts(config, position)
        if not candidates:
            return None
        check(config)
        data = datasets.prepare(config.dataset)
        ours = identity(config, environments.ensure(config.framework, config.hardware.device), data)
        completed = next((run for run in candidates if ours.matches(run.data.tags)), None)
        if completed is not None:
            reparent(config, position, completed)
        return completed
    except (ConfigError, environments.EnvironmentFailed, datasets.DatasetError, TrackingFailed):
        return None  # the run itself fails in the same way and records the reason


def previous_attempts(config: Config, position: SweepPosition) -> list[Run]:
    """Return runs of the same sweep and configuration that ``sweep.rerun`` does not repeat, finished ones first.

    Raises:
        TrackingFailed: the tracker cannot be searched.
    """
    if config.sweep.rerun is Rerun.all or not (experiment := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return []
    with open_store(config.tracking.uri) as client:
        condition = f"tags.`{tags.SWEEP_ID}` = '{position.sweep_id}' and tags.`{tags.CONFIG_HASH}` = '{config.hash()}'"
        attempts = search_runs(client, experiment, condition)
        done = [run for run in attempts if _is_done(run, config)]
    return sorted(done, key=lambda run: (run.info.status != "FINISHED", -run.info.start_time))


def reparent(config: Config, position: SweepPosition, run: Run) -> None:
    """Set the parent of this start of the sweep as the parent of ``run``, a run of an earlier start.

    Raises:
        TrackingFailed: the tracker refuses.
    """
    if run.data.tags.get(MLFLOW_PARENT_RUN_ID) != position.parent:
        with open_store(config.tracking.uri) as client:
            client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, position.parent)


def _is_done(run: Run, config: Config) -> bool:
    state = _state(run)
    if state == RUNNING:
        return _may_be_running(run, config.limits.run_timeout_s)
    return state == FINISHED or (config.sweep.rerun is Rerun.none and state == FAILED)


def _may_be_running(run: Run, timeout_s: float) -> bool:
    """Return whether the process of a RUNNING run exists, or may exist on another machine.

    A run that may exist elsewhere counts as running for ``timeout_s`` seconds. Then its cell is run again.
    """
    alive = is_alive(run.data.tags.get(tags.PROCESS, ""))
    return time.time() - run.info.start_time / 1000 < timeout_s if alive is None else alive


def _state(run: Run) -> str:
    if run.info.status == "RUNNING":
        return RUNNING
    if run.info.status == "FINISHED":
        return FINISHED
    return UNAVAILABLE if tags.UNAVAILABLE in run.data.tags else FAILED


# Earlier starts.


def previous_sweeps(client: MlflowClient, experiment_id: str, sweep: str) -> list[Run]:
    """Return the parent runs of earlier starts of the sweep with ID ``sweep``, the newest first."""
    found = search_runs(client, experiment_id, f"tags.`{tags.SWEEP_ID}` = '{sweep}' and tags.`{tags.SWEEP}` LIKE '%'")
    return sorted(found, key=lambda run: -run.info.start_time)


# The end of a sweep.


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep, as its finished or last attempt left it."""

    state: str
    run: Run

    @property
    def label(self) -> str:
        budget = self.run.data.tags.get(tags.BUDGET, "1")
        return str(self.run.info.run_name) + ("" if budget == "1" else f" (budget {budget})")

    @property
    def reason(self) -> str:
        """Why the cell did not finish; empty if it did."""
        return self.run.data.tags.get(tags.FAILURE) or self.run.data.tags.get(tags.UNAVAILABLE) or ""

    @property
    def disturbed(self) -> bool:
        """Whether other load on the machine makes the times of the run unreliable."""
        return self.state == FINISHED and self.run.data.tags.get(tags.INTERFERENCE, "ok") != "ok"


def cells(children: Iterable[Run]) -> list[Cell]:
    """Return the cells that these runs are attempts of, in the order of the sweep."""
    attempts: dict[str, list[Run]] = defaultdict(list)
    for run in children:
        attempts[run.data.tags.get(tags.CONFIG_HASH, run.info.run_id)].append(run)
    found = []
    for runs in attempts.values():
        best = max(runs, key=lambda run: (run.info.status == "FINISHED", run.info.start_time))
        found.append(Cell(_state(best), best))
    return sorted(found, key=lambda cell: int(cell.run.data.tags.get(tags.SWEEP_POSITION, 0)))


@dataclass(frozen=True)
class SweepSummary:
    """How a sweep ended."""

    cells: list[Cell]
    expected: int | None
    """Number of cells of the sweep, if it is known beforehand."""
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells by state; ``missing`` are those that were not started."""
        states = Counter(cell.state for cell in self.cells)
        counts = {state: states[state] for state in (FINISHED, FAILED, UNAVAILABLE)}
        if states[RUNNING]:
            counts[RUNNING] = states[RUNNING]
        if self.expected is not None and self.expected > len(self.cells):
            counts["missing"] = self.expected - len(self.cells)
        return counts

    @property
    def failures(self) -> int:
        """Number of cells that did not finish although they can run on this machine."""
        return sum(count for state, count in self.counts.items() if state not in (FINISHED, UNAVAILABLE))

    def text(self) -> str:
        """Return the counts, and a table with the results of each cell, or the reason why it did not finish."""
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count or state == FINISHED)
        total = self.expected if self.expected is not None else len(self.cells)
        lines = [f"sweep: {counts} of {total} {'cell' if total == 1 else 'cells'}, in {self.seconds:,.0f} s"]
        rows = [("state", "cell", f"{'training s':>11}  {'testing s':>11}  accuracy %")]
        rows += [(cell.state, cell.label, _results(cell)) for cell in self.cells]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines += [f"  {state:{widths[0]}}  {label:{widths[1]}}  {text}".rstrip() for state, label, text in rows]
        if any(cell.disturbed for cell in self.cells):
            lines.append(
                f"  {DISTURBED} disturbed by other load: times are not reliable (column interference of {SUMMARY})"
            )
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write a CSV file with one line per cell."""
        rows = []
        for cell in self.cells:
            run_tags, metrics = cell.run.data.tags, cell.run.data.metrics
            row: list[Any] = [run_tags.get(tags.SWEEP_POSITION, ""), cell.state]
            row += [run_tags.get(tag, "") for tag in COLUMNS] + [metrics.get(name, "") for name in HEADLINE]
            rows.append([*row, run_tags.get(tags.INTERFERENCE, ""), cell.reason, cell.run.info.run_id])
        columns = [tag.removeprefix("gtdl.") for tag in COLUMNS]
        header = ["position", "state", *columns, *HEADLINE, "interference", "reason", "run_id"]
        write_csv(path, header, rows)


def _results(cell: Cell) -> str:
    """Return the end of a cell's line in the table."""
    if cell.state != FINISHED:
        return cell.reason.splitlines()[0] if cell.reason else ""
    training, testing, accuracy = (cell.run.data.metrics.get(name, math.nan) for name in HEADLINE)
    mark = DISTURBED if cell.disturbed else ""
    return f"{training:11.2f}  {testing:11.3g}  {accuracy:10.2f} {mark}"
