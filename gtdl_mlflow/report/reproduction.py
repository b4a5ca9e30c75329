"""GTDLBench's tables again, from the tracking store: the published figures beside ours, and the transfer matrices.

Medians over seeds, of runs that are alike in all else; runs of different machines, budgets or versions are never put
into one figure.
"""

from __future__ import annotations

import statistics
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from .. import config
from . import published
from .published import Figures


class NothingFound(Exception):
    """There is no run to report on; one line."""


@dataclass(frozen=True)
class Kind:
    """What runs of one cell have in common."""

    dataset: str
    framework: str
    setting: str
    """``MODEL`` where model and training are of one default, else ``MODEL + TRAINING``; it says if anything in them was
    changed."""
    version: str
    device: str
    threads: str
    budget: float
    tuning: str
    machine: str

    @property
    def is_default(self) -> bool:
        """Whether it is the framework's own default for this data set, GTDLBench's baseline."""
        return self.setting == f"{self.framework}_{self.dataset}"

    @property
    def place(self) -> str:
        """Where it ran, but for the machine."""
        return self.device if self.device == "gpu" else f"{self.device}, {self.threads} threads"


@dataclass(frozen=True)
class Cell:
    """Medians over the runs of one kind."""

    kind: Kind
    runs: int
    resumed: int
    """How many of them went on after a kill."""
    iterations: float
    training_time_s: float
    testing_time_s: float
    accuracy_percent: float


def cells(uri: str, experiments: list[str]) -> list[Cell]:
    """All finished runs of some experiments in the tracking store at ``uri``, by kind.

    Raises:
        NothingFound: an experiment does not exist, or has no finished run.
    """
    client, identifiers = MlflowClient(uri), []
    for name in experiments:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise NothingFound(f"experiment {name}: there is none in this tracking store")
        identifiers.append(found.experiment_id)
    of_kind: dict[Kind, list[Run]] = defaultdict(list)
    token: str | None = None
    while True:
        page = client.search_runs(identifiers, "attributes.status = 'FINISHED'", max_results=1000, page_token=token)
        for run in page:
            if "accuracy_percent" in run.data.metrics and "gtdl.framework" in run.data.tags:
                of_kind[_kind(run)].append(run)
        token = page.token
        if not token:
            break
    if not of_kind:
        raise NothingFound(f"experiment {', '.join(experiments)}: it has no finished run")
    return [_cell(kind, runs) for kind, runs in sorted(of_kind.items(), key=lambda item: _order(item[0]))]


def _kind(run: Run) -> Kind:
    tags, params = run.data.tags, run.data.params
    model, training = tags["gtdl.model"], tags["gtdl.training"]
    setting = model if model == training else f"{model} + {training}"
    overrides = [f"{key}={tags[f'gtdl.{key}']}" for key in ("framework", "dataset", "model", "training", "hardware",
                                                           "budget", "tuning")]  # fmt: skip
    overrides.append(f"framework.version={params['framework.version']}")
    if tags.get("gtdl.cell") != _cell_of(tuple(overrides)):
        setting += f" (changed, {tags.get('gtdl.cell', 'unknown')[:4]})"
    return Kind(
        tags["gtdl.dataset"], tags["gtdl.framework"], setting, tags["gtdl.framework_version"], tags["gtdl.device"],
        params["hardware.threads"], float(tags["gtdl.budget"]), tags["gtdl.tuning"], tags["gtdl.machine"],
    )  # fmt: skip


@cache
def _cell_of(overrides: tuple[str, ...]) -> str:
    """The cell of what these words mean today; empty if they mean nothing any more."""
    try:
        return config.compose(list(overrides)).cell()
    except config.ConfigError:
        return ""


def _order(kind: Kind) -> tuple[Any, ...]:
    return kind.dataset, kind.machine, kind.place, -kind.budget, kind.framework, kind.setting, kind.version, kind.tuning


def _cell(kind: Kind, runs: list[Run]) -> Cell:
    def median(name: str) -> float:
        return statistics.median(run.data.metrics[name] for run in runs)

    return Cell(
        kind, len(runs), sum("gtdl.resumed" in run.data.tags for run in runs),
        median("train/iterations"), median("training_time_s"), median("testing_time_s"), median("accuracy_percent"),
    )  # fmt: skip


