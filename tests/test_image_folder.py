"""Image files of the user, in a folder per class, become a data set."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.data_files import assert_refused, jpeg, pgm, photograph, tar, write_files, zipped
from PIL import Image

from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import DatasetError, PreparedDataset, locate, prepare
from gtdl_mlflow.datasets.export import export
from gtdl_mlflow.datasets.fetch import fetch

pytestmark = pytest.mark.usefixtures("cache_folders")

SIZE = 12

DIVIDED = Dataset(
    name="flowers",
    family="cifar10",
    reader="gtdl_mlflow.datasets.image_folder:read",
    classes=2,
    image_size=SIZE,
    image_shape=[SIZE, SIZE, 3],
    split_seed=0,
    train_per_class=3,
    test_per_class=2,
)
"""A data set that this project splits."""

SPLIT = replace(DIVIDED, split_seed=None, train_per_class=None, test_per_class=None, train_images=4, test_images=2)
"""A data set with folders train and test."""


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind)
    return file.getvalue()


def color(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def flowers() -> dict[str, bytes]:
    """Return five images of each of two classes."""
    return {
        f"{name}/{number}.png": encoded(color(10 * label + number))
        for label, name in enumerate(("lily", "rose"))
        for number in range(5)
    }


def flowers_in_parts() -> dict[str, bytes]:
    files = {"train/lily": [0, 1], "train/rose": [10, 11], "test/lily": [2], "test/rose": [12]}
    return {f"{folder}/{seed}.png": encoded(color(seed)) for folder, seeds in files.items() for seed in seeds}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder of the user's images."""
    return tmp_path / "data" / "flowers"


def images_by_name(prepared: PreparedDataset) -> dict[tuple[str, str], tuple[int, np.ndarray]]:
    """Return label and pixels of each image, by its set and its name in split.csv."""
    with (prepared.folder / "split.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    arrays = {part: np.load(prepared.folder / f"{part}_images.npy") for part in ("train", "test")}
    labels = {part: np.load(prepared.folder / f"{part}_labels.npy") for part in ("train", "test")}
    for line in lines:
        assert labels[line["set"]][int(line["row"])] == int(line["label"])
    return {(line["set"], line["image"]): (int(line["label"]), arrays[line["set"]][int(line["row"])]) for line in lines}


def test_images_are_divided_at_random(data: Path) -> None:
    write_files(flowers(), data)
    assert locate(DIVIDED) == "downloaded, not prepared"
    assert fetch(DIVIDED, 1) == f"flowers: already in {data}"
    prepared = prepare(DIVIDED)
    assert (prepared.train_images, prepared.test_images) == (6, 4)
    found = images_by_name(prepared)
    assert {name for _, name in found} == set(flowers())
    for (_, name), (label, pixels) in found.items():
        flower, number = re.fullmatch(r"(\w+)/(\d)\.png", name).groups()  # type: ignore[union-attr]
        assert label == ["lily", "rose"].index(flower)
        assert np.array_equal(pixels, color(10 * label + int(number)))
    other = images_by_name(prepare(replace(DIVIDED, split_seed=1)))
    assert other.keys() != found.keys()


def test_folders_train_and_test_are_the_split(data: Path) -> None:
    write_files(flowers_in_parts(), data)
    found = images_by_name(prepare(SPLIT))
    assert {name for _, name in found} == set(flowers_in_parts())
    for (part, name), (label, pixels) in found.items():
        assert name.startswith(f"{part}/{['lily', 'rose'][label]}/")
        assert np.array_equal(pixels, color(int(Path(name).stem)))


def test_training_images_are_not_in_the_order_of_their_classes(data: Path) -> None:
    write_files(
        {
            f"{part}/{name}/{number}.png": encoded(color(0))
            for part, name, number in (
                (part, name, number) for part in ("train", "test") for name in ("lily", "rose") for number in range(50)
            )
        },
        data,
    )
    labels = np.load(prepare(replace(SPLIT, train_images=100, test_images=100)).folder / "train_labels.npy")
    assert np.count_nonzero(np.diff(labels)) > 20


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("flowers.zip", zipped),
        ("flowers.tar.gz", tar),
        ("my/flowers.zip", lambda files: zipped({f"inside/{name}": content for name, content in files.items()})),
    ],
)
def test_archive_results_in_the_same_arrays(data: Path, name: str, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    files = dict(reversed(flowers().items()))  # an archive has its files in any order
    write_files(files, data)
    dataset = replace(DIVIDED, archives=["flowers.zip", "flowers.tar.gz"], unpacked="lily")
    unpacked = prepare(dataset).sha256
    for path in files:
        (data / path).unlink()
    for folder in ("lily", "rose"):
        (data / folder).rmdir()
    write_files({name: pack(files)}, data)
    assert prepare(dataset).sha256 == unpacked


def test_exported_data_set_is_read_again(data: Path, tmp_path: Path) -> None:
    classes = 12  # 10 and 11 must not come before 2
    folder = tmp_path / "prepared"
    folder.mkdir()
    expected = {}
    for part, seed in (("train", 1), ("test", 2)):
        images = np.random.default_rng(seed).integers(0, 256, (2 * classes, SIZE, SIZE, 1), np.uint8)
        labels = np.tile(np.arange(classes, dtype=np.uint8), 2)
        np.save(folder / f"{part}_images.npy", images)
        np.save(folder / f"{part}_labels.npy", labels)
        expected[part] = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    original = PreparedDataset(
        folder=folder,
        digest="",
        train_images=24,
        test_images=24,
        image_shape=(SIZE, SIZE, 1),
        classes=classes,
        source="",
        split=None,
    )
    data.parent.mkdir()
    export(original, data)
    again = prepare(replace(SPLIT, classes=classes, image_shape=[SIZE, SIZE, 1], train_images=24, test_images=24))
    for part, known in expected.items():
        images = np.load(again.folder / f"{part}_images.npy")
        labels = np.load(again.folder / f"{part}_labels.npy")
        assert {image.tobytes(): label for image, label in zip(images, labels, strict=True)} == known


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lily/0.BMP", encoded(color(0), "BMP")),
        ("lily/0.ppm", encoded(color(0), "PPM")),
        ("lily/0.png", encoded(color(0), mode="RGBA")),
        ("lily/0.jpg", encoded(color(0))),  # the content decides, not the name
    ],
)
def test_other_formats_have_the_same_pixels(data: Path, name: str, content: bytes) -> None:
    files = flowers()
    del files["lily/0.png"]
    write_files({**files, name: content}, data)
    (pixels,) = (pixels for (_, found), (_, pixels) in images_by_name(prepare(DIVIDED)).items() if found == name)
    assert np.array_equal(pixels, color(0))


