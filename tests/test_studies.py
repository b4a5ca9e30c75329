"""What sweeps with a purpose end in: how steady a machine is, how frameworks scale."""

from __future__ import annotations

import csv
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.project import Command, need_torch
from mlflow import MlflowClient

from gtdl_mlflow.config import Study, compose
from gtdl_mlflow.report.stats import drift, repeats_needed
from gtdl_mlflow.sweeps import studies


def run(start: int, metrics: dict[str, float], **tags: str) -> Any:
    """As MLflow has it."""
    params = {"hardware.threads": tags.pop("threads", "2"), "training.batch_size": tags.pop("batch", "50")}
    known = {"gtdl.cell": "a", "gtdl.framework": "torch", "gtdl.training": "caffe_mnist", "gtdl.dataset": "mnist_5k"}
    return SimpleNamespace(
        info=SimpleNamespace(status="FINISHED", start_time=start),
        data=SimpleNamespace(metrics={"training_time_s": 1.0, "testing_time_s": 0.1, **metrics},
                             params=params, tags=known | {f"gtdl.{key}": value for key, value in tags.items()}),
    )  # fmt: skip


def test_a_trend_is_told_from_scatter() -> None:
    rising = drift([10, 10.2, 10.4, 10.6, 10.8, 11.0])
    assert rising.percent == pytest.approx(100 * 0.2 / 10.5)
    assert rising.p < 0.01
    scattered = drift([10, 11, 10.2, 10.9, 9.9, 10.6])
    assert abs(scattered.percent) < 1
    assert scattered.p > 0.5
    assert drift([1.0, 1.0, 1.0]).p == 1


def test_the_repeats_needed_are_those_of_the_textbook() -> None:
    # Two groups, 80 % power, 5 %, an effect of one standard deviation: 16 each by Student's t, 5 % more by ranks.
    assert repeats_needed(0.02, 0.02) == 17
    assert repeats_needed(0.04, 0.02) == 66
    assert repeats_needed(0.001, 0.02) == 4  # no rank test of three and three is ever significant


def test_stability_is_of_repeats_of_a_cell_in_their_order(tmp_path: Path) -> None:
    times = [10.0, 10.2, 10.4, 10.6]
    runs = [run(start, {"training_time_s": each}) for start, each in enumerate(times)]
    runs += [run(9, {"training_time_s": 99.0}, cell="alone")]
    found = studies.conclude(Study.stability, runs[::-1], tmp_path)
    assert found is not None
    rows = list(csv.DictReader((tmp_path / "stability.csv").read_text().splitlines()))
    assert len(rows) == 2  # one repeat says nothing
    training = rows[0]
    assert (training["figure"], training["n"], training["median"]) == ("training_time_s", "4", "10.3")
    assert float(training["spread %"]) == pytest.approx(2.51, abs=0.01)
    assert float(training["range %"]) == pytest.approx(6.0)
    assert float(training["drift % a run"]) == pytest.approx(1.94, abs=0.01)
    assert found.metrics["stability/torch/training_time_s/repeats_needed"] == repeats_needed(0.0251, 0.02)
    assert found.metrics["stability/torch/testing_time_s/spread_percent"] == 0


def test_scaling_is_against_one_thread_with_the_same_batch(tmp_path: Path) -> None:
    speeds = {("1", "1"): 100.0, ("2", "1"): 90.0, ("1", "64"): 1000.0, ("2", "64"): 1900.0, ("2", "128"): 2000.0}
    runs = [run(0, {"train/steady_state_images_per_s": speed, "test/images_per_s": 3 * speed}, threads=threads, batch=batch)
            for (threads, batch), speed in speeds.items()]  # fmt: skip
    found = studies.conclude(Study.scaling, runs, tmp_path)
    assert found is not None
    rows = {(row["threads"], row["batch_size"]): row
            for row in csv.DictReader((tmp_path / "scaling.csv").read_text().splitlines())}  # fmt: skip
    assert float(rows["2", "1"]["speed_up"]) == 0.9
    assert float(rows["2", "64"]["efficiency_percent"]) == 95
    assert rows["2", "128"]["speed_up"] == ""  # one thread was not measured with that batch
    assert "128" in found.text.splitlines()[-1]  # the fastest of two threads
    picture = (tmp_path / "scaling.svg").read_text()
    assert "images in a batch" in picture
    assert "speed-up over one thread / threads, %" in picture
    of_threads = re.findall(r'<path[^>]*stroke="#[^>]*stroke-dasharray="([^"]*)"', picture.partition('role-legend"')[2])
    assert len(set(of_threads)) == 2  # a legend that shows how the lines differ


def test_too_few_runs_conclude_nothing(tmp_path: Path) -> None:
    assert studies.conclude(Study.stability, [run(0, {}), run(1, {})], tmp_path) is None
    assert studies.conclude(Study.scaling, [], tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_scaling_run_has_enough_steps_for_a_steady_pace() -> None:
    for size, iterations in ((1, 4000), (64, 62), (1024, 30)):
        composed = compose(["experiment=scaling", "framework=torch", f"training.batch_size={size}"])
        assert composed.training.iterations == iterations


def test_a_scaling_run_of_single_images_computes_with_numbers(gtdl: Command, store: str) -> None:
    """Kernels that branch on what they see take other times for what is not a number, and Caffe refuses it."""
    need_torch()
    done = gtdl("framework=torch", "experiment=scaling", "training.batch_size=1", "hardware.threads=1")
    assert done.returncode == 0, done.stderr
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("gtdl_scaling")
    assert experiment is not None
    [run] = [run for run in client.search_runs([experiment.experiment_id]) if "accuracy_percent" in run.data.metrics]
    assert run.data.metrics["accuracy_percent"] > 50  # ten classes: without numbers it is 10


@pytest.mark.parametrize(
    ("arguments", "artifacts", "cells"),
    [
        (["experiment=stability", "seed=range(3)"], ["stability.csv"], 3),
        (["experiment=scaling", "setting=reference_mnist", "training.batch_size=1,256", "hardware.threads=1,2"],
         ["scaling.csv", "scaling.svg"], 4),
    ],
)  # fmt: skip
def test_an_experiment_ends_with_its_conclusion(
    gtdl: Command, store: str, arguments: list[str], artifacts: list[str], cells: int
) -> None:
    done = gtdl("framework=reference", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"{cells} finished of {cells} cells" in done.stdout
    assert {"stability": "n for 2 %", "scaling": "fastest batch size of each"}[
        arguments[0].partition("=")[2]
    ] in done.stdout
    client = MlflowClient(store)
    parents = itertools.chain.from_iterable(
        client.search_runs([each.experiment_id], "tags.`gtdl.sweep` LIKE '%'") for each in client.search_experiments()
    )
    (parent,) = parents
    there = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert there == {"summary.csv", *artifacts}
