"""Take the screenshots of docs/pictures/.

``python scripts/screenshots.py`` takes those of the report, from a result file of this project. ``python
scripts/screenshots.py sqlite:///mlflow.db`` takes those of MLflow's pages, with the runs of docs/mnist.md. Chromium and
Playwright (in the extra ``test``) are required.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.metrics import HEADLINE
from gtdl_mlflow.reporting import ui
from gtdl_mlflow.reporting.runs import connect

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "pictures"

RESULTS = ROOT / "results" / "amd-epyc-haswell.csv"
"""Runs of the report in the screenshots."""

WIDTH = 1440
"""Width of the report's window in pixels."""

COLORS = 256
"""Colours of a screenshot. The pages have few, and a palette makes the file a third as large."""

TIMEOUT_MS = 180_000

NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
"""Keeps MLflow's assistant closed, which covers a quarter of the page at a first visit."""


def main(uri: str = "") -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": 720}, color_scheme="light")
        tab.set_default_timeout(TIMEOUT_MS)
        if uri:
            mlflow_pages(tab, uri)
        else:
            report(tab)
        browser.close()


def mlflow_pages(tab: Page, uri: str) -> None:
    with server(uri) as address:
        tab.set_viewport_size({"width": 1600, "height": 900})  # the metrics are at the right of the table
        tab.add_init_script(NO_ASSISTANT)
        table(tab, address + ui.arrange(uri, "gtdl").path)
        compare(tab, address, uri)


@contextmanager
def server(uri: str) -> Iterator[str]:
    """Run MLflow's server on the store and yield its address."""
    port = ui.free_port()
    process = subprocess.Popen([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)])
    try:
        deadline = time.monotonic() + TIMEOUT_MS / 1000
        while not ui.responds(f"http://127.0.0.1:{port}"):
            assert process.poll() is None, "MLflow's server did not start"
            assert time.monotonic() < deadline, "MLflow's server does not respond"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def save(tab: Page, name: str, **options: object) -> None:
    """Save a screenshot with a palette."""
    path = FOLDER / f"{name}.png"
    tab.screenshot(path=path, animations="disabled", **options)  # type: ignore[arg-type]
    with Image.open(path) as screenshot:
        # Small marks keep their colours, which the default method merges.
        small = screenshot.convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def report(tab: Page) -> None:
    """Take the report's top with its first table, and its first four charts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        assert cli.main(["report", str(RESULTS), "--output", str(path)]) == 0
        tab.goto(path.as_uri())
    tab.locator("select[name=dataset]").select_option("mnist_5k")
    bottom = tab.locator("article:visible table").first.evaluate(BOX)[3] + 24
    save(tab, "report", full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom})
    tab.add_style_tag(content="#selectors { position: static !important; }")  # otherwise it covers a chart
    charts = [tab.locator("article:visible .chart").nth(number) for number in range(4)]
    for chart in charts:  # a chart is drawn when it comes near the window
        chart.scroll_into_view_if_needed()
        chart.locator("svg").wait_for()
    boxes = [chart.evaluate(BOX) for chart in charts]
    left, top = (min(box[side] for box in boxes) - 8 for side in (0, 1))
    right, bottom = (max(box[side] for box in boxes) + 8 for side in (2, 3))
    save(tab, "charts", full_page=True, clip={"x": left, "y": top, "width": right - left, "height": bottom - top})


BOX = """element => {
    const box = (element.closest("figure") || element).getBoundingClientRect();
    return [box.left + scrollX, box.top + scrollY, box.right + scrollX, box.bottom + scrollY];
}"""
"""Left, top, right and bottom of an element or the figure around it, in pixels of the page."""


def table(tab: Page, address: str) -> None:
    """Take MLflow's table of runs, grouped by framework."""
    tab.goto(address)
    tab.get_by_text("Group: torch · ").first.wait_for()
    tab.locator(".ag-header", has_text="accuracy_percent").first.wait_for()
    save(tab, "table")


def compare(tab: Page, address: str, uri: str) -> None:
    """Take MLflow's comparison of one run of each framework under one setting, by the headline metrics."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("gtdl")
    assert experiment is not None
    runs = client.search_runs(
        [experiment.experiment_id],
        "attributes.status = 'FINISHED' and tags.`gtdl.training` = 'caffe_mnist' and tags.`gtdl.seed` = '0'",
        order_by=["tags.`gtdl.framework`"],
    )
    chosen = json.dumps([run.info.run_id for run in runs])
    tab.goto(f"{address}/#/compare-runs?runs={chosen}&experiments={json.dumps([experiment.experiment_id])}")
    tab.get_by_role("button", name="Clear All").click()
    parameters, metrics = tab.get_by_role("combobox").all()[:2]
    for box, names in ((parameters, ["framework"]), (metrics, HEADLINE)):
        box.click()
        for name in names:
            tab.keyboard.type(name)
            tab.locator(f'[class*="select-item-option"][title="{name}"]').click()
        tab.keyboard.press("Escape")
    tab.locator(".js-plotly-plot .axis-title", has_text="accuracy_percent").first.wait_for()
    save(tab, "compare")


if __name__ == "__main__":
    main(*sys.argv[1:])
