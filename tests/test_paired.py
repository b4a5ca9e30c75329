"""Paired measurements: workers take turns, wait without using the CPU, and are left out if they fail."""

from __future__ import annotations

import csv
import itertools
import math
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psutil
import pytest
from helpers.project import Command, need_framework, start, sweep_runs, wait_until

from gtdl_mlflow import config, datasets, paired
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.hardware.interference import Snapshot, metrics_between
from gtdl_mlflow.paired import (
    Contestant,
    MeasurementPlan,
    PairedMeasurement,
    Restart,
    balanced_orders,
    link_groups,
    memory_groups,
)
from gtdl_mlflow.reporting import ratios
from gtdl_mlflow.reporting.intervals import Ratio, repeats_needed
from gtdl_mlflow.reporting.ratios import MeasuredTurn, Ranked, Ranking
from gtdl_mlflow.reporting.runs import BenchmarkRun, CellKey
from gtdl_mlflow.sweeps.hydra_callbacks import SweepParent
from gtdl_mlflow.sweeps.paired_study import PairedStudy, conclude, minutes_needed, with_memory
from gtdl_mlflow.worker.events import Turn
from gtdl_mlflow.worker.job import Activity
from gtdl_mlflow.worker_process import WorkerProcess

if TYPE_CHECKING:
    from gtdl_mlflow.worker.job import Job


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


