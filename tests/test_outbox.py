"""The outbox: a tracking server that is unreachable delays the delivery of a run, and nothing is lost."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from helpers.project import Command, logged_model, messages, runs, start, training_started, wait_until
from helpers.servers import Server, failing_server, mlflow_server
from mlflow.entities import Run

from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.tracking import outbox, processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]

QUICK = ("framework=reference", "training.epochs=1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with mlflow_server(tmp_path) as running:
        yield running


def assert_complete(run: Run, uri: str) -> None:
    """Assert that a run has everything that a run has whose tracker was always reachable."""
    client = mlflow.MlflowClient(uri)
    assert run.info.status == "FINISHED"
    assert run.data.metrics.keys() >= {"accuracy_percent", "training_time_s", "testing_time_s", "wall_time_s"}
    assert run.data.params["framework"] == "reference"
    assert run.data.tags["gtdl.quality"] == "ok"
    assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["mnist_5k"]
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"config.yaml", "events.jsonl"}
    assert {metric.key for metric in logged_model(client, run).metrics} >= {"accuracy_percent", "training_time_s"}
    assert 0 < run.info.end_time - run.info.start_time < 60_000
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 1


def replay(capsys: pytest.CaptureFixture[str], uri: str) -> tuple[int, str]:
    status = cli.main(["track", "replay", uri])
    output = capsys.readouterr()
    return status, output.out + output.err


@pytest.mark.server
def test_a_run_is_delivered_later_if_the_server_was_down_at_its_start(
    gtdl: Command, server: Server, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kill()
    done = gtdl(*QUICK, f"tracking.uri={server.uri}")
    assert done.returncode == 1
    assert "accuracy" in done.stdout
    first, last = messages(done.stderr)
    assert first.endswith("the run goes on and is delivered later")
    assert "`gtdl track replay` delivers it" in last
    assert cli.main(["track", "list"]) == 0
    assert "FINISHED, for http://127.0.0.1" in capsys.readouterr().out
    assert replay(capsys, server.uri)[0] == 1  # still down
    server.start()
    status, output = replay(capsys, server.uri)
    assert (status, output.count("delivered")) == (0, 1)
    (run,) = runs(server.uri)
    assert_complete(run, server.uri)
    assert replay(capsys, server.uri) == (0, "")
    assert list((home / "undelivered").iterdir()) == []
    (folder,) = {path.parent for path in Path("outputs").rglob("events.jsonl")}
    assert not (folder / "mlflow").exists()


@pytest.mark.server
@pytest.mark.parametrize("restarted", [False, True])
def test_a_run_is_delivered_at_its_end_or_later_if_the_server_goes_down_meanwhile(
    gtdl: Command, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    if restarted:  # the server needs seconds to start
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR")
    arguments = ["framework=reference", "training.epochs=150", f"tracking.uri={server.uri}"]
    process = start(*arguments, stdout=subprocess.PIPE)
    wait_until(training_started, "the worker trains", process)
    server.kill()
    if restarted:
        server.start()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == (0 if restarted else 1), errors
    assert "accuracy" in output
    if not restarted:
        server.start()
        assert runs(server.uri)[0].info.status == "RUNNING"
        assert replay(capsys, server.uri)[0] == 0
    (run,) = runs(server.uri)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy_percent"] > 80


@pytest.mark.parametrize("answer", ["500", "429", "hang"])
def test_a_run_goes_on_if_the_server_fails(gtdl: Command, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with failing_server(answer) as uri:
        done = gtdl(*QUICK, f"tracking.uri={uri}")
    assert "accuracy" in done.stdout
    assert done.returncode == 1
    assert f"MLflow at {uri} failed" in done.stderr
    assert [record.status for record in outbox.pending()] == ["FINISHED"]


@pytest.mark.server
def test_files_are_delivered_later_if_the_servers_disk_was_full(
    gtdl: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The server cannot write files above 20 kB: the contact sheet and the model are larger.
    full = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
        "sys.argv[0] = 'mlflow'; runpy.run_module('mlflow', run_name='__main__')"
    )
    with mlflow_server(tmp_path) as server:
        assert gtdl(*QUICK, "seed=1", f"tracking.uri={server.uri}").returncode == 0
        server.kill()
        server.start(full)
        done = gtdl(*QUICK, "seed=2", f"tracking.uri={server.uri}")
        assert done.returncode == 1
        assert "`gtdl track replay` delivers it" in done.stderr
        server.kill()
        server.start()
        assert replay(capsys, server.uri)[0] == 0
        for run in runs(server.uri):
            assert_complete(run, server.uri)


@pytest.mark.server
def test_delivery_is_idempotent(gtdl: Command, server: Server, home: Path) -> None:
    server.kill()
    gtdl(*QUICK, f"tracking.uri={server.uri}")
    (path,) = (home / "undelivered").glob("*.json")
    text = path.read_text()
    server.start()
    for _ in range(2):
        path.write_text(text)
        (done,) = outbox.replay(server.uri)
        assert done.failure == ""
    (run,) = runs(server.uri)
    assert_complete(run, server.uri)
    curve = mlflow.MlflowClient(server.uri).get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    recorded = [point for point in json.loads(text)["metrics"] if point[0] == "system/cpu_utilization_percentage"]
    assert len(curve) == len(recorded)


def test_nothing_runs_if_the_tracker_refuses_the_run(gtdl: Command, tmp_path: Path) -> None:
    with failing_server("403") as uri:
        done = gtdl(*QUICK, f"tracking.uri={uri}")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("nothing was run")
    assert list(tmp_path.rglob("events.jsonl")) == []


@pytest.mark.server
def test_a_sweep_is_delivered_later_with_its_runs(
    gtdl: Command, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kill()
    done = gtdl("-m", *QUICK, "seed=1,2", f"tracking.uri={server.uri}")
    assert done.returncode == 1
    assert done.stdout.count("accuracy") == 2
    server.start()
    status, output = replay(capsys, server.uri)
    assert (status, len(re.findall(": delivered", output))) == (0, 3)
    found = runs(server.uri)
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 2
    for run in children:
        assert_complete(run, server.uri)
    # The same command finds all cells finished.
    done = gtdl("-m", *QUICK, "seed=1,2", f"tracking.uri={server.uri}")
    assert done.returncode == 0, done.stderr
    assert "sweep: 2 finished of 2 cells" in done.stdout
    assert len(runs(server.uri)) == 3


@pytest.mark.server
def test_a_dead_run_is_delivered_as_killed(
    server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.kill()
    arguments = ["framework=reference", "training.epochs=4000", f"tracking.uri={server.uri}"]
    process = start(*arguments)
    wait_until(training_started, "the worker trains", process)
    server.start()
    assert replay(capsys, server.uri) == (0, "")  # the driver is alive and delivers the run itself
    process.kill()
    process.communicate(timeout=60)
    assert replay(capsys, server.uri)[0] == 0
    (run,) = runs(server.uri)
    assert run.info.status == "KILLED"
    assert run.data.tags["gtdl.failure"] == processes.PROCESS_GONE
