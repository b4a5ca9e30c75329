"""The published results pass the project's own checks, and the pages have what the result files have."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import mlflow
import pytest
from helpers.planted_runs import make_finished_run, plant
from helpers.project import ROOT

from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.reporting import check
from gtdl_mlflow.reporting.result_file import ResultFiles

FILES = sorted((ROOT / "results").glob("*.csv"))
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "generate_results.py"))


@pytest.fixture(scope="module")
def results() -> Any:
    return SCRIPT["Results"](FILES)


@pytest.mark.parametrize("page", SCRIPT["PAGES"], ids=lambda page: page.name)
def test_pages_have_what_the_files_have(page: Path, results: Any) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- results: " in text
    assert text == SCRIPT["fill"](text, results), "run python scripts/generate_results.py"


def test_a_changed_value_changes_the_page(tmp_path: Path) -> None:
    changed = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_text(text.replace("metric,accuracy_percent,,9", "metric,accuracy_percent,,8"))
        changed.append(tmp_path / path.name)
    page = SCRIPT["PAGES"][0]
    text = page.read_text(encoding="utf-8")
    assert text != SCRIPT["fill"](text, SCRIPT["Results"](changed))


@pytest.mark.usefixtures("store")
def test_tables_of_files_with_runs_that_failed_or_have_no_sweep(tmp_path: Path) -> None:
    overrides = ("setting=caffe_mnist", "hardware.threads=1")
    sweep = {"gtdl.sweep": "experiment=paired framework=torch,jax,mxnet,paddle", "gtdl.sweep_id": "1f"}
    parent = mlflow.MlflowClient().create_run(mlflow.create_experiment("gtdl"), tags=sweep).info.run_id
    for name in ("PyTorch-2.13.0", "JAX-0.12.0.1", "MXNet-1.9.1"):
        mlflow.MlflowClient().log_metric(parent, f"paired/cpu/training/{name}/ratio", 1.0)
    for name in ("torch", "jax", "mxnet", "paddle"):
        run = make_finished_run(f"framework={name}", *overrides, **{"mlflow.parentRunId": parent})
        run.data.metrics.update(dict.fromkeys(SCRIPT["PARITY"], 2e-6))
        if name == "paddle":
            run.info._status = "FAILED"
            run.data.metrics.clear()
        plant(run)
    plant(make_finished_run("framework=torch"))
    path = tmp_path / "own.csv"
    assert cli.main(["export", "--output", str(path)]) == 0
    tables = SCRIPT["Results"]([path])
    assert "| single runs |" in tables.sweeps().replace("`", "")
    assert "PaddlePaddle" not in tables.memory()
    assert re.search(r"^\| MXNet 1\.9\.1 \(2022\).*\| 2\.0e-06 \|$", tables.ranking(), re.MULTILINE)
    assert tables.startup().count("\n| ") == 3 + 1  # and the line below the header
    for name in ("machines", "environments", "agreement", "abstraction", "sections", "reproduction", "baseline"):
        assert isinstance(getattr(tables, name)(), str)
    assert tables.modes() == tables.precisions() == ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_results_may_be_published(path: Path) -> None:
    loaded = ResultFiles([path]).loaded
    verdict = check.check(loaded.runs, loaded.skipped)
    assert verdict.passed, verdict.text()
