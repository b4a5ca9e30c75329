"""A data set that is exported for other programs has the images and labels of the prepared one."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.datasets import PreparedDataset
from gtdl_mlflow.datasets.export import export

TRAIN, TEST, CLASSES = 7, 4, 3


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> PreparedDataset:
    """A prepared data set of random images of 5 x 6 pixels."""
    random = np.random.RandomState(0)
    folder = tmp_path / "prepared"
    folder.mkdir()
    for part, count in (("train", TRAIN), ("test", TEST)):
        images = random.randint(0, 256, (count, 5, 6, request.param)).astype(np.uint8)
        np.save(folder / f"{part}_images.npy", images)
        np.save(folder / f"{part}_labels.npy", (np.arange(count) % (CLASSES - 1)).astype(np.uint8))
    return PreparedDataset(folder, "", TRAIN, TEST, (5, 6, request.param), CLASSES, "", None)


def expected(data: PreparedDataset) -> Iterator[tuple[str, int, int, np.ndarray]]:
    """Yield part, place, label and image of every image."""
    for part in ("train", "test"):
        labels = np.load(data.folder / f"{part}_labels.npy")
        for number, image in enumerate(np.load(data.folder / f"{part}_images.npy")):
            yield part, number, int(labels[number]), image


def test_arrays(data: PreparedDataset, tmp_path: Path) -> None:
    export(data, tmp_path / "data.npz")
    with np.load(tmp_path / "data.npz") as arrays:
        assert sorted(arrays) == ["test_images", "test_labels", "train_images", "train_labels"]
        for part, number, label, image in expected(data):
            assert arrays[f"{part}_labels"][number] == label
            assert np.array_equal(arrays[f"{part}_images"][number], image)


def test_table(data: PreparedDataset, tmp_path: Path) -> None:
    export(data, tmp_path / "data.csv")
    header, *lines = csv.reader((tmp_path / "data.csv").read_text().splitlines())
    assert header == ["part", "label", *(f"pixel_{index}" for index in range(np.prod(data.image_shape)))]
    for line, (part, _, label, image) in zip(lines, expected(data), strict=True):
        assert line == [part, str(label), *map(str, image.ravel())]


def test_images(data: PreparedDataset, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()  # an empty folder may exist
    export(data, tmp_path / "images")
    files = {path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.png")}
    assert files == {f"{part}/{label}/{number:05}.png" for part, number, label, _ in expected(data)}
    assert {path.name for path in (tmp_path / "images/train").iterdir()} == {"0", "1", "2"}, "one folder per class"
    for part, number, label, image in expected(data):
        read = np.asarray(Image.open(tmp_path / f"images/{part}/{label}/{number:05}.png"))
        assert np.array_equal(read.reshape(image.shape), image)


def test_nothing_is_left_of_an_export_that_fails(data: PreparedDataset, tmp_path: Path) -> None:
    (data.folder / "test_labels.npy").unlink()
    for name in ("data.npz", "data.csv", "images"):
        with pytest.raises(FileNotFoundError):
            export(data, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("digits.parquet", "digits.parquet: expected NAME.npz, NAME.csv, or a folder"),
        ("no/digits.npz", "no/digits.npz: the folder no does not exist"),
        ("no/digits", "no/digits: the folder no does not exist"),
        (".", ".: exists; expected a new or empty folder"),
    ],
)
def test_wrong_output_is_one_line(
    output: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    assert cli.main(["data", "export", "mnist_5k", "--output", output]) == 2
    assert text in capsys.readouterr().err


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "export", "mnist_5k", "--output", "digits.npz"]) == 0
    assert capsys.readouterr().out == "digits.npz: 4,000 training and 1,000 test images\n"
    with np.load("digits.npz") as arrays:
        assert arrays["train_images"].shape == (4000, 28, 28, 1)
