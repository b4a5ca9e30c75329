"""For any input, a reader returns or raises its own exception with one printable line, and does not hang.

The ordinary test run tries a few fixed inputs per reader. `GTDL_FUZZ_EXAMPLES=100000 pytest tests/test_fuzz_readers.py
--basetemp=/dev/shm/fuzz` tries 100,000 random ones per reader, with files in memory, in about five minutes each. A
failure states the GTDL_FUZZ_SEED that repeats it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.data_files import caltech, cifar10, compressed, configured, faces, idx, jpeg, pgm, photograph, tar, zipped
from PIL import Image

from gtdl_mlflow.config import Dataset, Download
from gtdl_mlflow.datasets import DatasetError, images
from gtdl_mlflow.datasets.fetch import fetch
from gtdl_mlflow.datasets.prepare import read
from gtdl_mlflow.worker import events

EXAMPLES = int(os.environ.get("GTDL_FUZZ_EXAMPLES", "30"))
SEED = os.environ.get("GTDL_FUZZ_SEED", "0" if "GTDL_FUZZ_EXAMPLES" not in os.environ else str(time.time_ns()))
SECONDS = 10
"""Limit for one input; they are small and take milliseconds on an idle machine."""

pytestmark = [pytest.mark.timeout(300 + EXAMPLES // 20), pytest.mark.usefixtures("cache_folders")]


def fuzz(check: Callable[[random.Random], object], expected: type[Exception] = DatasetError) -> None:
    """Assert that ``check`` raises nothing but ``expected``, with one line, and takes less than SECONDS.

    It is called with one source of random numbers per example.
    """

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"still busy after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for number in range(EXAMPLES):
            # Repeatedly: an exception within a callback, for example of the garbage collector, is ignored.
            signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)
            # With the seed of a failure, the first example is the one that failed.
            seed = SEED if number == 0 else f"{SEED.partition('.')[0]}.{number}"
            message = ""
            try:
                check(random.Random(seed))
            except expected as error:
                message = str(error)
            except BaseException as error:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise AssertionError(f"GTDL_FUZZ_SEED={seed}") from error
            assert message.isprintable(), f"GTDL_FUZZ_SEED={seed}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


NUMBERS = [0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
DIGITS = [b"77777777777", b"-1", b"999999999999999999999", b"\x80\xff", b"\0" * 12, b"1e999", b"9" * 5000]


def damaged(source: random.Random, whole: bytes) -> bytes:
    """Return these bytes after a few typical changes."""
    content = bytearray(whole)
    for _ in range(source.randint(1, 6)):
        # Most formats have their structure at the start, a zip at the end.
        near = source.choice([source.randint(0, 600), source.randint(0, len(content)), -source.randint(1, 400)])
        at = near % (len(content) + 1)
        kind = source.choice(["set", "set", "number", "digits", "cut", "insert", "delete", "repeat"])
        if kind == "set":
            content[at : at + 1] = source.randbytes(1)
        elif kind == "number":
            size = source.choice([2, 4, 8])
            value = source.choice(NUMBERS) % 2 ** (8 * size)
            content[at : at + size] = value.to_bytes(size, source.choice(["little", "big"]))
        elif kind == "digits":
            digits = source.choice(DIGITS)
            content[at : at + len(digits)] = digits
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = source.randbytes(source.randint(0, 40))
        elif kind == "delete":
            del content[at : at + source.randint(1, 600)]
        else:
            content[at:at] = content[at : at + source.randint(1, 1100)] * source.choice([1, 1, 1, 50])
    return bytes(content)


def anything(source: random.Random, whole: bytes, magic: bytes) -> bytes:
    """Return mostly the file with some damage, sometimes only its first bytes and noise."""
    kind = source.randint(0, 9)
    if kind == 0:
        return source.randbytes(source.randint(0, 100))
    return magic + source.randbytes(source.randint(0, 300)) if kind == 1 else damaged(source, whole)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "fuzz"
    folder.mkdir(parents=True)
    return folder


def fuzz_file(
    dataset: Dataset, folder: Path, name: str, whole: bytes, magic: bytes, pack: Callable[[bytes], bytes] = bytes
) -> None:
    """Read the data set with damaged contents of its file ``name``, and assert that no file is left."""

    def check(source: random.Random) -> None:
        (folder / name).write_bytes(pack(anything(source, whole, magic)))
        read(dataset, folder)

    fuzz(check)
    assert [path.name for path in folder.iterdir()] == [name]


def packed(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=1)


MNIST = configured("mnist")
SMALL, FILES = cifar10(5, 1)
TAR = tar({"cifar-10-batches-bin/batches.meta.txt": b"airplane\n", **FILES}, "w")
PAX = tar({"long/" * 30 + name: content for name, content in FILES.items()}, "w:")
ARCHIVE = "cifar-10-binary.tar.gz"
FACES = {name: content for name, content in faces().items() if name.startswith("s1/")}
CATEGORIES = replace(configured("caltech101"), classes=2)
IDX = idx(np.arange(60, dtype=np.uint8).reshape(5, 4, 3))


@pytest.mark.parametrize("pack", [bytes, packed])
def test_idx_is_robust(folder: Path, pack: Callable[[bytes], bytes]) -> None:
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    labels = idx(np.zeros(5, np.uint8))

    def check(source: random.Random) -> None:
        content = anything(source, IDX, b"\0\0\x08\x03")
        contents = dict(zip(names, [content, labels, content, labels], strict=True))
        for name, each in contents.items():
            (folder / name).write_bytes(pack(each))
        # The MD5 matches the damaged contents, so that the other checks must detect the damage.
        files = {name: hashlib.md5(each).hexdigest() for name, each in contents.items()}
        read(replace(MNIST, image_shape=[4, 3, 1], train_images=5, test_images=5, files=files), folder)

    fuzz(check)


def test_idx_in_a_damaged_gzip_is_robust(folder: Path) -> None:
    dataset = replace(MNIST, image_shape=[4, 3, 1], train_images=5, files={"train-images-idx3-ubyte": "0" * 32})
    fuzz_file(dataset, folder, "train-images-idx3-ubyte", gzip.compress(IDX), b"\x1f\x8b\x08")


def test_cifar_is_robust(folder: Path) -> None:
    for name, whole in FILES.items():
        (folder / Path(name).name).write_bytes(whole)
    batch = FILES["cifar-10-batches-bin/data_batch_1.bin"]

    def check(source: random.Random) -> None:
        (folder / "data_batch_1.bin").write_bytes(anything(source, batch, b"\x09"))
        read(SMALL, folder)

    fuzz(check)


def test_tar_is_robust(folder: Path) -> None:
    fuzz_file(SMALL, folder, ARCHIVE, TAR, b"cifar-10-batches-bin/")


def test_tar_with_long_names_in_gzip_is_robust(folder: Path) -> None:
    fuzz_file(SMALL, folder, ARCHIVE, PAX, b"././@LongLink", packed)


def test_tar_in_a_damaged_gzip_is_robust(folder: Path) -> None:
    fuzz_file(SMALL, folder, ARCHIVE, packed(TAR), b"\x1f\x8b\x08")


def test_tar_in_a_damaged_compress_is_robust(folder: Path) -> None:
    fuzz_file(SMALL, folder, ARCHIVE, compressed(TAR[:4096]), b"\x1f\x9d\x90")


def test_zip_is_robust(folder: Path) -> None:
    fuzz_file(SMALL, folder, ARCHIVE, zipped(FILES), b"PK\x03\x04")


def test_tar_in_a_zip_is_robust(folder: Path) -> None:
    whole = tar(caltech({"ant": 2, "bass": 3}), "w")
    name = "caltech-101/101_ObjectCategories.tar.gz"
    fuzz_file(
        CATEGORIES, folder, "caltech-101.zip", whole, b"101_ObjectCategories/", lambda content: zipped({name: content})
    )


def test_faces_in_a_tar_are_robust(folder: Path) -> None:
    fuzz_file(configured("att_faces"), folder, "att_faces.tar.gz", tar(FACES, "w"), b"s1/1.pgm")


def test_names_in_a_zip_are_robust(folder: Path) -> None:
    whole = "\n".join(name.partition("/")[2] for name in caltech({"ant": 6, "Faces": 6})).encode()

    def check(source: random.Random) -> None:
        names = damaged(source, whole).decode("utf-8", "surrogateescape").replace("\0", "").splitlines()
        content = {f"101_ObjectCategories/{name}".encode(errors="replace").decode(): b"" for name in names}
        (folder / "101_ObjectCategories.zip").write_bytes(zipped(content))
        read(CATEGORIES, folder)

    fuzz(check)


def test_table_of_digits_is_robust(folder: Path) -> None:
    whole = "\n".join(",".join(["7"] * 4 + [str(label)]) for label in range(10) for _ in range(5)).encode()
    dataset = replace(configured("mnist_5k"), image_shape=[2, 2, 1], train_images=40, test_images=10)

    def check(source: random.Random) -> None:
        content = anything(source, whole, b"1,2,3,4,5\n")
        (folder / "digits.csv").write_bytes(content)
        read(replace(dataset, files={"digits.csv": hashlib.md5(content).hexdigest()}), folder)

    fuzz(check)


def test_pgm_is_robust() -> None:
    whole = [
        pgm(photograph(1, 112, 92)),
        b"P5\r\n# an editor\r\n92 112\r\n255\r\n" + bytes(92 * 112),
        b"P5" + b"#a\n " * 500 + b"92 112#\n255 ",
    ]

    def check(source: random.Random) -> None:
        images.decode_pgm(anything(source, source.choice(whole), b"P5 92 112 255"), "s1/1.pgm", 92, 112)

    fuzz(check)


def test_jpeg_is_robust() -> None:
    pixels = photograph(1, 20, 30, 3)
    whole = [
        (jpeg(pixels), b"\xff\xd8\xff"),
        (jpeg(pixels, progressive=True), b"\xff\xd8\xff\xe1"),
        (jpeg(photograph(1, 20, 30), exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0"), b"\xff\xd8\xff\xe0"),
    ]

    def check(source: random.Random) -> None:
        decoded = images.JpegDecoder().decode(anything(source, *source.choice(whole)), "ant/image_0001.jpg")
        assert images.resize(decoded, 32, 32).shape == (32, 32, 3)

    fuzz(check)


def test_own_image_is_robust() -> None:
    whole = []
    for mode, kind in [("L", "PNG"), ("RGB", "PNG"), ("P", "PNG"), ("RGB", "BMP"), ("1", "PPM"), ("RGB", "JPEG")]:
        file = io.BytesIO()
        Image.fromarray(photograph(1, 20, 30, 3)).convert(mode).save(file, kind)
        whole.append(file.getvalue())

    def check(source: random.Random) -> None:
        content = anything(source, source.choice(whole), b"\x89PNG\r\n\x1a\n")
        assert images.decode_image(content, "rose/1.png", 3).shape[2] == 3

    fuzz(check)


@pytest.fixture
def answer() -> Iterator[list[bytes]]:
    """Yield the bytes of a server's answer and its address; a test replaces the former."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        current = [b"", f"http://127.0.0.1:{listener.getsockname()[1]}/digits.csv".encode()]

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(2**16)
                    if not current[0] and not current[1]:
                        return
                    connection.sendall(current[0])

        thread = threading.Thread(target=serve)
        thread.start()
        yield current
        current[:] = [b"", b""]
        with socket.create_connection(listener.getsockname()) as last:
            last.sendall(b"end")
        thread.join()


