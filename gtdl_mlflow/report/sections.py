"""A chapter of the report: what frameworks did under the same conditions, in words, figures and charts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlflow.tracking import MlflowClient

from .. import config
from . import charts
from .comparison import format_summary
from .ranking import QUESTIONS, Conditions, FrameworkResults, answers, format_number, remarks
from .runs import BenchmarkRun, LearningCurve, learning_curve
from .stats import summarize

PHASES = {
    "setup/start_s": "interpreter",
    "setup/import_s": "import",
    "setup/parity_s": "parity",
    "setup/data_s": "data",
    "setup/build_s": "build",
    "setup/compile_s": "compile ahead",
    "training_time_s": "training",
    "train/evaluation_s": "evaluation",
    "train/validation_s": "validation",
    "train/checkpoint_s": "checkpoints",
    "test/warm_up_s": "test warm-up",
    "testing_time_s": "testing",
    "save/model_s": "saving",
    "latency/time_s": "single operations",
}
"""Where a worker's time goes, in the order in which it goes there; the rest of ``worker/wall_s`` is ``OTHER``."""

OTHER = "all else"

RESOURCES = {
    "system/system_memory_usage_megabytes": "memory in use on the machine, MB",
    "system/cpu_utilization_percentage": "CPU use of the machine, %",
}


@dataclass(frozen=True)
class Table:
    """Of words; a column of figures is set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A chart and its figures."""

    title: str
    specification: dict[str, Any]
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Section:
    """All about the frameworks that were measured under the same conditions."""

    title: str
    machine: str
    sentences: list[str]
    remarks: list[str]
    table: Table
    charts: list[Chart]


def section(conditions: Conditions, found: list[FrameworkResults], client: MlflowClient) -> Section:
    """What frameworks did under the same conditions."""
    able = [entry for entry in found if entry.finished]
    header = ["framework", "training, s", "testing, s", "accuracy, %"]
    rows = [[entry.framework, *(_summary(entry, figure.name) for figure in QUESTIONS)] for entry in able]
    return Section(
        conditions.text, conditions.machine, [answer.sentence for answer in answers(found)], remarks(found),
        Table(header, rows), section_charts(able, target_of(conditions.dataset), client),
    )  # fmt: skip


@cache
def target_of(dataset: str) -> float:
    """The accuracy to reach, of ``conf/dataset``; infinite for a data set that is not there any more."""
    try:
        target: float = config.compose([f"dataset={dataset}"]).dataset.target_accuracy_percent
        return target
    except config.ConfigError:
        return math.inf


def _summary(entry: FrameworkResults, name: str) -> str:
    values = entry.values(name)
    if not values:
        return ""
    text = format_summary(summarize(values))
    return f"({text}: {entry.poor})" if entry.poor and name != "accuracy_percent" else text


def section_charts(found: list[FrameworkResults], target: float, client: MlflowClient) -> list[Chart]:
    """The charts of a chapter; those whose runs say nothing about them are left out."""
    if not found:
        return []
    timed = [entry for entry in found if not entry.poor] or found
    runs = {entry.framework: typical(entry) for entry in found}
    courses = {name: learning_curve(run, client) for name, run in runs.items()}
    made = [
        _spread(timed, "training_time_s", "Training time", "training time, s"),
        _spread(timed, "testing_time_s", "Testing time", "testing time, s"),
        _pareto(timed),
        *_curves(courses),
        _to_target(courses, target),
        _spread(timed, "train/images_per_s", "Training throughput", "training images a second"),
        _spread(timed, "test/images_per_s", "Testing throughput", "testing images a second"),
        _parts(runs),
        *_resources(runs, client),
    ]
    return [picture for picture in made if picture is not None]


def _spread(found: list[FrameworkResults], name: str, title: str, axis: str) -> Chart | None:
    rows: list[dict[str, Any]] = [{"framework": entry.framework, "seed": run.seed, "value": run.metrics[name]}
            for entry in found for run in entry.finished if math.isfinite(run.metrics.get(name, math.nan))]  # fmt: skip
    if not rows:
        return None
    table = Table(["framework", f"{axis}: median [95 % interval of the mean], n"],
                  [[name_, format_summary(summarize([row["value"] for row in rows if row["framework"] == name_]))]
                   for name_ in dict.fromkeys(row["framework"] for row in rows)])  # fmt: skip
    return Chart(title, charts.spread(rows, "value", axis), table, "A point is a run; the bar across is the median.")


def _pareto(found: list[FrameworkResults]) -> Chart:
    names = ("training_time_s", "accuracy_percent")
    rows: list[dict[str, Any]] = [
        {"framework": entry.framework, "seed": run.seed, **{name: run.metrics[name] for name in names}}
        for entry in found for run in entry.finished
    ]  # fmt: skip
    medians: list[dict[str, Any]] = [
        {"framework": entry.framework, **{name: statistics.median(run.metrics[name] for run in entry.finished)
                                          for name in names}}
        for entry in found
    ]  # fmt: skip
    front = undominated(medians)
    table = Table(["framework", "median training time, s", "median accuracy, %", "on the front"],
                  [[row["framework"], format_number(row["training_time_s"]), f"{row['accuracy_percent']:.2f}",
                    "yes" if row in front else ""] for row in medians])  # fmt: skip
    return Chart("Accuracy against training time", charts.pareto(rows, front), table,
                   "Left and up is better. The dashed line joins the medians that no other beats in both.")  # fmt: skip


