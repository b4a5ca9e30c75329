"""Operations and bytes of a network, and the machine's peak with which they are compared."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.project import ROOT, Command, need_framework, runs
from mlflow import MlflowClient

from gtdl_mlflow import charts, config, environments
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.config import Hardware
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.files import cache_dir
from gtdl_mlflow.hardware import interference, peak, roofline
from gtdl_mlflow.worker.job import Optimizer, Training
from gtdl_mlflow.worker.network import build

CPU = Hardware("cpu", "cpu")
NORMAL = {"distribution": "normal", "stddev": 0.1}
PEAK = peak.Peak("here", "cpu", 2, "numpy", {"matrix product of 1024": 100.0, "convolution": 200.0}, 20.0, False, 1)


def training(**more: Any) -> Training:
    return Training(**{"batch_size": 10, "test_batch_size": 10, "optimizer": Optimizer.sgd, **more})


def small() -> Any:
    layers = {
        "conv": {"type": "convolution", "filters": 3, "kernel": 3, "weights": NORMAL, "biases": NORMAL},
        "relu": {"type": "relu"},
        "dense": {"type": "dense", "units": 10, "weights": NORMAL, "biases": NORMAL},
    }
    return build(layers, (2, 6, 6), 10)


def test_work_of_each_layer() -> None:
    conv, relu, dense = roofline.layer_work(small(), 10)
    # 3 maps of 4 x 4 sums of 2 x 3 x 3 products; 2 x 6 x 6 values in, 48 out, 57 parameters for ten images.
    assert (conv.work.flops, conv.work.bytes) == (2 * 48 * 18, 4 * (72 + 48 + 5.7))
    assert (relu.work.flops, relu.work.bytes) == (0, 4 * 96)
    assert (dense.work.flops, dense.work.bytes) == (2 * 48 * 10, 4 * (48 + 10 + 49))


def test_training_needs_no_gradient_of_the_images() -> None:
    plain = roofline.training_work(small(), training())
    assert plain.flops == 2 * (2 * 48 * 18) + 3 * (2 * 48 * 10)
    values, parameters = 4 * (72 + 48 + 96 + 58), 4 * (57 + 490) / 10
    assert plain.bytes == pytest.approx(3 * values + 6 * parameters)
    adam = roofline.training_work(small(), training(optimizer=Optimizer.adam))
    assert adam.bytes - plain.bytes == pytest.approx(4 * parameters)


def test_share_is_relative_to_the_fastest_kernel() -> None:
    speeds = {"train/steady_state_images_per_s": 1e6, "test/images_per_s": 2e6}
    shares = roofline.peak_shares(speeds, small(), training(), PEAK)
    assert shares["train/gflops"] == pytest.approx(6336 * 1e6 / 1e9)
    assert shares["train/peak_share_percent"] == pytest.approx(100 * 6.336 / 200)
    assert shares["test/peak_share_percent"] == pytest.approx(100 * 5.376 / 200)
    assert "train/peak_share_percent" not in roofline.peak_shares(speeds, small(), training(), None)


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
@pytest.mark.parametrize("framework", ["caffe", "mxnet", "tensorflow", "theano", "torch"])
def test_operations_equal_those_that_torch_counts(framework: str, dataset: str, tmp_path: Path) -> None:
    setting = f"{framework}_{dataset}"
    overrides = {
        "mxnet_cifar10": ["model.depth=14"],
        # torch's masked convolutions also compute the maps that are not connected.
        "torch_cifar10": ["model.layers.conv1.connections=null", "model.layers.conv2.connections=null"],
    }.get(setting, [])
    published = "mnist_5k" if dataset == "mnist" else dataset
    selection = ["framework=torch", "mode=default", f"setting={setting}", f"dataset={published}", "hardware.threads=1"]
    composed = config.compose([*selection, "training.batch_size=4", *overrides])
    environment = environments.ensure(composed.framework, "cpu")
    create_job(composed, tmp_path, tmp_path).write(tmp_path / "job.json")
    script = ROOT / "tests" / "helpers" / "samples" / "flops.py"
    command = [environment.python, "-I", script, tmp_path / "job.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert roofline.testing_work(composed.network, 4).flops == pytest.approx(counted["test"])
    assert roofline.training_work(composed.network, composed.training).flops == pytest.approx(counted["train"])


@pytest.fixture
def script(cache_folders: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Script that takes the place of ``worker/peak.py``. The cache directory is empty."""
    path = tmp_path / "peak.py"
    monkeypatch.setattr(peak, "SCRIPT", path)
    set_measurement(path)
    return path


