"""Signals: the first one stops a command, and none disturbs what has to be completed."""

from __future__ import annotations

import itertools
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import mlflow
import pytest
from helpers.processes import read_line, start_script
from helpers.project import ROOT, messages, start, wait_for_worker, wait_until
from helpers.share import share

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
STOPS = list(itertools.product(SIGNALS, ["driver", "group"]))


def interruptible(body: str, definitions: str = "", after: str = "pass") -> str:
    """Return a script that runs ``body`` and sleeps. After a signal, it prints "interrupted" and runs ``after``."""
    return f"""
import time
from pathlib import Path
from gtdl_mlflow import signals
{definitions}
signals.interrupt_on_first()
try:
{textwrap.indent(textwrap.dedent(body), "    ")}
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    {after}
"""


INTERRUPTED = interruptible('print("ready", flush=True)', after='time.sleep(0.5); print("delivered", flush=True)')

DEFERRED = interruptible("""
    with signals.deferred():
        print("ready", flush=True)
        time.sleep(0.5)
        print("completed", flush=True)
""")

IMPORTING = """
import sys, time
from gtdl_mlflow import signals
signals.interrupt_on_first()
try:
    import slow_module
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", slow_module.complete, flush=True)
"""

DELETING = interruptible(
    "each = Slow(); del each",
    """
class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(0.5)
""",
)

CONSTRUCTING = interruptible(
    "Incomplete()",
    """
class Incomplete:
    def __init__(self):
        print("ready", flush=True)
        time.sleep(60)
        self.file = None
    def __del__(self):
        self.file.close()
""",
)

EXITING = """
import time
from gtdl_mlflow import signals
signals.exit_on_first()
try:
    print("ready", flush=True)
    time.sleep(60)
except BaseException:
    print("swallowed", flush=True)
"""


