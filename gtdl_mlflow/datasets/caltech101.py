"""Reader of Caltech-101: a folder of JPEG images per category. The folder BACKGROUND_Google is ignored.

Copies of different sizes are in use; the publisher's has 31 to 800 images per category. All must have the 101
categories and the names ``image_0001.jpg`` and so on; case is ignored. Labels follow the ASCII order of the
publisher's category names, even if a copy has other case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import Dataset
from .archives import ArchiveEntry
from .base import REMEDY, Arrays, DatasetError, Split
from .images import JpegDecoder, decode_all, read_contents
from .source_files import entries, find_source
from .splits import split_by_class

ENTRY_NAME = re.compile(
    r"(?:.*/)?101_ObjectCategories/(?!BACKGROUND_Google/)([^/]+)/(?:image_0*([1-9][0-9]{0,3})\.(?:jpe?g|jpe|jfif))?",
    re.ASCII | re.IGNORECASE,
)
"""Folder of a category, or an image in it."""

OTHER_NAME = re.compile(
    r"(?:.*/)?(?:101_ObjectCategories/BACKGROUND_Google/.*|Annotations?(?:/.*|\.(?:zip|tar|tar\.gz))|show_annotation\.m)",
    re.ASCII | re.IGNORECASE,
)
"""Other files of the publisher."""

_NAMES = """
    Faces Faces_easy Leopards Motorbikes accordion airplanes anchor ant barrel bass beaver binocular bonsai brain
    brontosaurus buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body
    cougar_face crab crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar
    elephant emu euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone grand_piano hawksbill
    headphone hedgehog helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop llama lobster lotus
    mandolin mayfly menorah metronome minaret nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid
    revolver rhino rooster saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler starfish
    stegosaurus stop_sign strawberry sunflower tick trilobite umbrella watch water_lilly wheelchair wild_cat
    windsor_chair wrench yin_yang
"""
CATEGORIES = _NAMES.split()
"""The publisher's names, in the order of the labels."""

SIZE_LIMIT = 8 * 2**20
"""Bytes of an image; they have about 15,000."""

Image = tuple[str, int]
"""Category and number."""


def read(dataset: Dataset, folder: Path) -> Arrays:
    """Return the images, stretched to ``dataset.image_shape`` and split by category."""
    if dataset.image_shape[2] != 3:
        raise DatasetError(f"dataset.image_shape={dataset.image_shape}: images of {dataset.name} have 3 channels")
    images, labels = _list_images(dataset, folder)
    train, test = split_by_class(labels, dataset)
    decoder = JpegDecoder()
    parts = [[images[row] for row in rows] for rows in (train, test)]
    train_images, test_images = decode_all(
        (((category, number), entry) for category, number, entry in _entries(dataset, folder) if number is not None),
        parts,
        lambda entry: decoder.decode(read_contents(entry, SIZE_LIMIT), entry.where),
        dataset.image_shape,
        find_source(dataset, folder),
    )
    split = Split(*(["{}/image_{:04}.jpg".format(*image) for image in part] for part in parts))
    return Arrays(train_images, labels[train], test_images, labels[test], split)


def _entries(dataset: Dataset, folder: Path) -> Iterator[tuple[str, int | None, ArchiveEntry]]:
    """Return the category, the number and the entry of each image. A category's folder has no number."""
    published = {category.casefold(): category for category in CATEGORIES}
    for match, entry in entries(dataset, folder, ENTRY_NAME, OTHER_NAME):
        category = published.get(match[1].casefold())
        if category is None:
            raise DatasetError(f"{entry.where}: not a category of {dataset.name}; {REMEDY}")
        yield category, int(match[2]) if match[2] else None, entry


def _list_images(dataset: Dataset, folder: Path) -> tuple[list[Image], npt.NDArray[np.uint8]]:
    """Return all images sorted by category and number, and their labels (N,)."""
    numbers: dict[str, list[int]] = {}
    for category, number, _ in _entries(dataset, folder):
        known = numbers.setdefault(category, [])
        if number is not None:
            known.append(number)
    source = find_source(dataset, folder)
    if len(numbers) != dataset.classes:
        missing = [category for category in CATEGORIES if category not in numbers]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        absent = f", {missing[0]}{more} missing" if len(numbers) < dataset.classes else ""
        raise DatasetError(f"{source}: {len(numbers)} categories, expected {dataset.classes}{absent}; {REMEDY}")
    for category, known in sorted(numbers.items()):
        if len(known) < 2:
            raise DatasetError(
                f"{source}: {len(known)} image(s) in the category {category}, which needs one for training and one for "
                f"testing; {REMEDY}"
            )
    images = [(category, number) for category in sorted(numbers) for number in sorted(numbers[category])]
    labels = [label for label, category in enumerate(sorted(numbers)) for _ in numbers[category]]
    return images, np.array(labels, np.uint8)
