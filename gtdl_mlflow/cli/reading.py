"""The verbs of ``gtdl`` that read the tracking store: answer, report, compare, check, reproduction, ui."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..console import fail

# As in cli.py, what a verb needs is imported inside it.


def add(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """All of them, to the command ``gtdl``."""
    for verb in (_add_answer, _add_report, _add_compare, _add_check, _add_reproduction, _add_ui):
        verb(subjects)


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tracking-uri", help="default: MLFLOW_TRACKING_URI, or the file mlflow.db here")
    parser.add_argument("--experiment", nargs="+", default=["gtdl"], help="MLflow experiments (default: gtdl)")


@contextmanager
def _store(arguments: argparse.Namespace) -> Iterator[str]:
    """The address of the tracking store that a verb reads, with some patience for it."""
    from .. import config
    from ..tracking import store

    uri = arguments.tracking_uri or config.compose([]).tracking.uri
    with store.translate_errors(uri), store.http_timeouts(retries=2, timeout_s=30):
        yield uri


def _reading(verb: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """``verb``, its failures to find or to write something told in a line."""

    def guarded(arguments: argparse.Namespace) -> int:
        from ..config import ConfigError
        from ..report.runs import NothingFound
        from ..tracking.store import TrackingFailed

        try:
            return verb(arguments)
        except (ConfigError, TrackingFailed, NothingFound) as error:
            return fail(str(error))

    return guarded


def _write(text: str, output: Path) -> int:
    """All of it or nothing."""
    new = output.with_name(f".{output.name}.part")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(output)
    except OSError as error:
        return fail(f"{output}: {error.strerror}")
    return 0


def _add_answer(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    answer = subjects.add_parser("answer", help="which framework is fastest here, and most accurate, in ten minutes")
    answer.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="OVERRIDE",
        help="minutes=10, framework=torch,mxnet (default: all), output=gtdl_answer.html; others as for a run",
    )  # fmt: skip
    answer.set_defaults(verb=_reading(_answer))


def _answer(arguments: argparse.Namespace) -> int:
    import time

    from .. import config
    from ..__main__ import to_overrides
    from ..report import page, ranking
    from ..report.runs import connect, load
    from ..sweeps import planner
    from ..tracking import store

    own, overrides = {"minutes": "10", "output": "gtdl_answer.html", "framework": ""}, []
    for word in to_overrides(arguments.words):
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
        else:
            overrides.append(word)
    try:
        if not (allowed := float(own["minutes"])) > 0:
            raise ValueError
    except ValueError:
        return fail(f"minutes={own['minutes']}: expected a number above 0, such as minutes=10", status=2)
    began_ms = time.time() * 1000
    composed = config.compose(overrides)
    uri, experiment = composed.tracking.uri, composed.tracking.experiment
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
    if identifier := os.environ.get("MLFLOW_EXPERIMENT_ID"):  # `mlflow run` chose it, and the runs go there
        with store.translate_errors(uri), store.http_timeouts(retries=2, timeout_s=30):
            experiment = store.connect(uri).get_experiment(identifier).name
    try:
        wanted = own["framework"].split(",") if own["framework"] else []
        remarks = planner.run(allowed, wanted, overrides, experiment)
    except planner.NotEnoughTime as error:
        return fail(str(error))
    with store.translate_errors(uri), store.http_timeouts(retries=2, timeout_s=30):
        runs = load(uri, [experiment], f"attributes.start_time >= {began_ms:.0f}")
        text = page.page(runs, connect(uri), experiment, remarks)
    print(ranking.text(runs))
    for remark in remarks:
        print(f"! {remark}")
    status = _write(text, Path(own["output"]))
    if status == 0:
        print(f"the report: {own['output']}")
    return status


def _add_report(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = subjects.add_parser("report", help="all runs in one HTML file, to look at and to send")
    _add_store(report)
    report.add_argument("--output", type=Path, default=Path("gtdl_report.html"), help="default: gtdl_report.html")
    report.set_defaults(verb=_reading(_report))


def _report(arguments: argparse.Namespace) -> int:
    from ..report import page
    from ..report.runs import connect, load

    with _store(arguments) as uri:
        runs = load(uri, arguments.experiment)
        text = page.page(runs, connect(uri), ", ".join(arguments.experiment))
    status = _write(text, arguments.output)
    if status == 0:
        print(f"{arguments.output}: {len(runs)} runs, {arguments.output.stat().st_size / 1e6:.1f} MB")
    return status


def _add_compare(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    comparison = subjects.add_parser("compare", help="two frameworks, searches or runs, and whether they differ")
    for name in ("first", "second"):
        comparison.add_argument(
            name, metavar=name.upper(), help="a framework (torch, torch=2.13.0), runs (ID,ID,...) or an MLflow search"
        )
    _add_store(comparison)
    comparison.add_argument("--across-machines", action="store_true", help="compare runs of different machines")
    comparison.set_defaults(verb=_reading(_compare))


def _compare(arguments: argparse.Namespace) -> int:
    from ..report import comparison

    with _store(arguments) as uri:
        found = comparison.rows(uri, arguments.experiment, arguments.first, arguments.second, arguments.across_machines)
    print(comparison.text(found, arguments.first, arguments.second))
    return 0


def _add_check(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = subjects.add_parser("check", help="whether the runs of an experiment are fit to be published")
    check.add_argument("experiment", nargs="*", default=["gtdl"], help="MLflow experiments (default: gtdl)")
    check.add_argument("--tracking-uri", help="default: MLFLOW_TRACKING_URI, or the file mlflow.db here")
    check.add_argument("--json", action="store_true", help="for a program to read")
    check.set_defaults(verb=_reading(_check))


def _check(arguments: argparse.Namespace) -> int:
    import json

    from ..report import check
    from ..report.runs import connect, load

    with _store(arguments) as uri:
        runs = load(uri, arguments.experiment)
        verdict = check.check(runs)
        check.tag(verdict, runs, connect(uri))
    print(json.dumps(verdict.json(), indent=1) if arguments.json else verdict.text())
    return 0 if verdict.passed else 1


def _add_reproduction(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = subjects.add_parser("reproduction", help="GTDLBench's published tables beside what was measured")
    _add_store(report)
    report.add_argument("--output", type=Path, help="a file for the Markdown; default: standard output")
    report.set_defaults(verb=_reading(_reproduction))


def _reproduction(arguments: argparse.Namespace) -> int:
    from ..report import reproduction
    from ..report.runs import connect

    with _store(arguments) as uri:
        found = reproduction.cells(uri, arguments.experiment)
        text = reproduction.markdown(found, f"experiment {', '.join(arguments.experiment)}", connect(uri))
    if arguments.output is not None:
        return _write(text, arguments.output)
    print(text, end="")
    return 0


def _add_ui(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ui = subjects.add_parser("ui", help="MLflow's own pages on the experiment, its table arranged")
    ui.add_argument("--tracking-uri", help="default: MLFLOW_TRACKING_URI, or the file mlflow.db here")
    ui.add_argument("--experiment", default="gtdl", help="an MLflow experiment (default: gtdl)")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--no-browser", action="store_true", help="only say where it is")
    ui.set_defaults(verb=_reading(_ui))


def _ui(arguments: argparse.Namespace) -> int:
    from ..report import ui

    with _store(arguments) as uri:
        path = ui.arrange(uri, arguments.experiment)
    try:
        return ui.serve(uri, path, arguments.port, browser=not arguments.no_browser)
    except ui.UiFailed as error:
        return fail(str(error))
