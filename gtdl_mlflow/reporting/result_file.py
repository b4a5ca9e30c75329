"""Result files: the runs of a tracking store as one CSV file, with everything that reports and checks need.

Each line is one value of one run: ``run`` (its ID), ``kind`` (``info``, ``param``, ``tag`` or ``metric``), ``name``,
``step`` (of a metric) and ``value``. Learning curves have one line per step, ratios of a paired measurement one line
per restart, and all other metrics one line with the last value.
Text that a spreadsheet would take as a formula, or that starts with a quote, has a quote in front.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import LifecycleStage, Metric, Param, Run, RunData, RunInfo, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from .. import tags
from ..console import Failure
from ..files import inert
from ..tracking import store
from .runs import CURVE, LoadedRuns, MetricHistories, NothingFound, active_experiments, connect, read

HEADER = ["run", "kind", "name", "step", "value"]

TAGS = re.compile(rf"gtdl\.[\w.]+|{re.escape(MLFLOW_PARENT_RUN_ID)}")
"""Tags that are exported: MLflow's own have names of users and paths."""

PRIVATE_TAGS = (tags.PROCESS, tags.RECORD)
"""Tags that are not exported: they identify the host."""

PRIVATE_TEXT = re.compile(r"\w+://\S+|(?<![\w./])~?(?:/[^/\s:;,'\"()]+)+(?=/)")
"""Addresses, and the folders of absolute paths, in the text of a tag."""

PER_RESTART = "/restart_ratio"
"""End of the names of the metrics that have a value per restart of a paired measurement."""

PRIVATE_PARAMS = ("tracking.", "hydra.")
"""Beginnings of params that are not exported: addresses and folders."""

INFO = ("experiment", "status", "start_time", "end_time")
"""Metadata of a run: ID of its experiment, MLflow's status, and start and end in milliseconds since 1970."""


class InvalidResultFile(Failure):
    """A result file cannot be used; the message is one line with the file and the reason."""


def export(uri: str, experiments: Iterable[str]) -> str:
    """Return the runs of some experiments as the text of a result file, the oldest first.

    Raises:
        NothingFound: an experiment does not exist or has no run of this project.
    """
    client, names = connect(uri), list(experiments)
    pages = store.search_pages(client, active_experiments(client, names), "", "ASC")
    runs = [run for page in pages for run in page if tags.FRAMEWORK in run.data.tags or tags.SWEEP in run.data.tags]
    if not runs:
        raise NothingFound(f"experiment {', '.join(names)}: no run yet")
    return write((run, client) for run in runs)


def write(runs: Iterable[tuple[Run, MetricHistories]]) -> str:
    """Return the text of a result file with these runs. Each run is paired with the source of its metric histories."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(HEADER)
    for run, histories in runs:
        for row in _rows(run, histories):
            cells = [_escape(cell) for cell in (run.info.run_id, *row)]
            # The module does not quote a carriage return by itself, which ends a line when it is read.
            (quoting if any("\r" in str(cell) for cell in cells) else writer).writerow(cells)
    return text.getvalue()


def _escape(cell: Any) -> Any:
    """Return a cell that no spreadsheet evaluates: it starts with a quote. ``_unescape`` returns the original."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith("'") else inert(cell)


def _unescape(cell: str) -> str:
    return cell.removeprefix("'")


def _rows(run: Run, histories: MetricHistories) -> Iterator[Sequence[Any]]:
    info, data = run.info, run.data
    for name, value in zip(INFO, (info.experiment_id, info.status, info.start_time, info.end_time), strict=True):
        yield "info", name, "", value or ""
    for name, value in sorted(data.params.items()):
        if not name.startswith(PRIVATE_PARAMS):
            yield "param", name, "", value
    for name, value in sorted(data.tags.items()):
        if TAGS.fullmatch(name) and name not in PRIVATE_TAGS:
            yield "tag", name, "", PRIVATE_TEXT.sub("...", value)
    curve = all(name in data.metrics for name in CURVE)
    for name, value in sorted(data.metrics.items()):
        if (curve and name in CURVE) or name.endswith(PER_RESTART):
            for point in sorted(histories.get_metric_history(info.run_id, name), key=lambda each: each.step):
                yield "metric", name, point.step, repr(point.value)
        else:
            yield "metric", name, "", repr(value)


class ResultFiles:
    """Runs of some result files, without duplicates, and the histories of their metrics (``MetricHistories``).

    Raises:
        InvalidResultFile: a file cannot be read, a line is wrong, or two files have other values of one run.
    """

    tracking_uri = ""
    """There is no server to link to."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._metrics: dict[str, dict[str, list[Metric]]] = {}
        self.runs: list[Run] = []
        self._ids: dict[Path, list[str]] = {}
        lines: dict[str, tuple[Path, list[list[str]]]] = {}
        for path in paths:
            found = _lines(path)
            self._ids[path] = list(found)
            for run_id, some in found.items():
                known, same = lines.setdefault(run_id, (path, some))
                if same != some:
                    raise InvalidResultFile(f"{path}: the values of run {run_id} differ from those in {known}")
        for run_id, (path, some) in lines.items():
            try:
                self.runs.append(self._run(run_id, some))
            except (ValueError, KeyError) as error:
                raise InvalidResultFile(f"{path}: run {run_id} has an invalid line: {error}") from error

    def runs_of(self, path: Path) -> list[Run]:
        """Return the runs of one of the files, in its order."""
        by_id = {run.info.run_id: run for run in self.runs}
        return [by_id[run_id] for run_id in self._ids[path]]

    @cached_property
    def loaded(self) -> LoadedRuns:
        """The runs as a report uses them, the newest first."""
        return read(sorted(self.runs, key=lambda run: -(run.info.start_time or 0)))

    def get_metric_history(self, run_id: str, name: str) -> list[Metric]:
        """Return the values of a metric of a run, one per step."""
        return self._metrics[run_id][name]

    def _run(self, run_id: str, lines: Iterable[list[str]]) -> Run:
        values: dict[str, dict[str, str]] = {"info": {}, "param": {}, "tag": {}}
        metrics = self._metrics[run_id] = defaultdict(list)
        for kind, name, step, value in lines:
            if kind == "metric":
                metrics[name].append(Metric(name, float(value), 0, int(step or 0)))
            else:
                values[kind][name] = value
        info = values["info"]
        start, end = (int(info[name] or 0) for name in ("start_time", "end_time"))
        return Run(
            RunInfo(
                run_id=run_id,
                experiment_id=info["experiment"],
                user_id="",
                status=info["status"],
                start_time=start,
                end_time=end,
                lifecycle_stage=LifecycleStage.ACTIVE,
            ),
            RunData(
                [points[-1] for points in metrics.values()],
                [Param(name, value) for name, value in values["param"].items()],
                [RunTag(name, value) for name, value in values["tag"].items()],
            ),
        )


def _lines(path: Path) -> dict[str, list[list[str]]]:
    """Return the lines of each run of a file, without its ID."""
    found: dict[str, list[list[str]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file, strict=True)
            if next(rows, None) != HEADER:
                raise InvalidResultFile(f"{path}: not a result file; `gtdl export` writes one")
            for row in rows:
                if len(row) != len(HEADER):
                    raise InvalidResultFile(f"{path}, line {rows.line_num}: expected {','.join(HEADER)}")
                run_id, *values = map(_unescape, row)
                found[run_id].append(values)
    except OSError as error:
        raise InvalidResultFile(f"{path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidResultFile(f"{path}: not a CSV file in UTF-8: {error}") from error
    return found
