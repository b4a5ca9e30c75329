"""The worker compares the arrays that it maps with the SHA-256 in its job."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from helpers.networks import ZERO
from helpers.project import ROOT, Command

from gtdl_mlflow.worker.experiment import FileAccess
from gtdl_mlflow.worker.job import BatchOrder, Job, Latency, Optimizer, Training
from gtdl_mlflow.worker.prepared_data import ARRAYS, DataChanged, open_arrays


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Return a small job of the reference framework, with the hashes of its data."""
    random = np.random.default_rng(1)
    (tmp_path / "data").mkdir()
    for part, count in (("train", 20), ("test", 10)):
        np.save(tmp_path / "data" / f"{part}_images.npy", random.integers(0, 256, (count, 4, 3, 1), np.uint8))
        np.save(tmp_path / "data" / f"{part}_labels.npy", np.arange(count, dtype=np.uint8) % 5)
    return Job(
        adapter="gtdl_mlflow.worker.frameworks.reference.adapter:Reference",
        options={},
        layers={"dense": {"type": "dense", "units": "classes", "weights": ZERO, "biases": ZERO}},
        image_shape=[4, 3, 1],
        classes=5,
        data=str(tmp_path / "data"),
        data_sha256={
            name: hashlib.sha256((tmp_path / "data" / f"{name}.npy").read_bytes()).hexdigest() for name in ARRAYS
        },
        training=Training(
            name="short",
            order=BatchOrder.sequential,
            batch_size=5,
            test_batch_size=5,
            iterations=4,
            optimizer=Optimizer.sgd,
            learning_rate=0.01,
            checkpoint_every_s=0,
        ),
        budget=1.0,
        seed=0,
        device="cpu",
        threads=1,
        cores=None,
        folder=str(tmp_path / "model"),
        latency=Latency(repeats=0),
    )


