"""Timing of single operations after training and testing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.project import Command, runs
from mlflow import MlflowClient

from gtdl_mlflow.worker import latency
from gtdl_mlflow.worker.job import Latency


class Model:
    """A model that classifies a batch in a fixed time plus a time per image, and counts its calls."""

    def __init__(self, fixed_s: float, image_s: float) -> None:
        self.fixed_s, self.image_s, self.calls, self.now_ns = fixed_s, image_s, 0, 0

    def to_native(self, array: np.ndarray) -> np.ndarray:
        return array

    def predict(self, batches: list[np.ndarray]) -> np.ndarray:
        self.calls += 1
        count = sum(len(images) for images in batches)
        self.now_ns += round(1e9 * (self.fixed_s + self.image_s * count))
        return np.zeros((count, 10), np.float32)

    def perf_counter_ns(self) -> int:
        """Return the time, which passes in ``predict`` only."""
        return self.now_ns


class Job:
    def __init__(self, **values: Any) -> None:
        self.latency = Latency(**values)


def test_calls_end_by_number_or_by_time_and_exclude_the_warm_up() -> None:
    calls = []
    assert len(latency.time_calls(lambda: calls.append(0), Latency(repeats=7, limit_s=60))) == 7
    assert len(calls) == 7 + latency.WARM_UP_CALLS
    slow = latency.time_calls(lambda: time.sleep(0.02), Latency(repeats=1000, limit_s=0.1))
    assert 3 <= len(slow) <= 5
    assert len(latency.time_calls(lambda: time.sleep(0.05), Latency(repeats=100, limit_s=0.001))) == 1


def test_percentiles_are_in_milliseconds() -> None:
    percentiles = latency.percentiles([each / 1000 for each in range(1, 102)])
    assert percentiles == pytest.approx({"p50_ms": 51, "p90_ms": 91, "p99_ms": 100, "samples": 101})


def test_saturation_batch_size_is_the_smallest_with_95_percent_of_the_highest_throughput(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 1 image takes 2.6 ms, 32 take 5.7, 1,024 take 105: 385, 5,600 and 9,760 images/s.
    model = Model(0.0025, 0.0001)
    monkeypatch.setattr(latency, "time", model)
    job = Job(repeats=3, limit_s=5, batch_sizes=[1, 32, 512, 1024])
    events = latency.inference(job, model, np.zeros((100, 2, 2, 1), np.float32))  # type: ignore[arg-type]
    assert [event.step for event in events] == [1, 32, 512, 1024, 0]
    single, large = events[0].values, events[3].values
    assert single["inference/p50_ms"] == single["inference/p99_ms"] == pytest.approx(2.6)
    assert large["inference/images_per_s"] > 10 * single["inference/images_per_s"]
    assert events[-1].values["inference/saturation_batch_size"] == 512
    assert model.calls == 4 * (3 + latency.WARM_UP_CALLS)


@pytest.mark.slow
def test_inference_experiment_records_latency_by_batch_size(gtdl: Command, store: str, tmp_path: Path) -> None:
    done = gtdl("experiment=inference", "framework=reference", "latency.batch_sizes=[1,8,2000]", "latency.limit_s=0.1")
    assert done.returncode == 0, done.stderr
    client = MlflowClient(store)
    (run,) = (each for each in runs(store) if "gtdl.framework" in each.data.tags)
    points = client.get_metric_history(run.info.run_id, "inference/p50_ms")
    assert [point.step for point in points] == [1, 8, 2000]  # 2000: more than the test images
    assert run.data.metrics["inference/saturation_batch_size"] in (1, 8, 2000)
    table = Path(client.download_artifacts(run.info.run_id, "inference.csv", str(tmp_path))).read_text().splitlines()
    assert table[0] == "batch_size,p50_ms,p90_ms,p99_ms,images_per_s,samples"
    assert [line.split(",")[0] for line in table[1:]] == ["1", "8", "2000"]
    chart = Path(client.download_artifacts(run.info.run_id, "inference.svg", str(tmp_path))).read_text()
    assert "latency, ms" in chart
    assert "images/s" in chart


@pytest.mark.slow
def test_timing_of_training_steps_does_not_change_the_tested_and_saved_model(gtdl: Command, store: str) -> None:
    for repeats in (0, 50):
        done = gtdl("framework=reference", "training.iterations=20", f"latency.repeats={repeats}")
        assert done.returncode == 0, done.stderr
    with_steps, without = runs(store)
    assert with_steps.data.metrics["train_step/samples"] == 50
    assert "train_step/p50_ms" not in without.data.metrics
    for key in ("gtdl.weights_sha256", "gtdl.config_hash"):
        assert with_steps.data.tags[key] == without.data.tags[key]
    assert with_steps.data.metrics["accuracy_percent"] == without.data.metrics["accuracy_percent"]


@pytest.mark.slow
def test_invalid_latency_values_are_refused(gtdl: Command) -> None:
    for override, complaint in (
        ("latency.batch_sizes=[4,0]", "latency.batch_sizes=0: must be at least 1"),
        ("latency.repeats=-1", "latency.repeats=-1: must be at least 0"),
        ("latency.limit_s=0", "latency.limit_s=0.0: must be above 0"),
    ):
        done = gtdl("framework=reference", override)
        assert done.returncode == 2
        assert complaint in done.stderr
