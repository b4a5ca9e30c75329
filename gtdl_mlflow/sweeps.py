"""What makes many runs one sweep: whose children they are, which of them are done already, and what became of all."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from . import machine, tables
from .config import Config, Rerun
from .delivery import ENDED, FAILURE, PROCESS, UNAVAILABLE, alive, connect, patience, reaching
from .resuming import code

VARIABLE = "GTDL_SWEEP"
"""Environment variable that tells the jobs of a sweep, in whatever process, whose children they are: PARENT/KEY."""

SWEEP, SWEEP_KEY, POSITION = "gtdl.sweep", "gtdl.sweep_key", "gtdl.sweep_position"
"""Tags: the overrides of a sweep, on its own run; what makes two sweeps the same; a job's number, on its run."""

PAGE = 1000
"""Runs that are asked for at a time."""

FINISHED, FAILED, CANNOT, GOING = "finished", "failed", "unavailable", "in progress"


@dataclass(frozen=True)
class Place:
    """A job's place in a sweep."""

    parent: str
    """The sweep's run, as in ``delivery.Record``."""
    key: str
    position: int

    @property
    def tags(self) -> dict[str, str]:
        return {SWEEP_KEY: self.key, POSITION: str(self.position)}


def place(position: int) -> Place | None:
    """Of the job of this process; None outside a sweep."""
    parent, _, key = os.environ.get(VARIABLE, "").rpartition("/")
    return Place(parent, key, position) if parent else None


def key(overrides: Iterable[str]) -> str:
    """What makes two sweeps the same: what runs, in which order of words ever, of which code, on which machine."""
    ours = ("sweep.", "tracking.", "limits.", "hydra.", "hydra/", "+hydra.", "tracking=")
    what = sorted(override for override in overrides if not override.startswith(ours))
    return hashlib.sha256(json.dumps([what, code(), machine.fingerprint()]).encode()).hexdigest()[:16]


# Which cells are done already.


def earlier(config: Config, place: Place) -> list[Run]:
    """Runs of the same sweep and configuration that ``sweep.rerun`` would not have run again; finished ones first.

    Raises:
        TrackingFailed: the tracker cannot be asked.
    """
    if config.sweep.rerun is Rerun.all or not (experiment := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return []
    with reaching(config.tracking.uri), patience(retries=2, timeout_s=10):
        same = f"tags.`{SWEEP_KEY}` = '{place.key}' and tags.`gtdl.config_hash` = '{config.hash()}'"
        attempts = runs(connect(config.tracking.uri), experiment, same)
        spared = [run for run in attempts if _spares(run, config.sweep.rerun)]
    return sorted(spared, key=lambda run: (run.info.status != "FINISHED", -run.info.start_time))


def adopt(config: Config, place: Place, run: Run) -> None:
    """A run of an earlier start of this sweep is a child of its parent of today from now on.

    Raises:
        TrackingFailed: the tracker cannot be told.
    """
    if run.data.tags.get(MLFLOW_PARENT_RUN_ID) != place.parent:
        with reaching(config.tracking.uri), patience(retries=2, timeout_s=10):
            connect(config.tracking.uri).set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, place.parent)


def _spares(run: Run, rerun: Rerun) -> bool:
    state = _state(run)
    return state in (FINISHED, GOING) or (rerun is Rerun.none and state == FAILED)


def _state(run: Run) -> str:
    if run.info.status == "RUNNING":
        return GOING
    if run.info.status == "FINISHED":
        return FINISHED
    return CANNOT if UNAVAILABLE in run.data.tags else FAILED


# What earlier attempts left behind.


def previous(client: MlflowClient, experiment_id: str, key: str) -> list[Run]:
    """The runs of earlier sweeps that were the same, the newest first."""
    found = runs(client, experiment_id, f"tags.`{SWEEP_KEY}` = '{key}' and tags.`{SWEEP}` LIKE '%'")
    return sorted(found, key=lambda run: -run.info.start_time)


