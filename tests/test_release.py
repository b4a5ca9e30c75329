"""What a release needs: packages that pass their checks, and files that agree with the project."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.project import ROOT

from gtdl_mlflow import __version__, config


@pytest.mark.slow
def test_packages_build_and_pass_their_checks(tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [tmp_path / "clone/scripts/build"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = sorted(path.name for path in (tmp_path / "clone/dist").iterdir())
    assert names == [f"gtdl_mlflow-{__version__}-py3-none-any.whl", f"gtdl_mlflow-{__version__}.tar.gz"]


def test_citation_has_the_version_and_the_three_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert [each["year"] for each in citation["references"]] == [2018, 2018, 2019]


def test_container_has_the_environment_of_every_framework() -> None:
    created = re.findall(r"^RUN gtdl env create (\w+)$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    frameworks = [config.compose_part("framework", name) for name in config.choices("framework")]
    assert sorted(created) == sorted(each.name for each in frameworks if each.devices["cpu"].recipes)


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_run_what_exists(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    files = re.findall(r"(?<![\w/.])(\.?\w+/\w+)\b(?!/)", commands)
    scripts = [name for name in files if name.split("/")[0] in (".ci", "scripts", "gtdl_mlflow")]
    assert scripts
    assert all((ROOT / name).exists() or (ROOT / f"{name}.py").exists() for name in scripts)
