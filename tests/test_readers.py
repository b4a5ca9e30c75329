"""The readers of CIFAR-10, CIFAR-100, AT&T Faces and Caltech-101, with small files and with those in ../shared."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.data_files import (
    ROOT,
    assert_refused,
    caltech,
    cifar10,
    cifar100,
    compressed,
    configured,
    faces,
    idx,
    jpeg,
    pgm,
    photograph,
    prepare_in_process,
    tar,
    write_files,
    zipped,
)
from PIL import Image

from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import DatasetError, FilesNotFound, PreparedDataset, images, locate, prepare, verify
from gtdl_mlflow.datasets.prepare import read

pytestmark = pytest.mark.usefixtures("cache_folders")

SHARED = ROOT.parent / "shared" / "datasets"
GB = 10**9


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder of published data sets."""
    return tmp_path / "data"


def array(prepared: PreparedDataset, name: str) -> np.ndarray:
    return np.load(prepared.folder / f"{name}.npy")


def split(prepared: PreparedDataset) -> list[dict[str, str]]:
    with (prepared.folder / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# CIFAR


def test_cifar_100_is_read_with_coarse_or_fine_labels(data: Path) -> None:
    files = cifar100()
    write_files({"cifar-100-binary.tar.gz": tar(files)}, data / "cifar100")
    record = np.frombuffer(files["cifar-100-binary/train.bin"], np.uint8).reshape(6, 2 + 3072)
    digests = set()
    for column, labels, classes in ((0, "coarse", 20), (1, "fine", 100)):
        dataset = replace(configured("cifar100", f"labels={labels}"), train_images=6, test_images=4)
        prepared = prepare(dataset)
        digests.add(prepared.digest)
        assert prepared.classes == classes
        assert array(prepared, "train_labels").tolist() == record[:, column].tolist()
        images = array(prepared, "train_images")
        assert images.transpose(0, 3, 1, 2).tobytes() == record[:, 2:].tobytes()
        assert (array(prepared, "test_images").shape, prepared.split) == ((4, 32, 32, 3), None)
    assert len(digests) == 2
    # Prepared in separate folders.
    assert locate(dataset) == "downloaded, prepared"
    assert prepare(dataset).folder == prepared.folder


def test_cifar_label_out_of_range_is_named(data: Path) -> None:
    small, files = cifar10()
    name = "cifar-10-batches-bin/data_batch_3.bin"
    content = bytearray(files[name])
    content[3073] = 10
    write_files({"cifar-10-binary.tar.gz": tar({**files, name: bytes(content)})}, data / "cifar10")
    assert_refused(small, f"cifar-10-binary.tar.gz: {name}: label 10 at position 1, expected 0 to 9")


@pytest.mark.parametrize(("change", "length"), [(-1, "6145 bytes"), (1, "more than 6146 bytes"), (3073, "more than")])
def test_cifar_file_of_wrong_length_is_named(data: Path, change: int, length: str) -> None:
    small, files = cifar10()
    name = "cifar-10-batches-bin/data_batch_2.bin"
    write_files({**files, name: (files[name] + bytes(4000))[: 6146 + change]}, data / "cifar10")
    assert_refused(small, f"{data / 'cifar10' / name}: {length}", "expected 6146: 2 records of 3073")


def test_pickles_of_cifar_are_refused(data: Path) -> None:
    small, _ = cifar10()
    for name in ("cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1"):
        write_files({name: b"cos\nsystem\n(S'touch pickled'\ntR."}, data / "cifar10")
        assert_refused(small, "contains pickles, which can run code", "binary version, cifar-10-binary.tar.gz")
    # `gtdl data fetch` downloads only after this error.
    with pytest.raises(FilesNotFound):
        read(small, data / "cifar10")
    assert not Path("pickled").exists()


def test_wrong_configuration_of_cifar_is_refused(data: Path) -> None:
    small, files = cifar10()
    write_files(files, data / "cifar10")
    assert_refused(replace(small, image_shape=[28, 28, 3]), "images of cifar10 are 32 x 32 x 3")
    assert_refused(replace(small, train_images=None), "required for cifar10")
    assert_refused(replace(small, train_images=12), "dataset.train_images=12: cifar10 has them in 5 files of one size")
    assert_refused(configured("cifar10", "labels=coarse"), "dataset.labels=coarse: cifar10 has one kind of labels only")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_60000_images_need_little_memory(data: Path, name: str) -> None:
    files = cifar10(50_000, 10_000)[1] if name == "cifar10" else cifar100(50_000, 10_000)
    (data / name).mkdir(parents=True)
    archive = configured(name).archives[0]
    (data / name / archive).write_bytes(tar(files, "w"))
    output, memory = prepare_in_process(configured(name))
    assert memory < 0.7 * GB
    assert opening_seconds(configured(name)) < 1
    assert np.load(f"{output}/train_images.npy", mmap_mode="r").shape == (50_000, 32, 32, 3)


def opening_seconds(dataset: Dataset) -> float:
    """Return the shortest of five times, which a busy machine affects least."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        prepare(dataset)
        times.append(time.perf_counter() - start)
    return min(times)


def test_copied_or_mixed_up_file_of_cifar_is_named(data: Path) -> None:
    small, files = cifar10(100, 20)
    folder = data / "cifar10"
    batch, test = (f"cifar-10-batches-bin/{name}.bin" for name in ("data_batch_4", "test_batch"))
    write_files({**files, "cifar-10-batches-bin/data_batch_5.bin": files[batch]}, folder)
    assert_refused(small, f"{folder / batch.replace('4', '5')}: the same contents as data_batch_4.bin")
    write_files({**files, batch: files[test], test: files[batch]}, folder)
    assert_refused(small, f"{folder}", "images with the label", "but all classes of cifar10 have the same number")
    damaged = np.frombuffer(files[batch], np.uint8).reshape(20, -1).copy()
    damaged[:, 0] = 0
    write_files({**files, batch: damaged.tobytes()}, folder)
    assert_refused(small, "training images with the label", "with the label 0, but all classes")


def test_cifar_is_read_whatever_letters_its_names_have(data: Path) -> None:
    small, files = cifar10()
    write_files(files, data / "cifar10")
    published = read_bytes(small)
    shutil.rmtree(data / "cifar10")
    other = {"BATCHES.META.TXT": b"", "README.HTML": b"", "cifar-10-batches-py/data_batch_1": b"", "file.txt~": b""}
    write_files({**{name.upper(): files[name] for name in files}, **other}, data / "cifar10")
    assert read_bytes(small) == published


# MNIST


MNIST = {
    "train-images-idx3-ubyte": idx(np.arange(144, dtype=np.uint8).reshape(12, 4, 3)),
    "train-labels-idx1-ubyte": idx(np.arange(12, dtype=np.uint8) % 10),
    "t10k-images-idx3-ubyte": idx(np.arange(24, dtype=np.uint8).reshape(2, 4, 3)),
    "t10k-labels-idx1-ubyte": idx(np.arange(2, dtype=np.uint8)),
}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an IDX file (empty)"),
        (b"<html><title>403 Forbidden</title></html>", "not an IDX file (a web page)"),
        (gzip.compress(gzip.compress(MNIST["train-images-idx3-ubyte"])), "not an IDX file (gzip)"),
        (gzip.compress(MNIST["train-images-idx3-ubyte"])[:40], "could not be read (Compressed file ended before"),
        (zipped({"x": MNIST["train-images-idx3-ubyte"]}), "not an IDX file (a zip archive)"),
        (b"\x93NUMPY\x01\0", "not an IDX file (a NumPy array)"),
        (
            MNIST["train-images-idx3-ubyte"].replace(b"\n", b"\r\n"),
            "(line ends were converted, as by FTP in text mode)",
        ),
        (b"\x03\x08\0\0" + MNIST["train-images-idx3-ubyte"][4:], "an IDX file in little-endian byte order"),
        (b"\0\0\x0d" + MNIST["train-images-idx3-ubyte"][3:], "magic number 3331, expected 2051"),
        (MNIST["t10k-images-idx3-ubyte"], "contains 2 x 4 x 3 values, expected 12 x 4 x 3"),
        (MNIST["train-labels-idx1-ubyte"], "magic number 2049, expected 2051"),
        (MNIST["train-images-idx3-ubyte"][:-1], "159 bytes unpacked, expected 160"),
        (MNIST["train-images-idx3-ubyte"] + b"\0", "more than 160 bytes unpacked, expected 160"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # compressed bytes contain the time
)
def test_wrong_file_of_mnist_is_refused_for_the_right_reason(data: Path, content: bytes, words: str) -> None:
    files = {name: hashlib.md5(whole).hexdigest() for name, whole in MNIST.items()}
    small = replace(configured("mnist"), image_shape=[4, 3, 1], train_images=12, test_images=2, files=files)
    folder = data / "mnist"
    write_files({f"{name}.gz": gzip.compress(MNIST[name]) + bytes(512) for name in MNIST}, folder)
    published = read_bytes(small)
    write_files({"train-images-idx3-ubyte.gz": content}, folder)
    assert_refused(small, f"{folder / 'train-images-idx3-ubyte.gz'}: ", words)
    write_files({"train-images-idx3-ubyte.gz": MNIST["train-images-idx3-ubyte"]}, folder)
    assert read_bytes(small) == published


# AT&T Faces


@pytest.fixture(scope="session")
def people() -> dict[str, bytes]:
    return faces()


def test_faces_of_each_person_are_split_in_halves(data: Path, people: dict[str, bytes]) -> None:
    write_files(people, data / "att_faces")
    prepared = prepare(configured("att_faces", "image_size=[112,92]"))
    assert prepared.image_shape == (112, 92, 1)
    rows = split(prepared)
    assert len({row["image"] for row in rows}) == 400
    for part in ("train", "test"):
        pixels, labels = array(prepared, f"{part}_images"), array(prepared, f"{part}_labels")
        assert np.bincount(labels).tolist() == [5] * 40
        named = [row for row in rows if row["set"] == part]
        assert [int(row["row"]) for row in named] == list(range(200))
        assert [int(row["label"]) for row in named] == labels.tolist()
        # The pixels are the number of the person, the first one that of the image.
        assert [row["image"] for row in named] == [f"s{each[1, 1, 0]}/{each[0, 0, 0]}.pgm" for each in pixels]
        assert (pixels[:, 1, 1, 0] == labels + 1).all()
        # Shuffled: the first forty show many people.
        assert len(np.unique(labels[:40])) > 15


def test_split_of_the_faces_is_fixed_by_the_seed(data: Path, people: dict[str, bytes]) -> None:
    write_files(people, data / "att_faces")
    first, other = prepare(configured("att_faces")), prepare(configured("att_faces", "split_seed=1"))
    assert [row["image"] for row in split(first)[:3]] == ["s4/5.pgm", "s35/7.pgm", "s22/9.pgm"]
    names = [{row["image"] for row in split(each) if row["set"] == "train"} for each in (first, other)]
    assert names[0] != names[1]
    assert first.digest != other.digest
    assert first.split != other.split


@pytest.mark.slow
def test_all_packings_of_the_faces_result_in_the_same_arrays(data: Path, people: dict[str, bytes]) -> None:
    dataset = configured("att_faces")
    shuffled = dict(reversed(people.items()))
    digests = set()
    for name, content in {
        "att_faces.tar.Z": compressed(tar({f"orl_faces/{name}": people[name] for name in people}, "w")),
        "att_faces.tar.gz": tar(shuffled),
        "att_faces.zip": zipped(people),
    }.items():
        write_files({name: content}, data / "att_faces")
        digests.add(read_bytes(dataset))
        (data / "att_faces" / name).unlink()
    write_files({f"att_faces/{name}": people[name] for name in people}, data / "att_faces")
    digests.add(read_bytes(dataset))
    assert len(digests) == 1


def read_bytes(dataset: Dataset) -> bytes:
    arrays = read(dataset, Path(os.environ["GTDL_DATA"]) / dataset.name)
    return arrays.train_images.tobytes() + arrays.train_labels.tobytes() + arrays.test_images.tobytes()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("s7/3.pgm", b"This is no image", "not a binary PGM image (P5) with its size, but starts with b'This is '"),
        ("s7/3.pgm", b"", "not a binary PGM image (P5) with its size, but empty"),
        ("s7/3.pgm", b"\x89PNG\r\n\x1a\n", "not a binary PGM image (P5) with its size, but a PNG image"),
        ("s7/3.pgm", b"<html>", "not a binary PGM image (P5) with its size, but a web page"),
        ("s7/3.pgm", b"P2 92 112 255\n" + b"0 " * 10304, "but a PGM image as text"),
        ("s7/3.pgm", b"P5 92 112 255\n" + bytes(10303), "10303 bytes of pixels, expected 10304"),
        ("s7/3.pgm", b"P5 92 112 255\n" + bytes(10**6), "more than 10304 bytes of pixels, expected 10304"),
        ("s7/3.pgm", b"P5 92 112 255 # a comment\n" + bytes(10304), "more than 10304 bytes of pixels, expected 10304"),
        ("s7/3.pgm", b"P5\r\n92 112\r\n255\r\n" + b"\r\n" * 6000, "(line ends were converted, as by FTP in text mode)"),
        ("s7/3.pgm", b"P5 112 92 255\n" + bytes(10304), "112 x 92 pixels, expected 92 x 112"),
        ("s7/3.pgm", b"P5 99999 99999 255\n" + bytes(10304), "99999 x 99999 pixels"),
        ("s7/3.pgm", b"P5 92 112 65535\n" + bytes(20608), "grey levels 0 to 65535, expected 0 to 255"),
        ("s7/3.pgm", b"P5 92 112 15\n" + bytes(10304), "grey levels 0 to 15, expected 0 to 255"),
        ("s7/3.png", b"", "not a file of att_faces"),
        ("s7/3 (1).pgm", pgm(np.zeros((112, 92), np.uint8)), "not a file of att_faces"),
        ("3.pgm", pgm(np.zeros((112, 92), np.uint8)), "not a file of att_faces"),
        ("s7/3.PGM", pgm(np.zeros((112, 92), np.uint8)), "occurs twice"),
        ("S07/03.pgm", pgm(np.zeros((112, 92), np.uint8)), "occurs twice"),
        ("s0/1.pgm", pgm(np.zeros((112, 92), np.uint8)), "not a file of att_faces"),
        ("s41/1.pgm", pgm(np.zeros((112, 92), np.uint8)), "expected s1 to s40 with 1.pgm to 10.pgm each"),
        ("s40/11.pgm", pgm(np.zeros((112, 92), np.uint8)), "expected s1 to s40 with 1.pgm to 10.pgm each"),
    ],
)
def test_invalid_face_is_named(data: Path, people: dict[str, bytes], name: str, content: bytes, words: str) -> None:
    write_files({"att_faces.zip": zipped({**people, name: content})}, data / "att_faces")
    assert_refused(configured("att_faces"), f"att_faces.zip: {name}: ", words)


@pytest.mark.parametrize(
    "header",
    [
        b"P5\n# CREATOR: an editor\n92 112\n255\n",
        b"P5 # one\n#two\r\n# three P5 1 1\n92#four\n112 #five\n 255\n",
        b"P5\n92 112\n255# a comment\n",
        b"P5\r\n92 112\r\n255\r\n",
        b"P5\r\n# an editor\r\n92 112\r\n255\r\n",
        b"P5\r92\r112\r255\r",
        b"P5\t92\t112\t255\t",
        b"P5\n#" + b"x" * 60_000 + b"\n92 112 255\n",
    ],
)
def test_header_of_a_pgm_is_read_as_netpbm_reads_it(header: bytes) -> None:
    for first in (b"\n", b"\r", b"#", b"\0"):
        pixels = (first + bytes(range(256)) * 41)[: 92 * 112]
        assert images.decode_pgm(header + pixels, "s1/1.pgm", 92, 112).tobytes() == pixels


@pytest.mark.parametrize(
    "rename",
    [
        str.upper,
        lambda name: name.replace(".pgm", ".PGM"),
        lambda name: re.sub(r"\d+", lambda number: number[0].zfill(3), name),
        lambda name: f"att_faces/orl/{name}",
    ],
)
def test_faces_are_read_whatever_spelling_their_names_have(
    data: Path, people: dict[str, bytes], rename: Callable[[str], str]
) -> None:
    folder = data / "att_faces"
    write_files(people, folder)
    published = read_bytes(configured("att_faces"))
    shutil.rmtree(folder)
    write_files({rename(name): people[name] for name in people}, folder)
    assert read_bytes(configured("att_faces")) == published


def test_first_missing_face_is_named(data: Path, people: dict[str, bytes]) -> None:
    folder = data / "att_faces"
    write_files(people, folder)
    (folder / "s3" / "10.pgm").unlink()
    assert_refused(configured("att_faces"), f"{folder}: s3/10.pgm missing; replace")
    for path in (folder / "s20").iterdir():
        path.unlink()
    assert_refused(configured("att_faces"), f"{folder}: s3/10.pgm and 10 more missing; replace")


def test_wrong_configuration_of_the_faces_is_refused(data: Path, people: dict[str, bytes]) -> None:
    write_files(people, data / "att_faces")
    assert_refused(
        replace(configured("att_faces"), image_shape=[32, 32, 3]), "the faces are grey (1 channel) and of 40 people"
    )
    assert_refused(configured("att_faces", "classes=10"), "dataset.classes=10")


# Caltech-101


COUNTS = {"Faces": 60, "accordion": 30, "ant": 25, "bass": 31, "yin_yang": 2}


@pytest.fixture(scope="session")
def categories() -> dict[str, bytes]:
    """Return five categories, the background category and files that operating systems add."""
    background = {name.replace("ant", "BACKGROUND_Google"): each for name, each in caltech({"ant": 3}).items()}
    other = {"101_ObjectCategories/ant/.DS_Store": b"", "101_ObjectCategories/ant/._image_0001.jpg": b"no image"}
    return {**background, **caltech(COUNTS), **other}


def small_caltech(*overrides: str) -> Dataset:
    return configured("caltech101", f"classes={len(COUNTS)}", *overrides)


def test_categories_are_split_by_the_usual_protocol(data: Path, categories: dict[str, bytes]) -> None:
    write_files(categories, data / "caltech101")
    prepared = prepare(small_caltech())
    # 30 and the others; of 30 or fewer, three fifths and the others. Capital letters first.
    assert np.bincount(array(prepared, "train_labels")).tolist() == [30, 18, 15, 30, 1]
    assert np.bincount(array(prepared, "test_labels")).tolist() == [30, 12, 10, 1, 1]
    assert (prepared.train_images, prepared.test_images) == (94, 54)
    limited = prepare(small_caltech("train_per_class=20", "test_per_class=5"))
    assert np.bincount(array(limited, "train_labels")).tolist() == [20, 20, 20, 20, 1]
    assert np.bincount(array(limited, "test_labels")).tolist() == [5, 5, 5, 5, 1]
    rows = split(prepared)
    assert len({row["image"] for row in rows}) == 94 + 54
    assert not any("BACKGROUND" in row["image"] for row in rows)


def test_split_file_names_the_images(data: Path, categories: dict[str, bytes]) -> None:
    write_files(categories, data / "caltech101")
    prepared = prepare(small_caltech("image_size=[10,15]"))
    for row in split(prepared):
        with Image.open(data / "caltech101" / "101_ObjectCategories" / row["image"]) as image:
            original = np.asarray(image.convert("RGB")).astype(float)
        pixels = array(prepared, f"{row['set']}_images")[int(row["row"])].astype(float)
        # From 20 x 30 to half the size: near the mean of 2 x 2 pixels.
        means = original.reshape(10, 2, 15, 2, 3).mean(axis=(1, 3))
        assert np.abs(pixels - means).mean() < 4
        if int(row["image"][-8:-4]) % 2:  # grey
            assert (pixels == pixels[..., :1]).all()


def test_all_packings_of_the_categories_result_in_the_same_arrays(data: Path, categories: dict[str, bytes]) -> None:
    dataset = small_caltech()
    inner = tar(dict(reversed(categories.items())))
    digests = set()
    for name, content in {
        "101_ObjectCategories.tar.gz": tar(categories),
        "101_ObjectCategories.zip": zipped(categories),
        # The format in which it is published today.
        "caltech-101.zip": zipped(
            {
                "caltech-101/101_ObjectCategories.tar.gz": inner,
                "caltech-101/Annotations.tar": b"not read",
                "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"not read either",
            }
        ),
        "caltech-101/101_ObjectCategories.tar.gz": inner,
    }.items():
        write_files({name: content}, data / "caltech101")
        digests.add(read_bytes(dataset))
        (data / "caltech101" / name).unlink()
    write_files(categories, data / "caltech101")
    digests.add(read_bytes(dataset))
    assert len(digests) == 1


SPELLINGS: dict[str, Callable[[str], str]] = {
    "JPG": lambda name: re.sub(r"([3579])\.jpg$", r"\1.JPG", name),
    "jpeg": lambda name: re.sub(r"([3579])\.jpg$", r"\1.jpeg", name),
    "JPEG": lambda name: name.replace("1.jpg", "1.JPEG").replace("3.jpg", "3.Jpeg"),
    "jpe, JFIF": lambda name: name.replace("2.jpg", "2.jpe").replace("3.jpg", "3.JFIF"),
    "capital letters": str.upper,
    "small letters": str.lower,  # as in TensorFlow's copy
    "numbers without zeros": lambda name: re.sub(r"_0*(\d+)\.", r"_\1.", name),
    "some capital letters": lambda name: re.sub(r"image_(\d+[13579])\.", r"IMAGE_\1.", name),
}


@pytest.mark.parametrize("rename", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_images_are_read_whatever_spelling_their_names_have(
    data: Path, categories: dict[str, bytes], rename: Callable[[str], str], packed: bool
) -> None:
    folder = data / "caltech101"
    write_files(categories, folder)
    published = read(small_caltech(), folder)
    shutil.rmtree(folder)
    renamed = {rename(name): categories[name] for name in categories}
    write_files({"101_ObjectCategories.zip": zipped(renamed)} if packed else renamed, folder)
    arrays = read(small_caltech(), folder)
    assert arrays.split == published.split
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert (getattr(arrays, name) == getattr(published, name)).all()
    # Capital letters first: the label of Faces is 0 in every spelling.
    assert {name for name, label in zip(arrays.split.train, arrays.train_labels, strict=True) if label == 0} <= {
        f"Faces/image_{number:04}.jpg" for number in range(1, 61)
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ant/image_0003.png", "not a file of caltech101"),
        ("ant/image_0003.gif", "not a file of caltech101"),
        ("ant/image_0003.jpg.bak", "not a file of caltech101"),
        ("ant/image_0003 (1).jpg", "not a file of caltech101"),
        ("ant/image_0003-copy.jpg", "not a file of caltech101"),
        ("ant/picture.jpg", "not a file of caltech101"),
        ("ant/more/image_0003.jpg", "not a file of caltech101"),
        ("image_0003.jpg", "not a file of caltech101"),
        ("ant/image_0001.JPG", "occurs twice"),
        ("ant/image_1.jpg", "occurs twice"),
        ("ANT/image_0001.jpeg", "occurs twice"),
        ("ants/image_0001.jpg", "not a category of caltech101"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_unknown_file_among_the_images_is_named(data: Path, name: str, words: str, packed: bool) -> None:
    name = f"101_ObjectCategories/{name}"
    files = {**caltech({"ant": 2, "bass": 2}), name: JPEG}
    write_files({"101_ObjectCategories.tar.gz": tar(files)} if packed else files, data / "caltech101")
    assert_refused(configured("caltech101", "classes=2"), words)
    if packed:
        assert_refused(configured("caltech101", "classes=2"), f"101_ObjectCategories.tar.gz: {name}: {words}")


def test_files_that_are_no_images_of_a_category_are_ignored(data: Path) -> None:
    files = caltech({"ant": 2, "bass": 2})
    other = [
        *(
            f"101_ObjectCategories/{name}"
            for name in (".DS_Store", "Thumbs.db", "ant/Thumbs.db", "ant/._image_0001.jpg")
        ),
        *(f"101_ObjectCategories/{name}" for name in ("BACKGROUND_Google/image_0001.jpg", "BACKGROUND_Google/tmp")),
        *(f"101_ObjectCategories/{name}" for name in ("background_google/x", ".ipynb_checkpoints/image_0001.jpg")),
        *("__MACOSX/101_ObjectCategories/ant/._image_0001.jpg", "Annotations/ant/annotation_0001.mat"),
        *("Annotations.tar", "show_annotation.m", "README.txt"),
    ]
    write_files(files, data / "caltech101")
    published = read_bytes(configured("caltech101", "classes=2"))
    write_files(dict.fromkeys(other, b"x"), data / "caltech101")
    assert read_bytes(configured("caltech101", "classes=2")) == published
    shutil.rmtree(data / "caltech101")
    write_files({"caltech-101.zip": zipped({**files, **dict.fromkeys(other, b"x")})}, data / "caltech101")
    assert read_bytes(configured("caltech101", "classes=2")) == published


def sized(content: bytes, height: int, width: int) -> bytes:
    """Return a JPEG whose header states this size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[at + 4 :]


JPEG = jpeg(photograph(1, 20, 30, 3))
HOSTILE = {
    "text": (b"This is no image", "not a JPEG image (starts with b'This is '"),
    "empty": (b"", "not a JPEG image"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a JPEG image (a PNG image)"),
    "GIF": (b"GIF89a" + bytes(100), "not a JPEG image (a GIF image)"),
    "BMP": (b"BM" + bytes(100), "not a JPEG image (a BMP image)"),
    "web page": (b"\n<!doctype HTML><title>Log in</title>", "not a JPEG image (a web page)"),
    "cut": (JPEG[: len(JPEG) // 2], "damaged JPEG image"),
    "cut in the header": (JPEG[:30], "JPEG image"),
    "75 MB": (sized(JPEG, 5000, 5000), "5000 x 5000 pixels, expected at most 16,777,216"),
    "1 GB": (sized(JPEG, 18000, 18000), "more than 16,777,216 pixels"),
    "13 GB": (sized(JPEG, 65500, 65500), "more than 16,777,216 pixels"),
    "no pixels": (sized(JPEG, 0, 30), "JPEG image"),
    "many scans": (JPEG + b"\xff\xda" * 1000, "1001 scans in one JPEG, expected at most 100"),
    "large": (JPEG + bytes(8 * 2**20), "more than 8,388,608 bytes for one image"),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("packed", [False, True])
def test_invalid_image_is_named(data: Path, content: bytes, words: str, packed: bool) -> None:
    name = "101_ObjectCategories/ant/image_0002.jpg"
    files = {**caltech({"ant": 2, "bass": 2}), name: content}
    archive = {"caltech-101.zip": zipped({"101_ObjectCategories.tar.gz": tar(files)})}
    write_files(archive if packed else files, data / "caltech101")
    where = "caltech-101.zip: 101_ObjectCategories.tar.gz: " if packed else f"{data / 'caltech101'}/"
    assert_refused(configured("caltech101", "classes=2"), f"{where}{name}: ", words)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["75 MB", "1 GB", "13 GB"])
def test_too_large_jpeg_needs_little_memory(data: Path, case: str) -> None:
    content, words = HOSTILE[case]
    files = {**caltech({"ant": 2, "bass": 2}), "101_ObjectCategories/ant/image_0002.jpg": content}
    write_files(files, data / "caltech101")
    output, memory = prepare_in_process(configured("caltech101", "classes=2"))
    assert words in output
    assert memory < GB / 4


@pytest.mark.slow
def test_largest_accepted_jpeg_needs_little_memory(data: Path) -> None:
    files = caltech({"ant": 2, "bass": 2})
    large = jpeg(np.zeros((4096, 4096, 3), np.uint8), progressive=True)
    write_files({**files, "101_ObjectCategories/ant/image_0002.jpg": large}, data / "caltech101")
    output, memory = prepare_in_process(configured("caltech101", "classes=2"))
    assert Path(output).is_dir()
    assert memory < GB / 2


def test_empty_or_missing_category_is_named(data: Path) -> None:
    folder = data / "caltech101"
    files = caltech({"ant": 2, "bass": 2})
    dataset = configured("caltech101", "classes=3")
    write_files({"101_ObjectCategories.tar.gz": tar(files)}, folder)
    assert_refused(
        dataset, f"{folder}/101_ObjectCategories.tar.gz: 2 categories, expected 3, Faces and 98 more missing"
    )
    for content in (
        tar({**files, "101_ObjectCategories/cup/image_0001.jpg": JPEG}),
        zipped({**files, "101_ObjectCategories/cup/": b""}),
    ):
        write_files({"101_ObjectCategories.tar.gz": content}, folder)
        assert_refused(dataset, "image(s) in the category cup, which needs one for training and one for testing")
    write_files(files, folder)
    (folder / "101_ObjectCategories" / "cup").mkdir()
    assert_refused(dataset, f"{folder}: 0 image(s) in the category cup")


def test_image_that_occurs_twice_is_named(data: Path) -> None:
    files = caltech({"ant": 2, "bass": 2})
    again = {f"copy/{name}": content for name, content in caltech({"ant": 1}).items()}
    write_files({"101_ObjectCategories.tar.gz": tar({**files, **again})}, data / "caltech101")
    assert_refused(configured("caltech101", "classes=2"), "copy/101_ObjectCategories/ant/image_0001.jpg: occurs twice")


def test_any_error_of_pillow_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DatasetError, match=r"^ant/image_0001\.jpg: damaged JPEG image \(division by zero\); replace"):
        images.JpegDecoder().decode(JPEG, "ant/image_0001.jpg")


def progressive(scans: int) -> bytes:
    """Return a JPEG of 16 megapixels in which the last scan is repeated."""
    whole = jpeg(np.zeros((4096, 4096, 3), np.uint8), progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * (scans - whole.count(b"\xff\xda")) + whole[-2:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (progressive(100), "4096 x 4096 pixels in 100 scan(s): decoding the images up to this one takes too long"),
        (progressive(10), "4096 x 4096 pixels in 10 scan(s): decoding"),
        (jpeg(np.zeros((1024, 4096, 3), np.uint8)), "4096 x 1024 pixels in 1 scan(s): decoding"),
        (JPEG[:2] + b"\xff\xfe\0\2" * 2**18 + JPEG[2:], " bytes: decoding"),
    ],
    ids=["100 scans", "10 scans", "1 scan", "many segments"],
)
def test_work_of_decoding_is_limited(data: Path, content: bytes, words: str) -> None:
    files = dict.fromkeys(caltech({"ant": 101, "bass": 101}), content)
    write_files({"101_ObjectCategories.zip": zipped(files)}, data / "caltech101")
    start = time.process_time()
    assert_refused(configured("caltech101", "classes=2", "test_per_class=71"), words)
    assert time.process_time() - start < 10


def test_work_of_ordinary_images_is_not_limited() -> None:
    # As large as those of Caltech-101, a few as its largest one, and all progressive.
    ordinary = jpeg(photograph(1, 200, 300, 3), progressive=True)
    large = jpeg(photograph(1, 1000, 1600, 3), progressive=True)
    decoder = images.JpegDecoder()
    for number in range(2000):
        decoder.decode(large if number % 100 == 0 else ordinary, "ant/image_0001.jpg")


# Limits


def test_limits_reduce_all_classes_equally(data: Path, people: dict[str, bytes]) -> None:
    write_files(people, data / "att_faces")
    whole = prepare(configured("att_faces"))
    limited = prepare(configured("att_faces", "train_limit=100", "test_limit=20"))
    assert (limited.train_images, limited.test_images) == (100, 20)
    assert sorted(np.bincount(array(limited, "train_labels"))) == [2] * 20 + [3] * 20
    assert np.bincount(array(limited, "test_labels")).max() == 1
    # The same images in the same order without some of them.
    for part in ("train", "test"):
        order = [row["image"] for row in split(whole) if row["set"] == part]
        rows = [order.index(row["image"]) for row in split(limited) if row["set"] == part]
        assert rows == sorted(rows)
        assert (array(limited, f"{part}_images") == array(whole, f"{part}_images")[rows]).all()
    more = prepare(configured("att_faces", "train_limit=1000"))
    assert (more.train_images, more.test_images) == (200, 200)
    assert len({each.digest for each in (whole, limited, more)}) == 3
    assert len({each.folder for each in (whole, limited, more)}) == 3
    assert "intact" in verify(configured("att_faces", "train_limit=100", "test_limit=20"))


def test_limit_applies_to_a_published_split(data: Path) -> None:
    small, files = cifar10(50, 10)
    write_files(files, data / "cifar10")
    limited = prepare(replace(small, train_limit=7))
    assert (limited.train_images, limited.test_images, limited.split) == (7, 10, None)


def test_changed_or_missing_split_file_is_detected(data: Path, people: dict[str, bytes]) -> None:
    write_files(people, data / "att_faces")
    dataset = configured("att_faces")
    prepared = prepare(dataset)
    path = prepared.folder / "split.csv"
    path.write_text(path.read_text().replace("train", "test", 1))
    with pytest.raises(DatasetError, match="not what was prepared"):
        verify(dataset)
    path.unlink()
    assert prepare(dataset) == prepared
    assert "intact" in verify(dataset)


# Real files


def unpack(data: Path, name: str) -> None:
    command = [sys.executable, SHARED / "unpack.py", data, name]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not in ../shared/datasets")
@pytest.mark.parametrize(
    ("name", "train", "test"), [("cifar10", [5000] * 10, [1000] * 10), ("caltech101", [15] * 101, [10] * 101)]
)
def test_real_files_are_split_evenly(data: Path, name: str, train: list[int], test: list[int]) -> None:
    unpack(data, name)
    dataset = configured(name)
    prepared = prepare(dataset)
    assert np.bincount(array(prepared, "train_labels")).tolist() == train
    assert np.bincount(array(prepared, "test_labels")).tolist() == test
    assert prepared.image_shape == (32, 32, 3)
    assert "intact" in verify(dataset)
    assert opening_seconds(dataset) < 1
    # Photographs, not noise: pixels resemble their neighbours, but not those of the next image.
    pixels = array(prepared, "train_images")[:500].astype(float)
    for neighbours in (np.diff(pixels, axis=1), np.diff(pixels, axis=2)):
        assert np.abs(neighbours).mean() < 0.4 * np.abs(np.diff(pixels, axis=0)).mean()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="AT&T's faces are not in ../shared/datasets")
def test_real_faces_have_the_expected_digest(data: Path) -> None:
    unpack(data, "att_faces")
    dataset = configured("att_faces")
    assert prepare(dataset).digest == "a1e4cea4f0fe473b4a1a651df0d52ad8d9a8454b649e46dbd90999e5f01e25fa"
    assert "intact" in verify(dataset)
    assert opening_seconds(dataset) < 1
