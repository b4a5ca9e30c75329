"""Fixtures of all tests: a clean environment, a cache directory, an empty store, and the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import cores, share
from helpers.project import ROOT, STARTED, Command, create_store, own_cache_directory

from gtdl_mlflow.files import cache_dir

# A process that a shell starts in the background ignores SIGINT, one that nohup starts ignores SIGHUP, and so do their
# children: tests send both signals to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

LONG = ("frameworks", "sweep", "api", "server", "secrets", "prediction", "launchers", "planner", "signals", "outbox",
        "extension_guide", "studies")  # fmt: skip
"""Files that take minutes. They start first, so that no process of pytest-xdist is left with one at the end."""

KEPT = ("GTDL_HOME", "GTDL_DATA", "GTDL_LOCKS", "GTDL_VERIFY_HASHES", "GTDL_REQUIRE_FRAMEWORKS", share.VARIABLE)
"""Variables of this project that the tests do not remove."""


def pytest_configure(config: pytest.Config) -> None:
    cores.pin_test_process()
    share.number()  # the processes of a session inherit it
    # Groups start in the order of the files. By default, those with few tests start last, and some take minutes: the
    # other process would have nothing left to do.
    config.option.loadscopereorder = False


def pytest_report_header() -> str:
    return share.header()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests for ``--dist loadgroup``: those of a file, or of one framework in a file, run in one process.

    Those of the ``LONG`` files come first.
    """
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        framework = next((each.framework for each in parameters if hasattr(each, "framework")), "")
        item.add_marker(pytest.mark.xdist_group(f"{item.path.name} {framework}"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail if pytest-xdist does not use the groups: both processes would run every framework."""
    if session.config.getoption("loadgroup", False) and any("@" not in item.nodeid for item in session.items):
        raise pytest.UsageError("these versions of pytest and pytest-xdist do not group tests")


def remove_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's settings of MLflow and of this project from the environment."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "GTDL_")) and name not in KEPT:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def session_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the session a cache directory and device locks of its own.

    Prepared data and checkpoints of the user change no result of a test. Environments of frameworks, measured peaks
    and execution modes are shared with the user's cache directory, because they take long and are the same in every
    session.
    """
    shared, folder = cache_dir(), tmp_path_factory.mktemp("cache")
    for name in ("environments", "builds", "peaks", "modes"):
        (shared / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(shared / name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        remove_settings(monkeypatch)
        monkeypatch.setenv("GTDL_HOME", str(folder))
        # Tests neither wait for the measurements that run on this machine, nor stop them.
        monkeypatch.setenv("GTDL_LOCKS", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(autouse=True)
def clean_environment(session_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what an earlier test left in the environment."""
    remove_settings(monkeypatch)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """End the runs that a failed test has left: they would hold the device, and later tests would wait for it."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Let one test and its processes use the cores of the whole session."""
    with cores.all_cores():
        yield


@pytest.fixture
def cache_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty folders for GTDL_HOME and GTDL_DATA, for one test."""
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "data"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory with the environments of the session and an outbox of its own. MLflow's retries do not wait:
    a retry fails in the same way after any wait.
    """
    own_cache_directory(tmp_path / "home")
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    return tmp_path / "home"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty MLflow store, to which MLFLOW_TRACKING_URI points. Its folder is the working directory."""
    monkeypatch.chdir(tmp_path)
    uri = create_store(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def gtdl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Function that runs ``python -m gtdl_mlflow ARGUMENTS`` of this checkout in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gtdl_mlflow", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return command
