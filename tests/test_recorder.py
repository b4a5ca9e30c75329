"""The recorder of a run: metrics, params, tags, artifacts and model in MLflow."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from socket import socket
from typing import Any
from xml.etree import ElementTree

import mlflow
import numpy as np
import pytest
import yaml
from helpers.project import Command, logged_model, runs, start, wait_until
from helpers.servers import mlflow_server
from mlflow.entities import Run

from gtdl_mlflow import charts, config, datasets, runner
from gtdl_mlflow.environments import Environment
from gtdl_mlflow.hardware import device_lock
from gtdl_mlflow.tracking import delivery, outbox, recorder
from gtdl_mlflow.worker.events import Finished, Metadata, Metrics
from gtdl_mlflow.worker_process import WorkerFailed, WorkerProcess


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, mlflow.MlflowClient]:
    """One real run of the command line, and a client of its store."""
    folder = tmp_path_factory.mktemp("finished")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    arguments = ["framework=reference", "training.epochs=4", "budget=0.5", "seed=3", "framework.version=7"]
    process = start(*arguments, cwd=folder, env={"MLFLOW_TRACKING_URI": uri})
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    (run,) = runs(uri)
    return run, mlflow.MlflowClient(uri)


FinishedRun = tuple[Run, mlflow.MlflowClient]


@pytest.mark.slow
def test_a_run_has_the_headline_metrics_and_details(finished: FinishedRun) -> None:
    metrics = finished[0].data.metrics
    assert metrics["training_time_s"] > 0
    assert metrics["testing_time_s"] > 0
    assert 80 < metrics["accuracy_percent"] < 95
    details = {
        "train/images_per_s",
        "train/evaluation_s",
        "test/loss",
        "setup/import_s",
        "setup/verify_data_s",
        "setup/data_s",
        "setup/build_s",
        "worker/wall_s",
        "wall_time_s",
        "system/cpu_utilization_percentage",
    }
    assert metrics.keys() >= details


@pytest.mark.slow
def test_tags_and_params_describe_the_run(finished: FinishedRun) -> None:
    run, _ = finished
    tags, params = run.data.tags, run.data.params
    expected = {
        "gtdl.framework": "reference", "gtdl.framework_version": np.__version__, "gtdl.dataset": "mnist_5k",
        "gtdl.model": "reference_mnist", "gtdl.training": "reference_mnist", "gtdl.device": "cpu", "gtdl.seed": "3",
        "gtdl.budget": "0.5", "gtdl.mode_requested": "best", "gtdl.quality": "ok",
    }  # fmt: skip
    assert {key: tags[key] for key in expected} == expected
    assert len(tags["gtdl.config_hash"]) == 16
    assert "cores" in tags["gtdl.machine"]
    note = tags["mlflow.note.content"]
    assert "budget of 0.5" in note
    assert f"| training | {run.data.metrics['training_time_s']:.3f} |" in note
    seconds = [float(line.split("|")[2]) for line in note.splitlines() if line.endswith("% |")]
    assert sum(seconds) == pytest.approx(run.data.metrics["worker/wall_s"], abs=0.02)
    requested = {
        "framework": "reference", "dataset": "mnist_5k", "model": "reference_mnist", "seed": "3", "budget": "0.5",
        "training.batch_size": "50", "framework.version": "7", "worker.parameters": "7850",
    }  # fmt: skip
    assert {key: params[key] for key in requested} == requested
    assert params["machine.kernel"] == re.match(r"[\d.]+", platform.release())[0]  # type: ignore[index]
    assert params["machine.distribution"] == platform.freedesktop_os_release()["PRETTY_NAME"]
    assert params["machine.glibc"] == platform.libc_ver()[1]
    assert params["machine.huge_pages"] in ("always", "madvise", "never", "")


@pytest.mark.slow
def test_curves_have_one_point_per_epoch(finished: FinishedRun) -> None:
    run, client = finished
    # Half of four epochs of 4,000 images in batches of 50: two epochs. The end is tested, not evaluated.
    accuracy = client.get_metric_history(run.info.run_id, "eval/accuracy_percent")
    assert [point.step for point in accuracy] == [80]
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in losses] == [80, 160]
    assert losses[1].value < losses[0].value


@pytest.mark.slow
def test_the_data_set_is_an_input_with_its_digest(finished: FinishedRun) -> None:
    run, _ = finished
    (data,) = run.inputs.dataset_inputs
    digest = datasets.prepare(config.compose([]).dataset).digest
    assert data.dataset.name == "mnist_5k"
    assert digest.startswith(data.dataset.digest)
    assert len(data.dataset.digest) == 36
    assert run.data.tags["gtdl.data_digest"] == digest


@pytest.mark.slow
def test_a_run_has_these_artifacts(finished: FinishedRun, tmp_path: Path) -> None:
    run, client = finished
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {
        "config.yaml", "confusion_matrix.csv", "confusion_matrix.svg", "contact_sheet.png", "environment.txt",
        "events.jsonl", "job.json", "learning_curve.svg", "mlperf.log", "roofline.csv", "roofline.svg", "worker.log",
    }  # fmt: skip
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 3
    assert any(line.startswith("numpy==") for line in (folder / "environment.txt").read_text().splitlines())
    assert json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["event"] == "finished"


@pytest.mark.slow
def test_charts_show_the_learning_curve_and_the_confusion_matrix(finished: FinishedRun, tmp_path: Path) -> None:
    run, client = finished
    for name, label, marks in (
        ("learning_curve.svg", "training time, s", 2),
        ("confusion_matrix.svg", "predicted class", 100),
    ):
        svg = Path(client.download_artifacts(run.info.run_id, name, str(tmp_path))).read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert label in svg
        assert svg.count("graphics-symbol") >= marks
    table = Path(client.download_artifacts(run.info.run_id, "confusion_matrix.csv", str(tmp_path)))
    counts = np.loadtxt(table, delimiter=",", skiprows=1)[:, 1:]
    _, labels = test_set()
    assert counts.sum(axis=1).tolist() == np.bincount(labels).tolist()
    assert 100 * counts.trace() / counts.sum() == pytest.approx(run.data.metrics["accuracy_percent"])


@pytest.mark.slow
def test_the_mlperf_log_describes_the_run(finished: FinishedRun, tmp_path: Path) -> None:
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
    metrics = run.data.metrics
    run_s = (by_key["run_stop"]["time_ms"] - by_key["run_start"]["time_ms"]) / 1000
    assert run_s == pytest.approx(metrics["training_time_s"] + metrics["train/evaluation_s"], abs=0.005)
    init_s = (by_key["init_stop"]["time_ms"] - by_key["init_start"]["time_ms"]) / 1000
    setup_s = sum(value for name, value in metrics.items() if name.startswith("setup/"))
    assert init_s == pytest.approx(setup_s, abs=0.005)
    accuracies = [entry["value"] for entry in entries if entry["key"] == "eval_accuracy"]
    assert len(accuracies) == 2
    assert accuracies[-1] == pytest.approx(metrics["accuracy_percent"] / 100)


@pytest.mark.slow
def test_limits_of_the_data_set_are_tags(store: str, gtdl: Command) -> None:
    done = gtdl("framework=reference", "training.epochs=1", "dataset.train_limit=500", "dataset.test_limit=100")
    assert done.returncode == 0, done.stderr
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.tags["gtdl.train_limit"] == "500"
    assert run.data.tags["gtdl.test_limit"] == "100"
    assert run.data.params["worker.train_images"] == "500"


@pytest.mark.slow
def test_a_search_finds_the_model_with_its_run_its_results_and_its_data(finished: FinishedRun) -> None:
    run, client = finished
    condition = "name = 'reference-reference_mnist' AND metrics.accuracy_percent > 80"
    (model,) = client.search_logged_models([run.info.experiment_id], condition)
    assert model.model_id == logged_model(client, run).model_id
    assert {metric.key: metric.value for metric in model.metrics} == {
        name: run.data.metrics[name] for name in ("training_time_s", "testing_time_s", "accuracy_percent")
    }
    (data,) = run.inputs.dataset_inputs
    assert {(each.dataset_name, each.dataset_digest) for each in model.metrics} == {
        (data.dataset.name, data.dataset.digest)
    }
    assert model.params["framework"] == "reference"
    assert model.params["seed"] == "3"


@pytest.mark.slow
def test_the_logged_model_classifies_the_test_set_as_the_run_did(finished: FinishedRun, tmp_path: Path) -> None:
    run, client = finished
    folder = mlflow.artifacts.download_artifacts(
        artifact_uri=logged_model(client, run).artifact_location, dst_path=str(tmp_path / "model")
    )
    # -I: the model's own copy of the code is imported, not this checkout.
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
        timeout=300,
    )
    probabilities = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert 100 * (probabilities.argmax(axis=1) == labels).mean() == run.data.metrics["accuracy_percent"]


def test_set() -> tuple[np.ndarray, np.ndarray]:
    folder = datasets.prepare(config.compose([]).dataset).folder
    return np.load(folder / "test_images.npy"), np.load(folder / "test_labels.npy")


test_set.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_seed_decides_the_weights(gtdl: Command, store: str) -> None:
    for seed in (1, 1, 2):
        assert gtdl("framework=reference", "training.epochs=1", f"seed={seed}").returncode == 0
    first, again, other = (run.data.tags["gtdl.weights_sha256"] for run in reversed(runs(store)))
    assert first == again != other


@pytest.mark.slow
@pytest.mark.server
def test_a_run_is_recorded_on_a_server(gtdl: Command, tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as server:
        done = gtdl("framework=reference", "training.epochs=1", "tracking=server", f"tracking.uri={server.uri}")
        assert done.returncode == 0, done.stderr
        (run,) = runs(server.uri)
        assert f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in done.stdout
        assert run.info.status == "FINISHED"
        assert run.data.metrics["accuracy_percent"] > 80
        client = mlflow.MlflowClient(server.uri)
        files = client.list_logged_model_artifacts(logged_model(client, run).model_id)
        assert "MLmodel" in {item.path for item in files}


@pytest.mark.slow
def test_the_tracker_receives_no_request_while_a_worker_runs(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = config.compose(["framework=reference"])
    calls: list[str] = []
    client = mlflow.MlflowClient(store)

    class Watched:
        """The client, with a list of its calls."""

        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(client, name)

    monkeypatch.setattr("gtdl_mlflow.tracking.store.MlflowClient", lambda uri: Watched())
    run = recorder.Recorder(composed, tmp_path)
    with run, run.measuring(0.0):
        environment = Environment("reference", "1", "cpu", None, Path("python"), "3.11.7", [], [], "key")
        run.record_inputs(environment, datasets.prepare(composed.dataset))
        run.start_monitoring(os.getpid())
        before = list(calls)
        assert before
        run.add(Metadata({"framework_version": "1", "device": "cpu", "numpy": "2"}))
        for step in range(100):
            run.add(Metrics({"train/loss": 1.0 - step / 100}, step))
        time.sleep(1.5)  # longer than the sampler's interval
        assert calls == before
        run.add(Metrics({"accuracy_percent": 90, "training_time_s": 1, "testing_time_s": 1}))
    assert len(client.get_metric_history(run.record.run_id, "train/loss")) == 100
    assert len(client.get_metric_history(run.record.run_id, "system/cpu_utilization_percentage")) >= 2


@pytest.mark.slow
def test_a_run_connects_to_nothing_but_its_tracker(store: str, gtdl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)  # each of them switches MLflow's telemetry off
    with socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        proxy.setblocking(False)
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert gtdl("framework=reference", "training.epochs=1").returncode == 0
        with pytest.raises(BlockingIOError):  # no connection is waiting
            proxy.accept()


@pytest.mark.slow
def test_a_run_is_complete_in_mlflow_before_it_takes_its_device(store: str, tmp_path: Path) -> None:
    composed = config.compose(["framework=reference"])
    client = mlflow.MlflowClient(store)
    with device_lock.hold(composed.hardware):
        process = start("framework=reference", "training.epochs=1", "seed=5")
        wait_until(lambda: runs(store) and client.list_artifacts(runs(store)[0].info.run_id), "the run exists", process)
        (waiting,) = runs(store)
        assert waiting.info.status == "RUNNING"
        assert [item.path for item in client.list_artifacts(waiting.info.run_id)] == ["config.yaml"]
        assert process.stderr is not None
        assert "waiting: another gtdl run" in process.stderr.readline()
        time.sleep(1.5)
        assert process.poll() is None
        assert not list(tmp_path.rglob("job.json"))
    process.communicate(timeout=120)
    assert process.returncode == 0
    (run,) = runs(store)
    reported = {key for key in run.data.params if key.startswith("worker.")}
    assert waiting.data.params.keys() == run.data.params.keys() - reported
    assert any(key.startswith("machine.") for key in waiting.data.params)
    assert {"gtdl.seed", "gtdl.cell", "gtdl.config_hash", "gtdl.process", "mlflow.user"} <= waiting.data.tags.keys()
    assert run.data.metrics["device_wait_s"] >= 1


@pytest.mark.slow
def test_a_run_is_delivered_after_it_has_released_its_device(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow server must not keep the next run from the device."""
    held = {}
    send, deliver = WorkerProcess.run, outbox.conclude

    def run(*arguments: Any) -> Any:
        held["training"] = device_lock.in_use()
        return send(*arguments)

    def conclude(*arguments: Any) -> str:
        held["delivery"] = device_lock.in_use()
        return deliver(*arguments)

    monkeypatch.setattr(WorkerProcess, "run", run)
    monkeypatch.setattr(outbox, "conclude", conclude)
    runner.run(config.compose(["framework=reference", "training.epochs=1"]), tmp_path)
    assert held == {"training": True, "delivery": False}