def close_stale(client: MlflowClient, experiment_id: str, key: str, timeout_s: float) -> int:
    """End as KILLED what is RUNNING in MLflow though its process is gone; how many runs those were.

    Of a process on another machine that is only known of this very sweep's, and when it is older than ``timeout_s``.
    """
    closed = 0
    for run in runs(client, experiment_id, "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        if PROCESS not in tags:
            continue  # not ours, or just being made
        lives = alive(tags[PROCESS])
        if lives is False or (lives is None and older(run, timeout_s) and tags.get(SWEEP_KEY) == key):
            close(client, run, ENDED)
            closed += 1
    return closed


def older(run: Run, seconds: float) -> bool:
    return bool(time.time() - run.info.start_time / 1000 > seconds)


def close(client: MlflowClient, run: Run, reason: str) -> None:
    """End a run as KILLED, for a reason."""
    client.set_tag(run.info.run_id, FAILURE, reason)
    client.set_tag(run.info.run_id, MLFLOW_RUN_NOTE, f"KILLED: {reason}")
    client.set_terminated(run.info.run_id, "KILLED")


def runs(client: MlflowClient, experiment_id: str, condition: str) -> Iterator[Run]:
    """All runs of an experiment that meet a condition, page by page."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], condition, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


# What became of all.


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep, as its last attempt left it, or the one that finished."""

    state: str
    run: Run

    @property
    def label(self) -> str:
        tags = self.run.data.tags
        share = "" if tags.get("gtdl.budget", "1") == "1" else f" (budget {tags['gtdl.budget']})"
        return f"{self.run.info.run_name}{share}"

    @property
    def reason(self) -> str:
        tags = self.run.data.tags
        return tags.get(FAILURE) or tags.get(UNAVAILABLE) or ""


def cells(children: Iterable[Run]) -> list[Cell]:
    """The cells that these runs are attempts at, in the order in which the sweep has them."""
    attempts: dict[str, list[Run]] = defaultdict(list)
    for run in children:
        attempts[run.data.tags.get("gtdl.config_hash", run.info.run_id)].append(run)
    found = []
    for same in attempts.values():
        best = max(same, key=lambda run: (run.info.status == "FINISHED", run.info.start_time))
        found.append(Cell(_state(best), best))
    return sorted(found, key=lambda cell: int(cell.run.data.tags.get(POSITION, 0)))


@dataclass(frozen=True)
class Summary:
    """How a sweep ended."""

    cells: list[Cell]
    expected: int | None
    """How many cells it has, if that is known beforehand."""
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        states = Counter(cell.state for cell in self.cells)
        counts = {state: states[state] for state in (FINISHED, FAILED, CANNOT)}
        if states[GOING]:
            counts[GOING] = states[GOING]
        if self.expected is not None and self.expected > len(self.cells):
            counts["missing"] = self.expected - len(self.cells)
        return counts

    @property
    def failures(self) -> int:
        """Cells that did not finish though they could have."""
        return sum(count for state, count in self.counts.items() if state not in (FINISHED, CANNOT))

    def text(self) -> str:
        """For a person: the counts, and each cell that did not finish, with its reason."""
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count or state == FINISHED)
        total = self.expected if self.expected is not None else len(self.cells)
        lines = [f"sweep: {counts} of {total} {'cell' if total == 1 else 'cells'}, in {self.seconds:,.0f} s"]
        left = [cell for cell in self.cells if cell.state != FINISHED]
        width = max((len(cell.label) for cell in left), default=0)
        for cell in left:
            reason = cell.reason.splitlines()[0] if cell.reason else ""
            lines.append(f"  {cell.state.ljust(11)}  {cell.label.ljust(width)}  {reason}".rstrip())
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """All cells, a line each, as CSV."""
        names = ("framework", "dataset", "model", "training", "device", "seed", "budget", "tuning")
        figures = ("training_time_s", "testing_time_s", "accuracy_percent")
        rows = []
        for cell in self.cells:
            tags, metrics = cell.run.data.tags, cell.run.data.metrics
            row: list[Any] = [tags.get(POSITION, ""), cell.state, *(tags.get(f"gtdl.{name}", "") for name in names)]
            row += [metrics.get(name, "") for name in figures]
            rows.append([*row, cell.reason, cell.run.info.run_id])
        tables.write(path, ["position", "state", *names, *figures, "reason", "run_id"], rows)