def undominated(medians: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Pareto front: those that none is both as fast and as accurate as, and better in one; the fastest first."""
    front, best = [], -math.inf
    for row in sorted(medians, key=lambda row: (row["training_time_s"], -row["accuracy_percent"])):
        if row["accuracy_percent"] > best:
            front.append(row)
            best = row["accuracy_percent"]
    return front


def typical(entry: FrameworkResults) -> BenchmarkRun:
    """The run whose training time is the median, the lower of two."""
    return sorted(entry.finished, key=lambda run: run.metrics["training_time_s"])[(len(entry.finished) - 1) // 2]


def _curves(courses: dict[str, LearningCurve]) -> list[Chart]:
    """The typical runs', against time and against iterations."""
    if max((len(each.accuracy) for each in courses.values()), default=0) < 2:
        return []
    rows: list[dict[str, Any]] = [
        {"framework": name, "seconds": seconds, "iterations": iterations, "accuracy": accuracy}
        for name, each in courses.items()
        for iterations, seconds, accuracy in zip(each.iterations, each.seconds, each.accuracy, strict=True)
    ]
    table = Table(["framework", "iterations", "training time, s", "test accuracy, %"],
                  [[row["framework"], f"{row['iterations']:,.0f}", format_number(row["seconds"]), f"{row['accuracy']:.2f}"]
                   for row in rows])  # fmt: skip
    note = "Of each framework the run with the median training time."
    return [
        Chart("Learning curve against time",
                charts.curves(rows, "seconds", "training time, s", "accuracy", "test accuracy, %"), table, note),
        Chart("Learning curve against iterations",
                charts.curves(rows, "iterations", "iterations", "accuracy", "test accuracy, %"), table, note),
    ]  # fmt: skip


def _to_target(courses: dict[str, LearningCurve], target: float) -> Chart | None:
    """How long each training took until a look at the test accuracy, or its end, found the target reached."""
    if not courses:
        return None
    times = {name: to_target(each, target) for name, each in courses.items()}
    reached = [{"framework": name, "seconds": seconds} for name, seconds in times.items() if seconds is not None]
    if not reached:
        return None
    table = Table(
        ["framework", f"training time to {target:g} %, s"],
        [[name, "not reached" if seconds is None else format_number(seconds)] for name, seconds in times.items()],
    )
    missed = [name for name, seconds in times.items() if seconds is None]
    note = f"Of each framework the run with the median training time; the target is {target:g} % (conf/dataset)."
    note += f" Not reached: {', '.join(missed)}." if missed else ""
    return Chart("Time to target", charts.bars(reached, "seconds", f"training time to {target:g} %, s"), table, note)


def to_target(of_run: LearningCurve, target: float) -> float | None:
    """Seconds of training until it was seen; None if never."""
    return next((seconds for seconds, accuracy in zip(of_run.seconds, of_run.accuracy, strict=True)
                 if accuracy >= target), None)  # fmt: skip


def _parts(runs: dict[str, BenchmarkRun]) -> Chart | None:
    of = {name: phase_times(run) for name, run in runs.items()}
    rows: list[dict[str, Any]] = [
        {"framework": name, "part": part, "seconds": seconds}
        for name, each in of.items() for part, seconds in each.items() if seconds > 0
    ]  # fmt: skip
    if not rows:
        return None
    order = [part for part in (*PHASES.values(), OTHER) if any(row["part"] == part for row in rows)]
    table = Table(["framework", *(f"{part}, s" for part in order)],
                  [[name, *(format_number(each.get(part, 0.0)) for part in order)] for name, each in of.items()])  # fmt: skip
    return Chart("Where the time goes", charts.parts(rows, order), table,
                   "The worker of the run with the median training time, from its start to its end.")  # fmt: skip


def phase_times(run: BenchmarkRun) -> dict[str, float]:
    """Seconds of its worker by what they went into."""
    known = {word: run.metrics[name] for name, word in PHASES.items() if name in run.metrics}
    if "worker/wall_s" in run.metrics:
        known[OTHER] = max(0.0, run.metrics["worker/wall_s"] - sum(known.values()))
    return known


def _resources(runs: dict[str, BenchmarkRun], client: MlflowClient) -> list[Chart]:
    """Memory and CPU of the machine over the typical runs, as MLflow samples them."""
    made = []
    for metric, title in RESOURCES.items():
        rows: list[dict[str, Any]] = []
        table = []
        for name, run in runs.items():
            if metric not in run.metrics:
                continue
            samples = client.get_metric_history(run.run_id, metric)
            values = [sample.value for sample in samples]
            rows += [{"framework": name, "seconds": (sample.timestamp - run.started_ms) / 1000, "value": sample.value}
                     for sample in samples]  # fmt: skip
            figures = min(values), statistics.median(values), max(values)
            table.append([name, str(len(values)), *map(format_number, figures)])
        if rows:
            chart = charts.curves(rows, "seconds", "time since the run began, s", "value", title)
            header = ["framework", "samples", "lowest", "median", "highest"]
            made.append(Chart(title[0].upper() + title[1:].partition(",")[0], chart, Table(header, table)))
    return made