@pytest.mark.slow
def test_the_lead_in_of_a_turn_is_no_other_load(
    contestants: list[Contestant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_s: list[float] = []

    def recorded(before: Snapshot, after: Snapshot, worker_s: float) -> dict[str, float]:
        own_s.append(worker_s)
        return metrics_between(before, after, worker_s)

    monkeypatch.setattr(paired, "metrics_between", recorded)
    with Restart(contestants, 1, tmp_path / "workers", 0) as restart:
        turns = list(restart.turns([Activity.training], 3, random.Random(0)))
    assert len(own_s[2:]) == len(turns) == 6  # the first turn of each worker warms up
    for whole_s, turn in zip(own_s[2:], turns, strict=True):
        assert whole_s > 1.15 * turn.cpu_s, "a lead-in is 0.3 of a turn"


def contestant(name: str, memory_mb: float) -> Contestant:
    return Contestant(name, Path("python"), {}, cast("Job", None), memory_mb)


@pytest.mark.parametrize(
    ("limit_mb", "expected"),
    [
        (1000, ["abcd"]),
        (999, ["abc", "ad"]),  # 100 + 200 + 300 fit, and so do 100 + 400
        (500, ["ab", "ac", "ad"]),
        (499, ["ab", "ac"]),
        (100, []),
    ],
)
def test_groups_fit_into_memory_and_share_the_first_member(limit_mb: float, expected: list[str]) -> None:
    every = [contestant(name, 100 * number) for number, name in enumerate("abcd", 1)]
    groups = memory_groups(every, limit_mb)
    assert ["".join(each.name for each in group) for group in groups] == expected


def turn(framework: str, group: int, seconds: float, units: int = 1, restart: int = 0, round: int = 0) -> MeasuredTurn:
    return MeasuredTurn(restart, 1, "training", round, 0, framework, units, seconds, seconds, 0.0, 0.0, 0.0, group)


def test_frameworks_of_different_groups_are_compared_through_the_common_member() -> None:
    """The machine is slower or faster while the second group runs."""
    turns = []
    for restart, speed in enumerate((1.0, 1.3, 0.8)):
        for number in range(4):
            turns += [turn("A", 0, 1.0, 1, restart, number), turn("B", 0, 2.0, 1, restart, number)]
            turns += [turn("A", 1, 10 * speed, 10, restart, number), turn("C", 1, 3 * speed, 1, restart, number)]
    ranking = ratios.rank(link_groups(turns), "training", ratios.CPU)
    assert {each.framework: round(each.ratio.value, 6) for each in ranking.frameworks} == {"A": 1, "B": 2, "C": 3}
    assert ratios.compare(link_groups(turns), "training", ratios.WALL, "C", "B").value == pytest.approx(1.5)


def test_turns_without_the_common_member_are_left_out() -> None:
    turns = [turn("A", 0, 1.0), turn("B", 0, 2.0), turn("C", 1, 3.0), turn("A", 1, 1.0, round=1)]
    assert {each.framework for each in link_groups(turns)} == {"A", "B"}


def test_memory_that_is_unknown_is_taken_to_be_the_largest() -> None:
    runs = {"a": [whole_run("torch", **{"worker/peak_memory_mb": 700.0})]}
    assert [each.memory_mb for each in with_memory([contestant("a", 0), contestant("b", 0)], runs)] == [700, 700]
    assert [each.memory_mb for each in with_memory([contestant("a", 0)], {})] == [0]


@pytest.mark.slow
def test_frameworks_that_do_not_fit_together_are_measured_in_groups(
    contestants: list[Contestant], tmp_path: Path
) -> None:
    first, second = (replace(each, memory_mb=400) for each in contestants)
    third, large = replace(first, name="third"), replace(first, name="large", memory_mb=601)
    plan = MeasurementPlan(0, rounds=1, activities=(Activity.latency,), memory_mb=1000)
    measurement = PairedMeasurement([first, second, third, large], 1, plan, tmp_path / "workers")
    together = Counter((each.restart, each.group, each.framework) for each in measurement.run())
    assert together == {
        (restart, group, name): 1
        for restart in range(3)
        for group, names in enumerate((("first", "second"), ("first", "third")))
        for name in names
    }
    assert measurement.failures == {
        "large": "its worker needs 601 MB of memory beside the 400 MB of first; 1,000 MB are available"
    }
    (ranking,) = measurement.rankings()
    assert {each.framework for each in ranking.frameworks} == {"first", "second", "third"}
    assert all(each.ratio.has_interval for each in ranking.frameworks)


@pytest.mark.slow
def test_ranking_states_the_groups_and_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [
        config.compose(["framework=reference", "hardware=cpu_1core", f"framework.label={label}"]) for label in "ABCD"
    ]
    study = PairedStudy(configs, 0.001, tmp_path)
    peaks = {"A 1": 700.0, "B 1": 700.0, "C 1": 700.0, "D 1": 5000.0}
    runs = {name: [whole_run("torch", **{"worker/peak_memory_mb": peak})] for name, peak in peaks.items()}
    monkeypatch.setattr(study, "_by_label", lambda _: runs)
    study.run([], memory_mb=1500)
    text = study.conclude().text
    assert "! too little memory for all at once: measured in groups with A 1: B 1; C 1" in text
    assert "! D 1 is left out: its worker needs 5,000 MB of memory beside the 700 MB of A 1; 1,500 MB are" in text
    assert {line.split()[0] for line in text[text.index("framework  ") :].splitlines()[1:4]} == {"A", "B", "C"}


@pytest.mark.slow
def test_only_the_wall_clock_counts_on_a_gpu(contestants: list[Contestant], tmp_path: Path) -> None:
    plan = MeasurementPlan(1e9, rounds=1, fewest=3, activities=(Activity.latency,), clock=ratios.WALL)
    measurement = PairedMeasurement(contestants, 2, plan, tmp_path / "workers")
    for each in measurement.run():
        # By the wall clock, the second takes twice as long. The CPU time shows the opposite, and other load is high.
        slow = each.framework == "second"
        known = replace(each, wall_s=each.units * (1.0 + slow), cpu_s=each.units * (2.0 - slow), foreign_percent=50.0)
        measurement.turns[-1] = known
    assert measurement.restarts == 3
    assert {each.threads for each in measurement.turns} == {2}
    (ranking,) = measurement.rankings()
    assert [each.framework for each in ranking.frameworks] == ["first", "second"]
    result = conclude(measurement.turns, 2, [], tmp_path, measurement.clock)
    assert "wall clock, 2 threads, 3 restarts" in result.text
    assert "second took 2.00x [2.00, 2.00] as long" in result.text
    assert "CPU time, " not in result.text
    assert "! 100 % of the turns were disturbed: other processes used 50 %" in result.text


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
    assert "wall clock, 2 threads" not in result.text
    assert "! 100 % of the turns do not count for the wall clock: other processes used 61 %" in result.text
    assert "CPU time, 1 thread, 3 restarts" in result.text
    assert "A 1 trained fastest. B 2 took 2.00x [2.00, 2.00] as long." in result.text
    assert "! a remark" in result.text
    assert result.metrics["paired/cpu/training/B-2/ratio"] == 2.0
    assert result.metrics["paired/cpu/training/B-2/time_ms"] == pytest.approx(2000)
    assert result.series["paired/cpu/training/B-2/restart_ratio"] == pytest.approx([2.0] * 3)
    with (tmp_path / "turns.csv").open() as file:
        header, *rows = csv.reader(file)
    assert (header[:4], len(rows)) == (["restart", "threads", "activity", "round"], 36)
    both = conclude([*planted(1, 0.0), *planted(2, 0.0)], 2, [], tmp_path).text
    assert "wall clock, 2 threads, 3 restarts" in both.partition("A 1 trained fastest.")[2]


def test_cost_of_an_abstraction_is_relative_to_the_framework_below(tmp_path: Path) -> None:
    result = conclude([*planted(1, 0.0), *planted(2, 0.0)], 2, [], tmp_path, plain={"B 2": "A 1", "C 3": "A 1"})
    rows = [re.split("  +", line.strip()) for line in result.text.splitlines() if "B 2 / A 1" in line]
    assert rows == [["B 2 / A 1", *["2.00x [2.00, 2.00]"] * 6]]
    assert "C 3" not in result.text
    assert result.metrics["paired/wall/testing_over_plain/B-2/ratio_high"] == pytest.approx(2.0)
    assert result.series["paired/wall/testing_over_plain/B-2/restart_ratio"] == pytest.approx([2.0] * 3)


def whole_run(framework: str, **metrics: float) -> BenchmarkRun:
    key = CellKey("mnist_5k", framework, "caffe_mnist", "1", "cpu", "1", 0.1, "best", "machine")
    values = {"training_time_s": 1.0, "testing_time_s": 1.0, **metrics}
    return BenchmarkRun("id", "0", key, 0, "FINISHED", "", False, "ok", 0, values, {}, {}, "1")


def test_ranking_table_has_the_accuracy_and_the_memory_of_the_whole_runs(tmp_path: Path) -> None:
    turns = [replace(each, foreign_percent=61.0 if each.framework == "A 1" else 2.0) for each in planted(1, 0.0)]
    runs = {
        "A 1": [whole_run("torch", accuracy_percent=97.5, **{"worker/peak_memory_mb": 1234.0})],
        "B 2": [whole_run("mxnet", accuracy_percent=96.0)],
    }
    lines = conclude(turns, 1, [], tmp_path, runs=runs).text.splitlines()
    table = [re.split("  +", line) for line in lines[1:4]]
    headers = ["framework", "training step", "test batch", "single image", "accuracy, %", "peak memory, MB"]
    assert table == [
        [*headers, "other load, %"],
        ["A 1", *["best: 1,000.0 ms"] * 3, "97.50", "1,234", "61"],
        ["B 2", *["2.00x [2.00, 2.00]"] * 3, "96.00"],
    ]
    assert any("Too few seeds to compare" in line and "97.50 %" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "half_width", "restarts", "needed"),
    [
        (1.5, 0.009, 5, 5),  # resolved
        (1.5, 0.04, 200, 784),  # twice as wide as it may be: four times as many
        (1.0, 0.04, 200, 784),
        (1.01, 0.03, 100, 860),  # it has to exclude 1, or to end below 1.02: a third of the width
        (1.5, 0.04, 3, 5),  # of few, Student's quantile falls from 4.3 to 2.8
        (1.5, 1e9, 3, 10_000),
        (1.5, math.inf, 2, None),
    ],
)
def test_restarts_needed_grow_with_the_square_of_the_width(
    value: float, half_width: float, restarts: int, needed: int | None
) -> None:
    ends = value / (1 + half_width), value * (1 + half_width)
    estimate = repeats_needed(Ratio(value, *ends, restarts), 1)
    assert estimate == (None if needed is None else pytest.approx(needed, rel=0.02))


def test_minutes_needed_are_those_of_the_widest_interval() -> None:
    def ranking(half_width: float) -> Ranking:
        best, ratio = Ratio(1, 1, 1, 200), Ratio(1.5, 1.5 / (1 + half_width), 1.5 * (1 + half_width), 200)
        return Ranking("training", ratios.CPU, (Ranked("A", 1.0, best), Ranked("B", 1.5, ratio)))

    assert minutes_needed([ranking(0.009), ranking(0.04)], restart_s=6) == pytest.approx(58, abs=1)
    assert minutes_needed([ranking(0.0101)], restart_s=1) == 1, "never 0 more minutes"
    assert minutes_needed([ranking(0.009)], restart_s=60) == 0
    assert minutes_needed([ranking(0.01), ranking(math.inf)], restart_s=60) is None


def test_measurement_that_fails_does_not_keep_its_sweep_open(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    closed = []

    class Failing:
        def run(self, runs: object) -> None:
            raise OSError("the disk is full")

    parent = SweepParent()
    parent._paired = cast("PairedStudy", Failing())
    monkeypatch.setattr(parent, "_runs", list)
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
        wait_until(lambda: len(stopped_workers()) == 2, "workers that wait are stopped", timeout_s=10)
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
    need_framework("torch")
    done = gtdl(
        "experiment=paired", "framework=torch,reference", "setting=reference_mnist", "hardware=cpu_1core",
        "budget=0.01", "sweep.paired_minutes=0.05",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CPU time, 1 thread, 3 restarts" in done.stdout
    for verb in ("trained", "classified the test set", "classified single images"):
        assert verb in done.stdout
    header, *table = done.stdout[done.stdout.index("framework  ") :].splitlines()[:3]
    assert "accuracy, %  peak memory, MB" in header
    assert all(re.search(r" \d\d\.\d\d +\d", line) for line in table), table
    assert "PyTorch" in "".join(table)
    assert "\nnext: " in done.stdout
    parent, children = sweep_runs()
    assert len(children) == 2
    ratios = {name: value for name, value in parent.data.metrics.items() if name.startswith("paired/cpu/training/")}
    assert min(value for name, value in ratios.items() if name.endswith("/ratio")) == 1.0
    assert len([name for name in ratios if name.endswith("/ratio_low")]) == 2


@pytest.mark.slow
@pytest.mark.frameworks
def test_interrupted_measurement_keeps_its_turns(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_framework("torch")
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