def stop(process: subprocess.Popen[str], *numbers: int) -> tuple[int, str, str]:
    """Send signals to a script that is ready, 0.1 s apart. Return its exit status, further output and errors."""
    assert read_line(process, process.stdout) == "ready\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_interrupts_and_later_ones_are_ignored(number: int) -> None:
    assert stop(start_script(INTERRUPTED), number, number, *SIGNALS) == (0, "interrupted\ndelivered\n", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_take_effect_at_the_end_of_a_deferred_block(number: int) -> None:
    assert stop(start_script(DEFERRED), number, number) == (0, "completed\ninterrupted\n", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_before_there_is_anything_to_close_a_signal_ends_the_process_at_once(number: int) -> None:
    assert stop(start_script(EXITING), number) == (130, "", "gtdl: stopped\n")


def test_import_is_completed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "import time; print('ready', flush=True); time.sleep(0.5); complete = True"
    (tmp_path / "slow_module.py").write_text(module)
    script = IMPORTING.replace("import sys, time", f"import sys, time; sys.path.append({str(tmp_path)!r})")
    assert stop(start_script(script), signal.SIGTERM, signal.SIGINT) == (0, "interrupted True\n", "")


def test_interrupt_is_not_lost_in_a_destructor() -> None:
    assert stop(start_script(DELETING), signal.SIGTERM) == (0, "interrupted\n", "")


def test_object_whose_construction_was_interrupted_is_deleted_without_a_traceback() -> None:
    assert stop(start_script(CONSTRUCTING), signal.SIGINT) == (0, "interrupted\n", "")


def test_interrupt_is_not_lost_in_a_callback_of_a_weak_reference() -> None:
    script = interruptible(
        "del deleted",
        """
import weakref
class Deleted:
    pass
def callback(reference):
    print("ready", flush=True)
    time.sleep(60)
deleted = Deleted()
reference = weakref.ref(deleted, callback)
""",
    )
    assert stop(start_script(script), signal.SIGTERM) == (0, "interrupted\n", "")


def test_signal_that_the_parent_process_ignores_stays_ignored() -> None:
    script = INTERRUPTED.replace("import time", "import signal, time; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process = start_script(script.replace("sleep(60)", "sleep(1)"))
    assert stop(process, signal.SIGHUP) == (0, "", "")


def test_programs_that_are_started_later_do_not_inherit_that_signals_are_ignored() -> None:
    code = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    script = f"""
import subprocess, sys
from gtdl_mlflow import signals
signals.ignore()
subprocess.run([sys.executable, "-c", {code!r}])
"""
    process = start_script(script)
    assert process.communicate(timeout=60) == ("True\n", "")


def test_handler_of_a_launcher_stays() -> None:
    script = """
import signal
from gtdl_mlflow import signals
handler = lambda *_: None
signal.signal(signal.SIGTERM, handler)
signals.interrupt_on_first()
print(signal.getsignal(signal.SIGTERM) is handler)
"""
    assert start_script(script).communicate(timeout=60) == ("True\n", "")


# Whole commands.


def states(store: str) -> list[str]:
    """Return the states of all runs in the store."""
    client = mlflow.MlflowClient(store)
    experiments = [each.experiment_id for each in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_during_the_start_leaves_no_run_and_no_traceback(store: str, number: int) -> None:
    for delay in (0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5):
        process = start("framework=reference", "training.epochs=100000", "training.checkpoint_every_s=0")
        time.sleep(delay)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        # Before the first line of this project, the interpreter itself ends.
        early = process.returncode in (-number, 1) and delay == 0.1
        assert early or process.returncode == 130, errors
        assert early or errors.endswith("gtdl: stopped\n"), (delay, errors)
        assert len(messages(errors)) <= 2, errors
    assert set(states(store)) <= {"KILLED"}


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_repeated_signals_do_not_disturb_the_delivery(store: str, number: int) -> None:
    driver = start("framework=reference", "training.epochs=1000000", "training.checkpoint_every_s=0")
    wait_for_worker(driver)
    for _ in range(10):
        driver.send_signal(number)
        time.sleep(0.05)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert errors.endswith("gtdl: stopped\n")
    assert len(messages(errors)) == 2
    assert states(store) == ["KILLED"]


DELIVERING = interruptible(
    """
    with recorder.Recorder(config.compose(["framework=reference"]), Path("run")) as run:
        run.add(Metrics({"accuracy_percent": 90, "training_time_s": 1, "testing_time_s": 1}))
""",
    """
from gtdl_mlflow import config
from gtdl_mlflow.tracking import outbox, recorder
from gtdl_mlflow.worker.events import Metrics
deliver = outbox.conclude
def slowly(*arguments):
    print("ready", flush=True)
    time.sleep(0.5)
    return deliver(*arguments)
outbox.conclude = slowly
""",
)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_during_the_delivery_of_a_finished_run_waits_for_its_end(store: str, number: int) -> None:
    status, output, errors = stop(start_script(DELIVERING), number)
    assert (status, output) == (0, "interrupted\n"), errors
    assert states(store) == ["FINISHED"]


@pytest.mark.slow
def test_closed_terminal_stops_a_run_as_killed(store: str, tmp_path: Path) -> None:
    arguments = ["framework=reference", "training.epochs=1000000", "training.checkpoint_every_s=0"]
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        os.execve(sys.executable, [sys.executable, "-m", "gtdl_mlflow", *arguments], variables)
    wait_until(lambda: b"images/s" in os.read(terminal, 4096), "the worker trains")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert states(store) == ["KILLED"]


@pytest.mark.slow
def test_stopped_and_continued_processes_finish(store: str) -> None:
    driver = start("framework=reference", "training.epochs=300", "training.checkpoint_every_s=0.1")
    worker = wait_for_worker(driver)
    for victim in (driver.pid, worker):
        os.kill(victim, signal.SIGSTOP)
        time.sleep(1)
        os.kill(victim, signal.SIGCONT)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 0, errors
    assert states(store) == ["FINISHED"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "victim"), share(STOPS, [(signal.SIGINT, "group"), (signal.SIGTERM, "driver")]))
def test_stopped_sweep_of_parallel_jobs_leaves_no_running_run(store: str, number: int, victim: str) -> None:
    driver = start(
        *("-m", "hydra/launcher=joblib", "framework=reference", "seed=1,2,3", "training.epochs=1000000"),
        start_new_session=True,
    )
    wait_until(lambda: states(store).count("RUNNING") >= 2, "a cell runs", driver)
    if victim == "group":
        os.killpg(driver.pid, number)
    else:
        driver.send_signal(number)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 130, errors
    assert "Traceback" not in errors
    assert set(states(store)) == {"KILLED"}


@pytest.mark.slow
def test_killed_job_of_a_launcher_is_one_line(store: str) -> None:
    driver = start("-m", "hydra/launcher=joblib", "framework=reference", "seed=1,2", "training.epochs=1000000")
    wait_until(lambda: states(store).count("RUNNING") >= 2, "a cell runs", driver)
    client = mlflow.MlflowClient(store)
    (experiment,) = [each for each in client.search_experiments() if each.name == "gtdl"]
    (job, *_) = client.search_runs([experiment.experiment_id], "tags.`gtdl.sweep_position` LIKE '%'")
    os.kill(int(job.data.tags["gtdl.process"].split(" ")[1]), signal.SIGKILL)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 1, errors
    assert "gtdl: the launcher failed: " in errors
    assert "Traceback" not in errors
    assert not {"RUNNING", "FINISHED"} & set(states(store))


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_commands_of_gtdl_stop_with_one_line(number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "gtdl_mlflow.cli", "report", "--tracking-uri", uri]
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
        )
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "gtdl: interrupted\n")


def test_closed_pipe_of_the_output_stops_nothing() -> None:
    script = "from gtdl_mlflow import console\n"
    script += "console.output('a'); console.info('b'); console.output('c'); print('d', flush=True)"
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "gtdl: b\n")