def set_measurement(script: Path, *, product: float = 100.0, convolution: float = 200.0, copy: float = 20.0) -> None:
    values = {"library": "numpy", "gflops": {"product": product, "convolution": convolution}, "gb_per_s": copy}
    script.write_text(f"print({json.dumps(json.dumps(values))})")


def set_warnings(monkeypatch: pytest.MonkeyPatch, *warnings: str) -> None:
    monkeypatch.setattr(interference, "warnings", lambda metrics: list(warnings))


def test_doubtful_peak_is_measured_again_and_the_best_values_count(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_warnings(monkeypatch, "other processes used the CPU")
    first = peak.get_or_measure(CPU, 1)
    assert first is not None
    assert first.doubtful
    assert first.text == (
        "cpu, 1 thread: product 100, convolution 200 GFLOP/s; copy 20.0 GB/s"
        " (numpy; the machine may be faster, so the next run measures again)"
    )
    set_warnings(monkeypatch)
    set_measurement(script, product=110.0, convolution=190.0, copy=30.0)
    second = peak.get_or_measure(CPU, 1)
    assert second is not None
    assert not second.doubtful
    assert second.gflops == {"product": 110.0, "convolution": 200.0}
    assert second.gb_per_s == 30.0
    assert second.measurements == 2
    script.unlink()  # a third measurement would fail
    assert peak.get_or_measure(CPU, 1) == second


def test_peak_of_a_busy_machine_is_used_after_five_measurements(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_warnings(monkeypatch, "other processes used the CPU")
    peaks = [peak.get_or_measure(CPU, 1) for _ in range(peak.MAX_MEASUREMENTS + 2)]
    assert [each.measurements for each in peaks if each is not None] == [1, 2, 3, 4, 5, 5, 5]


def test_unreadable_peak_is_measured_again(script: Path) -> None:
    peak.get_or_measure(CPU, 1)
    (record,) = (cache_dir() / "peaks").glob("*.json")
    stored = json.loads(record.read_text())
    other_types = [stored | change for change in ({"gflops": None}, {"gflops": {"a": "b"}}, {"gb_per_s": -1.0})]
    for damaged in ("", "{", "[]", '{"machine": "of another version"}', *map(json.dumps, other_types)):
        record.write_text(damaged)
        assert peak.load("cpu", 1) is None
        assert peak.get_or_measure(CPU, 1) is not None


def test_peak_that_cannot_be_measured_is_reported(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.write_text("raise SystemExit(1)")
    assert peak.get_or_measure(CPU, 1) is None
    assert capsys.readouterr().err.startswith("gtdl: the machine's peak could not be measured (")


def test_numpy_does_not_measure_a_gpu(script: Path) -> None:
    assert peak.measure(replace(CPU, device="gpu"), 1) is None


def test_nothing_is_measured_beside_other_runs(script: Path) -> None:
    assert peak.get_or_measure(replace(CPU, cores=[0], side_by_side=True), 1) is None


@pytest.mark.slow
def test_this_machine_is_measured(cache_folders: None) -> None:
    measured = peak.measure(CPU, 1)
    assert measured is not None
    assert measured.library.startswith("numpy")  # this cache directory has no environment of torch
    assert measured.flops_per_s > 1e9
    assert measured.gb_per_s > 0.5


@pytest.mark.slow
def test_run_records_its_share_of_the_peak_a_table_and_a_chart(gtdl: Command, store: str, tmp_path: Path) -> None:
    done = gtdl("framework=reference", "training.epochs=1")
    assert done.returncode == 0, done.stderr
    client = MlflowClient(store)
    (run,) = runs(store)
    metrics = run.data.metrics
    assert metrics["test/gflops"] == pytest.approx(metrics["test/images_per_s"] * 15680 / 1e9)
    assert 0 < metrics["test/peak_share_percent"] < 100
    table = Path(client.download_artifacts(run.info.run_id, "roofline.csv", str(tmp_path))).read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert [(row["layer"], row["flops_per_image"]) for row in rows] == [("dense", "15680")]
    assert float(rows[0]["flops_per_byte"]) == pytest.approx(15680 / (4 * (784 + 10 + 7850 / 50)), rel=0.01)
    assert rows[0]["limit"] in ("computing", "memory")
    chart = Path(client.download_artifacts(run.info.run_id, "roofline.svg", str(tmp_path))).read_text()
    share = metrics["test/peak_share_percent"]
    assert f"testing: {f'{share:.0f}' if share >= 10 else f'{share:.2g}'} % of the peak" in chart


@pytest.mark.slow
@pytest.mark.frameworks
def test_run_in_bfloat16_has_no_share_of_the_peak_of_float32(gtdl: Command, store: str) -> None:
    need_framework("torch")
    done = gtdl("framework=torch", "precision=bfloat16", "mode=default", "budget=0.001", "latency.repeats=0")
    assert done.returncode == 0, done.stderr
    assert "measured peak" not in done.stderr
    (run,) = runs(store)
    assert run.data.metrics["train/gflops"] > 0
    assert not [name for name in run.data.metrics if name.endswith("peak_share_percent")]


@pytest.mark.slow
def test_peak_that_a_run_exceeds_is_measured_again(
    gtdl: Command, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    run = "framework=reference", "training.epochs=1"
    assert gtdl(*run).returncode == 0
    (record,) = (cache_dir() / "peaks").glob("*.json")
    values = json.loads(record.read_text())
    low = {"gflops": dict.fromkeys(values["gflops"], 1e-3), "doubtful": False, "measurements": 1}
    record.write_text(json.dumps({**values, **low}))
    done = gtdl(*run)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d{3,} % of the machine's measured peak.*so the next run measures again", done.stderr)
    done = gtdl(*run)
    assert done.returncode == 0, done.stderr
    assert "of the machine's measured peak" not in done.stderr
    assert peak.Peak(**json.loads(record.read_text())).flops_per_s > 1e9
    shares = [each.data.metrics["test/peak_share_percent"] for each in runs(store)]
    assert sorted(share < 100 for share in shares) == [False, True, True]


@pytest.mark.parametrize(("share", "text"), [(0.157, "0.16"), (4.26, "4.3"), (42.6, "43"), (100.0, "100")])
def test_small_share_is_not_rounded_to_zero(tmp_path: Path, share: float, text: str) -> None:
    values = {"flops_per_byte": 8.0, "gflops": 80.0, "peak_share_percent": share}
    results = {f"{phase}/{name}": value for phase in ("train", "test") for name, value in values.items()}
    charts.roofline(results, PEAK, tmp_path / "roofline.svg")
    assert f"training: {text} % of the peak" in (tmp_path / "roofline.svg").read_text()


@pytest.mark.slow
def test_gtdl_machine_prints_the_peak(cache_folders: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["machine", "hardware.threads=1"]) == 0
    output = capsys.readouterr().out
    assert "cores" in output.splitlines()[0]
    assert "cpu, 1 thread: matrix product of 1024" in output
    assert "GB/s" in output
    assert cli.main(["machine", "hardware=no_such"]) == 2
