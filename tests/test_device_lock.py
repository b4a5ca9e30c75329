"""Two timed runs share a device only if both are configured to."""

from __future__ import annotations

import getpass
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from helpers.processes import kill, read_line, start_script
from helpers.project import Command, start, wait_for_worker, wait_until

from gtdl_mlflow.config import ConfigError, Hardware
from gtdl_mlflow.hardware import device_lock

HOLD_CPU = """
import sys
from gtdl_mlflow.config import Hardware
from gtdl_mlflow.hardware import device_lock
with device_lock.hold(Hardware("cpu", "cpu")):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the locks of one test."""
    monkeypatch.setenv(device_lock.LOCKS_VARIABLE, str(tmp_path / "locks"))
    return tmp_path / "locks"


class Holder:
    """A thread that holds a device. The locks of two threads exclude each other like those of two processes."""

    def __init__(self, hardware: Hardware) -> None:
        self.holds, self._release = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=[hardware], daemon=True)
        self._thread.start()

    def _hold(self, hardware: Hardware) -> None:
        with device_lock.hold(hardware):
            self.holds.set()
            self._release.wait(60)

    def release(self) -> None:
        self._release.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def hold_cpu() -> AbstractContextManager[float]:
    return device_lock.hold(hardware())


def hardware(device: str = "cpu", cores: list[int] | None = None, side_by_side: bool = False) -> Hardware:
    return Hardware("test", device, None, cores, side_by_side)


ME = f"(pid {os.getpid()}, user {getpass.getuser()}) "
"""Description of this process in a message. It is not the same in all processes of pytest-xdist."""


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {}, "{me}is using the CPU"),
        ({}, {"cores": [0]}, "{me}is using the CPU"),
        ({}, {"device": "gpu"}, "{me}is using the CPU"),
        ({"cores": [0], "side_by_side": True}, {"cores": [1], "side_by_side": True}, ""),
        ({"cores": [0], "side_by_side": True}, {"device": "gpu"}, ""),
        ({"cores": [0], "side_by_side": True}, {"cores": [0, 1], "side_by_side": True}, "{me}is using core 0"),
        ({"cores": [0], "side_by_side": True}, {"cores": [1]}, "{me}is using the CPU"),
        ({"device": "gpu"}, {"device": "gpu"}, "{me}is using GPU 0"),
        ({"device": "gpu"}, {}, "{me}is using the CPU"),
    ],
)
def test_run_waits_for_another_on_the_same_device(
    first: dict[str, Any],
    second: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    one = Holder(hardware(**first))
    assert one.holds.wait(30)
    other = Holder(hardware(**second))
    if message:
        printed: list[str] = []
        wait_until(lambda: "\n" in _collect(printed, capsys), "the second run waits")
        assert "".join(printed) == f"gtdl: waiting: another gtdl run {message.format(me=ME)}\n"
        assert not other.holds.wait(0.05)
        one.release()
    assert other.holds.wait(30)
    other.release()
    one.release()


def _collect(parts: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    parts.append(capsys.readouterr().err)
    return "".join(parts)


def test_lock_ends_with_its_process() -> None:
    process = start_script(HOLD_CPU)
    try:
        assert read_line(process, process.stdout) == "locked\n"
        waiting = Holder(hardware())
        assert not waiting.holds.wait(0.2)
    finally:
        kill(process)
    assert waiting.holds.wait(30)
    waiting.release()


def test_waiting_time_is_yielded() -> None:
    one = Holder(hardware())
    assert one.holds.wait(30)
    timer = threading.Timer(0.2, one.release)
    timer.start()
    with device_lock.hold(hardware()) as waited_s:
        assert waited_s > 0.1
    timer.join(30)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_users_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(f"/tmp/gtdl-locks-test-{os.getpid()}")  # pytest's temporary folders are closed to other users
    monkeypatch.setenv(device_lock.LOCKS_VARIABLE, str(folder))
    one = Holder(hardware())
    assert one.holds.wait(30)
    # In Perl, which every Debian has for all users: this Python may be in a home that is closed to others.
    code = "open(my $file, '+<', $ARGV[0]) or die $!; flock($file, 2) or die $!; print qq(locked\\n)"
    other = subprocess.Popen(
        ["perl", "-e", code, str(folder / "cpu")],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
    )
    try:
        time.sleep(0.5)
        assert other.poll() is None
        one.release()
        assert read_line(other, other.stdout) == "locked\n"
    finally:
        kill(other)
    (folder / "cpu").unlink()
    folder.rmdir()


def test_locks_belong_to_the_machine_and_not_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path("/tmp/gtdl-locks") == device_lock.DEFAULT_FOLDER
    monkeypatch.delenv(device_lock.LOCKS_VARIABLE)
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(device_lock, "DEFAULT_FOLDER", tmp_path / "shared")
    with device_lock.hold(hardware()):
        pass
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "shared" / "cpu").stat().st_mode) == 0o666
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can create a file of another user")
@pytest.mark.parametrize("target", ["symlink", "hard link", "file"])
def test_no_file_of_a_user_is_changed_or_created_through_the_locks_folder(
    locks: Path, tmp_path: Path, target: str
) -> None:
    victim, absent = tmp_path / "victim", tmp_path / "absent"
    victim.write_text("important")
    locks.mkdir()
    if target == "symlink":
        (locks / "cpu").symlink_to(victim)
    elif target == "hard link":
        (locks / "cpu").hardlink_to(victim)
    else:
        victim.rename(locks / "cpu")
        victim.symlink_to(locks / "cpu")
    os.chown(locks / "cpu", 65534, 65534, follow_symlinks=False)
    if target == "symlink":
        with pytest.raises(ConfigError, match="cpu is a symbolic link; remove it, or set GTDL_LOCKS"), hold_cpu():
            pass
        (locks / "cpu").unlink()
        (locks / "cpu").symlink_to(absent)
        with pytest.raises(ConfigError, match="is a symbolic link"), hold_cpu():
            pass
    else:
        with hold_cpu():
            pass
    assert victim.read_text() == "important"
    assert not absent.exists()


