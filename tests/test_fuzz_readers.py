"""Whatever stands in a publisher's file, a reader returns arrays or raises one line: no other exception, no hang.

The ordinary test run tries a few inputs of each kind. `GTDL_FUZZ_EXAMPLES=10000 pytest tests/test_fuzz_readers.py`
tries 110,000 in all, other ones every time, and takes a quarter of an hour.
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
"""For one input; all of them are small, and take milliseconds on a machine that is not busy with something else."""

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    # The ordinary run is the same every time; a long one looks elsewhere each time.
    derandomize="GTDL_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """These bytes after a few changes of the kinds that files and their makers suffer from."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        # Most of the formats' structure is near the start, or at the end of a zip.
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
    """Mostly the file with some damage, sometimes nothing but its first bytes and noise."""
    noise = st.binary(max_size=300).map(lambda content: magic + content)
    return st.one_of(damaged(whole), damaged(whole), damaged(whole), noise, st.binary(max_size=100))


def holds(check: Callable[[], object]) -> None:
    """The only thing that may be raised is one line that names something; and it may not take long."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"still busy after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: raised within a callback of the garbage collector, say, it would be swallowed.
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)
    try:
        message = complaint(check)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert message.isprintable()


def complaint(check: Callable[[], object]) -> str:
    try:
        check()
    except DatasetError as error:
        return str(error)
    return ""


def reads(dataset: Dataset, name: str, content: bytes) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / name).write_bytes(content)
        holds(lambda: read(dataset, folder))
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
    """Caltech-101 with two categories, as a zip around a tar."""
    inner = tar(caltech({"ant": 2, "bass": 3}), "w")
    return replace(configured("caltech101"), classes=2), inner


@many
@given(anything(idx(np.arange(60, dtype=np.uint8).reshape(5, 4, 3)), b"\0\0\x08\x03"), st.booleans())
def test_idx(content: bytes, packed: bool) -> None:
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    labels = idx(np.zeros(5, np.uint8))
    contents = dict(zip(names, [content, labels, content, labels], strict=True))
    # As if the damage had been published: the checks before the MD5 must not lean on it.
    files = {name: hashlib.md5(each).hexdigest() for name, each in contents.items()}
    dataset = replace(MNIST, image_shape=[4, 3, 1], train_images=5, test_images=5, files=files)
    with tempfile.TemporaryDirectory() as folder:
        for name, each in contents.items():
            (Path(folder) / name).write_bytes(gzip.compress(each) if packed else each)
        holds(lambda: read(dataset, Path(folder)))


@many
@given(anything(gzip.compress(idx(np.arange(60, dtype=np.uint8).reshape(5, 4, 3))), b"\x1f\x8b\x08"))
def test_idx_in_a_damaged_gzip(content: bytes) -> None:
    dataset = replace(MNIST, image_shape=[4, 3, 1], train_images=5, files={"train-images-idx3-ubyte": "0" * 32})
    reads(dataset, "train-images-idx3-ubyte", content)


@many
@given(anything(FILES["cifar-10-batches-bin/data_batch_1.bin"], b"\x09"))
def test_cifar(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, whole in FILES.items():
            (Path(folder) / Path(name).name).write_bytes(content if "batch_1" in name else whole)
        holds(lambda: read(SMALL, Path(folder)))


@many
@given(anything(TAR, b"cifar-10-batches-bin/"))
def test_tar(content: bytes) -> None:
    reads(SMALL, "cifar-10-binary.tar.gz", content)


@many
@given(anything(PAX, b"././@LongLink"))
def test_tar_with_long_names_in_gzip(content: bytes) -> None:
    reads(SMALL, "cifar-10-binary.tar.gz", gzip.compress(content, compresslevel=1))


@many
@given(anything(gzip.compress(TAR, compresslevel=1), b"\x1f\x8b\x08"))
def test_tar_in_a_damaged_gzip(content: bytes) -> None:
    reads(SMALL, "cifar-10-binary.tar.gz", content)


@many
@given(anything(compressed(TAR[:4096]), b"\x1f\x9d\x90"))
def test_tar_in_a_damaged_compress(content: bytes) -> None:
    reads(SMALL, "cifar-10-binary.tar.gz", content)


@many
@given(anything(ZIP, b"PK\x03\x04"))
def test_zip(content: bytes) -> None:
    reads(SMALL, "cifar-10-binary.tar.gz", content)


@many
@given(st.data())
def test_a_tar_in_a_zip(data: st.DataObject) -> None:
    dataset, inner = nested()
    content = data.draw(anything(inner, b"101_ObjectCategories/"))
    reads(dataset, "caltech-101.zip", zipped({"caltech-101/101_ObjectCategories.tar.gz": content}))


@many
@given(anything(pgm(photograph(1, 112, 92)), b"P5 92 112 255"))
def test_pgm(content: bytes) -> None:
    holds(lambda: images.pgm(content, "s1/1.pgm", 92, 112))


@many
@given(
    st.one_of(
        anything(jpeg(photograph(1, 20, 30, 3)), b"\xff\xd8\xff"),
        anything(jpeg(photograph(1, 20, 30, 3), progressive=True), b"\xff\xd8\xff\xe1"),
        anything(jpeg(photograph(1, 20, 30), exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0"), b"\xff\xd8\xff\xe0"),
    )
)
def test_jpeg(content: bytes) -> None:
    def check() -> None:
        pixels = images.jpeg(content, "ant/image_0001.jpg")
        assert images.resized(pixels, 32, 32).shape == (32, 32, 3)

    holds(check)