def test_answer_of_a_server_is_robust(folder: Path, answer: list[bytes], capfd: pytest.CaptureFixture[str]) -> None:
    body = b"1,2,3,4,5\n" * 10
    whole = [
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: text/csv\r\n\r\n" % len(body) + body,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + body + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + packed(body),
        b"HTTP/1.1 302 Found\r\nLocation: /digits.csv\r\nSet-Cookie: a=b\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 503 Busy\r\nRetry-After: 10\r\n\r\n<html>",
    ]
    download = Download(file="digits.csv", size_bytes=len(body), sha256="0" * 64, urls=[answer[1].decode()])
    dataset = replace(configured("mnist_5k"), name="fuzz", files={"digits.csv": "0" * 32}, downloads={"csv": download})

    def check(source: random.Random) -> None:
        answer[0] = anything(source, source.choice(whole), b"HTTP/1.1 200 OK\r\n")
        fetch(dataset, 5)

    fuzz(check)
    capfd.readouterr()


def test_event_of_a_worker_is_robust() -> None:
    whole = [
        b'{"event": "metadata", "values": {"framework": "torch", "threads": 2, "nested": {"a": [1, 2.5, null]}}}\n',
        b'{"event": "metrics", "values": {"loss": 0.5, "accuracy": "nan"}, "step": 3, "time": 1700000000.5}\n',
        b'{"event": "progress", "iteration": 1, "iterations": 2, "batch_size": 3, "epoch": 0.5, "loss": 1.0, '
        b'"images_per_s": 3.0}\n',
        b'{"event": "confusionmatrix", "counts": [[1, 2], [3, 4]]}\n',
        b'{"event": "finished", "cpu_s": 1e3}\n',
        b'{"event": "metadata", "values": ' + b"[" * 100_000,
        b'{"event": "metadata", "values": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    ]
    fuzz(lambda source: events.parse(anything(source, source.choice(whole), b'{"event": ')), ValueError)
