"""Reader of the AT&T (ORL) database of faces: a folder s1 to s40 per person, with ten PGM images 1.pgm to 10.pgm."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..config import Dataset
from .base import REMEDY, Arrays, DatasetError, Split
from .images import decode_pgm, resize
from .source_files import entries, find_source
from .splits import split_by_class

PEOPLE, IMAGES_PER_PERSON, WIDTH, HEIGHT = 40, 10, 92, 112

IMAGE_NAME = re.compile(r"(?:.*/)?s0*([1-9][0-9]?)/0*([1-9][0-9]?)\.pgm", re.ASCII | re.IGNORECASE)
"""Some tools write capital letters or pad the numbers with zeros."""

SIZE_LIMIT = WIDTH * HEIGHT + 2**16
"""Bytes of an image; the header may contain comments."""


def read(dataset: Dataset, folder: Path) -> Arrays:
    """Return the faces resized to ``dataset.image_shape`` and split by person. Person sN has label N - 1."""
    height, width, channels = dataset.image_shape
    if channels != 1 or dataset.classes != PEOPLE:
        raise DatasetError(
            f"{dataset.name}: dataset.image_shape={dataset.image_shape} and dataset.classes={dataset.classes}, "
            f"but the faces are grey (1 channel) and of {PEOPLE} people"
        )
    faces = {}
    for match, entry in entries(dataset, folder, IMAGE_NAME):
        person, number = int(match[1]), int(match[2])
        if person > PEOPLE or number > IMAGES_PER_PERSON:
            raise DatasetError(
                f"{entry.where}: expected s1 to s{PEOPLE} with 1.pgm to {IMAGES_PER_PERSON}.pgm each; {REMEDY}"
            )
        pixels = decode_pgm(entry.read(SIZE_LIMIT), entry.where, WIDTH, HEIGHT)
        faces[person, number] = resize(pixels, height, width)
    expected = [(person, number) for person in range(1, PEOPLE + 1) for number in range(1, IMAGES_PER_PERSON + 1)]
    if missing := [face for face in expected if face not in faces]:
        first, more = "s{}/{}.pgm".format(*missing[0]), len(missing) - 1
        source = find_source(dataset, folder)
        raise DatasetError(f"{source}: {first}{f' and {more} more' if more else ''} missing; {REMEDY}")
    images = np.stack([faces[face] for face in expected])[..., np.newaxis]
    labels = np.repeat(np.arange(PEOPLE, dtype=np.uint8), IMAGES_PER_PERSON)
    train, test = split_by_class(labels, dataset)
    names = ["s{}/{}.pgm".format(*face) for face in expected]
    split = Split([names[row] for row in train], [names[row] for row in test])
    return Arrays(images[train], labels[train], images[test], labels[test], split)
