"""``gtdl report``: all runs of some experiments in one HTML file that needs no server and no network."""

from __future__ import annotations

import datetime
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup
from mlflow.tracking import MlflowClient

from .. import __version__, chart_style
from . import charts, published_figures, reproduction
from .check import TAG
from .comparison import format_summary
from .ranking import QUESTIONS, Conditions, FrameworkResults, format_number, group_by_conditions
from .runs import OWN, BenchmarkRun, NothingFound
from .sections import Chart, Table, section
from .stats import summarize

CHAPTERS = 24
"""Conditions that have charts; the runs under others are in the tables."""

COLUMNS = ("dataset", "framework", "version", "setting", "device", "threads", "budget", "tuning", "seed", "status",
           "training_time_s", "testing_time_s", "accuracy_percent", "images_per_s", "quality", "check", "reason",
           "started", "machine", "run_id")  # fmt: skip
"""Of the table of raw values."""

NUMBERS = {"budget", "seed", "training_time_s", "testing_time_s", "accuracy_percent", "images_per_s"}
"""Columns that are sorted by size."""


def page(runs: list[BenchmarkRun], client: MlflowClient, experiment: str, said: Sequence[str] = ()) -> str:
    """The whole file; ``said`` is what a reader must know of all of it.

    Raises:
        NothingFound: there is no run.
    """
    if not runs:
        raise NothingFound(f"experiment {experiment}: it has no run yet")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    grouped = group_by_conditions(runs)
    able = {conditions: sum(bool(entry.finished) for entry in found) for conditions, found in grouped.items()}
    compared = [(conditions, grouped[conditions]) for conditions, count in able.items() if count > 1] or [
        (conditions, grouped[conditions]) for conditions, count in able.items() if count and conditions.setting != OWN
    ]
    chapters = [section(conditions, found, client) for conditions, found in compared[:CHAPTERS]]
    original = published_figures.load()
    rows = [raw(run) for run in sorted(runs, key=lambda run: (run.kind.dataset, run.kind.framework, run.seed))]
    pictures = [picture for each in chapters for picture in each.charts]
    transfers = transfer(runs)
    specifications = [picture.specification for picture in [*pictures, *transfers]]
    numbers = {id(picture): index for index, picture in enumerate([*pictures, *transfers])}
    return environment.get_template("page.html").render(
        experiment=experiment, said=said, version=__version__, made=_time(time.time()),
        count=len(runs), finished=sum(run.finished for run in runs), chapters=chapters,
        left=len(compared) - len(chapters),
        gtdlbench=gtdlbench(runs, original), original=original, notes=notes(runs, original),
        tracks=tracks(compared), transfers=transfers, machines=machines(runs), missing=missing(runs),
        columns=COLUMNS, numeric=NUMBERS, number_of=lambda picture: numbers[id(picture)],
        color=chart_style.color_of, specifications=_json(specifications), rows=_json(rows), library=library(),
    )  # fmt: skip


