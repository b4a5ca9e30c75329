"""Two timed jobs never share a device unless both were asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from helpers.project import ROOT, Command, start, wait_for_worker

from gtdl_mlflow.hardware import device_lock

HOLD = """
import sys, time
from gtdl_mlflow import devices
from gtdl_mlflow.config import Hardware
device, cores, side_by_side, seconds = sys.argv[1:]
cores = [int(core) for core in cores.split(",")] if cores else None
with devices.held(Hardware("x", device, None, cores, side_by_side == "1")) as waited:
    print(f"has it after {waited:.1f}", flush=True)
    time.sleep(float(seconds))
"""


def holder(device: str = "cpu", cores: str = "", side_by_side: bool = False, seconds: float = 60) -> Any:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, device, cores, str(int(side_by_side)), str(seconds)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def has_it(process: Any) -> bool:
    return process.stdout.readline().startswith("has it")


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ({}, {}, False),
        ({}, {"cores": "0"}, False),
        ({"cores": "0", "side_by_side": True}, {"cores": "1", "side_by_side": True}, True),
        ({"cores": "0", "side_by_side": True}, {"cores": "0,1", "side_by_side": True}, False),
        ({"cores": "0", "side_by_side": True}, {"cores": "1"}, False),
        ({"device": "gpu"}, {"device": "gpu"}, False),
        ({"device": "gpu"}, {}, False),
    ],
)
def test_who_waits_for_whom(first: dict[str, Any], second: dict[str, Any], together: bool) -> None:
    one = holder(**first)
    assert has_it(one)
    other = holder(**second, seconds=0)
    try:
        if not together:
            said = other.stderr.readline()  # only now is it waiting
            assert said.startswith("gtdl: waiting for ")
            time.sleep(0.5)
            assert other.poll() is None
            one.send_signal(signal.SIGKILL)  # a lock ends with its process, however that ends
        assert has_it(other)
        assert other.wait(timeout=30) == 0
    finally:
        for process in (one, other):
            process.kill()
            process.communicate()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_two_users_of_a_machine_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device_lock.LOCKS_VARIABLE, f"/tmp/gtdl-locks-test-{os.getpid()}")
    one = holder()
    assert has_it(one)
    # In Perl, which every Debian has for all: this Python may be in a home that is closed to others.
    code = "open(my $file, '+<', $ARGV[0]) or die $!; flock($file, 2) or die $!; print qq(has it\\n)"
    place = f"{os.environ[device_lock.LOCKS_VARIABLE]}/cpu"
    other = subprocess.Popen(["perl", "-e", code, place], user=65534, group=65534, extra_groups=[], cwd="/",
                             text=True, stdout=subprocess.PIPE)  # fmt: skip
    try:
        time.sleep(1)
        assert other.poll() is None
        one.kill()
        assert has_it(other)
    finally:
        one.kill()
        one.communicate()
        other.communicate(timeout=30)
    Path(place).unlink()
    Path(place).parent.rmdir()


def test_waiting_is_shown_and_is_part_of_no_time(store: str) -> None:
    other = holder()
    assert has_it(other)
    waiting = start("framework=reference", "training.epochs=1")
    assert waiting.stderr is not None
    said = waiting.stderr.readline()
    assert said.startswith(f"gtdl: waiting for cpu, which another run has (process {other.pid} of ")
    time.sleep(2)
    other.kill()
    other.communicate()
    waiting.communicate(timeout=120)
    assert waiting.returncode == 0
    (run,) = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert run.data.metrics["device_wait_s"] > 2
    # The run begins when the waiting is over: its own clock and MLflow's agree.
    assert (run.info.end_time - run.info.start_time) / 1000 < run.data.metrics["wall_time_s"] + 1


def test_a_worker_does_not_outlive_its_driver(store: str) -> None:
    driver = start("framework=reference", "training.epochs=100000", "training.evaluate_every_epochs=100")
    worker = wait_for_worker(driver)
    time.sleep(1)
    driver.kill()
    driver.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline, "the worker goes on without anybody to hear it"
        time.sleep(0.05)


def test_a_worker_is_pinned_and_side_by_side_is_said(gtdl: Command, store: str) -> None:
    core = max(os.sched_getaffinity(0))
    done = gtdl("framework=reference", "training.epochs=1", f"hardware.cores=[{core}]", "hardware.side_by_side=true")
    assert done.returncode == 0, done.stderr
    (run,) = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert run.data.params["hardware.side_by_side"] == "True"
    assert run.data.params["hardware.cores"] == f"[{core}]"
    assert run.data.params["hardware.threads"] == "1"
    assert run.data.tags["gtdl.side_by_side"] == "true"


def test_side_by_side_needs_cores(gtdl: Command) -> None:
    done = gtdl("framework=reference", "hardware.side_by_side=true")
    assert done.returncode == 2
    assert "hardware.side_by_side=true: needs hardware.cores" in done.stderr


def test_the_locks_are_the_machines_not_the_homes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(device_lock.LOCKS_VARIABLE)
    monkeypatch.setenv("GTDL_HOME", str(tmp_path))
    assert device_lock._place() == Path("/tmp/gtdl-locks")
    assert Path("/tmp/gtdl-locks").stat().st_mode & 0o1777 == 0o1777
