"""The driver's files are fetched before they are asked for, and no others."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Command

from gtdl_mlflow import readahead


@pytest.mark.skipif(not shutil.which("fincore"), reason="needs fincore, of util-linux")
@pytest.mark.usefixtures("places")
def test_what_the_last_run_imported_is_fetched_from_the_disk(tmp_path: Path) -> None:
    files = [tmp_path / f"module{number}.pyc" for number in range(3)]
    for file in files:
        file.write_bytes(bytes(100_000))
    kept = readahead._list()
    kept.parent.mkdir(parents=True)
    kept.write_text("\n".join(map(str, [tmp_path / "uninstalled.pyc", *files])))
    for file in files:
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if pages(files):
        pytest.skip("files cannot be had out of memory here")
    readahead.begin()
    for _ in range(100):
        if pages(files) == sum(-(-file.stat().st_size // mmap.PAGESIZE) for file in files):
            return
        time.sleep(0.05)
    pytest.fail("they are still on the disk")


def pages(files: list[Path]) -> int:
    """Of all files, in memory: asked without reading, which would fetch them."""
    command = ["fincore", "--noheadings", "--output", "PAGES", *files]
    return sum(map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()))


def test_a_run_leaves_the_names_of_what_its_driver_imported(gtdl: Command) -> None:
    readahead._list().unlink(missing_ok=True)
    assert gtdl("framework=torch", "training.iterations=1").returncode == 0
    names = readahead._list().read_text().splitlines()
    for module in ("mlflow/__init__", "mlflow/store/tracking/sqlalchemy_store", "gtdl_mlflow/tracking"):
        folder, _, name = module.rpartition("/")
        assert [found for found in names if f"/{folder}/" in found and Path(found).name.startswith(f"{name}.")]
    assert not [name for name in names if "/torch/" in name or not Path(name).exists()]


@pytest.mark.usefixtures("places")
def test_an_answer_about_the_command_leaves_nothing(gtdl: Command, tmp_path: Path) -> None:
    assert gtdl("--help").returncode == gtdl("--cfg", "job").returncode == 0
    assert not (tmp_path / "home").exists()
