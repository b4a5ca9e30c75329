"""``gtdl report``: all runs of some experiments in one HTML file that needs no server and no network."""

from __future__ import annotations

import datetime
import json
import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from .. import __version__, charts, tags
from ..config import display
from ..metrics import METRICS
from ..redaction import redact
from . import published_figures, reproduction
from .formats import count, format_number, format_published
from .intervals import FEWEST_RUNS, SEEDS_TO_PUBLISH
from .published_figures import PublishedFigures
from .ranking import Conditions, group_by_conditions
from .runs import OWN, BenchmarkRun, CellKey, LoadedRuns, MetricHistories, NothingFound
from .sections import Chart, Compared, compare_groups, paired_by_conditions, section
from .tables import SAMPLE, Table
from .verdicts import QUESTIONS, sample

CHARTED = 12
"""Largest number of conditions with charts. The tables have those of all."""

METRIC_COLUMNS = ("training_time_s", "testing_time_s", "accuracy_percent", "train/images_per_s")

COLUMNS = ("dataset", "framework", "version", "setting", "device", "threads", "budget", "mode", "seed", "status",
           *METRIC_COLUMNS, "quality", "check", "reason", "started", "machine", "run_id")  # fmt: skip
"""Columns of the raw values."""

NUMBERS = ("budget", "seed", *METRIC_COLUMNS)
"""Columns that are sorted as numbers."""

FACETS = ("dataset", "setting", "budget", "device", "framework", "machine")
"""What the reader can select, in the order of the page."""

TRANSFER = (("accuracy_percent", False), ("training_time_s", True))
"""Metrics of the transfer matrices, and whether their colours are logarithmic."""


def page(loaded: LoadedRuns, client: MetricHistories, experiment: str, remarks: Sequence[str] = ()) -> str:
    """Return the whole HTML file.

    Args:
        loaded: all runs of the report.
        client: reads the history of metrics. Where it has an http address, the report links to the runs there.
        experiment: name for the title.
        remarks: lines that apply to the whole report.

    Raises:
        NothingFound: there is no run.
    """
    if not loaded.runs:
        raise NothingFound(f"experiment {experiment}: no run yet")
    with ThreadPoolExecutor(1) as thread:
        script = thread.submit(library)  # takes as long as all sections
        return _page(loaded, client, experiment, remarks, script)


def _page(
    loaded: LoadedRuns, client: MetricHistories, experiment: str, remarks: Sequence[str], script: Future[Markup]
) -> str:
    runs = loaded.runs
    paired = paired_by_conditions(loaded)
    compared = compare_groups(group_by_conditions(runs), paired)
    sections = [
        section(conditions, frameworks, [*paired.get(conditions, {}).values()], client if index < CHARTED else None)
        for index, (conditions, frameworks) in enumerate(compared)
    ]
    transfers = transfer(runs)
    drawn = [chart for each in sections for chart in each.charts] + transfers
    numbers = {id(chart): index for index, chart in enumerate(drawn)}
    original = published_figures.load()
    ordered = sorted(runs, key=lambda run: (run.key.dataset, run.key.framework, run.seed))
    rows = [raw_values(run) for run in ordered]
    varying = [name for index, name in enumerate(COLUMNS) if len(rows) == 1 or len({row[index] for row in rows}) > 1]
    return template("page.html").render(
        experiment=experiment,
        remarks=remarks,
        version=__version__,
        generated=_time(time.time()),
        states=_states(runs),
        sections=sections,
        id=id,
        facets={id(each): _facets(each.conditions, each.labels) for each in sections},
        selectors=selectors(runs),
        colors={run.key.label: display.color(run.key.framework) for run in runs},
        last_releases={
            run.key.label: year for run in runs if (year := display.last_release(run.key.framework)) is not None
        },
        published_tables=published_tables(runs, original),
        original=original,
        notes=notes(runs, original),
        tracks=tracks(compared),
        transfers=transfers,
        machines=machines(runs),
        unfinished=unfinished(runs),
        columns=varying,
        numeric=NUMBERS,
        constant=[
            (name, rows[0][index]) for index, name in enumerate(COLUMNS) if name not in varying and rows[0][index]
        ],
        seeds=SEEDS_TO_PUBLISH,
        least=FEWEST_RUNS,
        sample=SAMPLE,
        chart_number=lambda chart: numbers[id(chart)],
        specifications=_json([chart.specification for chart in drawn]),
        rows=_json(
            {
                "columns": COLUMNS,
                "numbers": NUMBERS,
                "rows": rows,
                "facets": [_facets(run.key, [run.key.label], run.key.settings) for run in ordered],
                "link": _link(client.tracking_uri),
                "experiments": [run.experiment_id for run in ordered],
            }
        ),
        library=script.result(),
    )


