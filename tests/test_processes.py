"""Whose process is dead: certain, or unknown."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.processes import kill, read_line, start_script
from helpers.project import ROOT

from gtdl_mlflow.tracking import processes
from gtdl_mlflow.tracking.processes import Process, is_alive, this_process

WAIT = """
import sys
from gtdl_mlflow.tracking.processes import this_process
print(this_process(), flush=True)
sys.stdin.read()
"""

ASK = "import sys; from gtdl_mlflow.tracking.processes import is_alive; print(is_alive(sys.argv[1]))"

can_unshare = shutil.which("unshare") is not None and not subprocess.call(
    ["unshare", "-m", "-p", "-f", "--mount-proc", "--uts", "true"], stderr=subprocess.DEVNULL
)
needs_namespaces = pytest.mark.skipif(not can_unshare, reason="this user cannot create namespaces")


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A live process, and its identity."""
    process = start_script(WAIT)
    yield process, read_line(process, process.stdout).strip()
    kill(process)


def ask(identity: str, *wrapper: str, **variables: str) -> str:
    """Return what a process started by ``wrapper`` finds out about ``identity``."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", ASK, identity],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def parse(text: str) -> Process:
    process = Process.parse(text)
    assert process is not None
    return process


def test_process_is_alive_until_it_ends(other: tuple[subprocess.Popen[str], str]) -> None:
    process, identity = other
    assert is_alive(this_process()) is True
    assert is_alive(identity) is True
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_alive(identity) is False  # a zombie
    kill(process)
    assert is_alive(identity) is False


def test_process_with_the_pid_of_a_dead_one_is_not_taken_for_it(other: tuple[subprocess.Popen[str], str]) -> None:
    _, identity = other
    mine = parse(identity)
    assert is_alive(replace(mine, start=str(int(mine.start) - 1)).text) is False


@pytest.mark.parametrize("text", ["", "host 1 1234.56", "a b c d e f", "host -1 2 3 4 5", "h 1 2 3 4 5 6", "\x1b \n"])
def test_other_formats_are_unknown(text: str) -> None:
    assert is_alive(text) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"machine": "0" * 32, "boot": "another"}, None),  # another machine
        ({"boot": "another"}, None),  # a reboot, or a copy of the machine
        ({"namespaces": "1/1"}, None),  # another container of this machine
        ({"host": "renamed"}, False),  # the host name decides nothing within a boot
    ],
)
def test_only_certainly_dead_processes_are_dead(
    changes: dict[str, str], expected: bool | None, other: tuple[subprocess.Popen[str], str]
) -> None:
    process, identity = other
    kill(process)
    assert is_alive(identity) is False
    assert is_alive(replace(parse(identity), **changes).text) is expected


@pytest.mark.parametrize("changes", [{"boot": "another"}, {"namespaces": "1/1"}])
def test_lock_of_a_process_decides_after_a_reboot_and_between_containers(changes: dict[str, str]) -> None:
    identity = replace(parse(this_process()), pid=10**6, **changes).text
    path = processes._lock_file(identity)
    hold = f"import fcntl, sys; f = open({str(path)!r}, 'w'); fcntl.flock(f, 2); print('locked', flush=True); input()"
    holder = start_script(hold)
    assert read_line(holder, holder.stdout) == "locked\n"
    assert is_alive(identity) is True
    kill(holder)
    assert is_alive(identity) is False
    path.unlink()
    assert is_alive(identity) is None


def test_lock_of_another_machine_decides_nothing() -> None:
    identity = replace(parse(this_process()), boot="another", machine="0" * 32).text
    path = processes._lock_file(identity)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert is_alive(identity) is None
    path.unlink()


def test_lock_file_is_deleted_by_a_process_that_ends_by_itself(other: tuple[subprocess.Popen[str], str]) -> None:
    process, identity = other
    assert processes._lock_file(identity).exists()
    process.communicate("", timeout=60)
    assert not processes._lock_file(identity).exists()


@needs_namespaces
@pytest.mark.parametrize(
    "wrapper",
    [
        ["unshare", "-m", "-p", "-f", "--mount-proc"],
        ["unshare", "-m", "-p", "-f", "--mount-proc", "--uts"],
        ["unshare", "-m", "-p", "-f"],  # /proc shows the processes of the outer namespace
        ["unshare", "-m", "--boot"],
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"],
    ],
    ids=["container", "container with host name", "foreign /proc", "stepped clock", "no /proc"],
)
def test_live_process_is_never_dead_for_another_container(
    wrapper: list[str], other: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    _, identity = other
    if "--boot" in wrapper:  # as after a step of the clock by a second
        lines = Path("/proc/stat").read_text().splitlines()
        stepped = [f"btime {int(line.split()[1]) + 1}" if line.startswith("btime") else line for line in lines]
        (tmp_path / "stat").write_text("\n".join(stepped) + "\n")
        wrapper = ["unshare", "-m", "sh", "-c", f'mount --bind {tmp_path}/stat /proc/stat && exec "$@"', "sh"]
    assert ask(identity, *wrapper) in ("True", "None")
    assert ask(identity, *wrapper, GTDL_HOME=str(tmp_path)) in ("True", "None")


@needs_namespaces
def test_process_beside_a_foreign_proc_has_no_namespace() -> None:
    script = "from gtdl_mlflow.tracking.processes import this_process; print(this_process())"
    done = subprocess.run(
        ["unshare", "-m", "-p", "-f", sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert parse(done.stdout.strip()).namespaces == processes.UNKNOWN


@needs_namespaces
def test_process_of_a_hidden_user_is_never_dead(other: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    _, identity = other
    # Not by setpriv: this interpreter may be in a home that is closed to other users.
    hide = 'mount -t proc -o hidepid=2 none /proc && exec "$@"'
    drop = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    as_nobody = ASK.replace("import sys;", f"import os, sys, gtdl_mlflow.tracking.processes; {drop};")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", hide, "sh", sys.executable, "-c", as_nobody, identity],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GTDL_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "None", done.stderr


@needs_namespaces
def test_machine_without_ids_is_unknown_and_still_runs(tmp_path: Path) -> None:
    hide = "for each in /etc/machine-id /var/lib/dbus/machine-id /proc/sys/kernel/random/boot_id; do "
    hide += 'if [ -e $each ]; then mount --bind /dev/null $each; fi; done; exec "$@"'
    identity = this_process()
    assert ask(identity, "unshare", "-m", "sh", "-c", hide, "sh") == "None"


def test_unwritable_cache_directory_prevents_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTDL_HOME", "/dev/null")
    process = start_script(WAIT)
    identity = read_line(process, process.stdout).strip()
    assert is_alive(identity) is True
    kill(process)
    assert is_alive(identity) is False
