"""What a user types, typed for real."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from helpers.project import ROOT, Command, runs, wait_for_worker

from gtdl_mlflow.__main__ import overrides


def test_help_is_for_a_newcomer(gtdl: Command) -> None:
    shown = gtdl("--help")
    assert shown.returncode == 0
    for word in ("python -m gtdl_mlflow", "mlflow run .", "framework: ", "torch", "mnist_5k", "GTDL_HOME", "budget"):
        assert word in shown.stdout
    # As long as there are files.
    choices = "framework: ", "dataset: ", "experiment: ", "model: ", "training: ", "setting: "
    assert max(len(line) for line in shown.stdout.splitlines() if not line.strip().startswith(choices)) <= 120


@pytest.mark.parametrize(
    "wrong",
    [
        ["framework=torchh"],
        ["training.batch_size=0"],
        ["--training.batch_size", "0"],
        ["-m", "framework=torch,torchh"],
        ["-m", "seed=0,-1"],
        ["-m", "framework=glob(*)", "training.batch_size=0"],
        ["hardware.device=tpu"],
        ["=3"],
    ],
)
def test_a_mistake_is_one_line_and_touches_nothing(
    gtdl: Command, wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    answer = gtdl(*wrong)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stderr.startswith("gtdl_mlflow: ")
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_mlflow_is_not_imported_to_answer_a_mistake() -> None:
    # What takes two seconds must not stand between a typing error and its answer.
    code = (
        "import sys; sys.argv[1:] = ['seed=x']; from gtdl_mlflow.__main__ import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 2\n"
        "sys.exit(any(name in sys.modules for name in ('mlflow', 'pandas', 'sqlalchemy', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_mlflows_extra_parameters_become_overrides() -> None:
    typed = [
        "framework=torch",
        "--seed",
        "3",
        "--training.batch_size=20",
        "-m",
        "--multirun",
        "--cfg",
        "job",
        "--budget",
        "0.1",
    ]
    assert overrides(typed) == [
        "framework=torch", "seed=3", "training.batch_size=20", "-m", "--multirun", "--cfg", "job", "budget=0.1",
    ]  # fmt: skip


def test_a_run_ends_with_its_figures_and_where_to_look(gtdl: Command, tmp_path: Path) -> None:
    done = gtdl("framework=reference", "training.epochs=2")
    assert done.returncode == 0, done.stderr
    assert "accuracy 8" in done.stdout
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in done.stdout
    assert done.stderr == ""
    (run,) = runs(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert run.info.status == "FINISHED"
    assert f"accuracy {run.data.metrics['accuracy_percent']:.2f} %" in done.stdout


def test_a_failed_run_is_one_line_and_status_1(gtdl: Command, store: str) -> None:
    done = gtdl("framework=reference", "setting=caffe_mnist")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "softmax regression, one dense layer; it cannot run layer conv1" in done.stderr
    (run,) = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert run.info.status == "FAILED"
    assert "cannot run layer conv1" in run.data.tags["gtdl.failure"]
    assert run.info.end_time


def test_missing_data_names_the_files_and_the_folder(
    gtdl: Command, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    done = gtdl("framework=reference", "dataset=mnist")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "train-images-idx3-ubyte" in done.stderr
    assert str(tmp_path / "data" / "mnist") in done.stderr


@pytest.mark.parametrize("sweep", [[], ["-m"]])
@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:////dev/null/mlflow.db", "MLflow at sqlite:////dev/null/mlflow.db failed"),
        ("carrier://user:secret@pigeon", "MLflow at carrier://pigeon failed"),
    ],
)
def test_a_tracker_that_cannot_be_had_is_one_line(gtdl: Command, uri: str, said: str, sweep: list[str]) -> None:
    done = gtdl(*sweep, "framework=reference", f"tracking.uri='{uri}'")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert "Traceback" not in done.stdout
    if "://user:" in uri:
        assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_run_as_killed_and_leaves_no_process(store: str, number: int) -> None:
    driver = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gtdl_mlflow",
            "framework=reference",
            "training.epochs=1000000",
            "training.checkpoint_every_s=0",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    worker = wait_for_worker(driver)
    driver.send_signal(number)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert said == "gtdl_mlflow: stopped\n"
    assert not Path(f"/proc/{worker}").exists()
    (run,) = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert run.info.status == "KILLED"
    assert run.data.params["worker.device"] == "cpu"


def test_progress_is_shown_to_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keyboard, screen = pty.openpty()
    driver = subprocess.Popen(
        [sys.executable, "-m", "gtdl_mlflow", "framework=reference"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=screen,
    )
    os.close(screen)
    shown = b""
    while True:
        try:
            shown += os.read(keyboard, 4096)
        except OSError:  # how a pseudo-terminal says that its other end is closed
            break
    os.close(keyboard)
    assert driver.wait(timeout=60) == 0
    assert b"images/s, loss " in shown
    assert b"100%" in shown