def _states(runs: Sequence[BenchmarkRun]) -> str:
    """Return the number of runs by state: ``20 runs: 18 finished, 1 failed, 1 running``."""
    states = Counter(run.state for run in runs)
    return f"{count(len(runs), 'run')}: {', '.join(f'{number:,} {state}' for state, number in states.most_common())}"


def _facets(
    conditions: Conditions | CellKey, labels: Sequence[str], settings: Sequence[str] = ()
) -> dict[str, Sequence[str]]:
    """Return the values of ``FACETS`` by which a section or a row of the raw values is selected."""
    return {
        "dataset": [conditions.dataset],
        "setting": settings or [conditions.setting],
        "budget": [f"{conditions.budget:g}"],
        "device": [conditions.hardware],
        "framework": labels,
        "machine": [conditions.machine],
    }


def selectors(runs: Iterable[BenchmarkRun]) -> dict[str, list[str]]:
    """Return the values to select from, for each of ``FACETS`` that has several."""
    values: dict[str, set[str]] = {name: set() for name in FACETS}
    for key, label, settings in {(run.key, run.key.label, tuple(run.key.settings)) for run in runs}:
        for name, some in _facets(key, [label], settings).items():
            values[name].update(some)
    return {name: sorted(some) for name, some in values.items() if len(some) > 1}


def _link(uri: str) -> str:
    """Return the address of the experiments on the pages of MLflow's server; empty for a store without a server."""
    return f"{redact(uri).rstrip('/')}/#/experiments/" if uri.startswith(("http://", "https://")) else ""


@cache
def template(name: str) -> jinja2.Template:
    """Return the template of an HTML page in this folder."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


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


def raw_values(run: BenchmarkRun) -> list[Any]:
    """Return a row of the raw values, in the order of ``COLUMNS``."""
    key = run.key
    values = {
        **{name: getattr(key, name) for name in COLUMNS if hasattr(key, name)},
        **{name: _shown(run.metrics.get(name)) for name in METRIC_COLUMNS},
        "mode": run.mode,
        "seed": run.seed,
        "status": run.state.upper(),
        "quality": run.quality,
        "check": run.tags.get(tags.CHECK, ""),
        "reason": run.reason,
        "started": _time(run.started_ms / 1000),
        "run_id": run.run_id,
    }
    return [values[name] for name in COLUMNS]


def _shown(value: float | None) -> float | str | None:
    """Return a value for the table. JSON has no nan: a value that is not finite is shown as text, and not left out."""
    return value if value is None or math.isfinite(value) else str(value)


# Sections that are not about one set of conditions.


def published_tables(runs: Iterable[BenchmarkRun], original: PublishedFigures) -> list[tuple[str, Table]]:
    """Return tables, with their titles, of each framework under its own default beside GTDLBench's results.

    There is a table for each data set, machine and budget that has published results. Every number of CPU
    threads has one of its own, with the GPU's results beside it.
    """
    groups: dict[tuple[str, str, float], list[BenchmarkRun]] = defaultdict(list)
    for run in runs:
        key = run.key
        if run.finished and key.is_default and key.dataset in original.datasets:
            groups[key.dataset, key.machine, key.budget].append(run)
    tables = []
    for (dataset, machine, budget), some in sorted(groups.items()):
        gpu = [run for run in some if run.key.device == "gpu"]
        for hardware in sorted({run.key.hardware for run in some if run.key.device != "gpu"}) or ["gpu"]:
            cpu = [run for run in some if run.key.hardware == hardware and run.key.device != "gpu"]
            share = [f"{budget:.3g} of the iterations"] if budget != 1 else []
            parts = [dataset, hardware, *share, machine]
            columns = {"cpu": cpu, "gpu": gpu}
            frameworks = {run.key.label: run.key.framework for column in columns.values() for run in column}
            header = [f"{device.upper()}: {each.metric.title}" for device in columns for each in QUESTIONS]
            rows = [
                [label, *_results(dataset, label, name, columns, original)]
                for label, name in sorted(frameworks.items())
            ]
            tables.append((", ".join(parts), Table(["framework", *header], rows).without_empty_columns()))
    return tables


def _results(
    dataset: str, label: str, framework: str, columns: dict[str, list[BenchmarkRun]], original: PublishedFigures
) -> list[str]:
    """Return measured and published results: three metrics on the CPU, then three on the GPU."""
    results = []
    for device, runs in columns.items():
        published = original.figures(dataset, framework, device)
        for question in QUESTIONS:
            measured = sample((run for run in runs if run.key.label == label), question.name).text
            text = f"\npublished: {format_published(getattr(published, question.name))}" if published else ""
            results.append(measured and f"{measured}{text}")
    return results


def notes(runs: Iterable[BenchmarkRun], original: PublishedFigures) -> list[str]:
    """Return the differences between GTDLBench's procedure and ours, for the data sets of the runs."""
    datasets = sorted({run.key.dataset for run in runs} & set(original.notes))
    return [*original.notes["all"], *(f"{name}: {note}" for name in datasets for note in original.notes[name])]


