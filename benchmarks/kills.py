"""Kill runs and sweeps at random moments, run each command again, and count what is lost.

    python benchmarks/kills.py [--trials 200] [--seed 0] [--side-by-side 2] [--only SIGNAL]

Each trial starts a command, sends a signal to its driver, its worker or the driver's process group at a random moment
between its start and the end of its delivery, and then runs the same command undisturbed. At the end, these must be 0:

    RUNNING     runs that are RUNNING in MLflow after the second command
    lost        seeds without a FINISHED run after the second command, and runs that the first one reported as finished
    doubled     seeds with more runs than commands, and cells of a sweep that are FINISHED more than once
    orphans     processes that outlive their command
    tracebacks  commands that print one
    hung        commands that do not end within five minutes

``--side-by-side`` trials run at the same time, each with its own cache directory, locks and store.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue

import psutil

from gtdl_mlflow.files import cache_dir

ROOT = Path(__file__).parents[1]

SHORT = ["latency.repeats=0", "training.evaluate_every_epochs=0", "training.checkpoint_every_s=0.2"]

COMMANDS = {
    "reference": ["framework=reference", "training.epochs=40", *SHORT],
    "torch": ["framework=torch", "mode=default", "budget=0.02", *SHORT],
    "sweep": ["-m", "framework=reference", "training.epochs=20", *SHORT],
}
"""Overrides of the commands, without their seeds."""

SHARES = {"reference": 5, "torch": 3, "sweep": 2}

SIGNALS = ("KILL", "TERM", "HUP", "INT", "INT INT", "TERM TERM", "STOP CONT")

VICTIMS = ("driver", "driver", "worker", "group")

TIMEOUT_S = 300

SWEEP_SEED = 100_000
"""Added to the seed of a trial: the seed of the second cell of its sweep."""

FAULTS = ("RUNNING", "lost", "doubled", "orphans", "tracebacks", "hung")


@dataclass
class Trial:
    """One command that is disturbed and repeated."""

    number: int
    kind: str
    signals: str
    victim: str
    moment: float
    """Share of the command's duration, from 0 to 1 and a little more."""
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    statuses: tuple[int | None, ...] = ()
    states: list[str] = field(default_factory=list)
    """States of the trial's runs, after the first and after the second command."""

    @property
    def seeds(self) -> list[int]:
        return [self.number, self.number + SWEEP_SEED] if self.kind == "sweep" else [self.number]


class Lane:
    """A cache directory, locks and a store, for one trial at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir(parents=True)
        for name in ("environments", "builds", "peaks"):
            (cache_dir() / name).mkdir(parents=True, exist_ok=True)
            (home / name).symlink_to(cache_dir() / name)
        self.database = folder / "mlflow.db"
        self.durations: dict[str, float] = {}

    def start(self, kind: str, seeds: list[int], marker: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a command. ``marker`` becomes its TMPDIR, which all of its processes inherit."""
        marker.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | {
            "GTDL_HOME": str(self.folder / "home"),
            "GTDL_LOCKS": str(self.folder / "locks"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.database}",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(marker),
        }
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-c", START, *COMMANDS[kind], f"seed={','.join(map(str, seeds))}"],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def duration(self, kind: str) -> float:
        """Return how long an undisturbed command takes."""
        if not self.durations:  # the first run creates the store and prepares the data
            self.durations[""] = self._measure("reference", 10 * SWEEP_SEED)
        if kind not in self.durations:
            self.durations[kind] = self._measure(kind, 20 * SWEEP_SEED)
        return self.durations[kind]

    def _measure(self, kind: str, seed: int) -> float:
        started = time.monotonic()
        log = self.folder / f"{kind}.log"
        if self.start(kind, [seed], self.folder / "tmp" / kind, log).wait(2 * TIMEOUT_S):
            sys.exit(f"{kind} fails undisturbed:\n{log.read_text(errors='replace')}")
        return (time.monotonic() - started) * (2 if kind == "sweep" else 1)

    def query(self, text: str, *values: object) -> list[tuple[str, ...]]:
        if not self.database.exists():
            return []
        connection = sqlite3.connect(self.database, timeout=60)
        try:
            return connection.execute(text, values).fetchall()
        finally:
            connection.close()

    def states(self, seed: int) -> list[str]:
        """Return the states of the runs with this seed, in the order of their start."""
        text = (
            "select runs.status from runs join tags on tags.run_uuid = runs.run_uuid "
            "where tags.key = 'gtdl.seed' and tags.value = ? and lifecycle_stage = 'active' order by start_time"
        )
        return [status for (status,) in self.query(text, str(seed))]

    def running(self) -> int:
        return len(self.query("select run_uuid from runs where status = 'RUNNING'"))


# A shell that starts a command in the background makes it ignore SIGINT, and this benchmark may have such a parent.
START = (
    "import os, signal, sys; [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)]; "
    "os.execv(sys.executable, [sys.executable, '-m', 'gtdl_mlflow', *sys.argv[1:]])"
)


