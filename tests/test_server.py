"""A shared tracking server: PostgreSQL, artifacts through the server, and a login."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from helpers.project import ROOT, Command, runs, start
from helpers.servers import PASSWORD, Server, mlflow_server, postgresql, postgresql_programs

from gtdl_mlflow.tracking.outbox import deliver, new_record

pytestmark = [pytest.mark.slow, pytest.mark.server]

ADMIN = ("admin", "sesame-of-the-tracker")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of ``compose.yaml``, with its command line, on a database and a folder of this test."""
    if postgresql_programs() is None:
        assert os.environ.get("GTDL_REQUIRE_FRAMEWORKS") != "1", "apt-get install postgresql"
        pytest.skip("apt-get install postgresql")
    folder = tmp_path_factory.mktemp("server")
    auth = folder / "auth.ini"
    settings = compose_file()["configs"]["auth"]["content"].replace("${MLFLOW_ADMIN_PASSWORD:?}", ADMIN[1])
    auth.write_text(settings.replace("/var/lib/mlflow", str(folder)))
    variables = {"MLFLOW_AUTH_CONFIG_PATH": str(auth), "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for this test"}
    with postgresql() as database:
        options = ("--app-name", "basic-auth", "--backend-store-uri", database, "--serve-artifacts")
        with mlflow_server(folder, *options, **variables) as running:
            yield running


def compose_file() -> Any:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_the_compose_file_starts_the_tested_server(server: Server) -> None:
    command = compose_file()["services"]["mlflow"]["command"]
    for option in server.arguments[::2]:
        assert option in command
    assert "--artifacts-destination" in command
    assert command[command.index("--app-name") + 1] == "basic-auth"
    assert command[command.index("--backend-store-uri") + 1].startswith("postgresql://")
    assert command[command.index("--artifacts-destination") + 1].startswith("s3://")


def test_four_processes_at_once_record_all_their_runs(
    server: Server, gtdl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    processes = []
    for number in range(4):
        seeds = ",".join(str(number * 5 + index) for index in range(5))
        folder = tmp_path / str(number)
        folder.mkdir()
        # With separate device locks, the runs overlap.
        processes.append(
            start(
                "-m",
                "framework=reference",
                "training.epochs=1",
                f"seed={seeds}",
                "tracking=server",
                f"tracking.uri={server.uri}",
                cwd=folder,
                env={"GTDL_LOCKS": str(folder / "locks")},
            )
        )
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(errors)
    client, every = mlflow.MlflowClient(server.uri), runs(server.uri)
    cells = [run for run in every if "mlflow.parentRunId" in run.data.tags]
    assert {run.info.status for run in every} == {"FINISHED"}
    assert sorted(int(run.data.tags["gtdl.seed"]) for run in cells) == list(range(20))
    assert len(every) == 24
    for run in cells:
        assert run.data.metrics["accuracy_percent"] > 80
        assert {"model", "events.jsonl"} <= {item.path for item in client.list_artifacts(run.info.run_id)}


def test_runs_that_log_a_new_data_set_at_the_same_time_all_have_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    records = [new_record(server.uri, tmp_path, f"run {number}", "datasets") for number in range(8)]
    for record in records:
        deliver(record, server.uri)
    with ThreadPoolExecutor(len(records)) as threads:
        for attempt in range(10):
            data = {"name": f"new {attempt}", "digest": "d", "source_type": "local", "source": "{}"}
            for record in records:
                record.inputs.append(data)
            list(threads.map(deliver, records, [server.uri] * len(records)))
    client = mlflow.MlflowClient(server.uri)
    for record in records:
        inputs = client.get_run(record.run_id).inputs.dataset_inputs
        assert {item.dataset.name for item in inputs} == {f"new {attempt}" for attempt in range(10)}


def test_artifacts_are_stored_by_the_server(server: Server) -> None:
    assert list((server.folder / "artifacts").rglob("events.jsonl"))


@pytest.mark.parametrize("how", ["environment", "address", "typed"])
def test_no_password_is_in_params_tags_files_or_messages(
    server: Server, gtdl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")  # retries without waiting
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    address = server.uri.replace("http://", f"http://{ADMIN[0]}:{ADMIN[1]}@")
    uri = [f"tracking.uri={address}"]
    if how == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
        uri = [f"tracking.uri={server.uri}"]
    elif how == "address":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        uri = []
    sweep = ["-m", "framework=reference", "training.epochs=1", "training.checkpoint_every_s=0.01"]
    sweep.append(f"tracking.experiment={how}")
    outputs = [output(gtdl(*sweep, "seed=1,2", *uri), 0)]
    # A run that fails, one with a wrong key, and one whose server is down, with the same password.
    outputs.append(output(gtdl(*sweep, "seed=3", "limits.run_timeout_s=0.01", *uri), 1))
    outputs.append(output(gtdl("framework=reference", "nonsense=1", *uri), 2))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    client = mlflow.MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(how)
    assert experiment is not None
    recorded = client.search_runs([experiment.experiment_id])
    assert len(recorded) == 5
    server.kill()
    try:
        outputs.append(output(gtdl(*sweep, "seed=4", *uri), 1))
    finally:
        server.start()
    assert list((tmp_path / "home" / "undelivered").glob("*.json"))
    for text in [*outputs, *(str(run.to_dictionary()) for run in recorded)]:
        assert ADMIN[1] not in text
        assert PASSWORD not in text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    files += [path for path in (server.folder / "artifacts").rglob("*") if path.is_file()]
    assert len(files) > 40
    for path in files:
        assert ADMIN[1].encode() not in path.read_bytes(), path


def output(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_nothing_runs_with_a_wrong_password(
    server: Server, gtdl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-one")
    done = gtdl("framework=reference", f"tracking.uri={server.uri}")
    assert done.returncode == 1
    assert "nothing was run" in done.stderr
    assert "not-the-one" not in done.stdout + done.stderr
    assert list(tmp_path.rglob("events.jsonl")) == []
