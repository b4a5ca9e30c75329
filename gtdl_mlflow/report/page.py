"""``gtdl report``: all runs of some experiments in one HTML file that needs no server and no network."""

from __future__ import annotations

import datetime
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup
from mlflow.tracking import MlflowClient

from .. import __version__, config
from . import charts, published
from .answer import FIGURES, Conditions, Entry, answers, entries, number, remarks
from .comparison import show
from .runs import OWN, Measured, NothingFound
from .statistics import summarize

PARTS = {
    "setup/import_s": "import",
    "setup/data_s": "data",
    "setup/build_s": "build",
    "setup/compile_s": "compile ahead",
    "training_time_s": "training",
    "train/evaluation_s": "evaluation",
    "train/validation_s": "validation",
    "train/checkpoint_s": "checkpoints",
    "testing_time_s": "testing",
    "save/model_s": "saving",
}
"""Where a worker's time goes, in the order in which it goes there; the rest of ``worker/wall_s`` is ``OTHER``."""

OTHER = "all else"

RESOURCES = {
    "system/system_memory_usage_megabytes": "memory in use on the machine, MB",
    "system/cpu_utilization_percentage": "CPU use of the machine, %",
}

CHAPTERS = 24
"""Conditions that have charts; the runs under others are in the tables."""

COLUMNS = ("dataset", "framework", "version", "setting", "device", "threads", "budget", "tuning", "seed", "status",
           "training_time_s", "testing_time_s", "accuracy_percent", "images_per_s", "quality", "check", "reason",
           "started", "machine", "run_id")  # fmt: skip
"""Of the table of raw values."""

NUMBERS = {"budget", "seed", "training_time_s", "testing_time_s", "accuracy_percent", "images_per_s"}
"""Columns that are sorted by size."""


