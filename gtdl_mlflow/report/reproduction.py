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
from typing import Any

from mlflow.tracking import MlflowClient

from . import published_figures
from .published_figures import PublishedResult
from .runs import BenchmarkRun, CellKey, LearningCurve, NothingFound, learning_curve, load

SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Of a run's iterations: where its accuracy is read off."""


@dataclass(frozen=True)
class ReproductionCell:
    """The runs of one kind."""

    kind: CellKey
    runs: tuple[BenchmarkRun, ...]

    def median(self, figure: str) -> float:
        """Of a metric, over the runs."""
        return statistics.median(run.metrics[figure] for run in self.runs)

    @property
    def resumed(self) -> int:
        """How many of them went on after a kill."""
        return sum("gtdl.resumed" in run.tags for run in self.runs)

    @property
    def accuracy(self) -> str:
        """Its median in percent and, of several runs, the lowest and the highest."""
        values = [run.metrics["accuracy_percent"] for run in self.runs]
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        return f"{statistics.median(values):.2f}{spread}"


def cells(uri: str, experiments: list[str]) -> list[ReproductionCell]:
    """All finished runs of some experiments in the tracking store at ``uri``, by kind.

    Raises:
        NothingFound: an experiment does not exist, or has no finished run.
    """
    found = of_runs(load(uri, experiments, "attributes.status = 'FINISHED'"))
    if not found:
        raise NothingFound(f"experiment {', '.join(experiments)}: it has no finished run")
    return found


def of_runs(runs: Iterable[BenchmarkRun]) -> list[ReproductionCell]:
    """Those of ``runs`` that finished, by kind."""
    of_kind: dict[CellKey, list[BenchmarkRun]] = defaultdict(list)
    for run in runs:
        if run.finished:
            of_kind[run.kind].append(run)
    return [
        ReproductionCell(kind, tuple(runs)) for kind, runs in sorted(of_kind.items(), key=lambda item: _order(item[0]))
    ]


def _order(kind: CellKey) -> tuple[Any, ...]:
    return kind.dataset, kind.machine, kind.place, -kind.budget, kind.framework, kind.setting, kind.version, kind.tuning


def alike(found: Iterable[ReproductionCell]) -> list[list[ReproductionCell]]:
    """Cells that differ in framework and setting only: each list is one pair of transfer matrices."""
    same: dict[tuple[Any, ...], list[ReproductionCell]] = defaultdict(list)
    for cell in found:
        kind = cell.kind
        same[kind.dataset, kind.machine, kind.place, kind.budget, kind.tuning].append(cell)
    return list(same.values())


def markdown(found: list[ReproductionCell], store: str, client: MlflowClient) -> str:
    """The whole report; ``store`` says where the runs are, ``client`` reads their curves."""
    original = published_figures.load()
    datasets = list(dict.fromkeys(cell.kind.dataset for cell in found))
    # Their fingerprints are long: tables have a letter for each.
    letters = dict(zip(sorted({cell.kind.machine for cell in found}), string.ascii_uppercase, strict=False))
    parts = [
        "# GTDLBench reproduced",
        f"Made by `gtdl reproduction` from {sum(len(cell.runs) for cell in found)} finished runs in {store}. Figures "
        "are medians over seeds (n runs); a budget below 1 is that share of the iterations, the schedule compressed "
        "with them: its times and accuracies are no reproduction of the full training.",
        f"Published: {original.source} Hardware: {original.hardware['cpu']} (CPU), {original.hardware['gpu']} (GPU), "
        f"{original.year}. A ratio of times compares two machines and the software of two years at once.",
    ]
    for name in datasets:
        of_dataset = [cell for cell in found if cell.kind.dataset == name]
        own = [cell for cell in of_dataset if cell.kind.is_default]
        parts += _baseline(name, own, original, letters)
        parts += _against_iterations(name, own, original, client)
        parts += _transfer(name, of_dataset, letters)
    parts += ["## Machines", "\n".join(f"- {letter}: {machine}" for machine, letter in letters.items())]
    return "\n\n".join(parts) + "\n"


