"""The scaling study of a sweep."""

from __future__ import annotations

import csv
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.project import Command, need_framework
from helpers.share import only_in
from mlflow import MlflowClient

from gtdl_mlflow.config import compose
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


def test_scaling_is_relative_to_one_thread_with_the_same_batch_size(tmp_path: Path) -> None:
    speeds = {("1", "1"): 100.0, ("2", "1"): 90.0, ("1", "64"): 1000.0, ("2", "64"): 1900.0, ("2", "128"): 2000.0}
    runs = [
        run(0, {"train/steady_state_images_per_s": speed, "test/images_per_s": 3 * speed}, threads=threads, batch=batch)
        for (threads, batch), speed in speeds.items()
    ]
    result = studies.scaling(runs, tmp_path)
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


def test_no_finished_run_gives_no_result_and_no_file(tmp_path: Path) -> None:
    assert studies.scaling([], tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_iterations_of_a_scaling_run_follow_the_batch_size() -> None:
    for size, iterations in ((1, 4000), (64, 62), (1024, 30)):
        composed = compose(["experiment=scaling", "framework=torch", f"training.batch_size={size}"])
        assert composed.training.iterations == iterations


@pytest.mark.slow
@pytest.mark.frameworks
@only_in(4)
def test_a_scaling_run_of_single_images_does_not_diverge(gtdl: Command, store: str) -> None:
    """Some kernels take other times for NaN, and Caffe rejects it."""
    need_framework("torch")
    done = gtdl("framework=torch", "experiment=scaling", "training.batch_size=1", "hardware.threads=1")
    assert done.returncode == 0, done.stderr
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("gtdl_scaling")
    assert experiment is not None
    [run] = [run for run in client.search_runs([experiment.experiment_id]) if "accuracy_percent" in run.data.metrics]
    assert run.data.metrics["accuracy_percent"] > 50  # it is 10 % if the network computes NaN


@pytest.mark.slow
def test_a_study_adds_its_result_to_the_parent_run(gtdl: Command, store: str, all_cores: None) -> None:
    sizes = ("training.batch_size=1,256", "hardware.threads=1,2")
    done = gtdl("framework=reference", "experiment=scaling", "setting=reference_mnist", *sizes)
    assert done.returncode == 0, done.stderr
    assert "4 finished of 4 cells" in done.stdout
    assert "fastest batch size for each framework" in done.stdout
    client = MlflowClient(store)
    (parent,) = itertools.chain.from_iterable(
        client.search_runs([each.experiment_id], "tags.`gtdl.sweep` LIKE '%'") for each in client.search_experiments()
    )
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"summary.csv", "scaling.csv", "scaling.svg"}