def tracks(compared: Compared) -> list[tuple[str, Table]]:
    """Return tables, with their titles, of each framework under its own default and under the common settings."""
    groups: dict[str, Compared] = defaultdict(list)
    for conditions, frameworks in compared:
        title = f"{conditions.dataset}, {conditions.hardware}, budget {conditions.budget:g}, {conditions.machine}"
        groups[title].append((conditions, frameworks))
    shown = [METRICS[name] for name in ("training_time_s", "accuracy_percent")]
    tables = []
    for title, some in groups.items():
        some.sort(key=lambda each: each[0].setting != OWN)
        if len(some) < 2 or some[0][0].setting != OWN:
            continue
        names = ["own default" if conditions.setting == OWN else conditions.setting for conditions, _ in some]
        header = ["framework", *(f"{name}: {metric.title}" for name in names for metric in shown)]
        rows = []
        for label in sorted({each.label for _, frameworks in some for each in frameworks if each.finished}):
            row = [label]
            for _, frameworks in some:
                result = next((each for each in frameworks if each.label == label), None)
                for metric in shown:
                    values = result.sample(metric.name).values if result else ()
                    row.append(format_number(statistics.median(values)) if values else "")
            rows.append(row)
        tables.append((title, Table(header, rows).without_empty_columns()))
    return tables


def transfer(runs: Iterable[BenchmarkRun]) -> list[Chart]:
    """Return heat maps of accuracy and training time by framework and setting; none for a single row or column."""
    drawn = []
    for cells in reproduction.group_for_transfer(reproduction.group_by_cell(runs)):
        key = cells[0].key
        note = f"Means of accuracies, medians of times; {key.hardware}, budget {key.budget:g}, {key.machine}."
        for name, logarithmic in TRANSFER:
            metric = METRICS[name]
            every = {(cell.key.label, cell.key.setting): cell.value(name) for cell in cells}
            values = {fields: value for fields, value in every.items() if math.isfinite(value)}
            frameworks, settings = (sorted({fields[index] for fields in values}) for index in range(2))
            if len(values) <= max(len(frameworks), len(settings)):
                continue
            rows = [
                {"framework": label, "setting": setting, "value": value} for (label, setting), value in values.items()
            ]
            written = {fields: format_number(value) for fields, value in values.items()}
            lines = [[label, *(written.get((label, setting), "") for setting in settings)] for label in frameworks]
            chart = charts.heat_map(rows, "value", metric.title, logarithmic)
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
    rows = [
        [run.key.dataset, run.key.label, run.key.setting, str(run.seed), run.state, run.reason]
        for run in runs
        if not run.finished
    ]
    header = ["data set", "framework", "setting", "seed", "state", "reason"]
    return Table(header, sorted(rows)).without_empty_columns()
