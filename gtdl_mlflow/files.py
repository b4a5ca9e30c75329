"""The cache directory, atomic writes, locks and CSV files."""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from . import console

if sys.platform != "win32":  # there, no run starts
    import pwd


def cache_dir() -> Path:
    """Return the folder of environments and prepared data: ``GTDL_HOME``, or the user's cache folder.

    Raises:
        OSError: the user has no home directory.
    """
    chosen = os.environ.get("GTDL_HOME")
    return _absolute(lambda: Path(chosen) if chosen else platformdirs.user_cache_path("gtdl"), "GTDL_HOME")


def datasets_dir() -> Path:
    """Return the folder of published data sets, one subfolder each: ``GTDL_DATA``, or a folder in ``cache_dir()``.

    Raises:
        OSError: the user has no home directory, or GTDL_DATA is a file.
    """
    chosen = os.environ.get("GTDL_DATA")
    folder = _absolute(lambda: Path(chosen), "GTDL_DATA") if chosen else cache_dir() / "datasets"
    if folder.is_file():
        raise NotADirectoryError(
            errno.ENOTDIR, "is a file; expected the folder of the data sets", f"GTDL_DATA={folder}"
        )
    return folder


def _absolute(folder: Callable[[], Path], variable: str) -> Path:
    # Without HOME and without an entry in passwd, the home directory stays "~": as a folder, it would be created here.
    try:
        return folder().expanduser().absolute()
    except RuntimeError as error:
        reason = f"this user has no home directory; set {variable} to a folder with its full path"
        raise FileNotFoundError(errno.ENOENT, reason, variable) from error


def name_user() -> None:
    """Set HOME and LOGNAME for a user without an entry in passwd, as in a container: MLflow requires both.

    Raises:
        OSError: the user has no home directory, and GTDL_HOME is not set.
    """
    if sys.platform == "win32":
        return
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("LOGNAME", str(os.getuid()))
        if "HOME" not in os.environ:
            os.environ["HOME"] = str(cache_dir())


def explain(error: OSError) -> str:
    """Return an error of a file or folder as one line."""
    reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if error.errno in (errno.EACCES, errno.EROFS) and not os.access(".", os.W_OK):
        return f"{reason}; the working folder cannot be written: change to another one"
    return reason


class FilesFailed(console.Failure):
    """A file or a folder that cannot be read or written, such as on a full disk."""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise FilesFailed for each OSError. It is a decorator, too."""
    try:
        yield
    except OSError as error:
        raise FilesFailed(explain(error)) from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file completely or not at all, even if the machine loses power. Other processes may write it too.

    Raises:
        OSError: the file cannot be written; ``path`` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def read_state(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a state file of this project; None if there is no such file.

    A file with other contents, such as one that a power failure left empty, is renamed to ``NAME.unreadable``, with a
    message: it must not stop every later command. A file that this user must not read is ignored, with a message.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
        reason = f"expected a JSON object, not {type(values).__name__}"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (IsADirectoryError, ValueError, RecursionError) as error:
        reason = str(error)
    except OSError as error:
        console.info(f"{path}: ignored ({error.strerror})")
        return None
    set_aside(path, reason)
    return None


def set_aside(path: Path, reason: str) -> None:
    """Rename an unreadable state file to ``NAME.unreadable`` and print why."""
    kept = path.with_name(f"{path.name}.unreadable")
    try:
        path.replace(kept)
    except OSError as error:
        console.info(f"{path}: unreadable and ignored ({reason}); it could not be renamed ({error.strerror})")
    else:
        console.info(f"{path}: unreadable ({reason}); renamed to {kept.name}")


def write_csv(path: Path, header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with one line per row. Text that a spreadsheet would take as a formula starts with a quote."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([inert(cell) for cell in row] for row in (header, *rows))


def inert(cell: Any) -> Any:
    """Return a cell that no spreadsheet evaluates; numbers, and text that is a number, stay as they are."""
    if not (isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def lock_for(path: Path) -> filelock.FileLock:
    """Return the lock of a file or folder: a file beside it. The lock is released when its process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(path.with_name(f"{path.name}.lock"))


@contextmanager
def hold_folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``. Wait while another process holds it, and print that."""
    lock = lock_for(folder)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        console.info(f"waiting: another process is creating {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