@pytest.mark.parametrize(
    ("create", "reason"),
    [(os.mkfifo, "is not a regular file"), (os.mkdir, "is not a regular file"), (_socket, "could not be opened")],
)
def test_lock_that_is_no_regular_file_is_refused_at_once(
    locks: Path, create: Callable[[Path], object], reason: str
) -> None:
    locks.mkdir()
    create(locks / "cpu")
    with pytest.raises(ConfigError, match=rf"^lock {locks}/cpu {reason}.*; remove it, or set GTDL_LOCKS"), hold_cpu():
        pass


@pytest.mark.parametrize("folder", ["/dev/null/locks", "/proc/locks", "/proc/self/new"])
def test_locks_folder_that_cannot_be_used_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device_lock.LOCKS_VARIABLE, folder)
    with pytest.raises(ConfigError, match=f"{folder}.*set GTDL_LOCKS to a folder that all users"), hold_cpu():
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can create a link of another user")
def test_locks_folder_is_no_link_of_another_user(locks: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    locks.symlink_to(tmp_path / "real")
    with hold_cpu():  # a link of the user's own
        pass
    os.chown(locks, 65534, 65534, follow_symlinks=False)
    with pytest.raises(ConfigError, match="is a symbolic link of user "), hold_cpu():
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_lock_that_is_only_readable_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(f"/tmp/gtdl-locks-readable-{os.getpid()}")
    monkeypatch.setenv(device_lock.LOCKS_VARIABLE, str(folder))
    folder.mkdir()
    (folder / "cpu").touch(0o644)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with hold_cpu():
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    (folder / "cpu").unlink()
    folder.rmdir()


def test_text_in_a_lock_is_not_printed(locks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locks.mkdir()
    (locks / "cpu").write_text("\x1b]0;owned\x07\x1b[2J$ sudo password: ")
    one = Holder(hardware())
    assert one.holds.wait(30)
    other = Holder(hardware())
    printed: list[str] = []
    wait_until(lambda: "\n" in _collect(printed, capsys), "the second run waits")
    assert "".join(printed) == f"gtdl: waiting: another gtdl run {ME}is using the CPU\n"
    one.release()
    assert other.holds.wait(30)
    other.release()


@pytest.mark.slow
def test_wait_for_the_device_is_recorded_and_part_of_no_other_time(store: str) -> None:
    other = Holder(hardware())
    assert other.holds.wait(30)
    waiting = start("framework=reference", "training.epochs=1")
    assert read_line(waiting, waiting.stderr) == f"gtdl: waiting: another gtdl run {ME}is using the CPU\n"
    time.sleep(2)
    other.release()
    waiting.communicate(timeout=120)
    assert waiting.returncode == 0
    (run,) = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert run.data.metrics["device_wait_s"] > 2
    # For MLflow, the run starts before the wait; its own time does not contain the wait.
    duration_s = (run.info.end_time - run.info.start_time) / 1000
    assert duration_s == pytest.approx(run.data.metrics["device_wait_s"] + run.data.metrics["wall_time_s"], abs=1)


@pytest.mark.slow
def test_worker_ends_with_its_driver(store: str) -> None:
    driver = start("framework=reference", "training.epochs=100000", "training.evaluate_every_epochs=100")
    worker = psutil.Process(wait_for_worker(driver))
    kill(driver)
    wait_until(
        lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "the worker ends", timeout_s=10
    )


@pytest.mark.slow
def test_worker_of_a_side_by_side_run_is_pinned(gtdl: Command, store: str) -> None:
    core = max(os.sched_getaffinity(0))
    done = gtdl("framework=reference", "training.epochs=1", f"hardware.cores=[{core}]", "hardware.side_by_side=true")
    assert done.returncode == 0, done.stderr
    (run,) = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert run.data.params["hardware.side_by_side"] == "True"
    assert run.data.params["hardware.cores"] == f"[{core}]"
    assert run.data.params["hardware.threads"] == "1"
    assert run.data.tags["gtdl.side_by_side"] == "true"


@pytest.mark.slow
def test_side_by_side_requires_cores(gtdl: Command) -> None:
    done = gtdl("framework=reference", "hardware.side_by_side=true")
    assert done.returncode == 2
    assert "hardware.side_by_side=true" in done.stderr
    assert "hardware.cores" in done.stderr
