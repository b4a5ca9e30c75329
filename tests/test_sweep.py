"""A sweep: one parent run, and one child run per cell."""

from __future__ import annotations

import csv
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from helpers.processes import start_script
from helpers.project import Command, messages, runs, start, sweep_runs, wait_until
from mlflow.entities import Run
from omegaconf import OmegaConf

from gtdl_mlflow import environments
from gtdl_mlflow.config import CONF, SweepOrder, compose
from gtdl_mlflow.reporting.runs import read
from gtdl_mlflow.sweeps import cells
from gtdl_mlflow.sweeps.hydra_callbacks import (
    check_lines,
    count_cells,
    order_overrides,
    paired_lines,
    requested_overrides,
)
from gtdl_mlflow.tracking.processes import PROCESS_GONE, this_process
from gtdl_mlflow.tracking.recorder import SweepPosition


@pytest.mark.slow
def test_a_multirun_is_a_parent_run_with_a_child_per_cell(gtdl: Command, store: str) -> None:
    done = gtdl("-m", "framework=reference", "seed=1,2", "training.epochs=1")
    assert done.returncode == 0, done.stderr
    parent, children = sweep_runs()
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/finished"] == 2
    assert {run.data.tags["gtdl.seed"] for run in children} == {"1", "2"}
    assert len({run.data.tags["gtdl.weights_sha256"] for run in children}) == 2
    assert all(run.info.status == "FINISHED" for run in children)


