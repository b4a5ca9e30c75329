"""Dead runs are closed by the next command on their machine, and no other run is."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from helpers.processes import kill, read_line, start_script
from helpers.project import Command, messages, runs, start, wait_for_worker
from helpers.servers import failing_server

from gtdl_mlflow.tracking import dead_runs, delivery, outbox
from gtdl_mlflow.tracking.processes import PROCESS_GONE, Process, this_process
from gtdl_mlflow.tracking.record import new_record

pytestmark = pytest.mark.slow

NAME_OF_A_PROCESS = """
import sys
from gtdl_mlflow.tracking.processes import this_process
print(this_process(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def dead() -> str:
    """The identity of a process that was killed."""
    process = start_script(NAME_OF_A_PROCESS)
    identity = read_line(process, process.stdout).strip()
    kill(process)
    return identity


def create_run(process: str, experiment: str = "gtdl", **tags: str) -> str:
    """Create a RUNNING run of a process and return its ID."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    identifier = found.experiment_id if found else client.create_experiment(experiment)
    own = {"gtdl.process": process} if process else {}
    return str(client.create_run(identifier, tags=own | tags).info.run_id)


def status(run_id: str) -> str:
    return str(mlflow.MlflowClient().get_run(run_id).info.status)


def test_only_runs_of_certainly_dead_processes_are_closed(
    store: str, dead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    process = Process.parse(dead)
    assert process is not None
    closed = [create_run(dead, "one"), create_run(dead, "another")]
    open_runs = [
        create_run(this_process()),
        create_run(""),  # of another program
        create_run("host 1 1234.56"),  # of an earlier version
        create_run(replace(process, boot="another", machine="0" * 32).text),
        create_run(replace(process, boot="another").text),
        create_run(replace(process, namespaces="1/1").text),
    ]
    finished = create_run(dead)
    mlflow.MlflowClient().set_terminated(finished, "FINISHED")
    dead_runs.close(store)
    assert [status(run_id) for run_id in closed] == ["KILLED", "KILLED"]
    assert [status(run_id) for run_id in open_runs] == ["RUNNING"] * len(open_runs)
    assert status(finished) == "FINISHED"
    assert mlflow.MlflowClient().get_run(closed[0]).data.tags["gtdl.failure"] == PROCESS_GONE
    assert capsys.readouterr().err == "gtdl: closed 2 dead runs as KILLED: the process no longer exists\n"


def test_saved_results_of_a_dead_process_are_delivered_instead(
    store: str, dead: str, tmp_path: Path, cache_folders: None, capsys: pytest.CaptureFixture[str]
) -> None:
    record = new_record(store, tmp_path, "finished", "gtdl")
    record.process = dead
    delivery.deliver(record, store)
    record.metrics = [("accuracy_percent", 90.0, 1, 0)]
    record.finish("FINISHED")
    outbox.save(record)
    dead_runs.close(store)  # the delivery has not happened yet
    assert status(record.run_id) == "RUNNING"
    dead_runs.close_once.cache_clear()
    dead_runs.close_once(store)
    run = mlflow.MlflowClient().get_run(record.run_id)
    assert (run.info.status, run.data.metrics["accuracy_percent"]) == ("FINISHED", 90.0)
    assert "gtdl.failure" not in run.data.tags
    assert outbox.pending() == []
    assert "gtdl: delivered 1 run saved for this tracking store\n" in capsys.readouterr().err


def test_tracker_that_is_away_stops_nothing(cache_folders: None, capsys: pytest.CaptureFixture[str]) -> None:
    dead_runs.close_once.cache_clear()
    dead_runs.close_once("http://127.0.0.1:9")
    dead_runs.close_once("http://127.0.0.1:9")
    assert capsys.readouterr().err.count("gtdl: dead runs could not be closed: ") == 1


def test_search_for_dead_runs_has_a_deadline(
    cache_folders: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dead_runs, "DEADLINE_S", 1.0)
    dead_runs.close_once.cache_clear()
    with failing_server("drip") as uri:
        dead_runs.close_once(uri)
    message = f"gtdl: dead runs could not be closed: MLflow at {uri} failed (no complete response within 1 s)\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("kind", [[], ["-m"]])
def test_next_command_closes_the_runs_of_killed_ones(gtdl: Command, store: str, kind: list[str]) -> None:
    driver = start("framework=reference", "training.epochs=1000000", "training.checkpoint_every_s=0")
    worker = wait_for_worker(driver)
    kill(driver)
    os.kill(worker, signal.SIGKILL)
    (run,) = runs(store)
    assert run.info.status == "RUNNING"
    done = gtdl(*kind, "framework=reference", "training.epochs=1", "tracking.experiment=other")
    assert done.returncode == 0, done.stderr
    assert messages(done.stderr) == ["gtdl: closed 1 dead run as KILLED: the process no longer exists"]
    assert status(run.info.run_id) == "KILLED"
