"""The cache directory, atomic writes, locks and CSV files."""

from __future__ import annotations

import csv
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_data_sets_are_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist.zip").touch()
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "mnist.zip"))
    with pytest.raises(NotADirectoryError, match="is a file; expected the folder of the data sets"):
        files.datasets_dir()


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


def test_failed_atomic_write_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    files.write_atomically(path, "old")
    (tmp_path / f".file.txt.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_is_on_the_disk_before_the_file_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (steps.append("sync"), fsync(number)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (steps.append("rename"), replace(self, to)))
    files.write_atomically(tmp_path / "file.txt", "text")
    assert steps == ["sync", "rename"]


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert files.read_state(path) is None
    files.write_atomically(path, '{"a": [1, "ü"]}')
    assert files.read_state(path) == {"a": [1, "ü"]}
    assert files.read_state(path / "below") is None


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b"[]", b"null", b"1" * 5000, b"\xff\xfe", b"\0" * 100, b"[" * 10**5]
)
def test_torn_state_is_set_aside_with_a_message(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "state.json"
    for number in range(2):
        path.write_bytes(content)
        assert files.read_state(path) is None
        kept = tmp_path / "state.json.unreadable"
        assert list(tmp_path.iterdir()) == [kept]
        assert kept.read_bytes() == content
        message = capsys.readouterr().err
        assert message.startswith(f"gtdl: {path}: unreadable ("), number
        assert message.endswith("); renamed to state.json.unreadable\n")
    files.write_atomically(path, "{}")
    assert files.read_state(path) == {}


def test_folder_instead_of_a_state_file_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state.json").mkdir()
    assert files.read_state(tmp_path / "state.json") is None
    assert "renamed to state.json.unreadable" in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() == 0 and shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_state_of_another_user_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "state.json"
    path.write_text("{}")
    path.chmod(0)
    values = as_another_user(lambda: files.read_state(path), tmp_path)
    assert values is None
    assert capsys.readouterr().err == f"gtdl: {path}: ignored (Permission denied)\n"
    assert path.exists()


def as_another_user(call: Callable[[], Any], *folders: Path) -> Any:
    """Return the result of ``call``, without the rights of root. ``folders`` and their parents become searchable."""
    if os.getuid():
        return call()
    for folder in folders:
        for each in (folder, *folder.parents):
            if each.stat().st_mode & 0o055 != 0o055:
                each.chmod(each.stat().st_mode | 0o055)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        return call()
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize("home", [None, "~", "~nobody-of-this-name/x"])
def test_user_without_a_home_directory_is_told_to_set_one(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("GTDL_HOME")
    if home is not None:
        monkeypatch.setenv("GTDL_HOME", home)

    def unknown(user: object) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="has no home directory; set GTDL_HOME to a folder with its full path"):
        files.cache_dir()
    assert list(tmp_path.iterdir()) == []


def test_csv_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [["a, b", 'say "c"'], ["two\nlines", "ü"]]
    files.write_csv(tmp_path / "table.csv", ["one", "other"], rows)
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["one", "other"], *rows]


def test_no_cell_of_a_csv_file_is_a_formula_and_numbers_stay_numbers(tmp_path: Path) -> None:
    formulas = ["=1+1", "+cmd|' /C calc'!A0", "-1+1", "@SUM(1)", "\t=1", "\r=1"]
    numbers: list[object] = [-1.5, "-1.5", "+0.05", "-inf", 3, "1e-3", "text", ""]
    files.write_csv(tmp_path / "table.csv", formulas, [numbers])
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [[f"'{each}" for each in formulas], [str(each) for each in numbers]]


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
