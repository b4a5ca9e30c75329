"""Checkpoints on the disk: complete or absent, and exclusive to one worker."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.disks import fill, small_disk
from helpers.project import Command, runs
from helpers.share import share

from gtdl_mlflow.files import cache_dir
from gtdl_mlflow.worker.checkpoints import MANIFEST, Checkpoints


class Interrupted(Exception):
    """Stands in for the end of the process."""


def content(checkpoints: Checkpoints) -> dict[str, str]:
    newest = checkpoints.newest(pytest.fail)
    assert newest is not None
    return {path.name: path.read_text() for path in newest.iterdir() if path.name != MANIFEST}


def test_checkpoint_is_complete_or_absent(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise Interrupted

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.newest(pytest.fail) is None
        checkpoints.save(9, lambda folder: (folder / "a").write_text("nine") and None)
        with pytest.raises(Interrupted):
            checkpoints.save(10, interrupted)
        assert content(checkpoints) == {"a": "nine"}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert content(checkpoints) == {"a": "nine"}
        checkpoints.save(10, lambda folder: (folder / "b").write_text("ten") and None)
        assert content(checkpoints) == {"b": "ten"}


def write_model(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(bytes(100_000))
    (folder / "state.json").write_text('{"step": 9}')


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:7])


DAMAGE: dict[str, Any] = {
    "a truncated file": lambda folder: truncate(folder / "model" / "weights"),
    "a changed file": lambda folder: (folder / "model" / "weights").write_bytes(bytes(99_999) + b"x"),
    "an empty file": lambda folder: (folder / "state.json").write_bytes(b""),
    "a missing file": lambda folder: (folder / "state.json").unlink(),
    "an additional file": lambda folder: (folder / "model" / "more").write_bytes(b"x"),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "an empty manifest": lambda folder: (folder / MANIFEST).write_bytes(b""),
    "a truncated manifest": lambda folder: truncate(folder / MANIFEST),
    "a deep manifest": lambda folder: (folder / MANIFEST).write_bytes(b"[" * 200_000),
    "no files": lambda folder: shutil.rmtree(folder) or folder.mkdir(),
    "a file in its place": lambda folder: shutil.rmtree(folder) or folder.write_bytes(b"x"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_set_aside_with_a_remark(tmp_path: Path, damage: str) -> None:
    remarks: list[str] = []
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(9, write_model)
        DAMAGE[damage](tmp_path / "step-9")
        assert checkpoints.newest(remarks.append) is None
        assert remarks == ["the checkpoint after iteration 9 is damaged and is not used"]
        assert checkpoints.newest(pytest.fail) is None
        checkpoints.save(10, write_model)
        assert checkpoints.newest(pytest.fail) == tmp_path / "step-10"


def test_earlier_checkpoint_replaces_a_damaged_one(tmp_path: Path) -> None:
    remarks: list[str] = []
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(9, write_model)
        shutil.copytree(
            tmp_path / "step-9", tmp_path / "step-10"
        )  # a worker was killed before it removed the older one
        truncate(tmp_path / "step-10" / "state.json")
        assert checkpoints.newest(remarks.append) == tmp_path / "step-9"
        assert len(remarks) == 1


@pytest.mark.parametrize(
    "name", ["step-latest", "step-", "step-1.5", "step--1", "step-\N{SUPERSCRIPT TWO}", "step-9.old"]
)
def test_other_folders_are_ignored(tmp_path: Path, name: str) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(9, write_model)
        (tmp_path / "step-9").rename(tmp_path / name)
        assert checkpoints.newest(pytest.fail) is None
        checkpoints.save(10, write_model)
        assert checkpoints.newest(pytest.fail) == tmp_path / "step-10"
        assert (tmp_path / name).is_dir()


def test_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_kib=300) as disk, Checkpoints(disk) as checkpoints:
        checkpoints.save(9, write_model)
        filler = fill(disk)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(10, write_model)
        assert checkpoints.newest(pytest.fail) == disk / "step-9"
        assert sorted(path.name for path in disk.iterdir()) == [filler.name, "step-9", "worker.lock"]
        filler.unlink()
        checkpoints.save(11, write_model)
        assert checkpoints.newest(pytest.fail) == disk / "step-11"
        assert sorted(path.name for path in disk.iterdir()) == ["step-11", "worker.lock"]


@pytest.mark.slow
def test_run_goes_on_without_checkpoints_on_a_full_disk(
    cache_folders: None, gtdl: Command, store: str, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "home" / "checkpoints", size_kib=24):  # too small for a checkpoint
        done = gtdl("framework=reference", "training.epochs=100", "training.checkpoint_every_s=0.2")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert run.data.tags["gtdl.quality"] == "ok"
    assert "No space left on device" in run.data.tags["gtdl.remarks"]
    assert "No space left on device" in done.stderr


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("framework", share(["caffe", "mxnet", "tensorflow", "theano", "torch"], ["torch"]))
def test_full_disks_cost_a_framework_only_its_checkpoints_and_its_model(
    framework: str, gtdl: Command, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("environments", "builds", "peaks"):
        (home / name).symlink_to(cache_dir() / name)
    monkeypatch.setenv("GTDL_HOME", str(home))
    options = (
        "setting=caffe_mnist",
        "hardware.threads=1",
        "training.iterations=40",
        "training.checkpoint_every_s=0.01",
        "latency.repeats=0",
    )
    # The model has 1.7 MB.
    with small_disk(home / "checkpoints", size_kib=600), small_disk(tmp_path / "run", size_kib=600) as folder:
        done = gtdl(f"framework={framework}", *options, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["train/iterations"] == 40
    assert "no checkpoint after iteration " in run.data.tags["gtdl.remarks"]
    assert "the trained model could not be saved: " in run.data.tags["gtdl.remarks"]


@pytest.mark.slow
def test_worker_waits_until_another_has_left_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gtdl_mlflow.worker.checkpoints import Checkpoints; "
        "Checkpoints(Path(sys.argv[1])).__enter__(); print('entered')"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        with Checkpoints(tmp_path), pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=5)
        assert other.communicate(timeout=60)[0] == "entered\n"
