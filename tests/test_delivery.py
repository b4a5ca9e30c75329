"""Delivery to real stores: refused items, failing artifact stores, deadlines, lost responses, credentials."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from helpers.project import ROOT, Command, logged_model, messages, runs
from helpers.servers import (
    failing_server,
    losing_proxy,
    mlflow_server,
    postgresql,
    recording_server,
)
from mlflow.entities import Run
from mlflow.models import Model
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.tracking import delivery, outbox
from gtdl_mlflow.tracking import store as tracking_store
from gtdl_mlflow.tracking.record import Record, new_record
from gtdl_mlflow.tracking.store import TrackerUnreachable, TrackingFailed, http_timeouts

pytestmark = pytest.mark.usefixtures("home")

QUICK = ("framework=reference", "training.epochs=1", "latency.repeats=0")


def finished_record(uri: str, folder: Path) -> Record:
    """Return the record of a finished run with one param, one tag, one metric and one file."""
    folder.mkdir(parents=True, exist_ok=True)
    record = new_record(uri, folder, "a run", "gtdl")
    record.params, record.tags, record.metrics = {"lr": "0.1"}, {"gtdl.seed": "1"}, [("loss", 0.5, 1, 0)]
    (folder / "a.txt").write_text("a")
    record.artifacts = ["a.txt"]
    record.finish("FINISHED")
    return record


def add_model(record: Record) -> None:
    """Add a model with one metric to a record."""
    folder = Path(record.folder) / "model"
    folder.mkdir()
    Model().save(folder / "MLmodel")
    record.model = {"name": "a-model", "path": "model", "dataset": "digits", "digest": "0123"}
    record.model_metrics = [("accuracy_percent", 90.0, 1, 0)]


def only_run(uri: str) -> Run:
    (run,) = runs(uri)
    return run


def artifacts(uri: str, run: Run) -> list[str]:
    return [item.path for item in mlflow.MlflowClient(uri).list_artifacts(run.info.run_id)]


def test_refused_items_do_not_hold_back_the_rest(
    store: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = finished_record(store, tmp_path / "run")
    record.status = "RUNNING"
    delivery.deliver(record, store)
    record.finish("FINISHED")
    record.params["not a name!?"] = "value of it"
    record.tags["not/../a/name"] = "value"
    record.metrics += [("loss", float("nan"), 1, step) for step in range(1, 20)] + [("not*a*name", 1.0, 1, 0)]
    with socket.socket(socket.AF_UNIX) as unreadable:
        unreadable.bind(str(tmp_path / "run" / "a.socket"))
        record.artifacts = ["a.socket", "a.txt"]
        assert outbox.conclude(record, store) == ""
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.1"
    assert run.data.tags["gtdl.seed"] == "1"
    assert len(mlflow.MlflowClient(store).get_metric_history(run.info.run_id, "loss")) == 20
    assert artifacts(store, run) == ["a.txt"]
    assert "4 items refused" in capsys.readouterr().err
    (kept,) = (home / "undelivered").iterdir()
    refused = {each["item"]: each["value"] for each in json.loads(kept.read_text())["refused"]}
    assert refused.keys() == {"param not a name!?", "tag not/../a/name", "metric not*a*name", "file a.socket"}
    assert refused["param not a name!?"] == "value of it"
    assert list(outbox.replay(store)) == []


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "a" * 10_000])
def test_text_that_no_store_accepts_is_changed(store: str, tmp_path: Path, text: str) -> None:
    record = finished_record(store, tmp_path / "run")
    record.params["text"] = record.tags["text"] = record.name = text
    record.inputs = [
        {"name": "d", "digest": "1", "source_type": "http", "source": "{}", "schema": "{}", "profile": "{}"}
    ]
    outbox.save(record)
    (result,) = outbox.replay(store)
    assert (result.failure, result.record.refused) == ("", [])
    run = only_run(store)
    for value in (run.data.params["text"], run.data.tags["text"]):
        assert value == "a\N{REPLACEMENT CHARACTER}b" or value.endswith(" ... (10000 characters)")


@pytest.mark.slow
@pytest.mark.server
def test_nul_bytes_and_nan_reach_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with postgresql() as uri:
        record = finished_record(uri, tmp_path / "run")
        record.tags["gtdl.failure"] = "the worker was killed; last lines: a\0b"
        record.metrics += [("loss", float("nan"), 1, 1), ("loss", float("inf"), 1, 2)]
        record.params["x" * 300] = "y"
        record.finish("FAILED")
        assert outbox.conclude(record, uri) == ""
        assert record.refused == []
        run = only_run(uri)
    assert run.info.status == "FAILED"
    assert run.data.tags["gtdl.failure"].endswith("a\N{REPLACEMENT CHARACTER}b")


def test_a_deleted_run_is_set_aside_once(
    store: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = finished_record(store, tmp_path / "run")
    outbox.conclude(record, store)
    mlflow.MlflowClient(store).delete_run(record.run_id)
    record.metrics = [("loss", float(step), 1, step) for step in range(50)]
    outbox.save(record)
    assert cli.main(["track", "replay"]) == 1
    assert "is deleted; the record is set aside" in capsys.readouterr().err
    assert cli.main(["track", "replay"]) == 0
    assert [path.name for path in (home / "undelivered").iterdir()] == [f"{record.key}.json.refused"]


# Artifact stores.


@pytest.fixture
def s3(store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store whose experiment keeps its artifacts in S3, for which there are no credentials."""
    mlflow.MlflowClient(store).create_experiment("gtdl", artifact_location="s3://bucket/path")
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return store


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["package", "credentials"])
def test_nothing_runs_if_the_artifact_store_can_never_work(s3: str, tmp_path: Path, missing: str) -> None:
    (tmp_path / "hidden").mkdir()
    if missing == "package":
        (tmp_path / "hidden" / "boto3.py").write_text(
            "raise ModuleNotFoundError(\"No module named 'boto3'\", name='boto3')"
        )
    else:
        pytest.importorskip("boto3")
    done = subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow", *QUICK],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'hidden'}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    (line,) = messages(done.stderr)
    assert line.endswith("; nothing was run")
    assert "artifact store at s3://bucket/path" in line
    assert ("the Python package boto3 is not installed" if missing == "package" else "credentials") in line
    assert list(tmp_path.rglob("events.jsonl")) == []
    run = only_run(s3)
    assert run.info.status == "FAILED"
    assert run.data.params["framework"] == "reference"
    assert run.data.tags["gtdl.failure"] in line