@dataclass(frozen=True)
class Table:
    """Of words; a column of figures is set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Picture:
    """A chart and its figures."""

    title: str
    specification: dict[str, Any]
    table: Table
    note: str = ""


@dataclass
class Chapter:
    """All about the frameworks that were measured under the same conditions."""

    title: str
    machine: str
    sentences: list[str]
    remarks: list[str]
    table: Table
    pictures: list[Picture] = field(default_factory=list)


def page(runs: list[Measured], client: MlflowClient, experiment: str, said: Sequence[str] = ()) -> str:
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
    grouped = entries(runs)
    able = {conditions: sum(bool(entry.finished) for entry in found) for conditions, found in grouped.items()}
    compared = [(conditions, grouped[conditions]) for conditions, count in able.items() if count > 1] or [
        (conditions, grouped[conditions]) for conditions, count in able.items() if count and conditions.setting != OWN
    ]
    chapters = [chapter(conditions, found, client) for conditions, found in compared[:CHAPTERS]]
    original = published.load()
    rows = [raw(run) for run in sorted(runs, key=lambda run: (run.kind.dataset, run.kind.framework, run.seed))]
    pictures = [picture for each in chapters for picture in each.pictures]
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
        color=charts.color_of, specifications=_json(specifications), rows=_json(rows), library=library(),
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


def raw(run: Measured) -> dict[str, Any]:
    """A row of the table of raw values."""
    kind, metrics = run.kind, run.metrics
    return {
        "dataset": kind.dataset, "framework": kind.framework, "version": kind.version, "setting": kind.setting,
        "device": kind.device, "threads": kind.threads, "budget": kind.budget, "tuning": kind.tuning, "seed": run.seed,
        "status": "UNAVAILABLE" if run.unavailable else run.status,
        "training_time_s": metrics.get("training_time_s"), "testing_time_s": metrics.get("testing_time_s"),
        "accuracy_percent": metrics.get("accuracy_percent"), "images_per_s": metrics.get("train/images_per_s"),
        "quality": run.quality, "check": run.tags.get("gtdl.check", ""), "reason": run.reason,
        "started": _time(run.started_ms / 1000), "machine": kind.machine, "run_id": run.run_id,
    }  # fmt: skip


# A chapter.


def chapter(conditions: Conditions, found: list[Entry], client: MlflowClient) -> Chapter:
    """What frameworks did under the same conditions."""
    able = [entry for entry in found if entry.finished]
    header = ["framework", "training, s", "testing, s", "accuracy, %"]
    rows = [[entry.framework, *(_summary(entry, figure.name) for figure in FIGURES)] for entry in able]
    return Chapter(
        conditions.text, conditions.machine, [answer.sentence for answer in answers(found)], remarks(found),
        Table(header, rows), pictures(able, target_of(conditions.dataset), client),
    )  # fmt: skip


@cache
def target_of(dataset: str) -> float:
    """The accuracy to reach, of ``conf/dataset``; infinite for a data set that is not there any more."""
    try:
        target: float = config.compose([f"dataset={dataset}"]).dataset.target_accuracy
        return target
    except config.ConfigError:
        return math.inf


def _summary(entry: Entry, name: str) -> str:
    values = entry.values(name)
    if not values:
        return ""
    text = show(summarize(values))
    return f"({text}: {entry.poor})" if entry.poor and name != "accuracy_percent" else text


def pictures(found: list[Entry], target: float, client: MlflowClient) -> list[Picture]:
    """The charts of a chapter; those whose runs say nothing about them are left out."""
    if not found:
        return []
    timed = [entry for entry in found if not entry.poor] or found
    courses = {entry.framework: course(typical(entry), client) for entry in found}
    made = [
        _spread(timed, "training_time_s", "Training time", "training time, s"),
        _spread(timed, "testing_time_s", "Testing time", "testing time, s"),
        _pareto(timed),
        *_curves(courses),
        _to_target(courses, target),
        _spread(timed, "train/images_per_s", "Training throughput", "training images a second"),
        _spread(timed, "test/images_per_s", "Testing throughput", "testing images a second"),
        _parts(found),
        *_resources(found, client),
    ]
    return [picture for picture in made if picture is not None]


def _spread(found: list[Entry], name: str, title: str, axis: str) -> Picture | None:
    rows: list[dict[str, Any]] = [{"framework": entry.framework, "seed": run.seed, "value": run.metrics[name]}
            for entry in found for run in entry.finished if math.isfinite(run.metrics.get(name, math.nan))]  # fmt: skip
    if not rows:
        return None
    table = Table(["framework", f"{axis}: median [95 % interval of the mean], n"],
                  [[name_, show(summarize([row["value"] for row in rows if row["framework"] == name_]))]
                   for name_ in dict.fromkeys(row["framework"] for row in rows)])  # fmt: skip
    return Picture(title, charts.spread(rows, "value", axis), table, "A point is a run; the bar across is the median.")


def _pareto(found: list[Entry]) -> Picture:
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
                  [[row["framework"], number(row["training_time_s"]), f"{row['accuracy_percent']:.2f}",
                    "yes" if row in front else ""] for row in medians])  # fmt: skip
    return Picture("Accuracy against training time", charts.pareto(rows, front), table,
                   "Left and up is better. The dashed line joins the medians that no other beats in both.")  # fmt: skip


def undominated(medians: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Pareto front: those that none is both as fast and as accurate as, and better in one; the fastest first."""
    front, best = [], -math.inf
    for row in sorted(medians, key=lambda row: (row["training_time_s"], -row["accuracy_percent"])):
        if row["accuracy_percent"] > best:
            front.append(row)
            best = row["accuracy_percent"]
    return front


@dataclass(frozen=True)
class Course:
    """How accurate a run was, when."""

    iterations: tuple[float, ...]
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]


