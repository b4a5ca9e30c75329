"""Operations and bytes of a network, and the machine's peak that they are held against."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.project import ROOT, Command, runs
from mlflow import MlflowClient

from gtdl_mlflow import charts, config, environments
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.files import cache_dir
from gtdl_mlflow.hardware import peak, roofline
from gtdl_mlflow.worker.job import Optimizer, Training
from gtdl_mlflow.worker.network import build

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


def test_a_layer_computes_what_it_multiplies_and_moves_what_goes_through_it() -> None:
    conv, relu, dense = roofline.layer_work(small(), 10)
    # 3 maps of 4 x 4, each a sum of 2 x 3 x 3 products; 2 x 6 x 6 in, 48 out, 57 parameters for ten images.
    assert (conv.work.flops, conv.work.bytes) == (2 * 48 * 18, 4 * (72 + 48 + 5.7))
    assert (relu.work.flops, relu.work.bytes) == (0, 4 * 96)
    assert (dense.work.flops, dense.work.bytes) == (2 * 48 * 10, 4 * (48 + 10 + 49))


def test_training_does_without_the_gradient_of_the_images() -> None:
    plain = roofline.training_work(small(), training())
    assert plain.flops == 2 * (2 * 48 * 18) + 3 * (2 * 48 * 10)
    values, parameters = 4 * (72 + 48 + 96 + 58), 4 * (57 + 490) / 10
    assert plain.bytes == pytest.approx(3 * values + 6 * parameters)
    adam = roofline.training_work(small(), training(optimizer=Optimizer.adam))
    assert adam.bytes - plain.bytes == pytest.approx(4 * parameters)


def test_the_share_is_of_the_fastest_kernel() -> None:
    speeds = {"train/steady_state_images_per_s": 1e6, "test/images_per_s": 2e6}
    found = roofline.peak_shares(speeds, small(), training(), PEAK)
    assert found["train/gflops"] == pytest.approx(6336 * 1e6 / 1e9)
    assert found["train/peak_share_percent"] == pytest.approx(100 * 6.336 / 200)
    assert found["test/peak_share_percent"] == pytest.approx(100 * 5.376 / 200)
    assert "train/peak_share_percent" not in roofline.peak_shares(speeds, small(), training(), None)


DEFAULTS = [f"{framework}_{kind}" for framework in ("caffe", "mxnet", "tensorflow", "theano", "torch")
            for kind in ("mnist", "cifar10")]  # fmt: skip


@pytest.mark.parametrize("setting", DEFAULTS)
def test_operations_are_those_that_torch_counts(setting: str, tmp_path: Path) -> None:
    dataset = "cifar10" if setting.endswith("cifar10") else "mnist_5k"
    more = {
        "mxnet_cifar10": ["model.depth=14"],
        # torch's masked convolutions compute what is not connected too.
        "torch_cifar10": ["model.layers.conv1.connections=null", "model.layers.conv2.connections=null"],
    }
    composed = config.compose(["framework=torch", f"setting={setting}", f"dataset={dataset}", "hardware.threads=1",
                               "training.batch_size=4", *more.get(setting, [])])  # fmt: skip
    environment = environments.ensure(composed.framework, "cpu")
    create_job(composed, tmp_path, tmp_path).write(tmp_path / "job.json")
    done = subprocess.run([environment.python, "-I", ROOT / "tests" / "helpers" / "samples" / "flops.py", tmp_path / "job.json"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert roofline.testing_work(composed.network, 4).flops == pytest.approx(counted["test"])
    assert roofline.training_work(composed.network, composed.training).flops == pytest.approx(counted["train"])


def test_a_machine_is_measured_once_and_a_disturbed_measurement_again(
    cache_folders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = config.compose(["framework=reference"]).hardware
    monkeypatch.setattr(peak.noise, "flags", lambda figures: ["somebody else"])
    first = peak.get_or_measure(hardware, 1)
    assert first is not None
    assert first.disturbed
    assert first.library.startswith("numpy")  # there is no torch in this GTDL_HOME
    assert first.flops_per_s > 1e9
    assert first.gb_per_s > 0.5
    monkeypatch.setattr(peak.noise, "flags", lambda figures: [])
    second = peak.get_or_measure(hardware, 1)
    assert second is not None
    assert not second.disturbed
    assert second.flops_per_s >= first.flops_per_s  # the better one is kept
    assert peak.get_or_measure(hardware, 1) == second
    assert second.tries == 2


def test_a_machine_that_is_never_quiet_is_taken_as_it_is(cache_folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = config.compose(["framework=reference"]).hardware
    monkeypatch.setattr(peak.noise, "flags", lambda figures: ["somebody else"])
    found = [peak.get_or_measure(hardware, 1) for _ in range(peak.TRIES + 2)]
    assert [each.tries for each in found if each is not None] == [1, 2, 3, 4, 5, 5, 5]


def test_a_record_that_cannot_be_read_is_made_anew(cache_folders: None) -> None:
    hardware = config.compose(["framework=reference"]).hardware
    peak.get_or_measure(hardware, 1)
    (record,) = (cache_dir() / "peaks").glob("*.json")
    for damaged in ("{", '{"machine": "of another version"}'):
        record.write_text(damaged)
        assert peak.load("cpu", 1) is None
        assert peak.get_or_measure(hardware, 1) is not None


def test_the_processor_does_not_stand_in_for_a_gpu(cache_folders: None) -> None:
    hardware = replace(config.compose(["framework=reference"]).hardware, device="gpu")
    assert peak.measure(hardware, 1) is None


def test_beside_other_runs_nothing_is_measured(cache_folders: None) -> None:
    hardware = config.compose(["framework=reference", "hardware.cores=[0]", "hardware.side_by_side=true"]).hardware
    assert peak.get_or_measure(hardware, 1) is None


def test_a_run_has_its_share_a_table_and_a_picture(gtdl: Command, store: str, tmp_path: Path) -> None:
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
    picture = Path(client.download_artifacts(run.info.run_id, "roofline.svg", str(tmp_path))).read_text()
    share = metrics["test/peak_share_percent"]
    assert f"testing: {f'{share:.0f}' if share >= 10 else f'{share:.2g}'} % of the peak" in picture


def test_a_peak_that_a_run_exceeds_is_measured_again(
    gtdl: Command, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    run = "framework=reference", "training.epochs=1"
    assert gtdl(*run).returncode == 0
    (record,) = (cache_dir() / "peaks").glob("*.json")
    kept = json.loads(record.read_text())
    record.write_text(
        json.dumps({**kept, "gflops": dict.fromkeys(kept["gflops"], 1e-3), "disturbed": False, "tries": 1})
    )
    done = gtdl(*run)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d{3,} % of the machine's peak: .*so the next run measures again", done.stderr)
    done = gtdl(*run)
    assert done.returncode == 0, done.stderr
    assert "of the machine's peak" not in done.stderr
    assert peak.Peak(**json.loads(record.read_text())).flops_per_s > 1e9
    shares = [each.data.metrics["test/peak_share_percent"] for each in runs(store)]
    assert sorted(share < 100 for share in shares) == [False, True, True]


@pytest.mark.parametrize(("share", "text"), [(0.157, "0.16"), (4.26, "4.3"), (42.6, "43"), (100.0, "100")])
def test_a_small_share_is_not_rounded_to_none(tmp_path: Path, share: float, text: str) -> None:
    figures = {"flops_per_byte": 8.0, "gflops": 80.0, "peak_share_percent": share}
    results = {f"{phase}/{name}": value for phase in ("train", "test") for name, value in figures.items()}
    charts.roofline(results, PEAK, tmp_path / "roofline.svg")
    assert f"training: {text} % of the peak" in (tmp_path / "roofline.svg").read_text()


def test_gtdl_machine_says_what_this_one_can_do(gtdl: Command, capsys: pytest.CaptureFixture[str]) -> None:
    from gtdl_mlflow import cli

    assert cli.main(["machine", "hardware.threads=1"]) == 0
    said = capsys.readouterr().out
    assert "cores" in said.splitlines()[0]
    assert "cpu, 1 thread: matrix product of 1024" in said
    assert "GB/s" in said
    assert cli.main(["machine", "hardware=no_such"]) == 2
