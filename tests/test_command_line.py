"""``python -m gtdl_mlflow``: help, invalid requests, a run's output, failures, Ctrl-C and the progress line."""

from __future__ import annotations

import os
import pty
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from helpers.project import ROOT, Command, messages, runs, start, wait_for_worker

from gtdl_mlflow.__main__ import to_overrides
from gtdl_mlflow.config import compose
from gtdl_mlflow.runner import describe

slow = pytest.mark.slow


@slow
def test_help_shows_commands_options_and_values(gtdl: Command) -> None:
    done = gtdl("--help")
    assert done.returncode == 0
    words = ("python -m gtdl_mlflow", "mlflow run .", "framework: ", "torch", "mnist_5k", "GTDL_HOME", "budget")
    for word in (*words, "setting: caffe_cifar10, "):
        assert word in done.stdout
    # Hydra writes the options of a group in one line.
    groups = "framework: ", "dataset: ", "experiment: ", "model: ", "training: ", "setting: "
    assert max(len(line) for line in done.stdout.splitlines() if not line.strip().startswith(groups)) <= 120


@slow
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
        ["-P", "framework=torch"],
        ["training.checkpoint_every=3"],
        ["-m", "training.inputs.scale.factor=1,2"],
        ["training.early_stopping.patience=3"],
        ["-m", "training.early_stopping={patience_iterations: 3}", "seed=1,2"],
        ["-m", "setting=caffe_mnist,caffe"],
        ["sweep.objective=noise/throttles"],
        ["tracking.uri=http://"],
        ["tracking.uri=http://127.0.0.1:notaport"],
        ["tracking.uri='https://[::1'"],
        ["tracking.uri=sqlite://"],
        ["-m", "tracking.uri='sqlite:///:memory:'"],
    ],
)
def test_wrong_request_is_one_line_within_two_seconds_and_writes_nothing(
    gtdl: Command, wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = gtdl(*wrong)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("gtdl: ")
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "mlflow.db").exists()
    # CPU time: the wall time depends on what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_wrong_request_does_not_import_mlflow() -> None:
    code = (
        "import sys; sys.argv[1:] = ['seed=x']; from gtdl_mlflow.__main__ import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 2\n"
        "sys.exit(any(name in sys.modules for name in ('mlflow', 'pandas', 'sqlalchemy', 'torch')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_extra_parameters_of_mlflow_become_overrides() -> None:
    overrides = [
        "framework=torch",
        "seed=3",
        "training.batch_size=20",
        "-m",
        "--multirun",
        "--cfg",
        "job",
        "budget=0.1",
    ]
    extra = ["framework=torch", "--seed", "3", "--training.batch_size=20", *overrides[3:-1], "--budget", "0.1"]
    assert to_overrides(extra) == overrides


@slow
def test_run_prints_its_results_and_how_to_view_it(gtdl: Command, tmp_path: Path) -> None:
    done = gtdl("framework=reference", "training.epochs=2")
    assert done.returncode == 0, done.stderr
    assert "accuracy 8" in done.stdout
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in done.stdout
    assert messages(done.stderr) == []
    (run,) = runs(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert run.info.status == "FINISHED"
    assert f"accuracy {run.data.metrics['accuracy_percent']:.2f} %" in done.stdout


@slow
def test_failed_run_is_one_line_and_status_1(gtdl: Command, store: str) -> None:
    done = gtdl("framework=reference", "setting=caffe_mnist")
    assert done.returncode == 1
    assert len(messages(done.stderr)) == 1
    assert "conv1" in done.stderr
    (run,) = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert run.info.status == "FAILED"
    assert "conv1" in run.data.tags["gtdl.failure"]
    assert run.info.end_time


@slow
def test_missing_data_names_the_files_and_the_folder(
    gtdl: Command, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    done = gtdl("framework=reference", "dataset=mnist")
    assert done.returncode == 1
    assert len(messages(done.stderr)) == 1
    assert "train-images-idx3-ubyte" in done.stderr
    assert str(tmp_path / "data" / "mnist") in done.stderr


@slow
@pytest.mark.parametrize("sweep", [[], ["-m"]])
@pytest.mark.parametrize(
    ("uri", "status", "message"),
    [
        ("sqlite:////dev/null/mlflow.db", 1, "MLflow at sqlite:////dev/null/mlflow.db failed"),
        ("carrier://user:secret@pigeon", 2, "tracking.uri=carrier://pigeon: expected http://HOST:PORT"),
    ],
)
def test_unusable_tracking_store_is_one_line_without_credentials(
    gtdl: Command, uri: str, status: int, message: str, sweep: list[str]
) -> None:
    done = gtdl(*sweep, "framework=reference", f"tracking.uri='{uri}'")
    assert done.returncode == status
    assert len(messages(done.stderr)) == 1
    assert message in done.stderr
    assert "Traceback" not in done.stdout
    assert "secret" not in done.stdout + done.stderr


@slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_run_as_killed_and_leaves_no_process(store: str, number: int) -> None:
    driver = start("framework=reference", "training.epochs=1000000", "training.checkpoint_every_s=0")
    worker = wait_for_worker(driver)
    driver.send_signal(number)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    killed, stopped = messages(errors)
    assert stopped == "gtdl: stopped"
    assert not Path(f"/proc/{worker}").exists()
    (run,) = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert run.info.status == "KILLED"
    assert (
        killed == f"gtdl: MLflow run {run.info.run_id} is KILLED; training.checkpoint_every_s=60 lets a run be resumed"
    )
    assert run.data.params["worker.device"] == "cpu"


@slow
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1"]])
def test_working_folder_of_a_job_moves_nothing(
    gtdl: Command, sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTDL_LOCKS", "locks")
    done = gtdl(*sweep, "framework=reference", "training.epochs=1", "hydra.job.chdir=true")
    assert done.returncode == 0, done.stderr
    (database,) = tmp_path.rglob("mlflow.db")
    assert database.parent == tmp_path
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlruns", "outputs", "multirun", "locks"}
    assert (tmp_path / "locks" / "cpu").exists()
    assert "FINISHED" in {run.info.status for run in runs(f"sqlite:///{database}")}
    report = subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow.cli", "report"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert report.returncode == 0, report.stderr


@pytest.mark.slow
def test_budget_is_shown_as_it_was_requested() -> None:
    for budget, text in (("0.001", "(budget 0.001)"), ("1e-5", "(budget 1e-05)"), ("0.3", "(budget 0.3)")):
        assert text in describe(compose([f"budget={budget}"]))
    assert "budget" not in describe(compose(["budget=1"]))


@slow
@pytest.mark.parametrize("kind", [[], ["-m", "seed=1"]])
def test_working_folder_that_cannot_be_written_is_named(gtdl: Command, kind: list[str], store: str) -> None:
    folder = Path("/proc/self")  # not even root can write here
    done = subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow", *kind, "framework=reference"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    (line,) = messages(done.stderr)
    assert line.startswith("gtdl: ")
    assert "multirun" in line if kind else "outputs" in line
    assert runs(store) == []


@slow
def test_user_without_a_home_directory_is_told_to_set_gtdl_home(tmp_path: Path) -> None:
    script = "import os, pwd, runpy, sys; pwd.getpwuid = lambda user: {}[user]; os.environ.pop('HOME')\n"
    script += (
        "sys.argv = ['gtdl', 'framework=reference', 'training.epochs=1']; sys.path.insert(0, os.environ['ROOT'])\n"
    )
    script += "runpy.run_module('gtdl_mlflow', run_name='__main__', alter_sys=True)"
    kept = {key: value for key, value in os.environ.items() if key not in ("GTDL_HOME", "LOGNAME", "USER")}

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env=kept | {"ROOT": str(ROOT), "HOME": "x"} | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = run()
    assert done.returncode == 1
    assert "has no home directory; set GTDL_HOME to a folder with its full path" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    done = run(GTDL_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def read_terminal(terminal: int) -> bytes:
    """Return what a process shows on a pseudo-terminal until it ends."""
    shown = b""
    while select.select([terminal], [], [], 120)[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # a pseudo-terminal raises this when its other end is closed
            break
    os.close(terminal)
    return shown


@slow
def test_progress_line_is_shown_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    terminal, stderr = pty.openpty()
    driver = subprocess.Popen(
        [sys.executable, "-m", "gtdl_mlflow", "framework=reference"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )
    os.close(stderr)
    shown = read_terminal(terminal)
    assert driver.wait(timeout=60) == 0
    assert b"images/s, loss " in shown
    assert b"100%" in shown


def test_a_terminal_shows_that_the_store_is_read_and_then_one_line(tmp_path: Path) -> None:
    terminal, stderr = pty.openpty()
    command = subprocess.Popen(
        [sys.executable, "-m", "gtdl_mlflow.cli", "compare", "torch", "mxnet"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stderr=stderr,
    )
    os.close(stderr)
    shown = read_terminal(terminal).decode()
    assert command.wait(timeout=60) == 1
    reading, end = shown.rsplit("\x1b[K", 1)
    assert "reading the tracking store" in reading
    assert end.startswith("gtdl: ")
    assert "no such file" in end
    assert end.count("\n") == 1
