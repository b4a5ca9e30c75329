"""Paired measurements: workers take turns, wait without using the CPU, and are left out if they fail."""

from __future__ import annotations

import csv
import itertools
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import psutil
import pytest
from helpers.project import Command, need_torch, start, sweep_runs, wait_until

from gtdl_mlflow import config, datasets
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.report.ratios import MeasuredTurn
from gtdl_mlflow.sweeps.hydra_callbacks import SweepParent
from gtdl_mlflow.sweeps.paired import Contestant, MeasurementPlan, PairedMeasurement, Restart, balanced_orders
from gtdl_mlflow.sweeps.paired_study import PairedStudy, conclude
from gtdl_mlflow.worker.events import Turn
from gtdl_mlflow.worker.job import Activity
from gtdl_mlflow.worker_process import WorkerProcess


def test_each_framework_has_every_position_once_in_a_block() -> None:
    orders = balanced_orders("abc", random.Random(0))
    for _ in range(20):
        block = list(itertools.islice(orders, 3))
        assert all(sorted(order) == ["a", "b", "c"] for order in block)
        assert {order.index("a") for order in block} == {0, 1, 2}


@pytest.fixture
def contestants(tmp_path: Path) -> list[Contestant]:
    """Return the NumPy reference under two names."""
    composed = config.compose(["framework=reference"])
    data = datasets.prepare(composed.dataset)
    job = create_job(composed, data.folder, tmp_path / "job", data.sha256)
    return [Contestant(name, Path(sys.executable), {}, job) for name in ("first", "second")]


def stopped_workers() -> list[psutil.Process]:
    """Return the paused descendants of this process."""
    return [each for each in psutil.Process().children(recursive=True) if each.status() == psutil.STATUS_STOPPED]


@pytest.mark.slow
def test_frameworks_take_turns(contestants: list[Contestant], tmp_path: Path) -> None:
    with Restart(contestants, 1, tmp_path / "workers", 7) as restart:
        turns = list(restart.turns(list(Activity), 2, random.Random(0)))
        assert {each.framework for each in turns} == {"first", "second"}
        assert restart.failures == {}
        wait_until(lambda: len(stopped_workers()) == 2, "workers that wait are stopped", timeout_s=10)
    assert not psutil.Process().children(recursive=True)
    assert Counter((each.activity, each.round, each.position) for each in turns) == {
        (activity.value, number, position): 1 for activity in Activity for number in (0, 1) for position in (0, 1)
    }
    assert {each.restart for each in turns} == {7}
    units = {(each.activity, each.framework): each.units for each in turns}
    assert all(each.units == units[each.activity, each.framework] > 0 for each in turns), "all turns are equal"
    assert all(each.wall_s > 0 and each.cpu_s > 0 for each in turns)


