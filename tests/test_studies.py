"""The studies of a sweep: stability and scaling."""

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

from gtdl_mlflow import metrics
from gtdl_mlflow.config import Study, compose
from gtdl_mlflow.report.stats import drift, repeats_needed
from gtdl_mlflow.sweeps import studies


def run(start: int, values: dict[str, float], **tags: str) -> Any:
    """Return a finished run with these metrics and tags, as MLflow returns it."""
    params = {"hardware.threads": tags.pop("threads", "2"), "training.batch_size": tags.pop("batch", "50")}
    defaults = {"gtdl.cell": "a", "gtdl.framework": "torch", "gtdl.training": "caffe_mnist", "gtdl.dataset": "mnist_5k"}
    data = SimpleNamespace(
        metrics={"training_time_s": 1.0, "testing_time_s": 0.1, **values},
        params=params,
        tags=defaults | {f"gtdl.{key}": value for key, value in tags.items()},
    )
    return SimpleNamespace(info=SimpleNamespace(status="FINISHED", start_time=start), data=data)


def test_drift_distinguishes_a_trend_from_scatter() -> None:
    rising = drift([10, 10.2, 10.4, 10.6, 10.8, 11.0])
    assert rising.percent == pytest.approx(100 * 0.2 / 10.5)
    assert rising.p < 0.01
    scattered = drift([10, 11, 10.2, 10.9, 9.9, 10.6])
    assert abs(scattered.percent) < 1
    assert scattered.p > 0.5
    assert drift([1.0, 1.0, 1.0]).p == 1


def test_repeats_needed_match_the_textbook() -> None:
    # Two groups, power 80 %, level 5 %, effect of one standard deviation: 16 each by Student's t, 5 % more by ranks.
    assert repeats_needed(0.02, 0.02) == 17
    assert repeats_needed(0.04, 0.02) == 66
    assert repeats_needed(0.001, 0.02) == 4  # no rank test of 3 and 3 is significant


def test_stability_evaluates_the_repeats_of_a_cell_in_the_order_of_the_runs(tmp_path: Path) -> None:
    times = [10.0, 10.2, 10.4, 10.6]
    runs = [run(start, {"training_time_s": each}) for start, each in enumerate(times)]
    runs += [run(9, {"training_time_s": 99.0}, cell="alone")]
    result = studies.conclude(Study.stability, runs[::-1], tmp_path)
    assert result is not None
    rows = list(csv.DictReader((tmp_path / "stability.csv").read_text().splitlines()))
    assert len(rows) == 2  # the cell with one repeat is left out
    training = rows[0]
    assert (training["metric"], training["n"], training["median"]) == ("training_time_s", "4", "10.3")
    assert float(training["spread %"]) == pytest.approx(2.51, abs=0.01)
    assert float(training["range %"]) == pytest.approx(6.0)
    assert float(training["drift % per run"]) == pytest.approx(1.94, abs=0.01)
    assert result.metrics["stability/torch/training_time_s/repeats_needed"] == repeats_needed(0.0251, 0.02)
    assert result.metrics["stability/torch/testing_time_s/spread_percent"] == 0


def test_scaling_is_relative_to_one_thread_with_the_same_batch_size(tmp_path: Path) -> None:
    speeds = {("1", "1"): 100.0, ("2", "1"): 90.0, ("1", "64"): 1000.0, ("2", "64"): 1900.0, ("2", "128"): 2000.0}
    runs = [
        run(0, {"train/steady_state_images_per_s": speed, "test/images_per_s": 3 * speed}, threads=threads, batch=batch)
        for (threads, batch), speed in speeds.items()
    ]
    result = studies.conclude(Study.scaling, runs, tmp_path)
    assert result is not None
    table = csv.DictReader((tmp_path / "scaling.csv").read_text().splitlines())
    rows = {(row["threads"], row["batch_size"]): row for row in table}
    assert float(rows["2", "1"]["speed_up"]) == 0.9
    assert float(rows["2", "64"]["efficiency_percent"]) == 95
    assert rows["2", "128"]["speed_up"] == ""  # one thread was not measured with this batch size
    assert "128" in result.text.splitlines()[-1]  # the fastest batch size of two threads
    chart = (tmp_path / "scaling.svg").read_text()
    assert "images in a batch" in chart
    assert "speed-up over one thread / threads, %" in chart
    dashes = re.findall(r'<path[^>]*stroke="#[^>]*stroke-dasharray="([^"]*)"', chart.partition('role-legend"')[2])
    assert len(set(dashes)) == 2  # the legend shows the two kinds of lines


def test_too_few_runs_give_no_result_and_no_file(tmp_path: Path) -> None:
    assert studies.conclude(Study.stability, [run(0, {}), run(1, {})], tmp_path) is None
    assert studies.conclude(Study.scaling, [], tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_iterations_of_a_scaling_run_follow_the_batch_size() -> None:
    for size, iterations in ((1, 4000), (64, 62), (1024, 30)):
        composed = compose(["experiment=scaling", "framework=torch", f"training.batch_size={size}"])
        assert composed.training.iterations == iterations


@pytest.mark.slow
@pytest.mark.frameworks
def test_a_scaling_run_of_single_images_does_not_diverge(gtdl: Command, store: str) -> None:
    """Some kernels take other times for NaN, and Caffe rejects it."""
    need_torch()
    done = gtdl("framework=torch", "experiment=scaling", "training.batch_size=1", "hardware.threads=1")
    assert done.returncode == 0, done.stderr
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("gtdl_scaling")
    assert experiment is not None
    [run] = [run for run in client.search_runs([experiment.experiment_id]) if "accuracy_percent" in run.data.metrics]
    assert run.data.metrics["accuracy_percent"] > 50  # it is 10 % if the network computes NaN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text", "artifacts", "cells"),
    [
        (["experiment=stability", "seed=range(3)"], "n for 2 %", ["stability.csv"], 3),
        (
            ["experiment=scaling", "setting=reference_mnist", "training.batch_size=1,256", "hardware.threads=1,2"],
            "fastest batch size for each framework",
            ["scaling.csv", "scaling.svg"],
            4,
        ),
    ],
)
def test_a_study_adds_its_result_to_the_parent_run(
    gtdl: Command, store: str, arguments: list[str], text: str, artifacts: list[str], cells: int
) -> None:
    done = gtdl("framework=reference", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"{cells} finished of {cells} cells" in done.stdout
    assert text in done.stdout
    client = MlflowClient(store)
    (parent,) = itertools.chain.from_iterable(
        client.search_runs([each.experiment_id], "tags.`gtdl.sweep` LIKE '%'") for each in client.search_experiments()
    )
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {"summary.csv", *artifacts}
    unregistered = [name for name in parent.data.metrics if metrics.find(name) is None]
    assert not unregistered