def markdown(found: list[Cell], store: str) -> str:
    """The whole report; ``store`` says where the runs are."""
    original = published.load()
    datasets = list(dict.fromkeys(cell.kind.dataset for cell in found))
    # Their fingerprints are long: tables have a letter for each.
    letters = dict(zip(sorted({cell.kind.machine for cell in found}), string.ascii_uppercase, strict=False))
    parts = [
        "# GTDLBench reproduced",
        f"Made by `gtdl reproduction` from {sum(cell.runs for cell in found)} finished runs in {store}. Figures are "
        "medians over seeds (n runs); a budget below 1 is that share of the iterations, the schedule compressed with "
        "them: its times and accuracies are no reproduction of the full training.",
        f"Published: {original.source} Hardware: {original.hardware['cpu']} (CPU), {original.hardware['gpu']} (GPU), "
        f"{original.year}. A ratio of times compares two machines and the software of two years at once.",
    ]
    for name in datasets:
        of_dataset = [cell for cell in found if cell.kind.dataset == name]
        parts += _baseline(name, [cell for cell in of_dataset if cell.kind.is_default], original, letters)
        parts += _transfer(name, of_dataset, letters)
    parts += ["## Machines", "\n".join(f"- {letter}: {machine}" for machine, letter in letters.items())]
    return "\n\n".join(parts) + "\n"


def _baseline(dataset: str, own: list[Cell], original: published.Published, letters: Mapping[str, str]) -> list[str]:
    if not own:
        return []
    rows = []
    for cell in own:
        kind = cell.kind
        then = original.figures(dataset, kind.framework, kind.device)
        rows.append([
            f"{kind.framework} {kind.version}", kind.place, f"{kind.budget:g}", f"{cell.iterations:,.0f}",
            f"{cell.runs}" + (f" ({cell.resumed} resumed)" if cell.resumed else ""), letters[kind.machine],
            f"{cell.training_time_s:,.1f}", f"{cell.testing_time_s:.3g}", f"{cell.accuracy_percent:.2f}",
            *_beside(cell, then),
        ])  # fmt: skip
    header = ["framework", "on", "budget", "iterations", "n", "machine", "training s", "testing s", "accuracy %",
              "published", "accuracy, points", "training time, ratio", "testing time, ratio"]  # fmt: skip
    notes = [*original.notes["all"], *original.notes.get(dataset, [])]
    return [f"## {dataset}: each framework under its own default", table(header, rows),
            "Not like for like:\n\n" + "\n".join(f"- {note}" for note in notes)]  # fmt: skip


def _beside(cell: Cell, then: Figures | None) -> list[str]:
    """Published accuracy, ours less that, and our times over the published ones."""
    if then is None:
        return ["none", "", "", ""]
    return [
        f"{then.version}: {then.training_time_s:,.2f} s, {then.testing_time_s:g} s, {then.accuracy_percent:.2f} %",
        f"{cell.accuracy_percent - then.accuracy_percent:+.2f}",
        f"{cell.training_time_s / then.training_time_s:.3g}",
        f"{cell.testing_time_s / then.testing_time_s:.3g}",
    ]


def _transfer(dataset: str, found: list[Cell], letters: Mapping[str, str]) -> list[str]:
    """Framework by setting, one pair of matrices for each machine, budget, device and tuning."""
    parts = []
    same = defaultdict(list)
    for cell in found:
        same[cell.kind.machine, cell.kind.place, cell.kind.budget, cell.kind.tuning].append(cell)
    for (machine, place, budget, tuning), some in same.items():
        if len({cell.kind.setting for cell in some}) < 2:
            continue
        where = f"{place}, budget {budget:g}, tuning {tuning}, machine {letters[machine]}"
        parts += [f"## {dataset}: every framework under others' defaults ({where})"]
        parts += ["Accuracy in percent:", _matrix(some, lambda cell: f"{cell.accuracy_percent:.2f}")]
        parts += ["Training time in seconds:", _matrix(some, lambda cell: f"{cell.training_time_s:,.1f}")]
    return parts


def _matrix(found: list[Cell], show: Callable[[Cell], str]) -> str:
    columns = sorted({cell.kind.setting for cell in found})
    rows = sorted({(cell.kind.framework, cell.kind.version) for cell in found})
    values = {(cell.kind.framework, cell.kind.version, cell.kind.setting): show(cell) for cell in found}
    return table(
        ["", *columns], [[" ".join(row), *(values.get((*row, column), "") for column in columns)] for row in rows]
    )


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
