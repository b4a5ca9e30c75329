"""``gtdl report``: one file, opened in a real browser, on runs with known figures."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from helpers.planted_runs import finished, plant
from helpers.servers import mlflow_server
from mlflow.entities import Metric
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from gtdl_mlflow import chart_style, cli, config
from gtdl_mlflow.report import page, published_figures, ui
from gtdl_mlflow.report.runs import load

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        assert os.environ.get("GTDL_REQUIRE_FRAMEWORKS") != "1", "apt-get install chromium"
        pytest.skip("apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three frameworks in both tracks; a failure, something unavailable, another machine, a training that diverged."""
    folder = tmp_path_factory.mktemp("planted")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        plant_all()
    mlflow.set_tracking_uri(None)
    return uri


def plant_all() -> None:
    client = mlflow.MlflowClient()
    for seed in range(5):
        for number, name in enumerate(("torch", "tensorflow", "mxnet")):
            for words, times in ((["setting=caffe_mnist"], 10 * 2**number), ([], 15 * 2**number)):
                run_id = finished(
                    [f"framework={name}", "dataset=mnist_5k", f"seed={seed}", *words], times + seed / 10,
                    times / 50 + seed / 1000, 97 + number / 2 + seed / 100,
                )  # fmt: skip
                if seed == 2:  # the typical run: it has a curve
                    points = [(100 * step, times * step / 10, 90 + step) for step in range(1, 6)]
                    client.log_batch(run_id, metrics=[
                        metric for step, seconds, accuracy in points
                        for metric in (Metric("eval/accuracy_percent", accuracy, 0, step),
                                       Metric("train/elapsed_s", seconds, 0, step))])  # fmt: skip
    finished(["framework=theano", "dataset=mnist_5k", "setting=caffe_mnist"], 1.0, 0.1, 10.0,
             **{"gtdl.quality": "the accuracy is no better than chance"})  # fmt: skip
    finished(["framework=torch", "dataset=mnist", "seed=1"], 100, 2, 99, **{"gtdl.machine": "another machine"})
    plant(["framework=caffe", "dataset=mnist_5k"], {}, "FAILED",
          **{"gtdl.failure": "the worker was killed by <b>SIGKILL</b>"})  # fmt: skip
    plant(["framework=caffe", "dataset=mnist_5k", "seed=1"], {}, "FAILED", **{"gtdl.unavailable": "it has no GPU"})


