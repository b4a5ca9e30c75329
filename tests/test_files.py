"""The cache directory, atomic writes, locks and CSV files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from helpers.processes import kill, read_line, start_script

from gtdl_mlflow import files

HOLD_LOCK = """
import pathlib, sys
from gtdl_mlflow import files
with files.hold_folder_lock(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("home", "data", "expected"),
    [
        ("relative", "", ("relative", "relative/datasets")),
        ("relative", "published", ("relative", "published")),
        ("~/cache", "~/data", ("home/cache", "home/data")),
    ],
)
def test_folders_follow_the_environment_variables(
    home: str, data: str, expected: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GTDL_HOME", home)
    monkeypatch.setenv("GTDL_DATA", data)
    assert (files.cache_dir(), files.datasets_dir()) == tuple(tmp_path / path for path in expected)


def test_cache_directory_is_the_users_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GTDL_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert files.cache_dir().name == "gtdl"
    assert tmp_path in files.cache_dir().parents


def test_atomic_write_creates_folders_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("old", "new ü"):
        files.write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(path.parent.iterdir()) == [path]


def test_failed_atomic_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    files.write_atomically(path, "old")

    def full(self: Path, text: str, encoding: str) -> int:
        self.write_bytes(text.encode(encoding)[:1])
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(Path, "write_text", full)
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_csv_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [["a, b", 'say "c"'], ["two\nlines", "ü"]]
    files.write_csv(tmp_path / "table.csv", ["one", "other"], rows)
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["one", "other"], *rows]


def test_folder_lock_waits_for_another_process_and_prints_that(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    first = start_script(HOLD_LOCK, folder)
    assert read_line(first, first.stdout) == "locked\n"
    second = start_script(HOLD_LOCK, folder)
    try:
        assert read_line(second, second.stderr) == f"gtdl: waiting: another process is creating {folder}\n"
        first.kill()  # the lock ends with its process
        assert read_line(second, second.stdout) == "locked\n"
    finally:
        kill(first, second)
