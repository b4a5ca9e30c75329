"""Publishers' files, small, made for a test; and what preparing them comes to."""

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
    """The data set of ``conf/dataset/NAME.yaml``, with ``key=value`` overrides."""
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
    """Smooth enough to survive JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, *channels), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def cifar10(train: int = 10, test: int = 2) -> tuple[Dataset, dict[str, bytes]]:
    """CIFAR-10 with few images, and its files."""
    random = np.random.default_rng(3)
    counts = {**{f"data_batch_{number}.bin": train // 5 for number in range(1, 6)}, "test_batch.bin": test}
    files = {}
    for name, count in counts.items():
        records = random.integers(0, 256, (count, 1 + 3072), np.uint8)
        records[:, 0] %= 10
        files[f"cifar-10-batches-bin/{name}"] = records.tobytes()
    return replace(configured("cifar10"), train_images=train, test_images=test), files


def cifar100(train: int = 6, test: int = 4) -> dict[str, bytes]:
    random = np.random.default_rng(4)
    files = {}
    for name, count in {"train": train, "test": test}.items():
        records = random.integers(0, 256, (count, 2 + 3072), np.uint8)
        records[:, 0] %= 20
        records[:, 1] %= 100
        files[f"cifar-100-binary/{name}.bin"] = records.tobytes()
    return files


def faces() -> dict[str, bytes]:
    """AT&T's 400 files; every pixel says whose face it is, the first which of the ten."""
    made = {"README": b"The ORL Database of Faces"}
    for person in range(1, 41):
        for number in range(1, 11):
            pixels = np.full((112, 92), person, np.uint8)
            pixels[0, 0] = number
            made[f"s{person}/{number}.pgm"] = pgm(pixels)
    return made


def caltech(images: dict[str, int]) -> dict[str, bytes]:
    """101_ObjectCategories with so many images in each category, every other one grey."""
    made = {}
    for category, count in images.items():
        for number in range(1, count + 1):
            channels = () if number % 2 else (3,)
            name = f"101_ObjectCategories/{category}/image_{number:04}.jpg"
            made[name] = jpeg(photograph(1000 * len(category) + number, 20, 30, *channels))
    return made


def lay_out(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def tar(files: dict[str, bytes], mode: str = "w:gz", extra: list[tarfile.TarInfo] | None = None) -> bytes:
    """A tar of these files, ``extra`` members first."""
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
    """A zip of these files, ``extra`` members first."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in (extra or {}).items():
            archive.writestr(info, content)
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def compressed(content: bytes) -> bytes:
    """In the format of Unix's compress, without saving anything: every code is a literal byte."""
    return lzw(list(content))


def lzw(codes: list[int]) -> bytes:
    """A .Z of these codes: 9 to 16 bits, in groups of eight of the same width."""
    out, group, width, known = bytearray(b"\x1f\x9d\x90"), [], 9, 256
    for code in codes:
        group.append(code)
        # The first code makes no entry in the dictionary, every later one does while there is room.
        known = min(known + 1, 2**16)
        wider = known == 2**width and width < 16
        if len(group) == 8 or wider:
            packed = sum(each << (width * place) for place, each in enumerate(group))
            out += packed.to_bytes(width, "little")
            group = []
        width += wider
    packed = sum(each << (width * place) for place, each in enumerate(group))
    return bytes(out) + packed.to_bytes((len(group) * width + 7) // 8, "little")


def lzw_bomb() -> bytes:
    """2 GB of the letter a in 120 kB: every code stands for one letter more than the one before."""
    return lzw([97, *range(257, 2**16)])


def refuses(dataset: Dataset, *words: str) -> None:
    """It cannot be prepared; the reason is one line with these words; no file comes or goes, but for a lock."""
    places = [datasets_dir(), cache_dir() / "prepared"]
    before = [_files(place) for place in places]
    with pytest.raises(DatasetError) as refused:
        prepare(dataset)
    message = str(refused.value)
    assert message.isprintable()
    for word in words:
        assert word in message
    assert [_files(place) for place in places] == before


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix != ".lock")


PREPARE = r"""
import json, re, sys
from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import DatasetError, prepare
import gtdl_mlflow.datasets.caltech101, filelock
try:
    print(prepare(Dataset(**json.loads(sys.argv[1]))).folder)
except DatasetError as error:
    print(error)
# Not getrusage, whose maximum begins with that of the process that started this one.
print(1024 * int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]))
"""


def prepared_elsewhere(dataset: Dataset, timeout_s: float = 60) -> tuple[str, int]:
    """What another process says that prepares it, and the bytes of memory it took at most."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, json.dumps(asdict(dataset))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    said, memory = done.stdout.splitlines()
    return said, int(memory)
