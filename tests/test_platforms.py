"""The driver on other systems, simulated: their Python has fewer modules, functions and signals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.planted_runs import make_finished_run, plant

SIMULATION = """
import os, pathlib, signal, sys
# These libraries know the real system.
import hydra, joblib, mlflow, numpy, pandas, psutil, scipy.stats, sqlalchemy, uvicorn
import filelock, click, yaml, omegaconf, requests, xml.sax.saxutils, PIL.Image
import asyncio, multiprocessing.pool, pty, subprocess, tempfile, webbrowser, zipfile, tarfile, lzma, bz2
import mlflow.pyfunc, mlflow.tracking._tracking_service.utils, mlflow.store.tracking.sqlalchemy_store
mlflow.MlflowClient(sys.argv[2]).search_experiments()

sys.platform = sys.argv[1]
for owner, names in {windows}.items() if sys.platform == "win32" else {{"os": ["sched_getaffinity"]}}.items():
    for name in names:
        delattr(sys.modules[owner], name)
for name in ("fcntl", "pwd", "resource") if sys.platform == "win32" else ():
    sys.modules[name] = None  # an import fails

import gtdl_mlflow
root = pathlib.Path(gtdl_mlflow.__file__).parent
for path in root.rglob("*.py"):
    parts = path.relative_to(root.parent).with_suffix("").parts
    if parts[1] != "worker" and path.name not in ("__init__.py", "__main__.py"):
        __import__(".".join(parts))
from gtdl_mlflow.cli.__main__ import main
sys.exit(main(sys.argv[3:]))
""".format(
    windows={
        "os": ["sched_getaffinity", "sched_setaffinity", "getuid", "geteuid", "fork", "killpg", "O_NOFOLLOW"],
        "signal": ["SIGHUP", "SIGKILL", "SIGSTOP", "SIGCONT"],
    }
)


def run_on(system: str, store: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SIMULATION, system, store, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_results_can_be_read_everywhere(store: str, tmp_path: Path, system: str) -> None:
    for seed in range(3):
        plant(make_finished_run(seed=seed))
    done = run_on(system, store, "report", "--tracking-uri", store, "--output", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stderr
    assert "3 runs" in done.stdout


@pytest.mark.slow
def test_a_run_on_windows_is_refused_in_one_line(store: str) -> None:
    done = run_on("win32", store, "run", "framework=reference")
    assert done.returncode == 2
    assert done.stderr == (
        "gtdl: Windows: frameworks run on Linux; use the Windows Subsystem for Linux (wsl --install)\n"
    )


@pytest.mark.slow
def test_cores_cannot_be_chosen_on_macos(store: str) -> None:
    done = run_on("darwin", store, "run", "framework=reference", "hardware.cores=[0]")
    assert done.returncode == 2
    assert "only Linux can pin a process to cores" in done.stderr
