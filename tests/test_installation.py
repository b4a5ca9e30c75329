"""The project works when it is installed, away from its checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import uv
from helpers.project import ROOT
from helpers.share import share

from gtdl_mlflow.environments import pip_settings

pytestmark = pytest.mark.slow


@pytest.fixture(params=share(["pip install .", "uv tool install ."], ["uv tool install ."]))
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Folder of the programs of a new environment in which the project is installed."""
    # uv does not read pip's settings.
    environment = {**os.environ, **pip_settings.for_uv().environment}
    if request.param == "pip install .":
        command: list[str | Path] = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", ROOT]
        subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    else:
        command = [uv.find_uv_bin(), "tool", "install", "--quiet", "--python", sys.executable, ROOT]
        environment |= {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert result.returncode == 0, result.stderr
    return tmp_path / ("venv/bin" if request.param == "pip install ." else "tools/gtdl-mlflow/bin")


def test_installed_commands_work_in_an_empty_folder(programs: Path, store: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in (
        ["gtdl", "env", "list"],
        ["gtdl", "data", "list"],
        ["python", "-m", "gtdl_mlflow", "framework=reference"],
        ["gtdl", "report"],
    ):
        result = subprocess.run(
            [programs / command[0], *command[1:]], cwd=tmp_path / "empty", capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
    (run,) = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    assert run.info.status == "FINISHED"
    assert (tmp_path / "empty" / "gtdl_report.html").is_file()
