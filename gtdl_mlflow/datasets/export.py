"""Write a prepared data set for other programs: as NumPy arrays, as a table or as images."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..worker.prepared_data import ARRAYS
from .prepared import PreparedDataset, array_file

PARTS = ("train", "test")

Part = tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
"""Name, images (N, height, width, channels) and labels (N,) of the training or test set."""


def export(data: PreparedDataset, path: Path) -> None:
    """Write a data set completely or not at all. The suffix of ``path`` selects the format.

    - ``.npz``: the arrays ``{train,test}_{images,labels}``, of uint8, compressed.
    - ``.csv``: a line per image with its part, its label and its pixels, row by row, the channels of a pixel together.
    - none: a folder of PNG files, ``PART/LABEL/NUMBER.png``, which ``image_folder`` reads. NUMBER is the position of
      the image in its part, from 0. All labels have the same number of digits.

    Raises:
        OSError: a file cannot be written, or the folder for the images exists and is not empty.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        if path.suffix == ".npz":
            np.savez_compressed(part, **{name: np.load(array_file(data.folder, name)) for name in ARRAYS})
        elif path.suffix == ".csv":
            _write_table(data, part)
        else:
            _write_images(data, part)
        if part.is_dir() and path.is_dir():
            path.rmdir()  # it fails for a folder with files
        part.replace(path)


def _parts(data: PreparedDataset) -> Iterator[Part]:
    for part in PARTS:
        images, labels = (
            np.load(array_file(data.folder, f"{part}_{kind}"), mmap_mode="r") for kind in ("images", "labels")
        )
        yield part, images, labels


def _write_table(data: PreparedDataset, path: Path) -> None:
    height, width, channels = data.image_shape
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["part", "label", *(f"pixel_{index}" for index in range(height * width * channels))])
        for part, images, labels in _parts(data):
            writer.writerows(
                [part, label, *image.ravel().tolist()] for label, image in zip(labels, images, strict=True)
            )


def _write_images(data: PreparedDataset, path: Path) -> None:
    names = [f"{label:0{len(str(data.classes - 1))}}" for label in range(data.classes)]
    for part, images, labels in _parts(data):
        for name in names:
            (path / part / name).mkdir(parents=True)
        for number, (label, image) in enumerate(zip(labels, images, strict=True)):
            Image.fromarray(image.squeeze(axis=2) if image.shape[2] == 1 else image).save(
                path / part / names[label] / f"{number:05}.png"
            )
