"""``gtdl``: the verbs beside a run.

``gtdl env`` keeps the frameworks' environments, ``gtdl data`` the data sets, ``gtdl track`` what a tracker has not
heard yet; ``gtdl machine`` says what this machine can do at most. The others read the tracking store: ``gtdl report``
writes it all into one page, ``gtdl compare`` says whether two frameworks differ, ``gtdl check`` whether runs are fit to
be published, ``gtdl reproduction`` sets GTDLBench's figures beside ours, and ``gtdl ui`` opens MLflow's own pages.

Exit status: 0 done, 1 it could not be done, 2 it was asked wrongly. An error is one line.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import redaction
from ..console import fail
from . import reading

# What a verb needs is imported inside it: `gtdl --help` must not wait for Hydra, and no verb for another's libraries.


def parser() -> argparse.ArgumentParser:
    """What ``gtdl`` understands."""
    made = argparse.ArgumentParser(prog="gtdl", description="What the gtdl benchmark's runs need.")
    subjects = made.add_subparsers(required=True, metavar="SUBJECT")
    _add_env(subjects)
    _add_data(subjects)
    _add_track(subjects)
    _add_machine(subjects)
    reading.add(subjects)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``gtdl``; returns its exit status."""
    arguments = parser().parse_args(argv)
    # To look through all that MLflow's import made for garbage would take a second at the end.
    atexit.register(gc.freeze)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # before its import, which sets its loggers up
    redaction.hide_credentials()
    try:
        status: int = arguments.verb(arguments)
    except KeyboardInterrupt:
        return fail("interrupted", status=130)
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
    from .. import environments
    from ..console import aligned
    from ..files import cache_dir

    rows = [("FRAMEWORK", "VERSION", "DEVICE", "PYTHON", "SIZE", "FOLDER")]
    for made in environments.list_environments():
        assert made.folder is not None  # only what is on disk is listed
        size = f"{_size_bytes(made.folder) / 1e6:.0f} MB"
        rows.append((made.framework, made.version, made.device, made.python_version, size, made.folder.name))
    if len(rows) > 1:
        print("\n".join(aligned(rows)))
    else:
        print("no environment has been made yet")
    print(f"in {cache_dir() / 'environments'} (GTDL_HOME={cache_dir()})")
    return 0


def _size_bytes(folder: Path) -> int:
    # Links are not followed: the interpreter itself belongs to the machine.
    return sum((Path(place) / name).lstat().st_size for place, _, names in os.walk(folder) for name in names)


def _env_create(arguments: argparse.Namespace) -> int:
    from .. import config, environments

    try:
        composed = config.compose([f"framework={arguments.framework}", *arguments.overrides])
    except config.ConfigError as error:
        return fail(str(error), status=2)
    try:
        made = environments.ensure(composed.framework, composed.hardware.device)
    except environments.EnvironmentFailed as error:
        return fail(str(error))
    if made.folder is None:
        print(f"{made.framework} needs no environment: it runs in {made.python}")
    else:
        print(f"{made.framework} {made.version} ({made.device}, Python {made.python_version}): {made.folder}")
    return 0


def _env_packages(arguments: argparse.Namespace) -> int:
    from .. import config

    needed: set[str] = set()
    for name in [arguments.framework] if arguments.framework else config.choices("framework"):
        try:
            framework = config.compose([f"framework={name}"]).framework
        except config.ConfigError as error:
            return fail(str(error), status=2)
        needed.update(*(recipe.system for device in framework.devices.values() for recipe in device.recipes))
    for package in sorted(needed):
        print(package)
    return 0


def _env_remove(arguments: argparse.Namespace) -> int:
    from .. import environments

    try:
        gone = environments.remove(arguments.framework)
    except environments.EnvironmentFailed as error:
        return fail(str(error))
    if not gone:
        there = ", ".join(sorted({made.framework for made in environments.list_environments()})) or "none at all"
        return fail(f"no environment of {arguments.framework} to remove; there are environments of: {there}")
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
    from .. import config, datasets
    from ..files import datasets_dir

    names = config.choices("dataset")
    for name in names:
        # One that fits no default network is listed all the same.
        dataset = config.compose_unchecked([f"dataset={name}"]).dataset
        if dataset.train_images is not None and dataset.test_images is not None:
            images = f"{dataset.train_images:,} + {dataset.test_images:,} images"
        else:
            images = f"{dataset.train_per_class} + {dataset.test_per_class} of each of {dataset.classes}"
        print(f"{name.ljust(max(map(len, names)))}  {images.ljust(24)}  {datasets.locate(dataset)}")
    print(f"published files are looked for in {datasets_dir()} (GTDL_DATA)")
    return 0


def _data_fetch(arguments: argparse.Namespace) -> int:
    from .. import config, datasets
    from ..datasets.fetch import fetch

    names = [word for word in arguments.words if "=" not in word]
    overrides = [word for word in arguments.words if "=" in word]
    if not names:
        return fail(f"{' '.join(overrides)}: expected the name of a data set too; `gtdl data list` has them", status=2)
    try:
        composed = [config.compose([f"dataset={name}", *overrides]) for name in names]
    except config.ConfigError as error:
        return fail(str(error), status=2)
    status = 0
    for each in composed:
        try:
            print(fetch(each.dataset, each.limits.fetch_timeout_s), flush=True)
        except datasets.DatasetError as error:
            status = fail(str(error))
    return status


def _data_verify(arguments: argparse.Namespace) -> int:
    from .. import config, datasets

    try:
        print(datasets.verify(config.compose([f"dataset={arguments.dataset}"]).dataset))
    except config.ConfigError as error:
        return fail(str(error), status=2)
    except datasets.DatasetError as error:
        return fail(str(error))
    return 0


def _add_track(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    track = subjects.add_parser("track", help="runs that their tracking server was away for")
    verbs = track.add_subparsers(required=True, metavar="VERB")

    listing = verbs.add_parser("list", help="what is kept for a server, and where")
    listing.set_defaults(verb=_track_list)

    replaying = verbs.add_parser("replay", help="deliver what is kept; what has been delivered stays as it is")
    replaying.set_defaults(verb=_track_replay)


def _track_list(arguments: argparse.Namespace) -> int:
    from ..tracking import outbox, store

    kept = outbox.pending()
    for told in kept:
        print(f"{told.name}: {told.status}, for {told.uri}, in {told.folder}")
    if not kept:
        print("nothing is kept: every run has been delivered")
    return 0


def _track_replay(arguments: argparse.Namespace) -> int:
    from ..tracking import outbox, store

    status = 0
    with store.http_timeouts(retries=2, timeout_s=30):
        for done in outbox.replay():
            if done.failure:
                status = fail(f"{done.record.name}: {done.failure}; kept")
            else:
                print(f"{done.record.name}: delivered, run {done.record.run_id}")
    return status


def _add_machine(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    machine = subjects.add_parser("machine", help="what this machine is, and the most that it computes and moves")
    machine.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for a run: hardware=cpu_1core")
    machine.set_defaults(verb=_machine)


def _machine(arguments: argparse.Namespace) -> int:
    from .. import config
    from ..hardware import device_lock, host, interference, peak

    try:
        composed = config.compose(arguments.overrides)
    except config.ConfigError as error:
        return fail(str(error), status=2)
    print(host.fingerprint())
    with device_lock.hold(composed.hardware):
        found = peak.measure(composed.hardware, composed.threads)
    if found is None:
        return 1
    print(found.text)
    now = interference.Snapshot.now()
    print(f"load {now.load:.2f}" + (f", {now.mhz:,.0f} MHz" if now.mhz else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
