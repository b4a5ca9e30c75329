"""``docs/extending.md`` in a copy of the project, and ``docs/own_data.md`` in an empty folder.

The tests write the files of both pages and run their commands.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import mlflow
import pytest
from helpers.guide import check_command, steps, write_file
from helpers.project import ROOT, need_framework
from PIL import Image

from gtdl_mlflow.worker import layers, preprocessing
from gtdl_mlflow.worker.job import Training

EXTENDING, OWN_DATA = ROOT / "docs" / "extending.md", ROOT / "docs" / "own_data.md"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the parts of the project that a run and the page's commands need."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("conf", "docs", "gtdl_mlflow", "scripts", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, copy)
    return copy


def run(command: str, project: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    start = {"python": [sys.executable], "gtdl": [sys.executable, "-m", "gtdl_mlflow.cli"], "mkdir": ["mkdir"]}[program]
    tracker = f"sqlite:///{project / 'mlflow.db'}"
    return subprocess.run(
        [*start, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project), "MLFLOW_TRACKING_URI": tracker, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def assert_runs_are_finished_and_accurate(project: Path) -> None:
    """Assert that the project's runs, if there are any, have finished, and that those of data sets are accurate."""
    if (project / "mlflow.db").exists():
        client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
        (experiment,) = client.search_experiments(filter_string="name = 'gtdl'")
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        trained = [run for run in runs if "accuracy_percent" in run.data.metrics]
        assert trained
        assert all(run.data.metrics["accuracy_percent"] > 70 for run in trained)


SECTIONS = list(dict.fromkeys(heading for heading, _, _ in steps(EXTENDING)))


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("heading", SECTIONS)
def test_files_and_commands_of_a_section_work(heading: str, project: Path) -> None:
    for section, file, content in steps(EXTENDING):
        if file:  # a section also needs the files of the sections before it
            assert section != heading or not (ROOT / file).exists(), f"{file} exists in the project already"
            write_file(project, file, content)
        elif section == heading:
            if "framework=torch" in content:
                need_framework("torch")
            done = run(content, project, {})
            assert done.returncode == 0, f"{content}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    if heading == "Reference pages":
        assert (project / "docs" / "frameworks" / "tiny.md").is_file()
        assert (project / "docs" / "datasets" / "digits.md").is_file()
    assert_runs_are_finished_and_accurate(project)


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.usefixtures("hydra_restore_singletons")  # other tests must not know the page's network
def test_files_and_commands_for_own_images_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_framework("torch")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "my_data" / "photos" / name).mkdir(parents=True)
        for shade in range(5):
            photo = Image.new("RGB", (50, 40), (80 * number, 10 * shade, 0))
            photo.save(tmp_path / "my_data" / "photos" / name / f"{shade}.jpg")
    trained = set()
    output = ""
    for section, file, content in steps(OWN_DATA):
        if file:
            write_file(tmp_path, file, content)
        elif content.startswith("export "):
            for variable in content.removeprefix("export ").replace("$PWD", str(tmp_path)).split():
                monkeypatch.setenv(*variable.split("="))
        elif content.startswith(("gtdl data", "mkdir")) or (content.startswith("gtdl run") and section not in trained):
            training = content.startswith("gtdl run")
            short = " budget=0.05 mode=default latency.repeats=0" if training else ""
            done = run(f"{content}{short}", tmp_path, {"PYTHONPATH": str(ROOT)})
            assert done.returncode == 0, f"{content}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            output += done.stdout
            trained |= {section} if training else set()
        else:
            check_command(content)
    assert trained == {"Images with a split", "A network of your own"}
    assert "photos: files readable, not prepared yet\n" in output
    assert "my_images: files readable, not prepared yet\n" in output
    assert re.findall("^torch .*", output, re.MULTILINE) == [
        "torch 2.13.0, torch_mnist (budget 0.05), on my_images, on the cpu",
        "torch 2.13.0, my_network (budget 0.05), on mnist_5k, on the cpu",
    ]


def rows(heading: str) -> dict[str, str]:
    """Return the rows of a table on the page about own images: each name in the first column, to the second column."""
    table = OWN_DATA.read_text(encoding="utf-8").partition(f"| {heading} |")[2].partition("\n\n")[0]
    cells = [row.split("|")[1:3] for row in table.splitlines()[2:]]
    return {name: second for first, second in cells for name in re.findall(r"`(\w+)`", first)}


def test_layers_and_preprocessing_on_the_page_are_complete() -> None:
    assert set(rows("layer `type`")) == set(layers.TYPES)
    keys = rows("training key")
    assert set(re.findall(r"(\w+): {", keys["preprocessing"])) == set(preprocessing.OPERATIONS)
    assert set(keys) <= {field.name for field in fields(Training)}


def test_python_files_of_the_page_pass_the_linter(tmp_path: Path) -> None:
    for _, file, content in steps(EXTENDING):
        if file.endswith(".py"):
            write_file(tmp_path, file, content)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout
