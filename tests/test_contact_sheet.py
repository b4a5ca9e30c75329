"""The contact sheet of a data set shows images of every class, in the order of the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gtdl_mlflow.datasets import PreparedDataset, contact_sheet


@pytest.mark.parametrize(("classes", "channels"), [(3, 1), (40, 3)])
def test_each_class_has_a_strip_of_images(tmp_path: Path, classes: int, channels: int) -> None:
    labels = np.random.RandomState(0).permutation(np.arange(12 * classes) % classes).astype(np.uint8)
    images = np.zeros((len(labels), 6, 5, channels), np.uint8) + labels[:, None, None, None]
    np.save(tmp_path / "train_images.npy", images)
    np.save(tmp_path / "train_labels.npy", labels)
    data = PreparedDataset(tmp_path, "", len(labels), 1, (6, 5, channels), classes, "", None)
    contact_sheet.write(data, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    per_class, strips_down = (10, 3) if classes == 3 else (4, 10)
    pixels = {label: int((sheet == label).sum()) for label in range(classes)}
    assert pixels == dict.fromkeys(range(classes), per_class * images[0].size)
    for label in range(classes):  # down first, then across
        rows, columns = np.nonzero((sheet if channels == 1 else sheet[..., 0]) == label)
        assert rows.min() == label % strips_down * 7
        assert columns.min() == label // strips_down * (per_class * 6 + 4)
