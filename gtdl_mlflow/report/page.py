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

from .. import __version__, charts, tags
from ..config import display
from ..metrics import METRICS
from . import published_figures, reproduction
from .formats import format_number, format_published
from .published_figures import PublishedFigures
from .ranking import Conditions, FrameworkResults, group_by_conditions
from .runs import OWN, BenchmarkRun, NothingFound
from .sections import Chart, Table, section
from .stats import LEAST_FOR_SIGNIFICANCE, SEEDS_TO_PUBLISH
from .verdicts import QUESTIONS, sample

SECTIONS = 24
"""Largest number of conditions that get a section with charts; the tables have the runs of all."""

METRIC_COLUMNS = ("training_time_s", "testing_time_s", "accuracy_percent", "train/images_per_s")

COLUMNS = ("dataset", "framework", "version", "setting", "device", "threads", "budget", "tuning", "seed", "status",
           *METRIC_COLUMNS, "quality", "check", "reason", "started", "machine", "run_id")  # fmt: skip
"""Columns of the table of raw values."""

NUMBERS = ("budget", "seed", *METRIC_COLUMNS)
"""Columns that are sorted as numbers."""

TRANSFER = (("accuracy_percent", ".2f", False), ("training_time_s", ".3~s", True))
"""Metrics of the transfer matrices: name, format of the values in d3's notation, whether colours are logarithmic."""


def page(runs: list[BenchmarkRun], client: MlflowClient, experiment: str, remarks: Sequence[str] = ()) -> str:
    """Return the whole HTML file.

    Args:
        runs: all runs of the report.
        client: reads the history of metrics.
        experiment: name for the title.
        remarks: lines that apply to the whole report, shown below the answer.

    Raises:
        NothingFound: there is no run.
    """
    if not runs:
        raise NothingFound(f"experiment {experiment}: no run yet")
    compared = _compared(group_by_conditions(runs))
    sections = [section(conditions, frameworks, client) for conditions, frameworks in compared[:SECTIONS]]
    transfers = transfer(runs)
    drawn = [chart for each in sections for chart in each.charts] + transfers
    numbers = {id(chart): index for index, chart in enumerate(drawn)}
    original = published_figures.load()
    ordered = sorted(runs, key=lambda run: (run.key.dataset, run.key.framework, run.seed))
    return _template().render(
        experiment=experiment,
        remarks=remarks,
        version=__version__,
        generated=_time(time.time()),
        count=len(runs),
        finished=sum(run.finished for run in runs),
        sections=sections,
        omitted=len(compared) - len(sections),
        published_tables=published_tables(runs, original),
        original=original,
        notes=notes(runs, original),
        titles=[question.metric.title for question in QUESTIONS],
        tracks=tracks(compared),
        transfers=transfers,
        machines=machines(runs),
        unfinished=unfinished(runs),
        columns=COLUMNS,
        numeric=NUMBERS,
        seeds=SEEDS_TO_PUBLISH,
        least=LEAST_FOR_SIGNIFICANCE,
        chart_number=lambda chart: numbers[id(chart)],
        specifications=_json([chart.specification for chart in drawn]),
        rows=_json([raw_values(run) for run in ordered]),
        library=library(),
    )


def _compared(
    groups: dict[Conditions, list[FrameworkResults]],
) -> list[tuple[Conditions, list[FrameworkResults]]]:
    """Return the conditions with at least two frameworks; without any, those with one, under its own name only."""
    finished = {conditions: sum(bool(each.finished) for each in some) for conditions, some in groups.items()}
    chosen = [conditions for conditions, number in finished.items() if number > 1]
    if not chosen:
        chosen = [conditions for conditions, number in finished.items() if number and conditions.setting != OWN]
    return [(conditions, groups[conditions]) for conditions in chosen]


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")


@cache
def library() -> Markup:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _time(seconds: float) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    except (ValueError, OverflowError, OSError):  # the store takes any number
        return ""


def _json(value: Any) -> Markup:
    """Return JSON for a script element, in which ``</``, ``<!--`` and ``<script`` have a meaning of their own.

    nan becomes null, as JSON has none.
    """
    text = json.dumps(_finite(value), separators=(",", ":"))  # in ASCII: no line separator ends a script's line
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def raw_values(run: BenchmarkRun) -> dict[str, Any]:
    """Return a row of the table of raw values."""
    key = run.key
    values = {
        **{name: getattr(key, name) for name in COLUMNS if hasattr(key, name)},
        **{name: _shown(run.metrics.get(name)) for name in METRIC_COLUMNS},
        "seed": run.seed,
        "status": run.state.upper(),
        "quality": run.quality,
        "check": run.tags.get(tags.CHECK, ""),
        "reason": run.reason,
        "started": _time(run.started_ms / 1000),
        "run_id": run.run_id,
    }
    return {name: values[name] for name in COLUMNS}


def _shown(value: float | None) -> float | str | None:
    """Return a value for the table. JSON has no nan: a value that is not finite is shown as text, and not left out."""
    return value if value is None or math.isfinite(value) else str(value)


# Sections that are not about one set of conditions.


@dataclass(frozen=True)
class PublishedRow:
    """One framework in one of GTDLBench's tables."""

    label: str
    color: str
    results: list[tuple[str, str]]
    """Measured and published result: three metrics on the CPU, then three on the GPU."""


@dataclass(frozen=True)
class PublishedTable:
    """One of GTDLBench's tables, with measured results beside the published ones."""

    title: str
    rows: list[PublishedRow]