def perform(trial: Trial, lane: Lane) -> None:
    """Disturb the command, repeat it, and count the faults."""
    marker, random_pause = lane.folder / "tmp" / str(trial.number), random.Random(trial.number)
    logs = [lane.folder / f"{trial.number}-{attempt}.log" for attempt in (1, 2)]
    process = lane.start(trial.kind, trial.seeds, marker, logs[0])
    with suppress(subprocess.TimeoutExpired):
        process.wait(trial.seconds)
    if process.poll() is None:
        for index, name in enumerate(trial.signals.split()):
            if index:
                time.sleep(random_pause.uniform(0.02, 3.0 if name == "CONT" else 0.8))
            send(getattr(signal, f"SIG{name}"), trial.victim, process.pid, marker)
    first = finish(process, trial)
    trial.faults["orphans"] += len(remaining(marker))
    before = {seed: lane.states(seed) for seed in trial.seeds}
    process = lane.start(trial.kind, trial.seeds, marker, logs[1])
    second = finish(process, trial)
    trial.faults["orphans"] += len(remaining(marker))
    trial.statuses = first, second
    for seed in trial.seeds:
        after = lane.states(seed)
        trial.states.append(f"{','.join(before[seed]) or '-'} > {','.join(after) or '-'}")
        reported = before[seed] if first == 0 else ["FINISHED"]
        trial.faults["lost"] += "FINISHED" not in after or "FINISHED" not in reported
        trial.faults["doubled"] += len(after) > 2 or (trial.kind == "sweep" and after.count("FINISHED") > 1)
    trial.faults["RUNNING"] += lane.running()
    trial.faults["tracebacks"] += sum(has_traceback(log) for log in logs)
    if second:
        trial.faults["lost"] += 1


def send(number: int, victim: str, driver: int, marker: Path) -> None:
    """Send a signal to the worker, if there is one, to the driver, or to the driver's process group."""
    targets = [driver]
    if victim == "worker":
        targets = [each.pid for each in marked(marker) if "worker/__main__.py" in " ".join(each.cmdline())] or targets
    for target in targets:
        with suppress(ProcessLookupError):
            if victim == "group":
                os.killpg(target, number)
            else:
                os.kill(target, number)


def finish(process: subprocess.Popen[bytes], trial: Trial) -> int | None:
    """Return the exit status of a command; None if it does not end."""
    try:
        return process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        trial.faults["hung"] += 1
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def remaining(marker: Path) -> list[psutil.Process]:
    """Return the processes that still exist ten seconds after their command, and kill them."""
    deadline = time.monotonic() + 10
    while (found := marked(marker)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for each in found:
        with suppress(psutil.Error):
            each.kill()
    return found


def marked(marker: Path) -> list[psutil.Process]:
    """Return the live processes whose TMPDIR is ``marker``."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if f"TMPDIR={marker}".encode() in variables and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def has_traceback(log: Path) -> bool:
    """Return whether a command printed a traceback, unless Python itself did before the first line of this project."""
    _, found, text = log.read_text(errors="replace").partition("Traceback (most recent call last)")
    return bool(found) and ("gtdl_mlflow" in text or "KeyboardInterrupt" not in text)


def plan(trials: int, seed: int, only: str | None) -> list[Trial]:
    generator = random.Random(seed)
    kinds, weights = list(SHARES), list(SHARES.values())
    return [
        Trial(
            number,
            generator.choices(kinds, weights)[0],
            only or generator.choice(SIGNALS),
            generator.choice(VICTIMS),
            generator.uniform(0.02, 1.05),
        )
        for number in range(1, trials + 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side-by-side", type=int, default=2)
    parser.add_argument("--only", choices=SIGNALS, metavar="SIGNAL", help=", ".join(SIGNALS))
    options = parser.parse_args()
    started, total, printing = time.monotonic(), Counter[str](), threading.Lock()
    kept = Path(tempfile.mkdtemp(prefix="gtdl-kills-"))
    lanes: Queue[Lane] = Queue()
    for number in range(options.side_by_side):
        lanes.put(Lane(kept / str(number)))

    def run(trial: Trial) -> None:
        lane = lanes.get()
        try:
            trial.seconds = trial.moment * lane.duration(trial.kind)
            perform(trial, lane)
        finally:
            lanes.put(lane)
        with printing:
            total.update(trial.faults)
            faults = ", ".join(f"{name} {count}" for name, count in trial.faults.items() if count) or "ok"
            print(
                f"{trial.number:4} {trial.kind:9} {trial.signals:9} {trial.victim:6} after {trial.seconds:5.1f} s  "
                f"exit {trial.statuses}  {'; '.join(trial.states)}  {faults}",
                flush=True,
            )

    with ThreadPoolExecutor(options.side_by_side) as pool:
        list(pool.map(run, plan(options.trials, options.seed, options.only)))
    print(f"{options.trials} trials in {(time.monotonic() - started) / 60:.0f} min; logs and stores: {kept}")
    print("  ".join(f"{name} {total[name]}" for name in FAULTS))
    sys.exit(any(total[name] for name in FAULTS))


if __name__ == "__main__":
    main()
