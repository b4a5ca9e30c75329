"""A tracking server that goes away delays what it is told of a run, and loses nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from helpers.project import ROOT, Command, runs
from helpers.servers import Server, misbehaving, mlflow_server
from mlflow.entities import Run

from gtdl_mlflow import cli
from gtdl_mlflow.tracking import outbox, processes

QUICK = ("framework=reference", "training.epochs=1")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What could not be delivered is kept in a GTDL_HOME; these tests need one each."""
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    # As many tries as ever, but at once: what a try says does not depend on how long MLflow waited for it.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    return tmp_path / "home"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with mlflow_server(tmp_path) as running:
        yield running


def is_whole(run: Run, uri: str) -> None:
    """All that a run has that was tracked at once."""
    client = mlflow.MlflowClient(uri)
    assert run.info.status == "FINISHED"
    assert run.data.metrics.keys() >= {"accuracy_percent", "training_time_s", "testing_time_s", "wall_time_s"}
    assert run.data.params["framework"] == "reference"
    assert run.data.tags["gtdl.quality"] == "ok"
    assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["mnist_5k"]
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"config.yaml", "events.jsonl", "model"}
    assert 0 < run.info.end_time - run.info.start_time < 60_000
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 1


def replay(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = cli.main(["track", "replay"])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_a_server_that_is_down_at_the_start_hears_of_the_run_later(
    gtdl: Command, server: Server, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kill()
    done = gtdl(*QUICK, f"tracking.uri={server.uri}")
    assert done.returncode == 1
    assert "accuracy" in done.stdout
    went, kept = done.stderr.splitlines()
    assert went.endswith("the run goes on and is delivered later")
    assert "`gtdl track replay` delivers it" in kept
    assert cli.main(["track", "list"]) == 0
    assert "FINISHED, for http://127.0.0.1" in capsys.readouterr().out
    assert replay(capsys)[0] == 1  # still down
    server.start()
    status, said = replay(capsys)
    assert (status, said.count("delivered")) == (0, 1)
    (run,) = runs(server.uri)
    is_whole(run, server.uri)
    assert replay(capsys) == (0, "")
    assert list((home / "undelivered").iterdir()) == []
    (folder,) = {path.parent for path in Path("outputs").rglob("events.jsonl")}
    assert not (folder / "mlflow").exists()


@pytest.mark.parametrize("back", [False, True])
def test_a_server_that_goes_mid_run_hears_of_the_rest_at_its_end_or_later(
    gtdl: Command, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    if back:  # it takes seconds to be
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR")
    arguments = ["framework=reference", "training.epochs=150", f"tracking.uri={server.uri}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gtdl_mlflow", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not any('"progress"' in path.read_text() for path in Path("outputs").rglob("events.jsonl")):
        assert process.poll() is None, process.communicate()
    server.kill()
    if back:
        server.start()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == (0 if back else 1), errors
    assert "accuracy" in output
    if not back:
        server.start()
        assert runs(server.uri)[0].info.status == "RUNNING"
        assert replay(capsys)[0] == 0
    (run,) = runs(server.uri)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy_percent"] > 80


@pytest.mark.parametrize("answer", ["500", "429", "hang"])
def test_a_server_that_does_not_serve_stops_no_run(
    gtdl: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with misbehaving(answer) as uri:
        done = gtdl(*QUICK, f"tracking.uri={uri}")
    assert "accuracy" in done.stdout
    assert done.returncode == 1
    assert f"MLflow at {uri} failed" in done.stderr
    assert [told.status for told in outbox.pending()] == ["FINISHED"]


def test_a_server_without_room_for_files_gets_them_later(
    gtdl: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As with a full disk, it can write no further: nothing of over 20 kB, which the contact sheet and the model are.
    full = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); " \
           "sys.argv[0] = 'mlflow'; runpy.run_module('mlflow', run_name='__main__')"  # fmt: skip
    with mlflow_server(tmp_path) as server:
        assert gtdl(*QUICK, "seed=1", f"tracking.uri={server.uri}").returncode == 0
        server.kill()
        server.start(full)
        done = gtdl(*QUICK, "seed=2", f"tracking.uri={server.uri}")
        assert done.returncode == 1
        assert "`gtdl track replay` delivers it" in done.stderr
        server.kill()
        server.start()
        assert replay(capsys)[0] == 0
        for run in runs(server.uri):
            is_whole(run, server.uri)


def test_delivered_twice_it_is_there_once(gtdl: Command, server: Server, home: Path) -> None:
    server.kill()
    gtdl(*QUICK, f"tracking.uri={server.uri}")
    (path,) = (home / "undelivered").glob("*.json")
    text = path.read_text()
    server.start()
    for _ in range(2):
        path.write_text(text)
        (done,) = outbox.replay()
        assert done.failure == ""
    (run,) = runs(server.uri)
    is_whole(run, server.uri)
    curve = mlflow.MlflowClient(server.uri).get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    recorded = [point for point in json.loads(text)["metrics"] if point[0] == "system/cpu_utilization_percentage"]
    assert len(curve) == len(recorded)


def test_a_tracker_that_refuses_is_told_of_before_anything_runs(gtdl: Command, tmp_path: Path) -> None:
    with misbehaving("403") as uri:
        done = gtdl(*QUICK, f"tracking.uri={uri}")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("nothing was run")
    assert list(tmp_path.rglob("events.jsonl")) == []


def test_the_parent_of_a_sweep_comes_late_with_its_children(
    gtdl: Command, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kill()
    done = gtdl("-m", *QUICK, "seed=1,2", f"tracking.uri={server.uri}")
    assert done.returncode == 1
    assert done.stdout.count("accuracy") == 2
    server.start()
    status, said = replay(capsys)
    assert (status, len(re.findall(": delivered", said))) == (0, 3)
    found: Any = runs(server.uri)
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 2
    for run in children:
        is_whole(run, server.uri)
    # The same command knows then that there is nothing left to do.
    done = gtdl("-m", *QUICK, "seed=1,2", f"tracking.uri={server.uri}")
    assert done.returncode == 0, done.stderr
    assert "sweep: 2 finished of 2 cells" in done.stdout
    assert len(runs(server.uri)) == 3


def test_a_run_whose_driver_died_while_the_server_was_away_is_delivered_as_killed(
    gtdl: Command, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kill()
    arguments = ["framework=reference", "training.epochs=4000", f"tracking.uri={server.uri}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gtdl_mlflow", *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not any('"progress"' in path.read_text() for path in Path("outputs").rglob("events.jsonl")):
        assert process.poll() is None
    server.start()
    assert replay(capsys) == (0, "")  # it lives: it will deliver itself
    process.kill()
    process.wait()
    assert replay(capsys)[0] == 0
    (run,) = runs(server.uri)
    assert run.info.status == "KILLED"
    assert run.data.tags["gtdl.failure"] == "it ended without a word"


def test_a_process_is_known_by_its_start_too() -> None:
    process = processes.this_process()
    assert processes.is_alive(process) is True
    host, number, _ = process.split(" ")
    assert processes.is_alive(f"{host} {number} 1.00") is False
    assert processes.is_alive(f"elsewhere {number} 1.00") is None