def test_other_sizes_and_grey_images_are_converted(data: Path) -> None:
    grey, large = photograph(1, SIZE, SIZE), np.full((30, 40, 3), 7, np.uint8)
    write_files({**flowers(), "lily/0.png": encoded(large), "lily/1.png": encoded(grey), "lily/2.png": pgm(grey)}, data)
    found = {name: pixels for (_, name), (_, pixels) in images_by_name(prepare(DIVIDED)).items()}
    assert np.array_equal(found["lily/0.png"], np.full((SIZE, SIZE, 3), 7))
    for name in ("lily/1.png", "lily/2.png"):  # the content decides, not the name
        assert np.array_equal(found[name], np.repeat(grey[:, :, np.newaxis], 3, axis=2))
    found = {
        name: pixels
        for (_, name), (_, pixels) in images_by_name(prepare(replace(DIVIDED, image_shape=[SIZE, SIZE, 1]))).items()
    }
    assert np.array_equal(found["lily/1.png"], grey[:, :, np.newaxis])


def test_orientation_of_a_photograph_is_applied(data: Path) -> None:
    turned = np.zeros((SIZE, SIZE, 3), np.uint8)
    turned[:, : SIZE // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    file = io.BytesIO()
    Image.fromarray(turned).save(file, "PNG", exif=exif)
    write_files({**flowers(), "lily/0.png": file.getvalue()}, data)
    found = {name: pixels for (_, name), (_, pixels) in images_by_name(prepare(DIVIDED)).items()}
    assert np.array_equal(found["lily/0.png"], turned[:, ::-1])


def test_file_name_that_is_not_utf8_is_refused(data: Path) -> None:
    write_files(flowers(), data)
    (data / "lily" / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(color(1)))
    assert_refused(DIVIDED, "the name is not UTF-8; rename the file or the folder")


def test_prepared_images_are_used_without_the_files(data: Path) -> None:
    write_files(flowers(), data)
    expected = prepare(DIVIDED).digest
    shutil.rmtree(data)
    data.mkdir()
    assert prepare(DIVIDED).digest == expected


def test_classes_may_differ_in_capital_letters_only(data: Path) -> None:
    write_files({name.replace("lily", "a").replace("rose", "A"): content for name, content in flowers().items()}, data)
    assert prepare(DIVIDED).train_images == 6


DEEP = np.zeros((SIZE, SIZE), np.uint16)

INVALID = {
    "16 bits": (DIVIDED, {"lily/0.png": encoded(DEEP)}, "lily/0.png: grey with more than 8 bits per pixel; convert"),
    "damaged": (DIVIDED, {"rose/1.png": encoded(color(1))[:-30]}, "rose/1.png: damaged"),
    "no image": (DIVIDED, {"rose/1.jpg": b"%PDF-1.4"}, "rose/1.jpg: not a BMP, JPEG, PNG, PPM image (a PDF"),
    "other file": (DIVIDED, {"rose/labels.csv": b"1"}, "rose/labels.csv: not a file of flowers; move it"),
    "no class": (DIVIDED, {"5.png": encoded(color(1))}, "5.png: not a file of flowers; move it"),
    "third class": (
        DIVIDED,
        {"tulip/1.png": encoded(color(1))},
        "3 classes (lily, rose, tulip), expected dataset.classes=2",
    ),
    "one image": (
        replace(DIVIDED, classes=3),
        {"tulip/1.png": encoded(color(1))},
        "1 image of the class tulip, which needs",
    ),
    "two folders": (DIVIDED, {"more/rose/9.png": encoded(color(1))}, "classes in ./, more/, expected in one folder"),
    "no parts": (SPLIT, {}, "classes in ./, expected in train/ and test/; for a random split, set dataset.split_seed"),
    "channels": (replace(DIVIDED, image_shape=[SIZE, SIZE, 4]), {}, "expected 1 (grey) or 3 (colour) channels"),
}


@pytest.mark.parametrize(("dataset", "files", "words"), INVALID.values(), ids=INVALID)
def test_wrong_images_are_refused(data: Path, dataset: Dataset, files: dict[str, bytes], words: str) -> None:
    write_files({**flowers(), **files}, data)
    assert_refused(dataset, words)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"train/lily/9.png": encoded(color(1))},
            "5 images for training and 2 for testing, expected dataset.train_images=4",
        ),
        ({"val/lily/9.png": encoded(color(1))}, "classes in test/, train/, val/, expected in train/ and test/"),
    ],
)
def test_wrong_parts_are_refused(data: Path, files: dict[str, bytes], words: str) -> None:
    write_files({**flowers_in_parts(), **files}, data)
    assert_refused(SPLIT, words)