def typical(entry: Entry) -> Measured:
    """The run whose training time is the median, the lower of two."""
    return sorted(entry.finished, key=lambda run: run.metrics["training_time_s"])[(len(entry.finished) - 1) // 2]


def course(run: Measured, client: MlflowClient) -> Course:
    """Its looks at the test accuracy, and its end."""
    looks = {point.step: point.value for point in client.get_metric_history(run.run_id, "eval/accuracy_percent")}
    times = {point.step: point.value for point in client.get_metric_history(run.run_id, "train/elapsed_s")}
    points = [(float(step), times[step], looks[step]) for step in sorted(looks) if step in times]
    end = run.metrics.get("train/iterations", math.nan)
    if end > (points[-1][0] if points else 0):
        points.append((end, run.metrics["training_time_s"], run.metrics["accuracy_percent"]))
    iterations, seconds, accuracy = ([point[index] for point in points] for index in range(3))
    return Course(tuple(iterations), tuple(seconds), tuple(accuracy))


def _curves(courses: dict[str, Course]) -> list[Picture]:
    """The typical runs', against time and against iterations."""
    if max((len(each.accuracy) for each in courses.values()), default=0) < 2:
        return []
    rows: list[dict[str, Any]] = [
        {"framework": name, "seconds": seconds, "iterations": iterations, "accuracy": accuracy}
        for name, each in courses.items()
        for iterations, seconds, accuracy in zip(each.iterations, each.seconds, each.accuracy, strict=True)
    ]
    table = Table(["framework", "iterations", "training time, s", "test accuracy, %"],
                  [[row["framework"], f"{row['iterations']:,.0f}", number(row["seconds"]), f"{row['accuracy']:.2f}"]
                   for row in rows])  # fmt: skip
    note = "Of each framework the run with the median training time."
    return [
        Picture("Learning curve against time",
                charts.curves(rows, "seconds", "training time, s", "accuracy", "test accuracy, %"), table, note),
        Picture("Learning curve against iterations",
                charts.curves(rows, "iterations", "iterations", "accuracy", "test accuracy, %"), table, note),
    ]  # fmt: skip


def _to_target(courses: dict[str, Course], target: float) -> Picture | None:
    """How long each training took until a look at the test accuracy, or its end, found the target reached."""
    if not courses:
        return None
    times = {name: to_target(each, target) for name, each in courses.items()}
    reached = [{"framework": name, "seconds": seconds} for name, seconds in times.items() if seconds is not None]
    if not reached:
        return None
    table = Table(
        ["framework", f"training time to {target:g} %, s"],
        [[name, "not reached" if seconds is None else number(seconds)] for name, seconds in times.items()],
    )
    missed = [name for name, seconds in times.items() if seconds is None]
    note = f"Of each framework the run with the median training time; the target is {target:g} % (conf/dataset)."
    note += f" Not reached: {', '.join(missed)}." if missed else ""
    return Picture("Time to target", charts.bars(reached, "seconds", f"training time to {target:g} %, s"), table, note)


def to_target(of_run: Course, target: float) -> float | None:
    """Seconds of training until it was seen; None if never."""
    return next((seconds for seconds, accuracy in zip(of_run.seconds, of_run.accuracy, strict=True)
                 if accuracy >= target), None)  # fmt: skip


def _parts(found: list[Entry]) -> Picture | None:
    rows: list[dict[str, Any]] = [{"framework": entry.framework, "part": part, "seconds": seconds}
            for entry in found for part, seconds in parts(typical(entry)).items() if seconds > 0]  # fmt: skip
    order = [part for part in (*PARTS.values(), OTHER) if any(row["part"] == part for row in rows)]
    if not rows:
        return None
    table = Table(["framework", *(f"{part}, s" for part in order)],
                  [[entry.framework, *(number(parts(typical(entry)).get(part, 0.0)) for part in order)]
                   for entry in found])  # fmt: skip
    return Picture("Where the time goes", charts.parts(rows, order), table,
                   "The worker of the run with the median training time, from its start to its end.")  # fmt: skip


def parts(run: Measured) -> dict[str, float]:
    """Seconds of its worker by what they went into."""
    known = {word: run.metrics[name] for name, word in PARTS.items() if name in run.metrics}
    if "worker/wall_s" in run.metrics:
        known[OTHER] = max(0.0, run.metrics["worker/wall_s"] - sum(known.values()))
    return known


def _resources(found: list[Entry], client: MlflowClient) -> list[Picture]:
    """Memory and CPU of the machine over the typical runs, as MLflow samples them."""
    made = []
    for name, title in RESOURCES.items():
        rows: list[dict[str, Any]] = []
        for entry in found:
            run = typical(entry)
            samples = client.get_metric_history(run.run_id, name) if name in run.metrics else []
            rows += [{"framework": entry.framework, "seconds": (sample.timestamp - run.started_ms) / 1000,
                      "value": sample.value} for sample in samples]  # fmt: skip
        if rows:
            of = {entry.framework: [row["value"] for row in rows if row["framework"] == entry.framework]
                  for entry in found}  # fmt: skip
            table = Table(["framework", "samples", "lowest", "median", "highest"],
                          [[key, str(len(values)), *(number(each) for each in (min(values), statistics.median(values),
                                                                               max(values)))]
                           for key, values in of.items() if values])  # fmt: skip
            made.append(
                Picture(
                    title.partition(",")[0].capitalize(),
                    charts.curves(rows, "seconds", "time since the run began, s", "value", title),
                    table,
                )
            )
    return made  # fmt: skip


# What is beside the chapters.


@dataclass(frozen=True)
class Original:
    """One of GTDLBench's tables, with the figures of today beside the published ones."""

    title: str
    rows: list[list[list[str]]]
    """Framework, then three figures of the CPU and three of the GPU: today's, and the published one."""


def gtdlbench(runs: Iterable[Measured], original: published.Published) -> list[Original]:
    """Each framework under its own default, by data set, machine and budget."""
    groups: dict[tuple[str, str, float, str, str], dict[str, dict[str, list[Measured]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for run in runs:
        kind = run.kind
        if run.finished and kind.is_default:
            key = (kind.dataset, kind.machine, kind.budget, kind.tuning, kind.place)
            groups[key][f"{kind.framework} {kind.version}"][kind.device].append(run)
    made = []
    for (dataset, machine, budget, tuning, place), by_framework in sorted(groups.items()):
        title = f"{dataset}, {place}" + (f", {budget:.3g} of the iterations" if budget != 1 else "")
        title += f", tuning {tuning}" if tuning != "best" else ""
        rows = []
        for framework, by_device in sorted(by_framework.items()):
            row = [[framework]]
            for device in ("cpu", "gpu"):
                then = original.figures(dataset, framework.split(" ")[0], device)
                for figure in FIGURES:
                    values = [run.metrics[figure.name] for run in by_device.get(device, [])]
                    ours = show(summarize(values)) if values else ""
                    row.append([ours, f"{getattr(then, figure.name):,.2f}" if then else ""])
            rows.append(row)
        made.append(Original(f"{title} ({machine})", rows))
    return made


def notes(runs: Iterable[Measured], original: published.Published) -> list[str]:
    """Where the published figures are not like for like."""
    datasets = sorted({run.kind.dataset for run in runs} & set(original.notes))
    return [*original.notes["all"], *(f"{name}: {note}" for name in datasets for note in original.notes[name])]


def tracks(compared: list[tuple[Conditions, list[Entry]]]) -> list[tuple[str, Table]]:
    """The default track beside the parity track: each framework's own default, and all under one setting."""
    by_place: dict[tuple[str, str, str, str, str], list[tuple[Conditions, list[Entry]]]] = defaultdict(list)
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
                    row.append(number(statistics.median(values)) if values else "")
            rows.append(row)
        made.append((", ".join(where), Table(header, rows)))
    return made


def transfer(runs: Iterable[Measured]) -> list[Picture]:
    """Accuracy and training time of every framework under every setting, where there are two of each or more."""
    groups: dict[tuple[str, str, float, str, str], dict[tuple[str, str], list[Measured]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for run in runs:
        if run.finished:
            kind = run.kind
            groups[kind.dataset, kind.place, kind.budget, kind.tuning, kind.machine][
                f"{kind.framework} {kind.version}", kind.setting
            ].append(run)
    made = []
    for (dataset, place, budget, _, machine), cells in sorted(groups.items()):
        frameworks, settings = ({key[index] for key in cells} for index in (0, 1))
        if min(len(frameworks), len(settings)) < 2:
            continue
        for name, title, form, logarithmic in (
            ("accuracy_percent", "accuracy, %", ".2f", False),
            ("training_time_s", "training time, s", ".3~s", True),
        ):
            rows: list[dict[str, Any]] = [
                {
                    "framework": framework,
                    "setting": setting,
                    "value": statistics.median(run.metrics[name] for run in some),
                }
                for (framework, setting), some in sorted(cells.items())
            ]
            values = {(row["framework"], row["setting"]): number(row["value"]) for row in rows}
            table = Table(
                ["", *sorted(settings)],
                [
                    [framework, *(values.get((framework, setting), "") for setting in sorted(settings))]
                    for framework in sorted(frameworks)
                ],
            )
            made.append(Picture(f"{dataset}: {title}", charts.heat_map(rows, "value", title, form, logarithmic), table,
                                f"Medians; {place}, budget {budget:g}, {machine}."))  # fmt: skip
    return made


def machines(runs: Iterable[Measured]) -> Table:
    """Which there are, and how many runs are of each."""
    of: dict[str, list[Measured]] = defaultdict(list)
    for run in runs:
        of[run.kind.machine].append(run)
    return Table(["machine", "runs", "places"], [
        [name, str(len(some)), "; ".join(sorted({run.kind.place for run in some}))] for name, some in sorted(of.items())
    ])  # fmt: skip


def missing(runs: Iterable[Measured]) -> Table:
    """What did not finish, and why."""
    rows = []
    for run in runs:
        if not run.finished:
            kind = run.kind
            state = "unavailable" if run.unavailable else run.status.lower()
            rows.append(
                [kind.dataset, f"{kind.framework} {kind.version}", kind.setting, str(run.seed), state, run.reason]
            )
    return Table(["data set", "framework", "setting", "seed", "state", "reason"], sorted(rows))
