"""For any contents of a file, a reader returns arrays or raises DatasetError with one line, and does not hang.

The ordinary test run tries a few fixed inputs per format. `GTDL_FUZZ_EXAMPLES=10000 pytest tests/test_fuzz_readers.py`
tries 110,000 random ones and takes a quarter of an hour.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from helpers.data_files import caltech, cifar10, compressed, configured, idx, jpeg, pgm, photograph, tar, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import DatasetError, images
from gtdl_mlflow.datasets.prepare import read

EXAMPLES = int(os.environ.get("GTDL_FUZZ_EXAMPLES", "30"))
SECONDS = 60
"""Limit for one input; they are small and take milliseconds on an idle machine."""

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    # The ordinary run uses the same inputs every time, a long one uses new ones.
    derandomize="GTDL_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return these bytes after a few typical changes."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        # Most formats have their structure at the start, a zip at the end.
        near = st.one_of(st.integers(0, 600), st.integers(0, len(content)), st.integers(-400, -1))
        at = draw(near) % (len(content) + 1)
        kind = draw(st.sampled_from(["set", "set", "number", "digits", "cut", "insert", "delete", "repeat"]))
        if kind == "set":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "number":
            size = draw(st.sampled_from([2, 4, 8]))
            value = draw(st.sampled_from([0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
            order = draw(st.sampled_from(["little", "big"]))
            content[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, order)
        elif kind == "digits":
            digits = draw(st.sampled_from([b"77777777777", b"-1", b"999999999999999999999", b"\x80\xff", b"\0" * 12]))
            content[at : at + len(digits)] = digits
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=40))
        elif kind == "delete":
            del content[at : at + draw(st.integers(1, 600))]
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 1100))]
    return bytes(content)


def anything(whole: bytes, magic: bytes) -> st.SearchStrategy[bytes]:
    """Return mostly the file with some damage, sometimes only its first bytes and noise."""
    noise = st.binary(max_size=300).map(lambda content: magic + content)
    return st.one_of(damaged(whole), damaged(whole), damaged(whole), noise, st.binary(max_size=100))


def assert_robust(check: Callable[[], object]) -> None:
    """Assert that ``check`` raises nothing but DatasetError with one printable line, and takes less than SECONDS."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"still busy after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Repeatedly: an exception within a callback, for example of the garbage collector, is ignored.
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)
    try:
        message = error_message(check)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert message.isprintable()


def error_message(check: Callable[[], object]) -> str:
    try:
        check()
    except DatasetError as error:
        return str(error)
    return ""


def assert_reader_robust(dataset: Dataset, name: str, content: bytes) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / name).write_bytes(content)
        assert_robust(lambda: read(dataset, folder))
        assert [path.name for path in folder.iterdir()] == [name]
    finally:
        shutil.rmtree(folder)


MNIST = configured("mnist")
SMALL, FILES = cifar10(5, 1)
TAR = tar({"cifar-10-batches-bin/batches.meta.txt": b"airplane\n", **FILES}, "w")
PAX = tar({"long/" * 30 + name: content for name, content in FILES.items()}, "w:")
ZIP = zipped(FILES)


@cache
def nested() -> tuple[Dataset, bytes]:
    """Return Caltech-101 with two categories, and the tar for a zip that contains a tar."""
    inner = tar(caltech({"ant": 2, "bass": 3}), "w")
    return replace(configured("caltech101"), classes=2), inner


@many
@given(anything(idx(np.arange(60, dtype=np.uint8).reshape(5, 4, 3)), b"\0\0\x08\x03"), st.booleans())
def test_idx_is_robust(content: bytes, packed: bool) -> None:
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    labels = idx(np.zeros(5, np.uint8))
    contents = dict(zip(names, [content, labels, content, labels], strict=True))
    # The MD5 matches the damaged contents, so that the other checks must detect the damage.
    files = {name: hashlib.md5(each).hexdigest() for name, each in contents.items()}
    dataset = replace(MNIST, image_shape=[4, 3, 1], train_images=5, test_images=5, files=files)
    with tempfile.TemporaryDirectory() as folder:
        for name, each in contents.items():
            (Path(folder) / name).write_bytes(gzip.compress(each) if packed else each)
        assert_robust(lambda: read(dataset, Path(folder)))


@many
@given(anything(gzip.compress(idx(np.arange(60, dtype=np.uint8).reshape(5, 4, 3))), b"\x1f\x8b\x08"))
def test_idx_in_a_damaged_gzip_is_robust(content: bytes) -> None:
    dataset = replace(MNIST, image_shape=[4, 3, 1], train_images=5, files={"train-images-idx3-ubyte": "0" * 32})
    assert_reader_robust(dataset, "train-images-idx3-ubyte", content)


@many
@given(anything(FILES["cifar-10-batches-bin/data_batch_1.bin"], b"\x09"))
def test_cifar_is_robust(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, whole in FILES.items():
            (Path(folder) / Path(name).name).write_bytes(content if "batch_1" in name else whole)
        assert_robust(lambda: read(SMALL, Path(folder)))


@many
@given(anything(TAR, b"cifar-10-batches-bin/"))
def test_tar_is_robust(content: bytes) -> None:
    assert_reader_robust(SMALL, "cifar-10-binary.tar.gz", content)


@many
@given(anything(PAX, b"././@LongLink"))
def test_tar_with_long_names_in_gzip_is_robust(content: bytes) -> None:
    assert_reader_robust(SMALL, "cifar-10-binary.tar.gz", gzip.compress(content, compresslevel=1))


@many
@given(anything(gzip.compress(TAR, compresslevel=1), b"\x1f\x8b\x08"))
def test_tar_in_a_damaged_gzip_is_robust(content: bytes) -> None:
    assert_reader_robust(SMALL, "cifar-10-binary.tar.gz", content)


@many
@given(anything(compressed(TAR[:4096]), b"\x1f\x9d\x90"))
def test_tar_in_a_damaged_compress_is_robust(content: bytes) -> None:
    assert_reader_robust(SMALL, "cifar-10-binary.tar.gz", content)


@many
@given(anything(ZIP, b"PK\x03\x04"))
def test_zip_is_robust(content: bytes) -> None:
    assert_reader_robust(SMALL, "cifar-10-binary.tar.gz", content)


@many
@given(st.data())
def test_tar_in_a_zip_is_robust(data: st.DataObject) -> None:
    dataset, inner = nested()
    content = data.draw(anything(inner, b"101_ObjectCategories/"))
    assert_reader_robust(dataset, "caltech-101.zip", zipped({"caltech-101/101_ObjectCategories.tar.gz": content}))


@many
@given(anything(pgm(photograph(1, 112, 92)), b"P5 92 112 255"))
def test_pgm_is_robust(content: bytes) -> None:
    assert_robust(lambda: images.decode_pgm(content, "s1/1.pgm", 92, 112))


@many
@given(
    st.one_of(
        anything(jpeg(photograph(1, 20, 30, 3)), b"\xff\xd8\xff"),
        anything(jpeg(photograph(1, 20, 30, 3), progressive=True), b"\xff\xd8\xff\xe1"),
        anything(jpeg(photograph(1, 20, 30), exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0"), b"\xff\xd8\xff\xe0"),
    )
)
def test_jpeg_is_robust(content: bytes) -> None:
    def check() -> None:
        pixels = images.decode_jpeg(content, "ant/image_0001.jpg")
        assert images.resize(pixels, 32, 32).shape == (32, 32, 3)

    assert_robust(check)