@cache
def library() -> Markup:
    """Vega, Vega-Lite and Vega-Embed in one script."""
    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _time(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def _json(value: Any) -> Markup:
    """To stand in a script element, where ``</`` would end it; a nan has no JSON."""
    return Markup(json.dumps(_finite(value), separators=(",", ":")).replace("</", "<\\/"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def raw(run: BenchmarkRun) -> dict[str, Any]:
    """A row of the table of raw values."""
    kind, metrics = run.kind, run.metrics
    return {
        "dataset": kind.dataset, "framework": kind.framework, "version": kind.version, "setting": kind.setting,
        "device": kind.device, "threads": kind.threads, "budget": kind.budget, "tuning": kind.tuning, "seed": run.seed,
        "status": "UNAVAILABLE" if run.unavailable else run.status,
        "training_time_s": metrics.get("training_time_s"), "testing_time_s": metrics.get("testing_time_s"),
        "accuracy_percent": metrics.get("accuracy_percent"), "images_per_s": metrics.get("train/images_per_s"),
        "quality": run.quality, "check": run.tags.get(TAG, ""), "reason": run.reason,
        "started": _time(run.started_ms / 1000), "machine": kind.machine, "run_id": run.run_id,
    }  # fmt: skip


# What is beside the chapters.


@dataclass(frozen=True)
class Original:
    """One of GTDLBench's tables, with the figures of today beside the published ones."""

    title: str
    rows: list[list[list[str]]]
    """Framework, then three figures of the CPU and three of the GPU: today's, and the published one."""


def gtdlbench(runs: Iterable[BenchmarkRun], original: published_figures.Published) -> list[Original]:
    """Each framework under its own default, by data set, machine, budget and tuning: how it ran on the CPU, a table for
    each number of threads, and beside that on the GPU.
    """
    groups: dict[tuple[str, str, float, str], list[BenchmarkRun]] = defaultdict(list)
    for run in runs:
        kind = run.kind
        if run.finished and kind.is_default:
            groups[kind.dataset, kind.machine, kind.budget, kind.tuning].append(run)
    made = []
    for (dataset, machine, budget, tuning), some in sorted(groups.items()):
        gpu = [run for run in some if run.kind.device == "gpu"]
        places = sorted({run.kind.place for run in some if run.kind.device != "gpu"}) or ["gpu"]
        for place in places:
            columns = {"cpu": [run for run in some if run.kind.place == place and place != "gpu"], "gpu": gpu}
            title = ", ".join([
                dataset, place, *([f"{budget:.3g} of the iterations"] if budget != 1 else []),
                *([f"tuning {tuning}"] if tuning != "best" else []),
            ])  # fmt: skip
            frameworks = sorted({run.kind.name for column in columns.values() for run in column})
            rows = [[[name], *_then_and_now(dataset, name, columns, original)] for name in frameworks]
            made.append(Original(f"{title}, {machine}", rows))
    return made


def _then_and_now(
    dataset: str, name: str, columns: dict[str, list[BenchmarkRun]], original: published_figures.Published
) -> list[list[str]]:
    """The three figures of a framework on each device, today's and the published one."""
    cells = []
    for device, runs in columns.items():
        then = original.figures(dataset, name.split(" ")[0], device)
        for figure in QUESTIONS:
            values = [run.metrics[figure.name] for run in runs if run.kind.name == name]
            ours = format_summary(summarize(values)) if values else ""
            cells.append([ours, f"{getattr(then, figure.name):,.2f}" if then else ""])
    return cells


def notes(runs: Iterable[BenchmarkRun], original: published_figures.Published) -> list[str]:
    """Where the published figures are not like for like."""
    datasets = sorted({run.kind.dataset for run in runs} & set(original.notes))
    return [*original.notes["all"], *(f"{name}: {note}" for name in datasets for note in original.notes[name])]


def tracks(compared: list[tuple[Conditions, list[FrameworkResults]]]) -> list[tuple[str, Table]]:
    """The default track beside the parity track: each framework's own default, and all under one setting."""
    by_place: dict[tuple[str, str, str, str, str], list[tuple[Conditions, list[FrameworkResults]]]] = defaultdict(list)
    for conditions, found in compared:
        place = (conditions.dataset, conditions.place, f"budget {conditions.budget:g}", conditions.tuning,
                 conditions.machine)  # fmt: skip
        by_place[place].append((conditions, found))
    made = []
    for where, some in by_place.items():
        shared = [pair for pair in some if pair[0].setting == OWN or len(pair[1]) > 1]
        if len(shared) < 2 or shared[0][0].setting != OWN:
            continue
        names = sorted({entry.framework for _, found in shared for entry in found})
        header = ["framework"]
        for conditions, _ in shared:
            title = "own default" if conditions.setting == OWN else conditions.setting
            header += [f"{title}: training, s", f"{title}: accuracy, %"]
        rows = []
        for name in names:
            row = [name]
            for _, found in shared:
                entry = next((each for each in found if each.framework == name and each.finished), None)
                for figure in ("training_time_s", "accuracy_percent"):
                    values = entry.values(figure) if entry else []
                    row.append(format_number(statistics.median(values)) if values else "")
            rows.append(row)
        made.append((", ".join(where), Table(header, rows)))
    return made


TRANSFERRED = (("accuracy_percent", "accuracy, %", ".2f", False), ("training_time_s", "training time, s", ".3~s", True))
"""Figures of the transfer matrices: name, title, format, whether the colours are logarithmic."""


def transfer(runs: Iterable[BenchmarkRun]) -> list[Chart]:
    """Accuracy and training time of every framework under every setting, where there are two of each or more."""
    made = []
    for cells in reproduction.alike(reproduction.of_runs(runs)):
        kind = cells[0].kind
        frameworks = sorted({cell.kind.name for cell in cells})
        settings = sorted({cell.kind.setting for cell in cells})
        if min(len(frameworks), len(settings)) < 2:
            continue
        for figure, title, form, logarithmic in TRANSFERRED:
            values = {(cell.kind.name, cell.kind.setting): cell.median(figure) for cell in cells}
            rows = [{"framework": name, "setting": setting, "value": value}
                    for (name, setting), value in values.items()]  # fmt: skip
            written = {key: format_number(value) for key, value in values.items()}
            table = Table(["", *settings], [[name, *(written.get((name, setting), "") for setting in settings)]
                                            for name in frameworks])  # fmt: skip
            chart = charts.heat_map(rows, "value", title, form, logarithmic)
            note = f"Medians; {kind.place}, budget {kind.budget:g}, tuning {kind.tuning}, {kind.machine}."
            made.append(Chart(f"{kind.dataset}: {title}", chart, table, note))
    return made


def machines(runs: Iterable[BenchmarkRun]) -> Table:
    """Which there are, and how many runs are of each."""
    of: dict[str, list[BenchmarkRun]] = defaultdict(list)
    for run in runs:
        of[run.kind.machine].append(run)
    return Table(["machine", "runs", "places"], [
        [name, str(len(some)), "; ".join(sorted({run.kind.place for run in some}))] for name, some in sorted(of.items())
    ])  # fmt: skip


def missing(runs: Iterable[BenchmarkRun]) -> Table:
    """What did not finish, and why."""
    rows = []
    for run in runs:
        if not run.finished:
            kind = run.kind
            state = "unavailable" if run.unavailable else run.status.lower()
            rows.append([kind.dataset, kind.name, kind.setting, str(run.seed), state, run.reason])
    return Table(["data set", "framework", "setting", "seed", "state", "reason"], sorted(rows))
