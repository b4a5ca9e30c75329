"""The project installed as a newcomer does, away from its checkout: ``gtdl`` works, and ``conf/`` is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import uv
from helpers.project import ROOT

from gtdl_mlflow.environments import pip_settings


@pytest.fixture(params=["pip install .", "uv tool install ."])
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of the programs of a fresh environment that the project was installed into."""
    # uv does not read pip's settings by itself.
    environment = {**os.environ, **pip_settings.for_uv().environment}
    if request.param == "pip install .":
        command: list[str | Path] = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", ROOT]
        subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    else:
        command = [uv.find_uv_bin(), "tool", "install", "--quiet", "--python", sys.executable, ROOT]
        environment |= {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / ("venv/bin" if request.param == "pip install ." else "tools/gtdl-mlflow/bin")


def test_it_works_from_an_empty_folder(programs: Path, store: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in (
        ["gtdl", "env", "list"],
        ["gtdl", "data", "list"],
        ["python", "-m", "gtdl_mlflow", "framework=reference"],
        ["gtdl", "report"],
    ):
        done = subprocess.run(
            [programs / command[0], *command[1:]], cwd=tmp_path / "empty", capture_output=True, text=True
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    (run,) = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert run.info.status == "FINISHED"
    assert (tmp_path / "empty" / "gtdl_report.html").is_file()
