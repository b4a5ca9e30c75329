"""``gtdl data``: the data sets."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import CommandFailed, add_group, add_verb, translate_errors

if TYPE_CHECKING:
    from .common import Subparsers


def add(commands: Subparsers) -> None:
    """Add ``gtdl data``."""
    data = add_group(commands, "data", "manage the data sets")
    add_verb(data, "list", list_datasets, "list the data sets and whether they are downloaded and prepared")
    fetching = add_verb(data, "fetch", fetch, "download data sets from their publishers or mirrors")
    fetching.add_argument(
        "arguments", nargs="+", metavar="NAME", help="data sets, and overrides as for a run: limits.fetch_timeout_s=5"
    )
    verification = add_verb(data, "verify", verify, "check every byte of a data set's files and prepared arrays")
    verification.add_argument("dataset")


def list_datasets(arguments: argparse.Namespace) -> None:
    from .. import config, datasets
    from ..console import aligned
    from ..files import datasets_dir

    rows = [("DATA SET", "IMAGES", "STATE")]
    for name in config.choices("dataset"):
        # Unchecked: a data set that fits no default network is listed too.
        dataset = config.compose_unchecked([f"dataset={name}"]).dataset
        if dataset.train_images is not None and dataset.test_images is not None:
            images = f"{dataset.train_images:,} + {dataset.test_images:,}"
        else:
            images = f"{dataset.train_per_class} + {dataset.test_per_class} per class, {dataset.classes} classes"
        rows.append((name, images, datasets.locate(dataset)))
    print("\n".join(aligned(rows)))
    print(f"folder: {datasets_dir()} (GTDL_DATA), a subfolder per data set")


def fetch(arguments: argparse.Namespace) -> int:
    from .. import config

    names = [word for word in arguments.arguments if "=" not in word]
    overrides = [word for word in arguments.arguments if "=" in word]
    if not names:
        raise CommandFailed(
            f"{' '.join(overrides)}: expected the name of a data set too; `gtdl data list` lists them", status=2
        )
    with translate_errors():
        composed = [config.compose([f"dataset={name}", *overrides]) for name in names]

    from .. import datasets
    from ..console import fail
    from ..datasets.fetch import fetch

    status = 0
    for each in composed:
        try:
            print(fetch(each.dataset, each.limits.fetch_timeout_s), flush=True)
        except datasets.DatasetError as error:
            status = fail(str(error))  # the others are downloaded all the same
    return status


def verify(arguments: argparse.Namespace) -> None:
    from .. import config, datasets

    with translate_errors(datasets.DatasetError):
        print(datasets.verify(config.compose([f"dataset={arguments.dataset}"]).dataset))
