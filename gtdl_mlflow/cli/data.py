"""``gtdl data``: the data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import output as print_output
from .common import TAKES_OVERRIDES, CommandFailed, Group, check_output, complete_choice

if TYPE_CHECKING:
    from ..config import Config


@click.group(cls=Group)
def data() -> None:
    """Manage the data sets."""


@data.command("list")
def list_datasets() -> None:
    """List the data sets and whether they are downloaded and prepared."""
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


def _compose(dataset: str, *overrides: str) -> Config:
    """Return a configuration with a checked data set. The data set need not fit a framework's default network."""
    from .. import config

    composed = config.compose_unchecked([f"dataset={dataset}", *overrides])
    config.check_data(composed)
    return composed


@data.command(context_settings=TAKES_OVERRIDES)
@click.argument("arguments", metavar="NAMES...", nargs=-1, required=True, shell_complete=complete_choice("dataset"))
def fetch(arguments: tuple[str, ...]) -> int:
    """Download data sets from their publishers or mirrors. Overrides are those of a run: limits.fetch_timeout_s=5."""
    words = [word.removeprefix("dataset=") for word in arguments]
    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if not names:
        raise CommandFailed(
            f"{' '.join(overrides)}: expected the name of a data set too; `gtdl data list` lists them", status=2
        )
    composed = [_compose(name, *overrides) for name in names]

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


@data.command()
@click.argument("dataset", shell_complete=complete_choice("dataset"))
def verify(dataset: str) -> None:
    """Check every byte of a data set's files and prepared arrays."""
    from .. import datasets

    print(datasets.verify(_compose(dataset).dataset))


@data.command()
@click.argument("dataset", shell_complete=complete_choice("dataset"))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="NAME.npz, NAME.csv, or a folder.")
def export(dataset: str, output: Path) -> None:
    """Write a prepared data set: NumPy arrays (.npz), a table (.csv), or a folder of PNG images."""
    from .. import datasets
    from ..console import status_line
    from ..datasets.export import export

    if output.suffix not in ("", ".npz", ".csv"):
        raise CommandFailed(
            f"{output}: expected NAME.npz, NAME.csv, or a folder, which has no dot in its name", status=2
        )
    if output.suffix:
        check_output(output)
    elif not output.parent.is_dir():
        raise CommandFailed(f"{output}: the folder {output.parent} does not exist", status=2)
    elif output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise CommandFailed(f"{output}: exists; expected a new or empty folder", status=2)
    prepared = datasets.prepare(_compose(dataset).dataset)
    status_line("writing the images")
    try:
        export(prepared, output)
    except OSError as error:
        raise CommandFailed(f"{output}: {error.strerror}") from error
    print_output(f"{output}: {prepared.train_images:,} training and {prepared.test_images:,} test images")