def flip(path: Path) -> None:
    """Change the last byte, a pixel or a label."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def run_by_hand(job: Job, folder: Path) -> subprocess.CompletedProcess[str]:
    job.write(folder / "job.json")
    return subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow.worker", str(folder / "job.json")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_arrays_are_those_of_the_files_and_read_only(job: Job) -> None:
    arrays = open_arrays(job)
    assert tuple(arrays) == ARRAYS
    for name, array in arrays.items():
        assert (array == np.load(f"{job.data}/{name}.npy")).all()
        assert array.dtype == np.uint8
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_mapped_arrays_outlive_their_files(job: Job) -> None:
    arrays = open_arrays(job)
    before = {name: array.copy() for name, array in arrays.items()}
    for name in ARRAYS:
        path = Path(job.data) / f"{name}.npy"
        path.with_suffix(".new").write_bytes(bytes(path.stat().st_size))
        path.with_suffix(".new").replace(path)
    assert all((arrays[name] == before[name]).all() for name in ARRAYS)


def test_a_file_that_is_replaced_after_its_check_is_not_used(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [Path(job.data) / f"{name}.npy" for name in ARRAYS]
    contents = [path.read_bytes() for path in files]
    before = {name: np.load(path) for name, path in zip(ARRAYS, files, strict=True)}
    sha256, checked = hashlib.sha256, []

    def replace_after(data: bytes) -> Any:
        digest = sha256(data)
        path = files[len(checked)]
        checked.append(path)
        new = path.with_suffix(".new")
        new.write_bytes(contents[len(checked) - 1][:-1] + b"\xff")
        new.replace(path)
        return digest

    monkeypatch.setattr(hashlib, "sha256", replace_after)
    arrays = open_arrays(job)
    assert checked == files
    assert all((arrays[name] == before[name]).all() for name in ARRAYS)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_altered_array_is_named(job: Job, name: str) -> None:
    flip(Path(job.data) / f"{name}.npy")
    with pytest.raises(DataChanged) as refused:
        open_arrays(job)
    message = str(refused.value)
    assert message.startswith(f"{job.data}/{name}.npy: not what was prepared (SHA-256 ")
    assert message.endswith(f"; delete {job.data}, and the next run prepares the data again")
    assert "\n" not in message


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "in the header": lambda path: os.truncate(path, 60),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "no array": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(200)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_array_is_named(job: Job, damage: Callable[[Path], object]) -> None:
    damage(Path(job.data) / "test_labels.npy")
    with pytest.raises(DataChanged) as refused:
        open_arrays(job)
    assert str(refused.value).startswith(f"{job.data}/test_labels.npy: ")
    assert "prepares the data again" in str(refused.value)


def test_a_job_that_lacks_a_hash_is_refused(job: Job) -> None:
    hashes = {name: value for name, value in job.data_sha256.items() if name != "test_labels"}
    with pytest.raises(DataChanged, match=r"test_labels\.npy: not what was prepared"):
        open_arrays(replace(job, data_sha256=hashes))


def test_worker_by_hand_checks_the_data(job: Job, tmp_path: Path) -> None:
    done = run_by_hand(job, tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"setup/verify_data_s"' in done.stdout
    flip(tmp_path / "data" / "train_labels.npy")
    done = run_by_hand(job, tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(f"{job.data}/train_labels.npy: not what was prepared")
    assert done.stderr.count("\n") == 1
    assert "training_time_s" not in done.stdout


def test_refusal_has_no_traceback_and_an_error_of_a_library_has_one(job: Job, tmp_path: Path) -> None:
    refused = run_by_hand(replace(job, training=replace(job.training, momentum=0.9)), tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert refused.stderr.startswith("training.momentum=0.9: framework=reference has none")
    (tmp_path / "broken.py").write_text("def Broken(setup):\n    raise NotImplementedError('no kernel')\n")
    failed = run_by_hand(replace(job, adapter="broken:Broken"), tmp_path)
    assert failed.returncode == 1
    assert "Traceback" in failed.stderr
    assert failed.stderr.endswith("NotImplementedError: no kernel\n")


def test_worker_by_hand_accepts_a_job_without_hashes(job: Job, tmp_path: Path) -> None:
    flip(tmp_path / "data" / "train_images.npy")
    done = run_by_hand(replace(job, data_sha256={}), tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"training_time_s"' in done.stdout


def drop_from_memory(folder: Path) -> None:
    os.sync()
    for path in folder.glob("*.npy"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_data_that_are_read_from_the_disk_are_cold(job: Job) -> None:
    images = Path(job.data) / "train_images.npy"
    np.save(images, np.zeros((20_000, 4, 3, 10), np.uint8))
    drop_from_memory(images.parent)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    images.read_bytes()
    if resource.getrusage(resource.RUSAGE_SELF).ru_inblock == before:
        pytest.skip("this file system has its files in memory")
    hashes = {name: hashlib.sha256((images.parent / f"{name}.npy").read_bytes()).hexdigest() for name in ARRAYS}
    drop_from_memory(images.parent)
    with FileAccess() as first:
        open_arrays(replace(job, data_sha256=hashes))
    with FileAccess() as second:
        open_arrays(replace(job, data_sha256=hashes))
    assert (first.state, second.state) == ("cold", "warm")


@pytest.mark.slow
@pytest.mark.usefixtures("cache_folders")
def test_a_run_on_altered_labels_fails_and_names_the_file(gtdl: Command, store: str) -> None:
    arguments = ("framework=reference", "budget=0.01", "latency.repeats=0")
    done = gtdl(*arguments)
    assert done.returncode == 0, done.stderr
    (labels,) = Path(os.environ["GTDL_HOME"]).glob("prepared/*/train_labels.npy")
    flip(labels)
    done = gtdl(*arguments, "sweep.rerun=all")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{labels}: not what was prepared" in done.stderr
    failed, finished = mlflow.MlflowClient(store).search_runs(["1"])
    assert (failed.info.status, finished.info.status) == ("FAILED", "FINISHED")
    assert str(labels) in failed.data.tags["gtdl.failure"]
    assert finished.data.metrics["setup/verify_data_s"] > 0
    verification = subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow.cli", "data", "verify", "mnist_5k"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert verification.returncode == 1
    assert f"{labels.parent}: not what was prepared; delete it" in verification.stderr
