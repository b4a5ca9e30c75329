"""Look at data sets: their statistics into docs/datasets/statistics.yaml, samples into docs/pictures/.

``python scripts/data_statistics.py mnist_5k mnist`` for those at hand, then ``python scripts/generate_docs.py``. ``NAME=WORDS``
says what is particular about the copy that is looked at.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from gtdl_mlflow import config
from gtdl_mlflow.datasets import DatasetError, PreparedDataset, contact_sheet, prepare, source_files
from gtdl_mlflow.files import datasets_dir

DOCS = Path(__file__).resolve().parents[1] / "docs"
STATISTICS = DOCS / "datasets" / "statistics.yaml"

ROWS, COLORS = 10, 128
"""Of a picture, at most: its file stays below 150 kB."""

NAMES = re.compile(r"(?:.*/)?(batches\.meta|fine_label_names)\.txt")
"""Where CIFAR's publisher keeps the names of the classes."""


def main(words: list[str]) -> None:
    known = yaml.safe_load(STATISTICS.read_text(encoding="utf-8")) if STATISTICS.exists() else {}
    for name, _, copy in (word.partition("=") for word in words):
        dataset = config.compose([f"dataset={name}"]).dataset
        data = prepare(dataset)
        known[name] = {**({"copy": copy} if copy else {}), **statistics(dataset, data)}
        sheet(data, DOCS / "pictures" / f"{name}.png")
    text = yaml.safe_dump(dict(sorted(known.items())), sort_keys=False, default_flow_style=None, width=120)
    STATISTICS.write_text(f"# Made by scripts/data_statistics.py.\n{text}", encoding="utf-8")


def statistics(dataset: config.Dataset, data: PreparedDataset) -> dict[str, Any]:
    """Of the prepared arrays; mean and standard deviation are of the training pixels, from 0 to 1, by channel."""
    labels = {part: np.load(data.folder / f"{part}_labels.npy") for part in ("train", "test")}
    each = {part: np.bincount(found, minlength=data.classes) for part, found in labels.items()}
    images = np.load(data.folder / "train_images.npy", mmap_mode="r")
    values = np.arange(256) / 255
    shares = [np.bincount(images[..., channel].ravel(), minlength=256) / images[..., channel].size
              for channel in range(data.image_shape[2])]  # fmt: skip
    means = [share @ values for share in shares]
    return {
        "digest": data.digest,
        "images": {part: len(found) for part, found in labels.items()},
        "of_a_class": {part: [int(counts.min()), int(counts.max())] for part, counts in each.items()},
        "mean": [round(float(mean), 4) for mean in means],
        "deviation": [round(float(np.sqrt(share @ (values - mean) ** 2)), 4)
                      for share, mean in zip(shares, means, strict=True)],
        "classes": class_names(dataset, data),
    }  # fmt: skip


def class_names(dataset: config.Dataset, data: PreparedDataset) -> list[str]:
    """As the publisher calls them: in a list of his, or by the folders that the images came in; else their numbers."""
    try:
        for _, entry in source_files.entries(dataset, datasets_dir() / dataset.name, NAMES):
            return entry.read(2**16).decode().split()
    except DatasetError:  # built in, or not an archive
        pass
    names = {label: str(label) for label in range(data.classes)}
    if data.split:
        with (data.folder / "split.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                folder, slash, _ = row["image"].rpartition("/")
                if slash:
                    names[int(row["label"])] = folder
    return [names[label] for label in range(data.classes)]


def sheet(data: PreparedDataset, path: Path) -> None:
    """The contact sheet of a run, less what is below its first rows, in few colours."""
    contact_sheet.write(data, path)
    with Image.open(path) as picture:
        picture = picture.crop((0, 0, picture.width, min(picture.height, ROWS * (data.image_shape[0] + 1))))
        if picture.mode == "RGB":
            picture = picture.quantize(COLORS, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