def test_the_results_arrive_although_the_artifact_store_is_away(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    record = finished_record(s3, tmp_path / "run")
    reason = outbox.conclude(record, s3)
    assert "artifact store at s3://bucket/path" in reason
    run = only_run(s3)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 0.5})
    (saved,) = outbox.pending()
    assert (saved.artifacts, saved.metrics) == (["a.txt"], [])
    with pytest.raises(TrackerUnreachable):  # a run at its start goes on
        delivery.deliver(saved, s3)


# Trackers.


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("mysql://me:secret@127.0.0.1:1/db", "the Python package MySQLdb is not installed"),
        ("postgresql://me:secret@127.0.0.1:1/db", "port 1 failed: Connection refused"),
        ("sqlite:////proc/x.db", "unable to open database file"),
        ("sqlite:////dev/null/x.db", "/dev/null: File exists"),
    ],
)
def test_the_reason_is_that_of_the_driver(tmp_path: Path, uri: str, reason: str) -> None:
    if uri.startswith("postgresql"):
        pytest.importorskip("psycopg")
    started = time.monotonic()
    with pytest.raises(TrackingFailed) as caught:
        delivery.deliver(finished_record(uri, tmp_path), uri)
    text = str(caught.value)
    assert text.endswith(f"({reason})") or (uri.startswith("postgresql") and reason in text)
    assert "sqlite3." not in text, "the line is the driver's, not SQLAlchemy's"
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 30


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["html", "empty", "object", "list", "later", "drip", "502", "404", "401"])
def test_a_failing_server_delays_a_delivery(tmp_path: Path, answer: str) -> None:
    record = finished_record("http://server", tmp_path)
    complete = dict(vars(record))
    started = time.monotonic()
    with (
        failing_server(answer) as uri,
        http_timeouts(retries=2, timeout_s=5),
        pytest.raises(TrackingFailed) as caught,
    ):
        delivery.deliver(record, uri, deadline_s=5)
    assert time.monotonic() - started < 60
    assert isinstance(caught.value, TrackerUnreachable) == (answer not in ("404", "401"))
    assert str(caught.value).startswith(f"MLflow at {uri} failed (")
    # A Retry-After of an hour is ignored: the retries end before the deadline.
    assert ("no complete response" in str(caught.value)) == (answer == "drip")
    for name in ("params", "metrics", "artifacts"):
        assert vars(record)[name] == complete[name]


def test_empty_responses_acknowledge_nothing(tmp_path: Path) -> None:
    record = finished_record("http://server", tmp_path)
    record.run_id, record.experiment_id, record.artifacts = "f" * 32, "1", []
    with failing_server("empty") as uri, pytest.raises(TrackerUnreachable, match="empty responses"):
        delivery.deliver(record, uri)
    assert (record.params, record.metrics) == ({"lr": "0.1"}, [("loss", 0.5, 1, 0)])


