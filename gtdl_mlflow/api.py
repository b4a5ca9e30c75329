"""The Python API, for notebooks: ``import gtdl_mlflow as gtdl; gtdl.run(framework="torch", budget=0.1)``.

Keys and values are those of the command line. An invalid request raises ``ConfigError``, and a failed run
another ``Failure``; the message is the line that the command line prints. No function imports a framework.
"""

from __future__ import annotations

import csv
import html
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config, files, prediction, tags
from .config import ConfigError, describe
from .console import Failure
from .metrics import HEADLINE, METRICS
from .reporting import comparison, page, runs
from .reporting.formats import format_number
from .reporting.runs import BenchmarkRun
from .runner import run as run_config
from .tracking.store import reading

if TYPE_CHECKING:
    import numpy as np
    import pandas


@dataclass(frozen=True)
class RunResult:
    """A finished run. A notebook shows its three headline metrics."""

    run_id: str
    """ID of the MLflow run."""
    name: str
    """Framework, version, training, budget and data set."""
    metrics: Mapping[str, float]
    """The last value of every metric by its name."""
    uri: str
    """Address of the tracking store."""

    @property
    def curve(self) -> pandas.DataFrame:
        """Evaluations on the test set: columns ``iteration``, ``training_time_s`` and ``accuracy_percent``."""
        import pandas

        client = runs.connect(self.uri)
        curve = runs.learning_curve(runs.to_benchmark_run(client.get_run(self.run_id)), client)
        columns = {
            "iteration": curve.iterations,
            "training_time_s": curve.seconds,
            "accuracy_percent": curve.accuracy,
        }
        return pandas.DataFrame(columns)

    def __repr__(self) -> str:
        figures = (f"{METRICS[name].title}: {format_number(self.metrics[name])}" for name in HEADLINE)
        return f"<{self.name}; {'; '.join(figures)}; MLflow run {self.run_id}>"

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{html.escape(METRICS[name].title)}</td><td>{format_number(self.metrics[name])}</td></tr>"
            for name in HEADLINE
        )
        return f"<b>{html.escape(self.name)}</b><table>{''.join(rows)}</table><small>MLflow run {self.run_id}</small>"


@dataclass(frozen=True)
class Comparison:
    """Two frameworks, or other sets of runs, under all conditions that both have runs of. A notebook shows a table."""

    rows: Sequence[comparison.ComparisonRow]
    sides: tuple[str, str]

    def __str__(self) -> str:
        return comparison.text(list(self.rows), *self.sides)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@dataclass(frozen=True)
class Report:
    """The HTML report. A notebook shows it in a frame."""

    html: str

    def save(self, path: str | Path) -> None:
        """Write the HTML file."""
        Path(path).write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.html)}" style="border:0; width:100%; height:80vh"></iframe>'


def run(*overrides: str, **values: Any) -> RunResult:
    """Train and test one network in one framework, and record it in MLflow.

    The run's files go to ``outputs/`` in the working folder, as on the command line.

    Args:
        overrides: Hydra overrides, such as ``"training.batch_size=32"``.
        values: the same for keys without a dot, such as ``framework="torch"``.

    Raises:
        ConfigError: a key or a value is wrong.
        Failure: the run cannot start or has failed; the MLflow run is FAILED, with the reason.
    """
    composed = config.compose([*overrides, *(f"{key}={_value(value)}" for key, value in values.items())])
    folder = Path("outputs", f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}").absolute()
    with files.translated_errors():
        folder.mkdir(parents=True)
    outcome = run_config(composed, folder)
    return RunResult(outcome.run_id, describe(composed), outcome.metrics, composed.tracking.uri)


def sweep(*overrides: str, **values: Any) -> pandas.DataFrame:
    """Run every combination of values, as ``gtdl sweep`` does, and return its runs as ``results`` does.

    The sweep runs in a process of its own, and prints what the command prints.

    Args:
        overrides: Hydra overrides, such as ``"training.batch_size=32,64"``.
        values: the same for keys without a dot. A list or a range is swept over: ``framework=["torch", "mxnet"]``.

    Raises:
        ConfigError: a key or a value is wrong.
        Failure: the sweep ended before any run began.
    """
    words = [*overrides]
    for key, value in values.items():
        several = isinstance(value, Iterable) and not isinstance(value, (str, Mapping))
        words.append(f"{key}={','.join(map(_value, value)) if several else _value(value)}")
    with tempfile.TemporaryDirectory(prefix="gtdl-sweep-") as name:
        command = [sys.executable, "-m", "gtdl_mlflow", "-m", *words, f"hydra.sweep.dir={name}"]
        last = ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip() or last
        summary = Path(name, "summary.csv")
        if not summary.is_file():
            message = last.removeprefix("gtdl: ")
            raise ConfigError(message) if process.returncode == 2 else Failure(message)
        with summary.open(newline="", encoding="utf-8") as file:
            identifiers = [row["run_id"] for row in csv.DictReader(file)]
    store = config.compose_unchecked([each for each in words if each.startswith("tracking.")]).tracking
    client = runs.connect(store.uri)
    return _frame(runs.read(client.get_run(identifier) for identifier in identifiers).runs)


