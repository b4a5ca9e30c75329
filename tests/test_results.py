"""The published results pass the project's own checks, and the pages have what the result files have."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from helpers.project import ROOT

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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_results_may_be_published(path: Path) -> None:
    loaded = ResultFiles([path]).loaded
    verdict = check.check(loaded.runs, loaded.skipped)
    assert verdict.passed, verdict.text()
