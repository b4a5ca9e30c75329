"""``docs/adding.md``, followed word by word in a copy of the project: its files are written, its commands run."""

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
from helpers.project import ROOT, need_torch

PAGE = ROOT / "docs" / "adding.md"

STEP = re.compile(
    r"^(?:`(?P<file>[\w/.]+)`:\n\n)?```(?P<language>\w+)\n(?P<content>.*?)^```$", re.DOTALL | re.MULTILINE
)
"""A file with its name before it, or commands."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is under version control, as far as a run needs it."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("conf", "docs", "gtdl_mlflow", "scripts", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, copy)
    return copy


def steps() -> Iterator[tuple[str, str, str]]:
    """The page from top to bottom: its heading, and a file's name and content, or an empty name and a command."""
    text = PAGE.read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        for step in STEP.finditer(body):
            if step["language"] != "bash":
                assert step["file"], f"a block of {heading} does not say which file it is"
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


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_does_what_it_says(heading: str, project: Path) -> None:
    for section, file, content in steps():
        if file:  # those of the sections before it are needed too
            path = project / file
            assert section != heading or not (ROOT / file).exists(), f"{file} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        elif section == heading:
            if "framework=torch" in content:
                need_torch()
            done = run(content, project)
            assert done.returncode == 0, f"{content}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    if heading == "To keep it":
        assert (project / "docs" / "frameworks" / "tiny.md").is_file()
        assert (project / "docs" / "datasets" / "digits.md").is_file()
    if (project / "mlflow.db").exists():
        client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
        (experiment,) = client.search_experiments(filter_string="name = 'gtdl'")
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        learnt = [run for run in runs if "accuracy_percent" in run.data.metrics]
        assert all(run.data.metrics["accuracy_percent"] > 70 for run in learnt)
        assert learnt


def test_its_python_is_as_clean_as_ours(project: Path, tmp_path: Path) -> None:
    for _, file, content in steps():
        if file.endswith(".py"):
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
