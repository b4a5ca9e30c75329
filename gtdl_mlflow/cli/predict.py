"""``gtdl predict``: classify images with a run's model."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import output as print_output
from .common import Command, CommandFailed, check_output, output_option, tracking_store

SHOWN = 10
"""Images whose classes are printed."""


@click.command(cls=Command)
@click.argument("run", metavar="RUN")
@click.argument("images", metavar="IMAGES.npy", type=click.Path(exists=True, path_type=Path))
@output_option("predictions.npy", "Class probabilities, float32 (images, classes).")
@click.option("--tracking-uri", metavar="URI", help="Tracking store (default: MLFLOW_TRACKING_URI, or mlflow.db here).")
def predict(run: str, images: Path, output: Path, tracking_uri: str | None) -> None:
    """Classify images with the model of a run, in its framework's own environment.

    RUN is an MLflow run ID. IMAGES.npy has raw images, uint8 (images, height, width, channels).
    """
    check_output(output)
    import numpy as np

    from .. import prediction

    array = prediction.read_images(images)
    with tracking_store(tracking_uri) as uri:
        probabilities = prediction.predict(uri, run, array)
    try:
        with output.open("wb") as file:
            np.save(file, probabilities)
    except OSError as error:
        raise CommandFailed(f"{output}: {error.strerror}") from error
    classes = probabilities.argmax(axis=1)
    shown = ", ".join(map(str, classes[:SHOWN])) + (", ..." if len(classes) > SHOWN else "")
    print_output(f"{output}: class probabilities of {len(classes):,} images; most probable classes: {shown}")
