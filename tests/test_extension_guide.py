"""``docs/extending.md`` in a copy of the project: the test writes the page's files and runs its commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from helpers.project import ROOT, need_framework

PAGE = ROOT / "docs" / "extending.md"

STEP = re.compile(
    r"^(?:`(?P<file>[\w/.]+)`:\n\n)?```(?P<language>\w+)\n(?P<content>.*?)^```$", re.DOTALL | re.MULTILINE
)
"""A file with its name before it, or commands."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the parts of the project that a run and the page's commands need."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("conf", "docs", "gtdl_mlflow", "scripts", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, copy)
    return copy


def steps() -> Iterator[tuple[str, str, str]]:
    """Yield the page's steps in order: section, and a file's name and content or an empty name and a command."""
    text = PAGE.read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        for step in STEP.finditer(body):
            if step["language"] != "bash":
                assert step["file"], f"a block of {heading} has no file name before it"
                yield heading, step["file"], step["content"]
            else:
                yield from ((heading, "", line) for line in step["content"].splitlines())


def run(command: str, project: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    start = {"python": [sys.executable], "gtdl": [sys.executable, "-m", "gtdl_mlflow.cli"]}[program]
    return subprocess.run(
        [*start, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project), "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"},
        capture_output=True,
        text=True,
        timeout=600,
    )


SECTIONS = list(dict.fromkeys(heading for heading, _, _ in steps()))


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("heading", SECTIONS)
def test_files_and_commands_of_a_section_work(heading: str, project: Path) -> None:
    for section, file, content in steps():
        if file:  # a section also needs the files of the sections before it
            path = project / file
            assert section != heading or not (ROOT / file).exists(), f"{file} exists in the project already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        elif section == heading:
            if "framework=torch" in content:
                need_framework("torch")
            done = run(content, project)
            assert done.returncode == 0, f"{content}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    if heading == "Reference pages":
        assert (project / "docs" / "frameworks" / "tiny.md").is_file()
        assert (project / "docs" / "datasets" / "digits.md").is_file()
    if (project / "mlflow.db").exists():
        client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
        (experiment,) = client.search_experiments(filter_string="name = 'gtdl'")
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        trained = [run for run in runs if "accuracy_percent" in run.data.metrics]
        assert trained
        assert all(run.data.metrics["accuracy_percent"] > 70 for run in trained)


def test_python_files_of_the_page_pass_the_linter(tmp_path: Path) -> None:
    for _, file, content in steps():
        if file.endswith(".py"):
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout
