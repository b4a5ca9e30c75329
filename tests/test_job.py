"""The job: number of steps, learning rates, moving average, and its JSON form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.networks import ZERO

from gtdl_mlflow import config
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.worker.job import (
    BatchOrder,
    EarlyStopping,
    HeldOut,
    Job,
    Latency,
    LearningRateSchedule,
    Optimizer,
    Schedule,
    Training,
    Validation,
)


def training(**changes: Any) -> Training:
    values: dict[str, Any] = {"learning_rate": 0.1, "batch_size": 4, "iterations": 20, **changes}
    return Training(**values)


def test_steps_are_iterations_or_epochs_whichever_ends_first() -> None:
    assert training(iterations=20_000, batch_size=50).steps(55_000, 1) == 20_000
    assert training(iterations=None, epochs=20, batch_size=10).steps(60_000, 1) == 120_000
    assert training(iterations=None, epochs=0.5, batch_size=10).steps(60_000, 1) == 3_000
    assert training(iterations=1_000, epochs=20, batch_size=10).steps(60_000, 1) == 1_000
    assert training(iterations=1_000_000, epochs=1, batch_size=10).steps(60_000, 1) == 6_000


def test_budget_is_the_share_of_the_steps() -> None:
    assert training(iterations=20_000).steps(4, 0.1) == 2_000
    assert training(iterations=None, epochs=3, batch_size=7).steps(100, 1) == 43
    assert training(iterations=10).steps(4, 0.001) == 1  # at least one step


CAFFE, TORCH = LearningRateSchedule(Schedule.inverse, 1e-4, 0.75), LearningRateSchedule(Schedule.inverse, 5e-7, 1)
# TensorFlow's: 350 epochs of 50,000 images in batches of 128.
STEP = LearningRateSchedule(Schedule.step, 0.1, every_iterations=136_718.75)
MULTISTEP = LearningRateSchedule(Schedule.multistep, 0.1, boundary_iterations=[4000, 6000])


@pytest.mark.parametrize("schedule", [CAFFE, TORCH, LearningRateSchedule(), STEP, MULTISTEP])
def test_budget_compresses_the_schedule(schedule: LearningRateSchedule) -> None:
    hyper = training(iterations=10_000, learning_rate=0.01, schedule=schedule)
    full, tenth = hyper.steps(64, 1), hyper.steps(64, 0.1)
    assert tenth * 10 == full
    assert hyper.rates(0, 1, 0.1) == hyper.rates(0, 1, 1) == [0.01]
    assert hyper.rates(tenth, tenth + 1, 0.1) == pytest.approx(hyper.rates(full, full + 1, 1), rel=1e-12)
    assert hyper.rates(500, 501, 0.1) == pytest.approx(hyper.rates(5_000, 5_001, 1), rel=1e-12)


def test_inverse_schedules_match_caffe_and_torch() -> None:
    caffe = training(learning_rate=0.01, schedule=CAFFE)
    assert caffe.rates(0, 10_000, 1)[9_999] == pytest.approx(0.01 * 1.9999**-0.75, rel=1e-12)
    torch = training(learning_rate=0.05, schedule=TORCH)
    assert torch.rates(120_000, 120_001, 1) == pytest.approx([0.05 / 1.06], rel=1e-12)
    assert training().rates(3, 6, 1) == [0.1, 0.1, 0.1]


def test_step_schedules_change_at_their_iterations() -> None:
    hyper = training(learning_rate=0.001, schedule=MULTISTEP)
    assert hyper.rates(3999, 4001, 1.0) == pytest.approx([0.001, 0.0001])
    assert hyper.rates(5999, 6001, 1.0) == pytest.approx([0.0001, 0.00001])
    hyper = training(learning_rate=0.1, schedule=STEP)
    assert hyper.rates(136_718, 136_720, 1.0) == pytest.approx([0.1, 0.01])
    assert hyper.rates(273_437, 273_439, 1.0) == pytest.approx([0.01, 0.001])
    assert hyper.rates(1367, 1369, 0.01) == pytest.approx([0.1, 0.01])  # scaled by the budget


def test_rates_of_consecutive_chunks_join() -> None:
    hyper = training(schedule=LearningRateSchedule(Schedule.inverse, 0.1, 1))
    assert hyper.rates(0, 3, 0.5) + hyper.rates(3, 20, 0.5) == hyper.rates(0, 20, 0.5)


def test_moving_average_decay_rises_to_its_limit() -> None:
    hyper = training(ema_decay=0.9999)
    assert [hyper.ema_decay_at(step) for step in (1, 2, 91)] == pytest.approx([2 / 11, 3 / 12, 92 / 101])
    assert hyper.ema_decay_at(10**6) == 0.9999


def test_target_is_reached_at_its_accuracy_or_above() -> None:
    assert [training(target_accuracy_percent=90.0).reaches_target(value) for value in (89.9, 90.0, 91.0)] == [
        False,
        True,
        True,
    ]
    assert not training().reaches_target(100.0)


def test_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    hyper = training(
        name="name",
        test_batch_size=5,
        preprocessing={"pad": {"pixels": 1}},
        schedule=LearningRateSchedule(Schedule.inverse, 0.1, 2),
        validation=Validation(1, 5, HeldOut.first),
        early_stopping=EarlyStopping(patience_iterations=9),
        optimizer=Optimizer.adam,
        order=BatchOrder.shuffled,
    )
    job = Job(
        adapter="module:Class",
        options={"mode": "eager"},
        layers={"dense": {"type": "dense", "units": "classes", "weights": ZERO, "biases": ZERO}},
        image_shape=[3, 2, 1],
        classes=6,
        data="data",
        data_sha256={"train_images": "0" * 64},
        training=hyper,
        budget=1.0,
        seed=0,
        device="cpu",
        threads=1,
        cores=[0, 1],
        folder="model",
        mean_per_class=True,
        latency=Latency(repeats=0, batch_sizes=[1, 8]),
    )
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    replace(job, cores=None, training=replace(hyper, early_stopping=None)).write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json").training.early_stopping is None


def test_job_has_the_hashes_of_the_prepared_files(tmp_path: Path) -> None:
    composed = config.compose(["framework=reference"])
    assert create_job(composed, tmp_path, tmp_path, {"test_labels": "1" * 64}).data_sha256 == {"test_labels": "1" * 64}
    assert create_job(composed, tmp_path, tmp_path).data_sha256 == {}


@pytest.mark.parametrize(("dataset", "mean_per_class"), [("caltech101", True), ("mnist", False)])
def test_job_has_the_accuracy_of_its_data_set(tmp_path: Path, dataset: str, mean_per_class: bool) -> None:
    composed = config.compose(["framework=reference", f"dataset={dataset}"])
    assert create_job(composed, tmp_path, tmp_path).mean_per_class is mean_per_class


def test_model_of_tinygrad_has_no_cache_that_belongs_to_one_thread(tmp_path: Path) -> None:
    saved = create_job(
        config.compose_unchecked(["framework=tinygrad", "mode=jit"]), tmp_path, tmp_path
    ).saved_environment
    assert saved["CACHELEVEL"] == "0"  # `mlflow models serve` predicts in several threads
    assert not [value for value in saved.values() if "{" in value], "folders of the machine that trained"