@pytest.mark.slow
def test_under_mlflow_run_the_projects_run_is_the_parent(
    gtdl: Command, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `mlflow run` does before it starts the entry point.
    client = mlflow.MlflowClient()
    experiment_id = client.create_experiment("mine")
    project_run = client.create_run(experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", project_run)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    done = gtdl("--multirun", "framework=reference", "--seed", "1,2", "--training.epochs", "1")
    assert done.returncode == 0, done.stderr
    parent, children = sweep_runs("mine")
    assert parent.info.run_id == project_run
    assert "training_time_s" not in parent.data.metrics
    assert [len(run.data.metrics) > 10 for run in children] == [True, True]


@pytest.mark.slow
def test_a_wrong_key_of_a_sweep_is_refused_before_anything_runs(gtdl: Command, store: str) -> None:
    done = gtdl("-m", "framework=reference", "training.epochs=1", "seed=0,1,2", "+impossible=1")
    assert done.returncode == 2
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


@pytest.mark.slow
def test_an_impossible_combination_of_valid_values_fails_alone(gtdl: Command, store: str) -> None:
    done = gtdl("-m", "setting=reference_mnist,caffe_mnist", "framework=reference", "training.epochs=1")
    assert done.returncode == 1
    parent, children = sweep_runs()
    assert parent.info.status == "FAILED"
    assert sorted(run.info.status for run in children) == ["FAILED", "FINISHED"]
    (failed,) = [run for run in children if run.info.status == "FAILED"]
    assert "cannot run layer conv1" in failed.data.tags["gtdl.failure"]


def test_every_value_of_a_sweep_is_checked_once() -> None:
    assert check_lines(["a=1,2,3", "b=x", "c=range(0,2)", "d=interval(0,1)"]) == [
        ["a=1", "b=x", "c=0"],
        ["a=2", "b=x", "c=0"],
        ["a=3", "b=x", "c=0"],
        ["a=1", "b=x", "c=1"],
    ]


def test_paired_measurement_has_all_combinations_with_one_seed() -> None:
    assert paired_lines(["framework=torch,jax", "precision=float32,bfloat16", "seed=3,4"]) == [
        ["framework=torch", "precision=float32", "seed=3"],
        ["framework=torch", "precision=bfloat16", "seed=3"],
        ["framework=jax", "precision=float32", "seed=3"],
        ["framework=jax", "precision=bfloat16", "seed=3"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "values", ["dataset=mnist_5k,mnist", "training.batch_size=16,64", "setting=torch_mnist,caffe_mnist"]
)
def test_paired_measurement_under_several_conditions_is_refused(gtdl: Command, store: str, values: str) -> None:
    done = gtdl("-m", "experiment=paired", "framework=torch,reference", values)
    key = values.partition("=")[0]
    line = f"gtdl: {values}: a paired measurement has one value of {key}; start a sweep for each\n"
    assert (done.returncode, done.stderr) == (2, line)
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


@pytest.mark.slow
def test_a_cell_that_cannot_run_on_this_machine_is_no_failure(gtdl: Command, store: str) -> None:
    done = gtdl("-m", "framework=reference", "hardware=gpu,cpu", "training.epochs=1")
    assert done.returncode == 0, done.stderr
    parent, children = sweep_runs()
    assert parent.info.status == "FINISHED"
    assert [parent.data.metrics[f"sweep/{state}"] for state in ("finished", "failed", "unavailable")] == [1, 0, 1]
    (unavailable,) = [run for run in children if "gtdl.unavailable" in run.data.tags]
    assert "framework=reference runs on cpu: it is NumPy" in unavailable.data.tags["gtdl.unavailable"]
    assert unavailable.info.status == "FAILED"
    assert "gtdl.failure" not in unavailable.data.tags


def test_typed_overrides_replace_those_of_the_experiment() -> None:
    hydra: Any = OmegaConf.create(
        {"overrides": {"task": ["experiment=x", "seed=1"]}, "sweeper": {"params": {"seed": "1,2", "budget": "0.5,1"}}}
    )
    assert requested_overrides(hydra) == ["budget=0.5,1", "experiment=x", "seed=1"]


SWEEP = ("-m", "framework=reference", "training.epochs=1")


@pytest.mark.slow
def test_the_order_of_a_sweep_is_followed_and_logged(gtdl: Command, store: str) -> None:
    for order, seeds in (("interleaved", "0 0 1 1"), ("grouped", "0 1 0 1")):
        overrides = ("framework=reference,torch", "hardware=gpu", f"tracking.experiment={order}")
        done = gtdl(*SWEEP, *overrides, "seed=0,1", f"sweep.order={order}")
        assert done.returncode == 0, done.stderr  # none can run on a GPU here, and that is no failure
        parent, children = sweep_runs(order)
        by_position = sorted(children, key=lambda run: int(run.data.tags["gtdl.sweep_position"]))
        assert [run.data.tags["gtdl.seed"] for run in by_position] == seeds.split()
        assert parent.data.tags["gtdl.sweep_order"] == order
        assert "sweep: 0 finished, 4 unavailable of 4 cells" in done.stdout


@pytest.mark.slow
def test_the_summary_lists_failed_cells_with_their_reasons(gtdl: Command, store: str, tmp_path: Path) -> None:
    done = gtdl("-m", "setting=caffe_mnist,reference_mnist", "framework=reference", "training.epochs=1", "seed=3,4")
    assert done.returncode == 1
    parent, children = sweep_runs()
    assert "sweep: 2 finished, 2 failed of 4 cells, in " in done.stdout
    lines = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines() if line.startswith("  failed")]
    assert len(lines) == 2
    assert all(" · s" in label and "cannot run layer conv1" in reason for _, label, reason in lines)
    assert parent.data.metrics["sweep/time_s"] > 0
    table = mlflow.MlflowClient().download_artifacts(parent.info.run_id, "summary.csv", str(tmp_path))
    rows = list(csv.DictReader(Path(table).read_text().splitlines()))
    assert [row["state"] for row in rows].count("finished") == 2
    assert {row["run_id"] for row in rows} == {run.info.run_id for run in children}
    assert all(float(row["accuracy_percent"]) > 50 for row in rows if row["state"] == "finished")


@pytest.mark.slow
def test_each_cell_but_the_last_is_followed_by_the_progress(gtdl: Command, store: str) -> None:
    done = gtdl(*SWEEP, "seed=1,2,3")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if " of 3 done" in line]
    expected = ["gtdl: 1 of 3 done, about T left", "gtdl: 2 of 3 done, about T left"]
    assert [re.sub(r"\d+ (s|min) ", "T ", line) for line in lines] == expected
    again = gtdl(*SWEEP, "seed=1,2,3")
    assert "gtdl: 2 of 3 done\n" in again.stderr, "skipped cells give no estimate"


@pytest.mark.slow
def test_the_summary_lists_the_results_of_finished_cells(gtdl: Command, store: str) -> None:
    done = gtdl(*SWEEP, "seed=1")
    _, (cell,) = sweep_runs()
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  finished")]
    metrics = cell.data.metrics
    figures = [f"{metrics['training_time_s']:.2f}", f"{metrics['testing_time_s']:.3g}"]
    assert line.removesuffix(" *").split()[-3:] == [*figures, f"{metrics['accuracy_percent']:.2f}"]
    disturbed = cell.data.tags["gtdl.interference"] != "ok"
    assert line.endswith(" *") == disturbed
    assert ("disturbed by other load" in done.stdout) == disturbed


@pytest.mark.slow
@pytest.mark.frameworks
def test_sweep_of_two_frameworks_ends_with_their_ranking(gtdl: Command, store: str) -> None:
    done = gtdl("-m", "framework=torch,caffe", "setting=caffe_mnist", "budget=0.003", "latency.repeats=0")
    assert done.returncode == 0, done.stdout + done.stderr
    table, _, ranking = done.stdout.partition("mnist_5k, all under caffe_mnist, cpu")
    assert table.count("  finished") == 2
    _, children = sweep_runs()
    best = min(children, key=lambda run: run.data.metrics["training_time_s"])
    label = {"torch": "PyTorch", "caffe": "Caffe"}[best.data.tags["gtdl.framework"]]
    assert re.search(rf"^  Too few runs to compare: .*{label} \S+ \S+ s", ranking, re.MULTILINE)
    assert "Too few runs" not in gtdl(*SWEEP, "seed=1", "tracking.experiment=alone").stdout


@pytest.mark.slow
def test_the_same_sweep_again_runs_only_unfinished_cells(gtdl: Command, store: str) -> None:
    first = gtdl(*SWEEP, "seed=1,2", "limits.run_timeout_s=0.01")
    assert first.returncode == 1
    again = gtdl("-m", "seed=1,2", "training.epochs=1", "framework=reference")  # the same overrides in another order
    assert again.returncode == 0, again.stderr
    parent, children = sweep_runs()
    assert parent.info.status == "FINISHED"
    assert sorted(run.info.status for run in children) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert parent.data.metrics["sweep/finished"] == 2
    assert parent.data.metrics["sweep/failed"] == 0
    third = gtdl(*SWEEP, "seed=1,2")
    assert third.returncode == 0
    assert third.stdout.count("of this sweep is FINISHED already") == 2
    assert len(sweep_runs()[1]) == 4


@pytest.mark.slow
def test_a_repeated_paired_measurement_has_a_parent_of_its_own(gtdl: Command, store: str) -> None:
    """Its ratios would be mixed with those of the first measurement, which may have other frameworks."""
    assert gtdl(*SWEEP, "seed=1").returncode == 0
    first, (cell,) = sweep_runs()
    client = mlflow.MlflowClient(store)
    client.log_metric(first.info.run_id, "paired/cpu/training/PyTorch-2.13.0/ratio", 1.0)
    again = gtdl(*SWEEP, "seed=1")
    assert again.returncode == 0, again.stderr
    assert len(runs(store)) == 3
    parent = client.get_run(cell.info.run_id).data.tags["mlflow.parentRunId"]
    assert parent != first.info.run_id
    assert "paired/cpu/training/PyTorch-2.13.0/ratio" not in client.get_run(parent).data.metrics
    loaded = read(runs(store))
    assert loaded.sweep_ids[first.info.run_id] == loaded.runs[0].tags["gtdl.sweep_id"]


@pytest.mark.slow
def test_sweep_rerun_selects_the_cells_to_run_again(gtdl: Command, store: str) -> None:
    assert gtdl(*SWEEP, "seed=1,2", "limits.run_timeout_s=0.01").returncode == 1
    unchanged = gtdl(*SWEEP, "seed=1,2", "sweep.rerun=none")
    assert unchanged.returncode == 1  # the cells are still failed
    assert len(sweep_runs()[1]) == 2
    assert gtdl(*SWEEP, "seed=1,2", "sweep.rerun=all").returncode == 0
    every = runs(store)
    assert len([run for run in every if "mlflow.parentRunId" not in run.data.tags]) == 2
    assert len(every) == 6


@pytest.mark.slow
def test_a_cell_of_other_code_or_other_data_runs_again(gtdl: Command, store: str) -> None:
    assert gtdl(*SWEEP, "seed=1,2").returncode == 0
    client = mlflow.MlflowClient()
    _, (one, other) = sweep_runs()
    client.set_tag(one.info.run_id, "gtdl.data_digest", "another")
    client.set_tag(other.info.run_id, "gtdl.code", "another")
    assert gtdl(*SWEEP, "seed=1,2").returncode == 0
    assert len(sweep_runs()[1]) == 4


@pytest.mark.slow
def test_another_sweep_has_another_parent(gtdl: Command, store: str) -> None:
    assert gtdl(*SWEEP, "seed=1,2").returncode == 0
    done = gtdl(*SWEEP, "seed=1,2,3")
    assert done.returncode == 0
    assert "skipped" not in done.stdout


@pytest.mark.slow
def test_runs_of_a_dead_driver_are_closed_and_run_again(gtdl: Command, store: str) -> None:
    sweep = ("-m", "framework=reference", "training.epochs=200", "seed=1,2,3")
    process = start(*sweep)

    def cells_of(status: str) -> list[Run]:
        return [run for run in runs(store) if run.info.status == status and "gtdl.sweep_position" in run.data.tags]

    wait_until(lambda: cells_of("FINISHED") and cells_of("RUNNING"), "the second cell runs", process)
    first = cells_of("FINISHED")[0].info.run_id
    process.kill()
    process.communicate(timeout=60)
    done = gtdl(*sweep)
    assert done.returncode == 0, done.stderr
    assert re.search(r"closed \d dead runs? as KILLED: the process no longer exists", done.stderr)
    parent, children = sweep_runs()
    assert parent.info.status == "FINISHED"
    finished = [run for run in children if run.info.status == "FINISHED"]
    assert sorted(run.data.tags["gtdl.seed"] for run in finished) == ["1", "2", "3"]
    assert first in {run.info.run_id for run in finished}
    killed = [run for run in children if run.info.status != "FINISHED"]
    assert killed
    assert all(run.info.status == "KILLED" and PROCESS_GONE in run.data.tags["gtdl.failure"] for run in killed)


UNKNOWN_PROCESS = "another 1 1 1/1 another-boot another-machine"


@pytest.mark.slow
def test_sweep_that_may_be_running_elsewhere_is_neither_closed_nor_taken_over(gtdl: Command, store: str) -> None:
    assert gtdl(*SWEEP, "seed=1").returncode == 0
    parent, _ = sweep_runs()
    client = mlflow.MlflowClient()
    client.set_tag(parent.info.run_id, "gtdl.process", UNKNOWN_PROCESS)
    client.update_run(parent.info.run_id, "RUNNING")
    done = gtdl(*SWEEP, "seed=1", "limits.run_timeout_s=0.01")  # it is older than any of its runs may be
    assert done.returncode == 0, done.stderr
    assert f"may be running elsewhere (MLflow run {parent.info.run_id}); a new one starts here" in done.stderr
    assert "of this sweep is FINISHED already" in done.stdout
    assert client.get_run(parent.info.run_id).info.status == "RUNNING"


@pytest.mark.slow
def test_cell_is_left_to_a_process_that_exists_or_may_exist(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("gtdl")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    config = compose(["framework=reference", f"tracking.uri='{store}'", "limits.run_timeout_s=1000"])
    tags = {"gtdl.sweep_id": "id", "gtdl.config_hash": config.hash()}

    def is_left(process: str, age_s: float) -> bool:
        started_ms = round(1000 * (time.time() - age_s))
        run = client.create_run(experiment, start_time=started_ms, tags=tags | {"gtdl.process": process})
        found = cells.previous_attempts(config, SweepPosition("parent", "id", 0))
        client.delete_run(run.info.run_id)
        return [each.info.run_id for each in found] == [run.info.run_id]

    own = this_process().split(" ")
    dead = " ".join([own[0], str(2**22 + 1), *own[2:]])
    assert is_left(this_process(), 5000)
    assert is_left(UNKNOWN_PROCESS, 10)
    assert not is_left(UNKNOWN_PROCESS, 5000)
    assert not is_left(dead, 10)


@pytest.mark.slow
def test_sweep_whose_summary_cannot_be_written_loses_nothing_else(gtdl: Command, store: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    (folder / "summary.csv").mkdir(parents=True)
    done = gtdl(*SWEEP, "seed=1", f"hydra.sweep.dir={folder}")
    assert done.returncode == 0
    assert "gtdl: summary.csv could not be written: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "sweep: 1 finished of 1 cell" in done.stdout
    parent, (cell,) = sweep_runs()
    assert (parent.info.status, cell.info.status) == ("FINISHED", "FINISHED")
    assert parent.data.metrics["sweep/finished"] == 1


CLOSING_FAILS = """
import sys
from gtdl_mlflow.__main__ import main
from gtdl_mlflow.sweeps.hydra_callbacks import SweepParent
def fail(sweep):
    raise RuntimeError("planted")
SweepParent.close = fail
main()
"""


@pytest.mark.slow
def test_sweep_whose_closing_fails_unexpectedly_has_status_1(store: str) -> None:
    process = start_script(CLOSING_FAILS, *SWEEP, "seed=1")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1, output + errors
    assert messages(errors) == ["gtdl: the sweep could not be closed: RuntimeError: planted"]


@pytest.mark.slow
def test_commands_that_start_together_create_one_database(store: str) -> None:
    Path("mlflow.db").unlink()
    processes = [start("-m", "framework=reference", "training.epochs=1", f"seed={seed}") for seed in range(4)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], errors
    assert {run.data.tags["gtdl.seed"] for run in runs(store) if "gtdl.seed" in run.data.tags} == {"0", "1", "2", "3"}


@pytest.mark.slow
def test_a_running_sweep_is_not_started_twice(gtdl: Command, store: str) -> None:
    sweep = ("-m", "framework=reference", "training.epochs=3000", "seed=1,2")
    process = start(*sweep)
    try:
        wait_until(
            lambda: any("gtdl.sweep_position" in run.data.tags for run in runs(store)), "the first cell runs", process
        )
        done = gtdl(*sweep)
        assert done.returncode == 2
        assert f"process {process.pid} is running this sweep (MLflow run " in done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    parent, _ = sweep_runs()
    assert parent.info.status == "KILLED"


@pytest.mark.slow
def test_under_mlflow_run_finished_cells_of_the_last_run_get_the_new_parent(
    gtdl: Command, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient()
    experiment_id = client.create_experiment("gtdl")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    for _ in range(2):
        monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run(experiment_id).info.run_id)
        done = gtdl(*SWEEP, "seed=1,2")
        assert done.returncode == 0, done.stderr
    every = runs(store)
    parents = [run for run in every if "mlflow.parentRunId" not in run.data.tags]
    assert len(every) == 4
    assert [run.data.metrics["sweep/finished"] for run in parents] == [2, 2]
    newest = max(parents, key=lambda run: run.info.start_time).info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in every if run not in parents} == {newest}


@pytest.mark.slow
def test_an_objective_that_a_run_does_not_have_is_reported(gtdl: Command, store: str) -> None:
    done = gtdl(*SWEEP, "seed=1", "sweep.objective=parity/loss_difference")
    assert done.returncode == 0
    assert "sweep.objective=parity/loss_difference: expected one of accuracy_percent, " in done.stderr


OVERRIDES = ["framework=a,b", "dataset=x,y", "seed=0,1", "budget=0.1"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (SweepOrder.interleaved, ["seed=0,1", "dataset=x,y", "budget=0.1", "framework=a,b"]),
        (SweepOrder.grouped, ["framework=a,b", "dataset=x,y", "budget=0.1", "seed=0,1"]),
    ],
)
def test_overrides_are_sorted_by_the_order_of_the_sweep(order: SweepOrder, expected: list[str]) -> None:
    assert order_overrides(OVERRIDES, order) == expected


def test_cells_are_counted_unless_only_the_sweeper_knows() -> None:
    assert count_cells(OVERRIDES) == 8
    assert count_cells([*OVERRIDES, "training.learning_rate=interval(0.1,1)"]) is None


@pytest.mark.slow
@pytest.mark.frameworks
def test_all_frameworks_finish_in_one_sweep_and_learn_the_same(gtdl: Command, store: str) -> None:
    usable = available_frameworks()
    done = gtdl("-m", f"framework={','.join(usable)}", "setting=caffe_mnist", "training.iterations=60", timeout=800)
    assert done.returncode == 0, done.stderr
    parent, children = sweep_runs()
    assert parent.data.metrics["sweep/finished"] == len(usable)
    assert {run.data.tags["gtdl.framework"] for run in children} == set(usable)
    for run in children:
        assert run.data.tags["gtdl.framework_version"].partition("+")[0] == run.data.params["framework.version"]
        assert run.data.metrics.keys() >= {"training_time_s", "testing_time_s", "accuracy_percent", "setup/compile_s"}
    # Initial weights, batches and steps are the same: after 60 steps only rounding differs.
    accuracies = [run.data.metrics["accuracy_percent"] for run in children]
    assert min(accuracies) > 80
    assert max(accuracies) - min(accuracies) <= 1
    losses = [run.data.metrics["train/loss"] for run in children]
    assert max(losses) / min(losses) < 1.02


def available_frameworks() -> list[str]:
    """Return the frameworks with an environment of their own that can be created on this machine."""
    found = []
    for path in sorted((CONF / "framework").glob("*.yaml")):
        framework = compose([f"framework={path.stem}", "setting=reference_mnist"]).framework
        if not framework.devices["cpu"].recipes:
            continue
        try:
            environments.ensure(framework, "cpu")
        except environments.EnvironmentFailed:
            if os.environ.get("GTDL_REQUIRE_FRAMEWORKS") == "1":
                raise
            continue  # test_frameworks.py reports the reason
        found.append(path.stem)
    return found
