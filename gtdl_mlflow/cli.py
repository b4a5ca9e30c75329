"""``gtdl``: the verbs beside a run.

``gtdl env`` keeps the frameworks' environments, ``gtdl data`` the data sets, ``gtdl track`` what a tracker has not
heard yet. The others read the tracking store: ``gtdl report`` writes it all into one page, ``gtdl compare`` says
whether two frameworks differ, ``gtdl check`` whether runs are fit to be published, ``gtdl reproduction`` sets
GTDLBench's figures beside ours, and ``gtdl ui`` opens MLflow's own pages.

Exit status: 0 done, 1 it could not be done, 2 it was asked wrongly. An error is one line.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import secrets

# What a verb needs is imported inside it: `gtdl --help` must not wait for Hydra, and no verb for another's libraries.


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``gtdl``; returns its exit status."""
    parser = argparse.ArgumentParser(prog="gtdl", description="What the gtdl benchmark's runs need.")
    subjects = parser.add_subparsers(required=True, metavar="SUBJECT")
    _add_env(subjects)
    _add_data(subjects)
    _add_track(subjects)
    _add_answer(subjects)
    _add_report(subjects)
    _add_compare(subjects)
    _add_check(subjects)
    _add_reproduction(subjects)
    _add_ui(subjects)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # before its import, which sets its loggers up
    secrets.hide()
    try:
        status: int = arguments.verb(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", status=130)
    return status


def _fail(reason: str, *, status: int = 1) -> int:
    print(f"gtdl: {reason}", file=sys.stderr)
    return status


def _add_env(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    env = subjects.add_parser("env", help="the frameworks' virtual environments")
    verbs = env.add_subparsers(required=True, metavar="VERB")

    listing = verbs.add_parser("list", help="what has been made, and where")
    listing.set_defaults(verb=_env_list)

    creation = verbs.add_parser("create", help="make a framework's environment now, before a run needs it")
    creation.add_argument("framework")
    creation.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="as for a run: framework.version=..., hardware=gpu"
    )
    creation.set_defaults(verb=_env_create)

    packages = verbs.add_parser("packages", help="the Debian packages that environments need, one a line")
    packages.add_argument("framework", nargs="?", help="all, if left out")
    packages.set_defaults(verb=_env_packages)

    removal = verbs.add_parser("remove", help="delete all environments of a framework")
    removal.add_argument("framework")
    removal.set_defaults(verb=_env_remove)


def _env_list(arguments: argparse.Namespace) -> int:
    from . import environments
    from .home import home

    rows = [("FRAMEWORK", "VERSION", "DEVICE", "PYTHON", "SIZE", "FOLDER")]
    for made in environments.existing():
        assert made.folder is not None  # only what is on disk is listed
        size = f"{_size_bytes(made.folder) / 1e6:.0f} MB"
        rows.append((made.framework, made.version, made.device, made.python_version, size, made.folder.name))
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
    else:
        print("no environment has been made yet")
    print(f"in {home() / 'environments'} (GTDL_HOME={home()})")
    return 0


def _size_bytes(folder: Path) -> int:
    # Links are not followed: the interpreter itself belongs to the machine.
    return sum((Path(place) / name).lstat().st_size for place, _, names in os.walk(folder) for name in names)


def _env_create(arguments: argparse.Namespace) -> int:
    from . import config, environments

    try:
        composed = config.compose([f"framework={arguments.framework}", *arguments.overrides])
    except config.ConfigError as error:
        return _fail(str(error), status=2)
    try:
        made = environments.ensure(composed.framework, composed.hardware.device)
    except environments.EnvironmentFailed as error:
        return _fail(str(error))
    if made.folder is None:
        print(f"{made.framework} needs no environment: it runs in {made.python}")
    else:
        print(f"{made.framework} {made.version} ({made.device}, Python {made.python_version}): {made.folder}")
    return 0


def _env_packages(arguments: argparse.Namespace) -> int:
    from . import config

    needed: set[str] = set()
    for name in [arguments.framework] if arguments.framework else config.choices("framework"):
        try:
            framework = config.compose([f"framework={name}"]).framework
        except config.ConfigError as error:
            return _fail(str(error), status=2)
        needed.update(*(recipe.system for device in framework.devices.values() for recipe in device.recipes))
    for package in sorted(needed):
        print(package)
    return 0


def _env_remove(arguments: argparse.Namespace) -> int:
    from . import environments

    try:
        gone = environments.remove(arguments.framework)
    except environments.EnvironmentFailed as error:
        return _fail(str(error))
    if not gone:
        there = ", ".join(sorted({made.framework for made in environments.existing()})) or "none at all"
        return _fail(f"no environment of {arguments.framework} to remove; there are environments of: {there}")
    for folder in gone:
        print(f"removed {folder}")
    return 0


def _add_data(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = subjects.add_parser("data", help="the data sets")
    verbs = data.add_subparsers(required=True, metavar="VERB")

    listing = verbs.add_parser("list", help="which there are, and which are at hand")
    listing.set_defaults(verb=_data_list)

    fetching = verbs.add_parser("fetch", help="download data sets, as published, from their publishers or mirrors")
    fetching.add_argument(
        "words", nargs="+", metavar="NAME", help="a data set; or, with a =, as for a run: limits.fetch_timeout_s=5"
    )
    fetching.set_defaults(verb=_data_fetch)

    verification = verbs.add_parser("verify", help="check a data set's files and its prepared form, every byte")
    verification.add_argument("dataset")
    verification.set_defaults(verb=_data_verify)


def _data_list(arguments: argparse.Namespace) -> int:
    from . import config, datasets
    from .home import data_home

    names = config.choices("dataset")
    for name in names:
        dataset = config.compose([f"dataset={name}"]).dataset
        if dataset.train_images is not None and dataset.test_images is not None:
            images = f"{dataset.train_images:,} + {dataset.test_images:,} images"
        else:
            images = f"{dataset.train_each} + {dataset.test_each} of each of {dataset.classes}"
        print(f"{name.ljust(max(map(len, names)))}  {images.ljust(24)}  {datasets.locate(dataset)}")
    print(f"published files are looked for in {data_home()} (GTDL_DATA)")
    return 0


def _data_fetch(arguments: argparse.Namespace) -> int:
    from . import config, datasets
    from .datasets.fetch import fetch

    names = [word for word in arguments.words if "=" not in word]
    overrides = [word for word in arguments.words if "=" in word]
    if not names:
        return _fail(f"{' '.join(overrides)}: expected the name of a data set too; `gtdl data list` has them", status=2)
    try:
        composed = [config.compose([f"dataset={name}", *overrides]) for name in names]
    except config.ConfigError as error:
        return _fail(str(error), status=2)
    status = 0
    for each in composed:
        try:
            print(fetch(each.dataset, each.limits.fetch_timeout_s), flush=True)
        except datasets.DatasetError as error:
            status = _fail(str(error))
    return status


def _data_verify(arguments: argparse.Namespace) -> int:
    from . import config, datasets

    try:
        print(datasets.verify(config.compose([f"dataset={arguments.dataset}"]).dataset))
    except config.ConfigError as error:
        return _fail(str(error), status=2)
    except datasets.DatasetError as error:
        return _fail(str(error))
    return 0


def _add_track(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    track = subjects.add_parser("track", help="runs that their tracking server was away for")
    verbs = track.add_subparsers(required=True, metavar="VERB")

    listing = verbs.add_parser("list", help="what is kept for a server, and where")
    listing.set_defaults(verb=_track_list)

    replaying = verbs.add_parser("replay", help="deliver what is kept; what has been delivered stays as it is")
    replaying.set_defaults(verb=_track_replay)


def _track_list(arguments: argparse.Namespace) -> int:
    from . import delivery

    kept = delivery.kept()
    for told in kept:
        print(f"{told.name}: {told.status}, for {told.uri}, in {told.folder}")
    if not kept:
        print("nothing is kept: every run has been delivered")
    return 0


def _track_replay(arguments: argparse.Namespace) -> int:
    from . import delivery

    status = 0
    with delivery.patience(retries=2, timeout_s=30):
        for done in delivery.replay():
            if done.failure:
                status = _fail(f"{done.told.name}: {done.failure}; kept")
            else:
                print(f"{done.told.name}: delivered, run {done.told.run_id}")
    return status


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tracking-uri", help="default: MLFLOW_TRACKING_URI, or the file mlflow.db here")
    parser.add_argument("--experiment", nargs="+", default=["gtdl"], help="MLflow experiments (default: gtdl)")


@contextmanager
def _store(arguments: argparse.Namespace) -> Iterator[str]:
    """The address of the tracking store that a verb reads, with some patience for it."""
    from . import config, delivery

    uri = arguments.tracking_uri or config.compose([]).tracking.uri
    with delivery.reaching(uri), delivery.patience(retries=2, timeout_s=30):
        yield uri


def _reading(verb: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """``verb``, its failures to find or to write something told in a line."""

    def guarded(arguments: argparse.Namespace) -> int:
        from .config import ConfigError
        from .delivery import TrackingFailed
        from .report.runs import NothingFound

        try:
            return verb(arguments)
        except (ConfigError, TrackingFailed, NothingFound) as error:
            return _fail(str(error))

    return guarded


def _write(text: str, output: Path) -> int:
    """All of it or nothing."""
    new = output.with_name(f".{output.name}.part")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(output)
    except OSError as error:
        return _fail(f"{output}: {error.strerror}")
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

    from . import answering, config, delivery
    from .__main__ import overrides as turned
    from .report import answer, page
    from .report.runs import connect, load

    own, overrides = {"minutes": "10", "output": "gtdl_answer.html", "framework": ""}, []
    for word in turned(arguments.words):
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
        else:
            overrides.append(word)
    try:
        if not (allowed := float(own["minutes"])) > 0:
            raise ValueError
    except ValueError:
        return _fail(f"minutes={own['minutes']}: expected a number above 0, such as minutes=10", status=2)
    began_ms = time.time() * 1000
    composed = config.compose(overrides)
    uri, experiment = composed.tracking.uri, composed.tracking.experiment
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
    try:
        wanted = own["framework"].split(",") if own["framework"] else []
        remarks = answering.run(allowed, wanted, overrides, experiment)
    except answering.NoTime as error:
        return _fail(str(error))
    with delivery.reaching(uri), delivery.patience(retries=2, timeout_s=30):
        runs = load(uri, [experiment], f"attributes.start_time >= {began_ms:.0f}")
        text = page.page(runs, connect(uri), experiment, remarks)
    print(answer.text(runs))
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
    from .report import page
    from .report.runs import connect, load

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
    from .report import comparison

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

    from .report import check
    from .report.runs import connect, load

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
    from .report import reproduction

    with _store(arguments) as uri:
        found = reproduction.cells(uri, arguments.experiment)
    text = reproduction.markdown(found, f"experiment {', '.join(arguments.experiment)}")
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
    from .report import ui

    with _store(arguments) as uri:
        path = ui.arrange(uri, arguments.experiment)
    try:
        return ui.serve(uri, path, arguments.port, browser=not arguments.no_browser)
    except ui.UiFailed as error:
        return _fail(str(error))


if __name__ == "__main__":
    sys.exit(main())