def test_an_interrupted_run_is_killed(store: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), recorder.Recorder(config.compose(["framework=reference"]), tmp_path):
        raise KeyboardInterrupt
    (run,) = runs(store)
    assert run.info.status == "KILLED"
    assert run.data.tags["gtdl.failure"] == recorder.INTERRUPTED


def test_a_run_that_is_interrupted_while_it_is_created_is_killed(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, calls = delivery.deliver, []

    def interrupted(*arguments: Any) -> None:
        deliver(*arguments)
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(delivery, "deliver", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recorder.Recorder(config.compose(["framework=reference"]), tmp_path).__enter__()
    (run,) = runs(store)
    assert run.info.status == "KILLED"


def test_the_reason_of_a_failure_is_printable(store: str, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed), recorder.Recorder(config.compose(["framework=reference"]), tmp_path) as run:
        run.add(Metadata({"device": "c\0pu\ud800"}))
        raise WorkerFailed("killed; last lines: \0 \x1b[2J \ud800 | end")
    (recorded,) = runs(store)
    assert recorded.info.status == "FAILED"
    assert recorded.data.tags["gtdl.failure"].endswith("| end")
    assert recorded.data.tags["gtdl.failure"].isprintable()
    assert recorded.data.params["worker.device"] == "c\N{REPLACEMENT CHARACTER}pu\N{REPLACEMENT CHARACTER}"


def test_a_chart_that_fails_does_not_fail_the_run(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no font")

    monkeypatch.setattr(charts, "learning_curve", broken)
    with recorder.Recorder(config.compose(["framework=reference"]), tmp_path) as run:
        run.add(Metrics({"accuracy_percent": 90, "training_time_s": 1, "testing_time_s": 1}))
        run.add(Finished(cpu_s=1))
    recorded = mlflow.MlflowClient(store).get_run(run.record.run_id)
    assert recorded.info.status == "FINISHED"
    assert recorded.data.metrics["accuracy_percent"] == 90
    assert "gtdl: the charts of the run could not be drawn: no font" in capsys.readouterr().err
