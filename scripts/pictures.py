"""Take the pictures in docs/pictures/ of the report and of MLflow's pages, as they show the runs of a tracking store.

``python scripts/pictures.py sqlite:///mlflow.db``, with the runs that docs/mnist.md makes. It needs
Chromium, and Playwright, which is in the extra ``test``.
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
from socket import socket

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from gtdl_mlflow import cli
from gtdl_mlflow.report import ui
from gtdl_mlflow.report.runs import connect

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"

COLORS = 128
"""Of a picture: these pages have few, and a palette makes the file a third as large."""

PATIENCE_MS = 180_000

NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
"""MLflow opens a panel for its own assistant at a first visit, over a quarter of the page."""


def main(uri: str) -> None:
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder, server(uri) as address:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme="light")
        tab.set_default_timeout(PATIENCE_MS)
        report(tab, uri, Path(folder) / "report.html")
        tab.set_viewport_size({"width": 1600, "height": 900})  # the table has its figures at the right
        tab.add_init_script(NO_ASSISTANT)
        table(tab, address + ui.arrange(uri, "gtdl"))
        compare(tab, address, uri)
        browser.close()


@contextmanager
def server(uri: str) -> Iterator[str]:
    """MLflow's own, for as long as the pictures take."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)])
    try:
        while not ui._answers(f"http://127.0.0.1:{port}"):
            assert process.poll() is None, "MLflow's server did not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def keep(tab: Page, name: str, **options: object) -> None:
    path = PICTURES / f"{name}.png"
    tab.screenshot(path=path, animations="disabled", **options)  # type: ignore[arg-type]
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def report(tab: Page, uri: str, path: Path) -> None:
    """Its top, down to the answer, and its first four charts."""
    assert cli.main(["report", "--tracking-uri", uri, "--output", str(path)]) == 0
    tab.goto(path.as_uri())
    bottom = tab.locator("#answer").evaluate(PLACE)[3] + 24
    keep(tab, "report", full_page=True, clip={"x": 0, "y": 0, "width": 1280, "height": bottom})
    charts = [tab.locator(".chart").nth(number) for number in range(4)]
    for chart in charts:  # drawn when they come into sight
        chart.scroll_into_view_if_needed()
        chart.locator("svg").wait_for()
    boxes = [chart.evaluate(PLACE) for chart in charts]
    left, top = (min(box[side] for box in boxes) - 8 for side in (0, 1))
    right, bottom = (max(box[side] for box in boxes) + 8 for side in (2, 3))
    keep(tab, "charts", full_page=True, clip={"x": left, "y": top, "width": right - left, "height": bottom - top})


PLACE = """chart => {
    const box = (chart.closest("figure") || chart).getBoundingClientRect();
    return [box.left + scrollX, box.top + scrollY, box.right + scrollX, box.bottom + scrollY];
}"""
"""Where a chart's frame is on the page."""


def table(tab: Page, address: str) -> None:
    tab.goto(address)
    tab.get_by_text("Group: torch").wait_for()
    tab.locator(".ag-header", has_text="accuracy_percent").first.wait_for()
    keep(tab, "table")


def compare(tab: Page, address: str, uri: str) -> None:
    """One run of each framework under one setting, by the three figures."""
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
    for box, names in (
        (parameters, ["framework"]),
        (metrics, ["training_time_s", "testing_time_s", "accuracy_percent"]),
    ):
        box.click()
        for name in names:
            tab.keyboard.type(name)
            tab.locator(f'[class*="select-item-option"][title="{name}"]').click()
        tab.keyboard.press("Escape")
    tab.locator(".js-plotly-plot .axis-title", has_text="accuracy_percent").first.wait_for()
    keep(tab, "compare")


if __name__ == "__main__":
    main(*sys.argv[1:])