@pytest.mark.slow
def test_worker_warms_up_before_the_turns_that_count(
    contestants: list[Contestant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm-up belongs to no turn, and would look like other load on the machine."""
    requests: list[str] = []
    original = WorkerProcess.turn

    def counted(worker: WorkerProcess, activity: Activity, seconds: float) -> Turn:
        requests.append(activity.value)
        return original(worker, activity, seconds)

    monkeypatch.setattr(WorkerProcess, "turn", counted)
    with Restart(contestants, 1, tmp_path / "workers", 0) as restart:
        turns = list(restart.turns([Activity.latency], 3, random.Random(0)))
    assert (len(turns), len(requests)) == (6, 8)


def planted(threads: int, foreign_percent: float) -> list[MeasuredTurn]:
    """Return turns of three restarts, in which the second framework takes twice as long."""
    return [
        MeasuredTurn(restart, threads, activity.value, 0, 0, name, 1, seconds, seconds, 0.0, foreign_percent, 0.0)
        for restart in range(3)
        for activity in Activity
        for name, seconds in (("A 1", 1.0), ("B 2", 2.0))
    ]


def test_wall_clock_is_that_of_all_threads(tmp_path: Path) -> None:
    result = conclude([*planted(1, 0.0), *planted(2, 61.0)], 2, ["a remark"], tmp_path)
    assert "\nwall clock:" not in result.text
    assert "! 100% of the turns do not count for the wall clock: other processes used 61 %" in result.text
    assert "CPU time, 1 thread: A 1 trained fastest. B 2 took 2.00x [2.00, 2.00] as long." in result.text
    assert "! a remark" in result.text
    assert result.metrics["paired/cpu/training/B-2/ratio"] == 2.0
    with (tmp_path / "turns.csv").open() as file:
        header, *rows = csv.reader(file)
    assert (header[:4], len(rows)) == (["restart", "threads", "activity", "round"], 36)
    assert "wall clock: A 1 trained fastest." in conclude(planted(2, 0.0), 2, [], tmp_path).text


def test_measurement_that_fails_does_not_keep_its_sweep_open(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    closed = []

    class Failing:
        def run(self) -> None:
            raise OSError("the disk is full")

    parent = SweepParent()
    parent._paired = cast("PairedStudy", Failing())
    monkeypatch.setattr(parent, "close", lambda: closed.append(True))
    parent.on_multirun_end(None)
    assert closed
    assert "the paired measurement ended early: the disk is full" in capfd.readouterr().err


@pytest.mark.slow
def test_framework_that_fails_is_left_out_and_the_others_go_on(contestants: list[Contestant], tmp_path: Path) -> None:
    broken = replace(contestants[0], name="broken", job=replace(contestants[0].job, adapter="no_such_module:Adapter"))
    measurement = PairedMeasurement([*contestants, broken], 1, MeasurementPlan(0, rounds=1), tmp_path / "workers")
    turns = list(measurement.run())
    assert "no_such_module" in measurement.failures["broken"]
    assert {each.framework for each in turns} == {"first", "second"}
    assert measurement.restarts == 3, "the fewest that have an interval"


@pytest.mark.slow
def test_worker_that_is_killed_between_turns_is_left_out(contestants: list[Contestant], tmp_path: Path) -> None:
    with Restart(contestants, 1, tmp_path / "workers", 0) as restart:
        turns = restart.turns([Activity.training], 2, random.Random(0))
        first = next(turns)
        (worker,) = [each for each in stopped_workers() if f"workers/{first.framework}/" in " ".join(each.cmdline())]
        worker.kill()
        rest: list[MeasuredTurn] = list(turns)
    assert "was killed by SIGKILL" in restart.failures[first.framework]
    assert {each.framework for each in rest} == {"first", "second"} - {first.framework}
    assert len(rest) == 2


@pytest.mark.slow
def test_measurement_ends_when_all_is_resolved(contestants: list[Contestant], tmp_path: Path) -> None:
    measurement = PairedMeasurement(contestants, 1, MeasurementPlan(1e9, rounds=1, fewest=3), tmp_path / "workers")
    made = iter(measurement.run())
    # Turns of a known length replace the measured ones: the second framework takes twice as long.
    for turn in made:
        known = replace(turn, cpu_s=turn.units * (2.0 if turn.framework == "second" else 1.0))
        measurement.turns[-1] = known
    assert measurement.restarts == 3
    assert measurement.is_resolved


@pytest.mark.slow
@pytest.mark.frameworks
def test_sweep_ends_with_a_ranking(gtdl: Command, store: str) -> None:
    need_torch()
    done = gtdl(
        "experiment=paired", "framework=torch,reference", "setting=reference_mnist", "hardware=cpu_1core",
        "budget=0.01", "sweep.paired_minutes=0.05",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for verb in ("trained", "classified the test set", "classified single images"):
        assert "CPU time, 1 thread: " in done.stdout
        assert verb in done.stdout
    assert "PyTorch" in done.stdout
    parent, children = sweep_runs()
    assert len(children) == 2
    ratios = {name: value for name, value in parent.data.metrics.items() if name.startswith("paired/cpu/training/")}
    assert min(value for name, value in ratios.items() if name.endswith("/ratio")) == 1.0
    assert len([name for name in ratios if name.endswith("/ratio_low")]) == 2


@pytest.mark.slow
@pytest.mark.frameworks
def test_interrupted_measurement_keeps_its_turns(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_torch()
    monkeypatch.chdir(tmp_path)
    process = start(
        "experiment=paired", "framework=torch,reference", "setting=reference_mnist", "hardware=cpu_1core",
        "budget=0.01", "sweep.paired_minutes=60", stdout=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("multirun/*/*/paired/1-1/*")), "the second restart begins", process, 300)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "trained in the shortest time so far" in output
    (turns,) = tmp_path.glob("multirun/*/*/turns.csv")
    assert len(turns.read_text().splitlines()) > 10
    parent, _ = sweep_runs()
    assert parent.info.status == "KILLED"