def test_class_without_training_images_is_named(data: Path) -> None:
    write_files({**flowers_in_parts(), "test/tulip/9.png": encoded(color(1))}, data)
    assert_refused(replace(SPLIT, classes=3, test_images=3), "no image of the class tulip in train/")


def test_missing_folder_is_named(data: Path) -> None:
    assert_refused(DIVIDED, f"flowers: {data} does not exist: put the files there, or set GTDL_DATA")
    assert locate(DIVIDED) == "not downloaded, not prepared"
    assert fetch(DIVIDED, 1) == f"flowers: nothing to fetch; copy its files into {data}"


def test_empty_folder_is_named(data: Path) -> None:
    data.mkdir(parents=True)
    (data / "README.md").touch()
    assert_refused(DIVIDED, f"flowers: no image in {data}: put the images there")
    assert locate(DIVIDED) == "not downloaded, not prepared"


def test_jpeg_of_many_scans_is_refused(data: Path) -> None:
    content = encoded(color(0), "JPEG")
    write_files({**flowers(), "rose/0.jpg": content[:-2] + b"\xff\xda" * 200 + content[-2:]}, data)
    assert_refused(DIVIDED, "rose/0.jpg: 201 scans in one JPEG, expected at most 100; convert or remove it")


def test_very_large_image_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gtdl_mlflow.datasets.images.OWN_PIXELS_LIMIT", 1000)
    write_files({**flowers(), "rose/0.jpg": jpeg(np.zeros((40, 30, 3), np.uint8))}, data)
    with pytest.raises(
        DatasetError, match=r"rose/0\.jpg: 30 x 40 pixels, expected at most 1,000; convert or remove it"
    ):
        prepare(DIVIDED)