@pytest.mark.slow
def test_a_process_ends_although_a_request_never_ends(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, concurrent.futures\n"
        "from gtdl_mlflow.tracking import deadline\n"
        "import urllib.request\n"
        "def work():\n"
        "    with concurrent.futures.ThreadPoolExecutor(1) as pool:\n"  # as the clients of artifact stores
        "        pool.submit(lambda: urllib.request.urlopen(sys.argv[1]).read()).result()\n"
        "try:\n"
        "    deadline.Deadline(1).run(work)\n"
        "except deadline.DeadlinePassed as error:\n"
        "    print(error)\n"
        "deadline.leave(7)\n"
    )
    with failing_server("drip") as uri:
        done = subprocess.run(
            [sys.executable, "-c", code, uri],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert (done.returncode, done.stdout) == (7, "no complete response within 1 s\n"), done.stderr


@pytest.mark.slow
@pytest.mark.server
def test_a_run_whose_creation_had_no_response_is_created_once(tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as server, losing_proxy(server, "/runs/create") as uri:
        record = finished_record(uri, tmp_path / "run")
        with http_timeouts(retries=2, timeout_s=10):
            assert outbox.conclude(record, uri) == ""
        run = only_run(server.uri)
        assert run.info.status == "FINISHED"
        assert run.data.tags["gtdl.seed"] == "1"
        assert artifacts(server.uri, run) == ["a.txt"]


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("lost", ["/logged-models", "/outputs"])
def test_a_model_whose_delivery_was_interrupted_is_logged_once(tmp_path: Path, lost: str) -> None:
    with mlflow_server(tmp_path) as server:
        with losing_proxy(server, lost, times=1) as uri, http_timeouts(retries=0, timeout_s=10):
            record = finished_record(uri, tmp_path / "run")
            add_model(record)
            assert "502" in outbox.conclude(record, uri)
            assert outbox.conclude(record, uri) == ""
        run = only_run(server.uri)
        client = mlflow.MlflowClient(server.uri)
        (model,) = client.search_logged_models([run.info.experiment_id])
        assert model.model_id == logged_model(client, run).model_id
        assert model.name == "a-model"
        assert {metric.key: metric.value for metric in model.metrics} == {"accuracy_percent": 90.0}


@pytest.mark.slow
@pytest.mark.server
def test_a_server_without_logged_models_gets_the_model_as_files(tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as server, losing_proxy(server, "/logged-models/search", status=404) as uri:
        record = finished_record(uri, tmp_path / "run")
        add_model(record)
        assert outbox.conclude(record, uri) == ""
        run = only_run(server.uri)
        assert artifacts(server.uri, run) == ["a.txt", "model"]
        assert run.outputs.model_outputs == []


@pytest.mark.parametrize("redirected", [False, True])
def test_a_password_reaches_its_own_server_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redirected: bool
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with recording_server() as (other, received), recording_server(other if redirected else "") as (ours, sent):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", ours.replace("http://", "http://alice:password@"))
        for uri in (ours, *([] if redirected else [other])):
            with pytest.raises(TrackingFailed):
                delivery.deliver(finished_record(uri, tmp_path), uri)
    assert sent
    assert all(each.startswith("Basic ") for each in sent)
    assert received
    assert set(received) == {""}


def test_records_of_another_tracker_are_delivered_by_name_only(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with recording_server() as (other, received):
        outbox.save(finished_record(store, tmp_path / "ours"))
        outbox.save(finished_record(other, tmp_path / "theirs"))
        assert cli.main(["track", "replay"]) == 0
        assert received == []
        assert f"1 undelivered run for {other}: gtdl track replay {other}" in capsys.readouterr().out
        for arguments in ([other], ["--tracking-uri", other]):
            received.clear()
            assert cli.main(["track", "replay", *arguments]) == 1
            assert received
    assert [record.uri for record in outbox.pending()] == [other]
    assert only_run(store).info.status == "FINISHED"


@pytest.mark.slow
def test_processes_with_their_own_homes_create_one_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    code = "import sys; from gtdl_mlflow.tracking import store; store.connect(sys.argv[1]).search_experiments()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, uri],
            env={**os.environ, "GTDL_HOME": str(tmp_path / str(number)), "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for number in range(4)
    ]
    assert [(process.communicate(timeout=300)[1], process.returncode) for process in processes] == [("", 0)] * 4
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"mlflow.db"}


@pytest.mark.slow
@pytest.mark.server
def test_tables_that_another_process_is_creating_on_a_server_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No lock of files is shared by the processes of several hosts."""
    attempts: list[str] = []
    waits: list[float] = []

    class Busy(mlflow.MlflowClient):
        def search_experiments(self, *arguments: Any, **options: Any) -> Any:
            attempts.append("search")
            if len(attempts) < 3:
                raise mlflow.MlflowException('relation "experiments" already exists')
            return super().search_experiments(*arguments, **options)

    monkeypatch.setattr(tracking_store, "MlflowClient", Busy)
    monkeypatch.setattr(tracking_store, "time", SimpleNamespace(sleep=waits.append))
    with postgresql() as uri:
        assert [each.name for each in tracking_store.connect(uri).search_experiments()] == ["Default"]
    assert len(attempts) == 4
    assert waits == [1, 2]

    attempts.clear()
    with pytest.raises(mlflow.MlflowException, match="already exists"):
        tracking_store.connect(f"sqlite:///{tmp_path}/own.db")
    assert len(attempts) == 1, "a file has a lock"


# Saved records.


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"params"', '"parameters"'),
        lambda text: text.replace('"lr": "0.1"', '"lr": 0.1'),
        lambda text: text.replace('["loss", 0.5, 1, 0]', '["loss", 0.5]'),
        lambda text: "[]",
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_record_is_set_aside_and_the_others_are_delivered(
    store: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    first, second = (finished_record(store, tmp_path / name) for name in ("1", "2"))
    outbox.save(first)
    outbox.save(second)
    path = home / "undelivered" / f"{first.key}.json"
    assert callable(damage)
    path.write_text(damage(path.read_text()))
    assert cli.main(["track", "replay"]) == 0
    assert f"{path.name}.unreadable" in capsys.readouterr().err
    assert only_run(store).data.tags["gtdl.record"] == second.key
    assert [each.name for each in (home / "undelivered").iterdir()] == [f"{path.name}.unreadable"]
    assert cli.main(["track", "list"]) == 0


def test_a_record_is_saved_beside_its_files_if_the_cache_directory_cannot_be_written(
    store: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(home)
    home.write_text("not a folder")
    record = finished_record("http://127.0.0.1:9", tmp_path / "run")
    assert "failed" in outbox.conclude(record, "http://127.0.0.1:9")
    saved = tmp_path / "run" / f"{record.key}.json"
    (line,) = capsys.readouterr().err.splitlines()
    assert str(home) in line
    assert str(saved) in line
    home.unlink()
    (home / "undelivered").mkdir(parents=True)
    saved.rename(home / "undelivered" / saved.name)
    assert [each.key for each in outbox.pending()] == [record.key]


def test_an_error_within_mlflow_of_any_kind_keeps_the_record(
    store: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise TypeError("a fault\nof the store")

    monkeypatch.setattr(SqlAlchemyStore, "log_batch", broken)
    reason = outbox.conclude(finished_record(store, tmp_path / "run"), store)
    assert reason.endswith("failed (a fault)")
    assert [each.name for each in outbox.pending()] == ["a run"]
    monkeypatch.undo()
    monkeypatch.setenv("GTDL_HOME", str(home))
    assert [each.failure for each in outbox.replay(store)] == [""]
    assert only_run(store).data.metrics == {"loss": 0.5}


def test_a_record_that_cannot_be_saved_again_leaves_the_earlier_one(
    store: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = finished_record(store, tmp_path / "run")
    outbox.save(record)
    record.name = "another name"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    outbox.save(record)
    assert "could not be saved for a later delivery" in capsys.readouterr().err
    assert [each.name for each in outbox.pending()] == ["a run"]


def test_the_name_of_a_record_reaches_the_terminal_without_control_characters(
    store: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = finished_record(store, tmp_path / "run")
    record.name = "a\x1b[31m red\x07 run"
    outbox.save(record)
    assert cli.main(["track", "list"]) == 0
    assert cli.main(["track", "replay"]) == 0
    listed, delivered = capsys.readouterr().out.splitlines()
    assert not re.search(r"[\x00-\x1f]", listed + delivered)
    assert "red" in listed
    assert "red" in delivered


def test_a_record_is_on_disk_while_it_is_delivered(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process is killed then, a later command completes the run."""
    seen: list[int] = []
    monkeypatch.setattr(delivery, "deliver", lambda record, uri: seen.append(len(outbox.pending())))
    outbox.conclude(finished_record(store, tmp_path), store)
    assert (seen, outbox.pending()) == ([1], [])


@pytest.mark.slow
def test_a_full_disk_under_the_files_of_a_run_loses_no_results(store: str, gtdl: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "environment.txt", "job.json", "events.jsonl", "mlperf.log", "worker.log"):
        (folder / name).symlink_to("/dev/full")
    done = gtdl(*QUICK, f"hydra.run.dir={folder}")
    assert "Traceback" not in done.stderr, done.stderr
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy_percent"] > 80