def published_tables(runs: Iterable[BenchmarkRun], original: PublishedFigures) -> list[PublishedTable]:
    """Return the results of each framework under its own default, by data set, machine, budget and tuning.

    Every number of CPU threads has a table of its own, with the GPU's results beside it.
    """
    groups: dict[tuple[str, str, float, str], list[BenchmarkRun]] = defaultdict(list)
    for run in runs:
        key = run.key
        if run.finished and key.is_default:
            groups[key.dataset, key.machine, key.budget, key.tuning].append(run)
    tables = []
    for (dataset, machine, budget, tuning), some in sorted(groups.items()):
        gpu = [run for run in some if run.key.device == "gpu"]
        for hardware in sorted({run.key.hardware for run in some if run.key.device != "gpu"}) or ["gpu"]:
            cpu = [run for run in some if run.key.hardware == hardware and run.key.device != "gpu"]
            share = [f"{budget:.3g} of the iterations"] if budget != 1 else []
            parts = [dataset, hardware, *share, *([f"tuning {tuning}"] if tuning != "best" else []), machine]
            columns = {"cpu": cpu, "gpu": gpu}
            frameworks = {run.key.label: run.key.framework for column in columns.values() for run in column}
            rows = [
                PublishedRow(label, display.color(name), _results(dataset, label, name, columns, original))
                for label, name in sorted(frameworks.items())
            ]
            tables.append(PublishedTable(", ".join(parts), rows))
    return tables


def _results(
    dataset: str, label: str, framework: str, columns: dict[str, list[BenchmarkRun]], original: PublishedFigures
) -> list[tuple[str, str]]:
    results = []
    for device, runs in columns.items():
        published = original.figures(dataset, framework, device)
        for question in QUESTIONS:
            measured = sample((run for run in runs if run.key.label == label), question.name).text
            results.append((measured, format_published(getattr(published, question.name)) if published else ""))
    return results


def notes(runs: Iterable[BenchmarkRun], original: PublishedFigures) -> list[str]:
    """Return the differences between GTDLBench's procedure and ours, for the data sets of the runs."""
    datasets = sorted({run.key.dataset for run in runs} & set(original.notes))
    return [*original.notes["all"], *(f"{name}: {note}" for name in datasets for note in original.notes[name])]


def tracks(compared: list[tuple[Conditions, list[FrameworkResults]]]) -> list[tuple[str, Table]]:
    """Return tables, with their titles, of each framework under its own default and under the common settings."""
    groups: dict[str, list[tuple[Conditions, list[FrameworkResults]]]] = defaultdict(list)
    for conditions, frameworks in compared:
        settings = f"budget {conditions.budget:g}, tuning {conditions.tuning}"
        title = f"{conditions.dataset}, {conditions.hardware}, {settings}, {conditions.machine}"
        groups[title].append((conditions, frameworks))
    shown = [METRICS[name] for name in ("training_time_s", "accuracy_percent")]
    tables = []
    for title, some in groups.items():
        shared = [pair for pair in some if pair[0].setting == OWN or len(pair[1]) > 1]
        if len(shared) < 2 or shared[0][0].setting != OWN:
            continue
        names = ["own default" if conditions.setting == OWN else conditions.setting for conditions, _ in shared]
        header = ["framework", *(f"{name}: {metric.title}" for name in names for metric in shown)]
        rows = []
        for label in sorted({each.label for _, frameworks in shared for each in frameworks}):
            row = [label]
            for _, frameworks in shared:
                result = next((each for each in frameworks if each.label == label), None)
                for metric in shown:
                    values = result.sample(metric.name).values if result else ()
                    row.append(format_number(statistics.median(values)) if values else "")
            rows.append(row)
        tables.append((title, Table(header, rows)))
    return tables


def transfer(runs: Iterable[BenchmarkRun]) -> list[Chart]:
    """Return accuracy and training time of every framework under every setting, where there are two of each or more."""
    drawn = []
    for cells in reproduction.group_for_transfer(reproduction.group_by_cell(runs)):
        key = cells[0].key
        frameworks = sorted({cell.key.label for cell in cells})
        settings = sorted({cell.key.setting for cell in cells})
        if min(len(frameworks), len(settings)) < 2:
            continue
        note = f"Medians; {key.hardware}, budget {key.budget:g}, tuning {key.tuning}, {key.machine}."
        for name, number_format, logarithmic in TRANSFER:
            metric = METRICS[name]
            medians = {(cell.key.label, cell.key.setting): cell.median(name) for cell in cells}
            values = {fields: value for fields, value in medians.items() if math.isfinite(value)}
            if not values:
                continue
            rows = [
                {"framework": label, "setting": setting, "value": value} for (label, setting), value in values.items()
            ]
            written = {fields: format_number(value) for fields, value in values.items()}
            lines = [[label, *(written.get((label, setting), "") for setting in settings)] for label in frameworks]
            chart = charts.heat_map(rows, "value", metric.title, number_format, logarithmic)
            drawn.append(Chart(f"{key.dataset}: {metric.title}", chart, Table(["", *settings], lines), note))
    return drawn


def machines(runs: Iterable[BenchmarkRun]) -> Table:
    """Return the machines, the number of runs on each, and the hardware that they used."""
    by_machine: dict[str, list[BenchmarkRun]] = defaultdict(list)
    for run in runs:
        by_machine[run.key.machine].append(run)
    rows = [
        [machine, str(len(some)), "; ".join(sorted({run.key.hardware for run in some}))]
        for machine, some in sorted(by_machine.items())
    ]
    return Table(["machine", "runs", "hardware"], rows)


def unfinished(runs: Iterable[BenchmarkRun]) -> Table:
    """Return the runs that did not finish, with their state and the reason."""
    rows = []
    for run in runs:
        if not run.finished:
            key = run.key
            rows.append([key.dataset, key.label, key.setting, str(run.seed), run.state, run.reason])
    return Table(["data set", "framework", "setting", "seed", "state", "reason"], sorted(rows))