def _baseline(
    dataset: str, own: list[ReproductionCell], original: published_figures.Published, letters: Mapping[str, str]
) -> list[str]:
    if not own:
        return []
    rows = []
    for cell in own:
        kind = cell.kind
        then = original.figures(dataset, kind.framework, kind.device)
        rows.append([
            kind.name, kind.place, f"{kind.budget:g}",
            f"{cell.median('train/iterations'):,.0f}",
            f"{len(cell.runs)}" + (f" ({cell.resumed} resumed)" if cell.resumed else ""), letters[kind.machine],
            f"{cell.median('training_time_s'):,.1f}", f"{cell.median('testing_time_s'):.3g}", cell.accuracy,
            *_beside(cell, then),
        ])  # fmt: skip
    header = ["framework", "on", "budget", "iterations", "n", "machine", "training s", "testing s", "accuracy %",
              "published", "accuracy, points", "training time, ratio", "testing time, ratio"]  # fmt: skip
    notes = [*original.notes["all"], *original.notes.get(dataset, [])]
    return [f"## {dataset}: each framework under its own default", table(header, rows),
            "Not like for like:\n\n" + "\n".join(f"- {note}" for note in notes)]  # fmt: skip


def _beside(cell: ReproductionCell, then: PublishedResult | None) -> list[str]:
    """Published accuracy, ours less that, and our times over the published ones."""
    if then is None:
        return ["none", "", "", ""]
    return [
        f"{then.version}: {then.training_time_s:,.2f} s, {then.testing_time_s:g} s, {then.accuracy_percent:.2f} %",
        f"{cell.median('accuracy_percent') - then.accuracy_percent:+.2f}",
        f"{cell.median('training_time_s') / then.training_time_s:.3g}",
        f"{cell.median('testing_time_s') / then.testing_time_s:.3g}",
    ]


def _against_iterations(
    dataset: str, own: list[ReproductionCell], original: published_figures.Published, client: MlflowClient
) -> list[str]:
    """What accuracy each training had reached after a share of its iterations, beside what its tutorial says."""
    rows = []
    for cell in own:
        courses = [learning_curve(run, client) for run in cell.runs]
        if max((len(each.accuracy) for each in courses), default=0) < 2:
            continue
        kind, row = cell.kind, []
        for share in SHARES:
            iterations = share * cell.median("train/iterations")
            seen = [accuracy for each in courses if (accuracy := _reached(each, iterations)) is not None]
            row.append(f"{statistics.median(seen):.2f} ({iterations:,.0f})" if len(seen) == len(courses) else "")
        rows.append([kind.name, kind.place, f"{kind.budget:g}", f"{len(cell.runs)}", *row,
                     original.tutorials.get(kind.setting, "")])  # fmt: skip
    if not rows:
        return []
    header = ["framework", "on", "budget", "n", *(f"{share:.0%} of them" for share in SHARES), "its tutorial reports"]
    return [f"## {dataset}: accuracy against iterations",
            "Test accuracy in percent at the last look before that share of the run's iterations (their number), "
            "medians over seeds:", table(header, rows)]  # fmt: skip


def _reached(each: LearningCurve, iterations: float) -> float | None:
    """The accuracy at the last look that was not later; None where there was none yet."""
    seen = [accuracy for at, accuracy in zip(each.iterations, each.accuracy, strict=True) if at <= iterations]
    return seen[-1] if seen else None


def _transfer(dataset: str, found: list[ReproductionCell], letters: Mapping[str, str]) -> list[str]:
    """Framework by setting, one pair of matrices for each machine, budget, device and tuning."""
    parts = []
    for some in alike(found):
        if all(cell.kind.is_default for cell in some):  # which the first table has
            continue
        kind = some[0].kind
        where = f"{kind.place}, budget {kind.budget:g}, tuning {kind.tuning}, machine {letters[kind.machine]}"
        parts += [f"## {dataset}: every framework under others' defaults ({where})"]
        parts += ["Accuracy in percent:", _matrix(some, lambda cell: cell.accuracy)]
        parts += ["Training time in seconds:", _matrix(some, lambda cell: f"{cell.median('training_time_s'):,.1f}")]
    return parts


def _matrix(found: list[ReproductionCell], show: Callable[[ReproductionCell], str]) -> str:
    columns = sorted({cell.kind.setting for cell in found})
    values = {(cell.kind.name, cell.kind.setting): show(cell) for cell in found}
    rows = sorted({cell.kind.name for cell in found})
    return table(["", *columns], [[row, *(values.get((row, column), "") for column in columns)] for row in rows])


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
