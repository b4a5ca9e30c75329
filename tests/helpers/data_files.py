"""Create small copies of publishers' files, and check how their preparation ends."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import DatasetError, prepare
from gtdl_mlflow.files import cache_dir, datasets_dir

ROOT = Path(__file__).parents[2]


def configured(name: str, *overrides: str) -> Dataset:
    """Return the data set of ``conf/dataset/NAME.yaml`` with ``key=value`` overrides."""
    composed = OmegaConf.merge(
        OmegaConf.structured(Dataset),
        OmegaConf.load(ROOT / "conf" / "dataset" / f"{name}.yaml"),
        OmegaConf.from_dotlist(list(overrides)),
    )
    dataset = OmegaConf.to_object(composed)
    assert isinstance(dataset, Dataset)
    return dataset


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def pgm(pixels: np.ndarray) -> bytes:
    height, width = pixels.shape
    return f"P5 {width} {height} 255\n".encode() + pixels.tobytes()


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def photograph(seed: int, height: int = 20, width: int = 30, *channels: int) -> np.ndarray:
    """Return random pixels that are smooth enough to survive JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, *channels), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def cifar10(train: int = 10, test: int = 2) -> tuple[Dataset, dict[str, bytes]]:
    """Return CIFAR-10 with few images, and its files."""
    random = np.random.default_rng(3)
    counts = {**{f"data_batch_{number}.bin": train // 5 for number in range(1, 6)}, "test_batch.bin": test}
    labels = np.concatenate([balanced_labels(random, train, 10), balanced_labels(random, test, 10)])
    files, start = {}, 0
    for name, count in counts.items():
        records = random.integers(0, 256, (count, 1 + 3072), np.uint8)
        records[:, 0] = labels[start : start + count]
        files[f"cifar-10-batches-bin/{name}"] = records.tobytes()
        start += count
    return replace(configured("cifar10"), train_images=train, test_images=test), files


def cifar100(train: int = 6, test: int = 4) -> dict[str, bytes]:
    """Return the files of CIFAR-100 with few images."""
    random = np.random.default_rng(4)
    files = {}
    for name, count in {"train": train, "test": test}.items():
        records = random.integers(0, 256, (count, 2 + 3072), np.uint8)
        records[:, 0] = balanced_labels(random, count, 20)
        records[:, 1] = balanced_labels(random, count, 100)
        files[f"cifar-100-binary/{name}.bin"] = records.tobytes()
    return files


def balanced_labels(random: np.random.Generator, count: int, classes: int) -> np.ndarray:
    """Return labels (N,) in random order with the same number of each class, or one less."""
    return random.permutation(np.arange(count) % classes).astype(np.uint8)


def faces() -> dict[str, bytes]:
    """Return AT&T's 400 files. Each pixel is the person's number; the first is the image's."""
    files = {"README": b"The ORL Database of Faces"}
    for person in range(1, 41):
        for number in range(1, 11):
            pixels = np.full((112, 92), person, np.uint8)
            pixels[0, 0] = number
            files[f"s{person}/{number}.pgm"] = pgm(pixels)
    return files


def caltech(images: dict[str, int]) -> dict[str, bytes]:
    """Return 101_ObjectCategories with these numbers of images per category, every other one grey."""
    files = {}
    for category, count in images.items():
        for number in range(1, count + 1):
            channels = () if number % 2 else (3,)
            name = f"101_ObjectCategories/{category}/image_{number:04}.jpg"
            files[name] = jpeg(photograph(1000 * len(category) + number, 20, 30, *channels))
    return files


def write_files(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def tar(files: dict[str, bytes], mode: str = "w:gz", extra: list[tarfile.TarInfo] | None = None) -> bytes:
    """Return a tar of these files, ``extra`` members first."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for info in extra or []:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(files: dict[str, bytes], extra: dict[zipfile.ZipInfo, bytes] | None = None) -> bytes:
    """Return a zip of these files, ``extra`` members first."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in (extra or {}).items():
            archive.writestr(info, content)
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def compressed(content: bytes) -> bytes:
    """Return a file of Unix's compress in which every code is a literal byte."""
    return lzw(list(content))


def lzw(codes: list[int]) -> bytes:
    """Return a .Z of these codes: 9 to 16 bits, in groups of eight of the same width."""
    out, group, width, known = bytearray(b"\x1f\x9d\x90"), [], 9, 256
    for code in codes:
        group.append(code)
        # Every code but the first adds an entry to the dictionary, until that is full.
        known = min(known + 1, 2**16)
        wider = known == 2**width and width < 16
        if len(group) == 8 or wider:
            packed = sum(each << (width * position) for position, each in enumerate(group))
            out += packed.to_bytes(width, "little")
            group = []
        width += wider
    packed = sum(each << (width * position) for position, each in enumerate(group))
    return bytes(out) + packed.to_bytes((len(group) * width + 7) // 8, "little")


def lzw_bomb() -> bytes:
    """Return 2 GB of the letter a in 120 kB: each code stands for one letter more than the one before."""
    return lzw([97, *range(257, 2**16)])


def assert_refused(dataset: Dataset, *words: str) -> None:
    """Assert that preparation fails with one line that contains these words, and changes no file but a lock."""
    folders = [datasets_dir(), cache_dir() / "prepared"]
    before = [_files(folder) for folder in folders]
    with pytest.raises(DatasetError) as refused:
        prepare(dataset)
    message = str(refused.value)
    assert message.isprintable()
    for word in words:
        assert word in message
    assert [_files(folder) for folder in folders] == before


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix != ".lock")


PREPARE = r"""
import json, re, sys
from gtdl_mlflow.config import Dataset, Download
from gtdl_mlflow.datasets import DatasetError, prepare
fields = json.loads(sys.argv[1])
fields["downloads"] = {name: Download(**each) for name, each in fields["downloads"].items()}
try:
    print(prepare(Dataset(**fields)).folder)
except DatasetError as error:
    print(error)
# Not getrusage: its maximum includes the memory of the parent process.
print(1024 * int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]))
"""


def prepare_in_process(dataset: Dataset, timeout_s: float = 60) -> tuple[str, int]:
    """Prepare a data set in another process. Return the folder or the error, and the peak of its memory in bytes."""
    process = subprocess.run(
        [sys.executable, "-c", PREPARE, json.dumps(asdict(dataset))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert process.returncode == 0, process.stderr
    output, memory = process.stdout.splitlines()
    return output, int(memory)
