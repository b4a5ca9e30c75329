"""What a user finds in MLflow after a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from socket import socket
from typing import Any
from xml.etree import ElementTree

import mlflow
import numpy as np
import pytest
import yaml
from helpers.project import ROOT, Command
from mlflow.entities import Metric, Run

from gtdl_mlflow import charts, config, datasets
from gtdl_mlflow.environments import Environment
from gtdl_mlflow.tracking import outbox, quality, recorder
from gtdl_mlflow.worker import events
from gtdl_mlflow.worker.events import Metadata, Metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, mlflow.MlflowClient]:
    """One real run, on the command line."""
    folder = tmp_path_factory.mktemp("finished")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    arguments = ["framework=reference", "training.epochs=4", "budget=0.5", "seed=3", "framework.version=7"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow", *arguments],
        cwd=folder,
        env={
            **kept,
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "GTDL_LOCKS": str(folder / "locks"),  # it is here before a test's own environment is
        },
        check=True,
        capture_output=True,
    )
    experiment = client.get_experiment_by_name("gtdl")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run, client


Finished = tuple[Run, mlflow.MlflowClient]


def test_the_three_headline_figures_are_there(finished: Finished) -> None:
    metrics = finished[0].data.metrics
    assert metrics["training_time_s"] > 0
    assert metrics["testing_time_s"] > 0
    assert 80 < metrics["accuracy_percent"] < 95
    for detail in ("train/images_per_s", "train/evaluation_s", "test/loss", "setup/import_s", "setup/data_s",
                   "setup/build_s", "worker/wall_s", "wall_time_s", "system/cpu_utilization_percentage"):  # fmt: skip
        assert detail in metrics


def test_tags_and_params_say_what_ran(finished: Finished) -> None:
    run, _ = finished
    tags, params = run.data.tags, run.data.params
    expected = {
        "gtdl.framework": "reference", "gtdl.framework_version": np.__version__, "gtdl.dataset": "mnist_5k",
        "gtdl.model": "reference_mnist", "gtdl.training": "reference_mnist", "gtdl.device": "cpu", "gtdl.seed": "3",
        "gtdl.budget": "0.5", "gtdl.tuning": "best", "gtdl.quality": "ok",
    }  # fmt: skip
    assert {key: tags[key] for key in expected} == expected
    assert len(tags["gtdl.config_hash"]) == 16
    assert "cores" in tags["gtdl.machine"]
    assert "budget of 0.5" in tags["mlflow.note.content"]
    asked = {"framework": "reference", "dataset": "mnist_5k", "model": "reference_mnist", "seed": "3", "budget": "0.5",
             "training.batch_size": "50", "framework.version": "7", "worker.parameters": "7850"}  # fmt: skip
    assert {key: params[key] for key in asked} == asked


def test_curves_have_a_point_an_epoch(finished: Finished) -> None:
    run, client = finished
    # Half of four epochs of 4,000 images in batches of 50: two epochs, the last one's end left to testing.
    accuracy = client.get_metric_history(run.info.run_id, "eval/accuracy_percent")
    assert [point.step for point in accuracy] == [80]
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in losses] == [80, 160]
    assert losses[1].value < losses[0].value


def test_the_data_set_is_an_input_with_its_digest(finished: Finished) -> None:
    run, _ = finished
    (data,) = run.inputs.dataset_inputs
    digest = datasets.prepare(config.compose([]).dataset).digest
    assert data.dataset.name == "mnist_5k"
    assert digest.startswith(data.dataset.digest)
    assert len(data.dataset.digest) == 36
    assert run.data.tags["gtdl.data_digest"] == digest


def test_artifacts_are_enough_to_repeat_the_run(finished: Finished, tmp_path: Path) -> None:
    run, client = finished
    there = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert there == {
        "config.yaml", "confusion_matrix.csv", "confusion_matrix.svg", "contact_sheet.png", "environment.txt",
        "events.jsonl", "job.json", "learning_curve.svg", "mlperf.log", "model", "roofline.csv", "roofline.svg",
        "worker.log",
    }  # fmt: skip
    kept = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert yaml.safe_load((kept / "config.yaml").read_text())["seed"] == 3
    assert any(line.startswith("numpy==") for line in (kept / "environment.txt").read_text().splitlines())
    assert json.loads((kept / "events.jsonl").read_text().splitlines()[-1]) == {"event": "finished"}


def test_pictures_show_the_curve_and_the_confusion(finished: Finished, tmp_path: Path) -> None:
    run, client = finished
    for name, words, marks in (
        ("learning_curve.svg", "training time, s", 2),
        ("confusion_matrix.svg", "predicted class", 100),
    ):
        picture = Path(client.download_artifacts(run.info.run_id, name, str(tmp_path))).read_text()
        assert ElementTree.fromstring(picture).tag.endswith("svg")
        assert words in picture
        assert picture.count("graphics-symbol") >= marks
    table = Path(client.download_artifacts(run.info.run_id, "confusion_matrix.csv", str(tmp_path)))
    counts = np.loadtxt(table, delimiter=",", skiprows=1)[:, 1:]
    _, labels = test_set()
    assert counts.sum(axis=1).tolist() == np.bincount(labels).tolist()
    assert 100 * counts.trace() / counts.sum() == pytest.approx(run.data.metrics["accuracy_percent"])


def test_the_log_in_mlperfs_format_tells_the_run(finished: Finished, tmp_path: Path) -> None:
    run, client = finished
    lines = Path(client.download_artifacts(run.info.run_id, "mlperf.log", str(tmp_path))).read_text().splitlines()
    assert all(line.startswith(":::MLLOG {") for line in lines)
    entries = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]
    assert [entry["time_ms"] for entry in entries] == sorted(entry["time_ms"] for entry in entries)
    by_key = {entry["key"]: entry for entry in entries}
    assert by_key["seed"]["value"] == 3
    assert by_key["global_batch_size"]["value"] == 50
    assert by_key["train_samples"]["value"] == 4000
    assert by_key["run_stop"]["metadata"]["status"] == "success"
    assert by_key["run_start"]["event_type"] == "INTERVAL_START"
    took_s = (by_key["run_stop"]["time_ms"] - by_key["run_start"]["time_ms"]) / 1000
    metrics = run.data.metrics
    assert took_s == pytest.approx(metrics["training_time_s"] + metrics["train/evaluation_s"], abs=0.005)
    accuracies = [entry["value"] for entry in entries if entry["key"] == "eval_accuracy"]
    assert len(accuracies) == 2
    assert accuracies[-1] == pytest.approx(metrics["accuracy_percent"] / 100)


def test_a_quick_look_at_part_of_the_data_says_so(store: str, gtdl: Command) -> None:
    done = gtdl("framework=reference", "training.epochs=1", "dataset.train_limit=500", "dataset.test_limit=100")
    assert done.returncode == 0, done.stderr
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.tags["gtdl.train_limit"] == "500"
    assert run.data.tags["gtdl.test_limit"] == "100"
    assert run.data.params["worker.train_images"] == "500"


def test_the_logged_model_classifies_the_test_set_as_the_run_did(finished: Finished, tmp_path: Path) -> None:
    run, client = finished
    folder = client.download_artifacts(run.info.run_id, "model", str(tmp_path))
    # In another process, and from the model's own copy of the code: no checkout on its path.
    images, labels = test_set()
    np.savez(tmp_path / "images.npz", images=images)
    code = (
        "import sys, mlflow.pyfunc, numpy as np\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "np.save(sys.argv[2], model.predict(np.load(sys.argv[3])['images']))"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", code, folder, tmp_path / "out.npy", tmp_path / "images.npz"],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    probabilities = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert 100 * (probabilities.argmax(axis=1) == labels).mean() == run.data.metrics["accuracy_percent"]


def test_set() -> tuple[np.ndarray, np.ndarray]:
    folder = datasets.prepare(config.compose([]).dataset).folder
    return np.load(folder / "test_images.npy"), np.load(folder / "test_labels.npy")


test_set.__test__ = False  # type: ignore[attr-defined]


def test_same_seed_same_weights_other_seed_other_weights(gtdl: Command, store: str) -> None:
    for seed in (1, 1, 2):
        assert gtdl("framework=reference", "training.epochs=1", f"seed={seed}").returncode == 0
    runs: Any = mlflow.search_runs(experiment_names=["gtdl"], output_format="list", order_by=["start_time ASC"])
    first, again, other = (run.data.tags["gtdl.weights_sha256"] for run in runs)
    assert first == again != other


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real ``mlflow server``."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}",
               "--artifacts-destination", str(tmp_path / "artifacts")]  # fmt: skip
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def test_a_server_gets_the_same_run(gtdl: Command, server: str) -> None:
    done = gtdl("framework=reference", "training.epochs=1", "tracking=server", f"tracking.uri={server}")
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name("gtdl")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert f"{server}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}" in done.stdout
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy_percent"] > 80
    assert "model" in {item.path for item in client.list_artifacts(run.info.run_id)}


def test_the_tracker_is_left_alone_while_a_worker_runs(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every call of the client is written down; none may fall between the worker's start and its end.
    composed = config.compose(["framework=reference"])
    calls: list[str] = []
    client = mlflow.MlflowClient(store)

    class Watched:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(client, name)

    monkeypatch.setattr(outbox, "MlflowClient", lambda uri: Watched())
    run = recorder.Recorder(composed, tmp_path)
    with run:
        environment = Environment("reference", "1", "cpu", None, Path("python"), "3.11.7", [], [], "key")
        run.uses(environment, datasets.prepare(composed.dataset))
        run.starts(os.getpid())
        before = list(calls)
        assert before
        run.add(Metadata({"framework_version": "1", "device": "cpu", "numpy": "2"}))
        for step in range(100):
            run.add(Metrics({"train/loss": 1.0 - step / 100}, step))
        time.sleep(1.5)  # the sampler takes a sample meanwhile
        assert calls == before
        run.add(Metrics({"accuracy_percent": 90, "training_time_s": 1, "testing_time_s": 1}))
    assert len(client.get_metric_history(run.record.run_id, "train/loss")) == 100
    assert len(client.get_metric_history(run.record.run_id, "system/cpu_utilization_percentage")) >= 2


def test_a_run_tells_nobody_but_its_tracker(store: str, gtdl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)  # where MLflow finds one it has no telemetry anyway
    with socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        proxy.setblocking(False)
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert gtdl("framework=reference", "training.epochs=1").returncode == 0
        with pytest.raises(BlockingIOError):  # none has connected
            proxy.accept()


def test_a_picture_that_cannot_be_drawn_costs_no_run(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no font")

    monkeypatch.setattr(charts, "learning_curve", broken)
    with recorder.Recorder(config.compose(["framework=reference"]), tmp_path) as run:
        run.add(Metrics({"accuracy_percent": 90, "training_time_s": 1, "testing_time_s": 1}))
        run.add(events.Finished())
    told = mlflow.MlflowClient(store).get_run(run.record.run_id)
    assert told.info.status == "FINISHED"
    assert told.data.metrics["accuracy_percent"] == 90
    assert "gtdl: the run's pictures cannot be drawn: no font" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "accuracy", "verdict"),
    [
        ([2.0, 1.0], 50, "ok"),
        ([2.0, float("nan")], 50, "the loss is not finite"),
        ([1.0, 2.0], 50, "the loss does not fall"),
        ([2.0, 1.0], 10, "the accuracy is no better than chance"),
    ],
)
def test_a_run_that_did_not_learn_says_so(losses: list[float], accuracy: float, verdict: str) -> None:
    metrics = [Metric("train/loss", loss, 0, step) for step, loss in enumerate(losses)]
    assert quality.quality([*metrics, Metric("accuracy_percent", accuracy, 0, 0)], 10) == verdict


def test_no_password_of_an_address_is_repeated() -> None:
    assert recorder.redacted("postgresql://me:secret@db/x and http://t@h") == "postgresql://db/x and http://h"