def results(*experiments: str, tracking_uri: str | None = None) -> pandas.DataFrame:
    """Return all runs of some experiments, one row per run, in the order of their start.

    Columns are the conditions (``dataset``, ``framework``, ``setting``, ``version``, ``device``, ``threads``,
    ``budget``, ``machine``, the requested ``mode``, ``precision``, ``deterministic``, ``side_by_side``), then
    ``used_mode``, ``seed``, ``state``, ``reason``, ``interference``, ``run_id`` and every metric that a run has.

    Args:
        experiments: names in MLflow; ``gtdl`` by default.
        tracking_uri: the tracking store; by default that of the command line.

    Raises:
        Failure: an experiment does not exist, or the tracking store cannot be read.
    """
    uri = _uri(tracking_uri)
    with reading(uri):
        return _frame(runs.load(uri, experiments or ("gtdl",)).runs)


def compare(
    first: str,
    second: str,
    *experiments: str,
    across_machines: bool = False,
    tracking_uri: str | None = None,
) -> Comparison:
    """Compare two frameworks, searches or sets of runs, as ``gtdl compare`` does.

    Args:
        first: a framework (``torch``, ``torch=2.13.0``), run IDs with commas, or an MLflow search.
        second: the other side.
        experiments: names in MLflow; ``gtdl`` by default.
        across_machines: whether to compare runs of different machines.
        tracking_uri: the tracking store; by default that of the command line.

    Raises:
        ConfigError: a side is not a framework, run IDs or an MLflow search, or both sides are the same runs.
        Failure: a side has no finished run, the sides have no condition in common, or the store cannot be read.
    """
    uri, names = _uri(tracking_uri), experiments or ("gtdl",)
    with reading(uri):
        found = runs.load(uri, names).runs
        rows = comparison.rows(found, lambda search: runs.load(uri, names, search).runs, first, second, across_machines)
    return Comparison(rows, (first, second))


def report(*experiments: str, tracking_uri: str | None = None) -> Report:
    """Return the HTML report of some experiments, ``gtdl`` by default, as ``gtdl report`` writes it.

    Raises:
        Failure: an experiment does not exist or has no run, or the tracking store cannot be read.
    """
    uri, names = _uri(tracking_uri), experiments or ("gtdl",)
    with reading(uri):
        loaded = runs.load(uri, names)
        return Report(page.page(loaded, runs.connect(uri), ", ".join(names), loaded.remarks))


def predict(run_id: str, images: np.ndarray, *, tracking_uri: str | None = None) -> np.ndarray:
    """Return the class probabilities, float32 (N, classes), that a run's model gives for images.

    The model runs in a process of its own, in its framework's environment.

    Args:
        run_id: ID of the MLflow run, as in ``RunResult.run_id``.
        images: raw images, uint8 (N, height, width, channels), as the data set has them.
        tracking_uri: the tracking store; by default that of the command line.

    Raises:
        Failure: the images, the model, its framework's environment or the tracking store cannot be used.
    """
    return prediction.predict(_uri(tracking_uri), run_id, images)


def _uri(tracking_uri: str | None) -> str:
    return tracking_uri or config.compose_unchecked([]).tracking.uri


def _value(value: Any) -> str:
    """Return a Python value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ",".join(map(_value, value)) + "]"
    return str(value)


def _frame(found: Sequence[BenchmarkRun]) -> pandas.DataFrame:
    import pandas

    rows: list[dict[str, Any]] = [
        {
            **{each.name: getattr(run.key, each.name) for each in fields(run.key)},
            "used_mode": run.tags.get(tags.MODE, ""),
            "seed": run.seed,
            "state": run.state,
            "reason": run.reason,
            "interference": run.tags.get(tags.INTERFERENCE, ""),
            "run_id": run.run_id,
            **{name: run.metrics[name] for name in METRICS if name in run.metrics},
        }
        for run in sorted(found, key=lambda each: each.started_ms)
    ]
    return pandas.DataFrame(rows)