@pytest.fixture(scope="module")
def report(planted: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert cli.main(["report", "--tracking-uri", planted, "--output", str(path)]) == 0
    return path


def opened(browser: Browser, report: Path, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
    """The report from its file, without a network; anything on the console is an error."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme,  # type: ignore[arg-type]
        accept_downloads=True,
    )  # fmt: skip
    said: list[str] = []
    tab = context.new_page()
    tab.on("console", lambda message: said.append(_text(message)))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(report.as_uri())
    yield tab
    assert said == []
    context.close()


def _text(message: ConsoleMessage) -> str:
    return f"{message.type}: {message.text}"


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["desktop", "phone"])
def tab(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    yield from opened(browser, report, *request.param)


def test_it_is_one_small_file_that_loads_nothing(report: Path) -> None:
    text = report.read_text()
    assert len(text) < 5e6
    page_itself = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=|url\(", page_itself)


def test_the_answer_comes_first(tab: Page) -> None:
    answer = tab.locator("#answer")
    assert answer.is_visible()
    common = answer.locator(".answer", has_text="all under caffe_mnist")
    said = common.inner_text()
    assert "torch 2.13.0 trains fastest (10.20 s, n = 5): 1.98 times as fast as tensorflow" in said
    assert "mxnet 1.9.1 is most accurate" in said
    assert "theano 1.1.2: left out of the times: the accuracy is no better than chance" in said
    assert "caffe 1.0.0: 1 of 1 seeds failed: the worker was killed by" in answer.inner_text()


def test_every_chart_is_drawn(tab: Page) -> None:
    tab.evaluate("scrollTo(0, document.body.scrollHeight)")
    places = tab.locator(".chart")
    assert places.count() >= 12
    for index in range(places.count()):
        places.nth(index).scroll_into_view_if_needed()
        svg = places.nth(index).locator("svg")
        svg.wait_for(timeout=60_000)
        box, outer = svg.bounding_box(), places.nth(index).bounding_box()
        assert box is not None
        assert outer is not None
        assert box["width"] <= outer["width"] + 1
        assert svg.locator("path").count() > 2


def test_nothing_scrolls_sideways(tab: Page) -> None:
    test_every_chart_is_drawn(tab)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_framework_has_one_colour(tab: Page) -> None:
    test_every_chart_is_drawn(tab)
    assert tab.locator(f'.chart svg [fill="{chart_style.color_of("torch")}"]').count() > 5
    assert len({chart_style.color_of(name) for name in ("torch", "tensorflow", "mxnet", "theano", "caffe")}) == 5


def test_sections_are_there_and_say_what_they_should(tab: Page) -> None:
    links = tab.locator("nav a")
    for index in range(links.count()):
        target = links.nth(index).get_attribute("href")
        assert target is not None
        assert tab.locator(target).count() == 1
    then = tab.locator("#gtdlbench").inner_text()
    assert "99.22" in then  # PyTorch's published accuracy
    assert "another machine" in tab.locator("#machines").inner_text()
    missing = tab.locator("#missing").inner_text()
    assert "the worker was killed by <b>SIGKILL</b>" in missing  # text, not markup
    assert "it has no GPU" in missing
    assert "own default: training, s" in tab.locator("#tracks").inner_text()


def test_sorting_filtering_and_downloads(tab: Page, tmp_path: Path) -> None:
    lines = tab.locator("#raw tbody tr")
    assert lines.count() == 34
    tab.locator("#filter").fill("tensorflow caffe_mnist")
    assert lines.count() == 5
    assert tab.locator("#shown").inner_text() == "5 of 34 runs"
    head = tab.locator('#raw th button[data-column="training_time_s"]')
    head.click()
    column = page.COLUMNS.index("training_time_s")
    times = [float(line.locator("td").nth(column).inner_text()) for line in lines.all()]
    assert times == sorted(times)
    head.press("Enter")  # by keyboard, the other way round
    assert [float(line.locator("td").nth(column).inner_text()) for line in lines.all()] == times[::-1]
    assert tab.locator('#raw th[aria-sort="descending"]').count() == 1
    for name in ("csv", "json"):
        with tab.expect_download() as download:
            tab.locator(f"#{name}").click()
        download.value.save_as(tmp_path / name)
    with (tmp_path / "csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["training_time_s"]) for row in rows] == times[::-1]
    assert list(rows[0]) == list(page.COLUMNS)
    loaded = json.loads((tmp_path / "json").read_text())
    assert [row["run_id"] for row in loaded] == [row["run_id"] for row in rows]


def test_it_is_readable_on_paper(browser: Browser, report: Path, tmp_path: Path) -> None:
    for tab in opened(browser, report, scheme="dark"):
        tab.emulate_media(media="print")
        assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert not tab.locator("nav").is_visible()


def test_cpu_and_gpu_stand_side_by_side_and_thread_counts_apart(store: str) -> None:
    run = ["framework=torch", "dataset=mnist"]
    finished(run, 100, 1, 99)
    finished([*run, "hardware=cpu_1core"], 180, 1, 99)
    finished(run, 7, 1, 99, **{"gtdl.device": "gpu"})
    tables = page.gtdlbench(load(store, ["gtdl"]), published_figures.load())
    figures = [[cell[0] for cell in row] for table in tables for row in table.rows]
    cpu, gpu = ("100.00, 1", "180.00, 1"), ["7, 1", "1, 1", "99.00, 1"]
    assert sorted(row[1] for row in figures) == sorted(cpu)
    assert [row[4:] for row in figures] == [gpu, gpu]
    assert [row[0] for row in figures] == ["torch 2.13.0"] * 2
    assert tables[0].rows[0][4][1] == "338.46"  # GTDLBench's, on its GPU


def test_a_setting_is_known_where_it_cannot_be_run(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in ("hardware=gpu", "hardware.cores=[0]"):
        with monkeypatch.context() as there:
            there.setattr(config.checks, "has_gpu", lambda: True)
            finished(["framework=torch", "dataset=mnist", asked], 7, 1, 99)
    monkeypatch.setattr(config.checks, "has_gpu", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {7})
    assert {run.kind.setting for run in load(store, ["gtdl"])} == {"torch_mnist"}


def test_mistakes_are_one_line(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "--experiment", "nothing", "--tracking-uri", f"sqlite:///{tmp_path / 'no.db'}"]) == 1
    assert "no.db: there is no such file" in capsys.readouterr().err
    finished(["framework=torch", "dataset=mnist_5k"], 1, 1, 98)
    capsys.readouterr()
    assert cli.main(["report", "--experiment", "nothing"]) == 1
    assert capsys.readouterr().err == "gtdl: experiment nothing: there is none in this tracking store\n"
    assert cli.main(["report", "--output", str(tmp_path / "no folder" / "report.html")]) == 1
    assert capsys.readouterr().err == f"gtdl: {tmp_path / 'no folder' / 'report.html'}: No such file or directory\n"
    mlflow.create_experiment("empty")
    capsys.readouterr()
    assert cli.main(["report", "--experiment", "empty"]) == 1
    assert capsys.readouterr().err == "gtdl: experiment empty: it has no run yet\n"


def test_mlflows_own_pages_show_the_comparison(browser: Browser, planted: str, tmp_path: Path) -> None:
    path = ui.arrange(planted, "gtdl")
    with mlflow_server(tmp_path, "--backend-store-uri", planted) as server:
        tab = browser.new_context(viewport={"width": 1600, "height": 900}).new_page()
        tab.goto(server.uri + path)
        grid = tab.locator(".ag-root")
        grid.wait_for(timeout=180_000)
        tab.locator(".ag-header", has_text="accuracy_percent").first.wait_for(timeout=120_000)
        head = tab.locator(".ag-header").first.inner_text()
        for name in ("gtdl.framework", "gtdl.dataset", "gtdl.device", "training_time_s", "testing_time_s"):
            assert name in head
        tab.get_by_text("Group: torch").wait_for(timeout=120_000)
        client = mlflow.MlflowClient(planted)
        experiment = client.get_experiment_by_name("gtdl")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=3)
        chosen = json.dumps([run.info.run_id for run in runs])
        tab.goto(f"{server.uri}/#/compare-runs?runs={chosen}&experiments={json.dumps([experiment.experiment_id])}")
        for name in ("training_time_s", "testing_time_s", "accuracy_percent"):
            tab.get_by_text(name, exact=True).first.wait_for(timeout=120_000)
        tab.context.close()
