"""``gtdl report``: one HTML file, opened in a real browser, on runs with known results."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import mlflow
import pytest
from helpers.planted_runs import make_finished_run, make_run, plant
from helpers.project import create_store, need_package
from helpers.servers import mlflow_server
from mlflow.entities import Metric
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from gtdl_mlflow import config, metrics, tags
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.config import display
from gtdl_mlflow.reporting import page, published_figures, tables, ui
from gtdl_mlflow.reporting.runs import load, read, to_benchmark_run

CHROMIUM = shutil.which("chromium")


# Without a browser.


def test_every_metric_and_tag_of_the_report_is_registered() -> None:
    for name in (*page.METRIC_COLUMNS, *tables.RESOURCES, metrics.WALL_TIME):
        assert name in metrics.METRICS
    for name in (*metrics.HEADLINE, *tables.RESOURCES):
        assert metrics.METRICS[name].label
    for column in ui.COLUMNS:
        kind, name = re.fullmatch(r"(\w+)\.`(.+)`", column).groups()  # type: ignore[union-attr]
        assert kind == "params" or name in {"metrics": metrics.METRICS, "tags": tags.TAGS}[kind]


def test_phases_and_the_rest_add_up_to_the_wall_time() -> None:
    run = to_benchmark_run(make_finished_run("framework=torch", training_s=10, testing_s=1))
    times = metrics.phase_times(run.metrics)
    assert times["training"] == 10
    assert sum(times.values()) == pytest.approx(run.metrics["worker/wall_s"])


def test_every_framework_has_a_label_and_a_colour_of_its_own() -> None:
    names = config.choices("framework")
    assert len({display.color(name) for name in names} | {display.UNKNOWN_COLOR}) == len(names) + 1
    assert len({display.label(name) for name in names}) == len(names)
    assert (display.label("torch"), display.color("torch")) == ("PyTorch", "#D55E00")
    assert (display.label("cntk"), display.color("cntk")) == ("cntk", display.UNKNOWN_COLOR)


def test_gpu_is_beside_the_cpu_and_each_number_of_threads_has_a_table(all_cores: None) -> None:
    run = ("framework=torch", "dataset=mnist")
    cpu = make_finished_run(*run, training_s=100, accuracy=99)
    one_core = make_finished_run(*run, "hardware=cpu_1core", training_s=180, accuracy=99)
    gpu = make_finished_run(*run, training_s=7, accuracy=99, **{"gtdl.device": "gpu"})
    tables = page.published_tables(map(to_benchmark_run, (cpu, one_core, gpu)), published_figures.load())
    rows = [row for _, table in tables for row in table.rows]
    assert [row[0] for row in rows] == ["PyTorch 2.13.0"] * 2
    measured = [[text.partition("\n")[0] for text in row] for row in rows]
    assert sorted(row[1] for row in measured) == ["100.0", "180.0"]
    assert [row[4:] for row in measured] == [["7.00", "1.00", "99.00"]] * 2
    assert rows[0][4] == "7.00\npublished: 338.46"  # GTDLBench's training time on its GPU
    (_, cpu_only), *_ = page.published_tables([to_benchmark_run(cpu)], published_figures.load())
    assert [name.partition(":")[0] for name in cpu_only.header] == ["framework", "CPU", "CPU", "CPU"]


def test_setting_is_recognised_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch, all_cores: None) -> None:
    runs = []
    for override in ("hardware=gpu", "hardware.cores=[0]"):
        with monkeypatch.context() as other_machine:
            other_machine.setattr(config.checks, "has_gpu", lambda: True)
            runs.append(make_finished_run("framework=torch", "dataset=mnist", override))
    monkeypatch.setattr(config.checks, "has_gpu", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {7})
    assert {to_benchmark_run(run).key.setting for run in runs} == {"torch_mnist"}


@pytest.mark.slow
def test_errors_are_one_line(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "--experiment", "nothing", "--tracking-uri", f"sqlite:///{tmp_path / 'no.db'}"]) == 1
    assert "no.db: no such file" in capsys.readouterr().err
    plant(make_finished_run("framework=torch", "dataset=mnist_5k"))
    mlflow.create_experiment("empty")
    capsys.readouterr()
    assert cli.main(["report", "--experiment", "nothing"]) == 1
    hint = "; there are runs in gtdl: --experiment gtdl\n"
    assert capsys.readouterr().err == f"gtdl: experiment nothing: not found in this tracking store{hint}"
    folder = tmp_path / "no folder"
    assert cli.main(["report", "--output", str(folder / "report.html")]) == 2
    assert capsys.readouterr().err == f"gtdl: {folder / 'report.html'}: the folder {folder} does not exist\n"
    assert cli.main(["report", "--experiment", "empty"]) == 1
    assert capsys.readouterr().err == f"gtdl: experiment empty: no run yet{hint}"


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need_package("chromium", CHROMIUM)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three frameworks in both tracks, a failed one, an unavailable one, another machine, and a failed quality gate."""
    uri = create_store(tmp_path_factory.mktemp("planted") / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        plant_all()
        mlflow.set_tracking_uri(None)
    return uri


def plant_all() -> None:
    for seed in range(5):
        for number, name in enumerate(("torch", "tensorflow", "mxnet")):
            for overrides, base_s in ((("setting=caffe_mnist",), 10), ((), 15)):
                training_s = base_s * 2**number + seed / 10
                run = make_finished_run(
                    f"framework={name}",
                    "dataset=mnist_5k",
                    *overrides,
                    seed=seed,
                    training_s=training_s,
                    testing_s=training_s / 50,
                    accuracy=97 + number / 2 + seed / 100,
                )
                run_id = plant(run)
                if seed == 2:  # the run with the median training time, whose learning curve is shown
                    history = []
                    for point in range(1, 6):
                        history += [
                            Metric("eval/accuracy_percent", 90 + point, 0, 100 * point),
                            Metric("train/elapsed_s", training_s * point / 10, 0, 100 * point),
                        ]
                    mlflow.MlflowClient().log_batch(run_id, metrics=history)
    theano = {
        "training_s": 1.0,
        "testing_s": 0.1,
        "accuracy": 10.0,
        "gtdl.quality": "the accuracy is no better than chance",
    }
    plant(make_finished_run("framework=theano", "dataset=mnist_5k", "setting=caffe_mnist", **theano))  # type: ignore[arg-type]
    plant(make_finished_run("framework=torch", "dataset=mnist", seed=1, **{"gtdl.machine": "another machine"}))
    caffe = ("framework=caffe", "dataset=mnist_5k")
    plant(make_run(*caffe, **{"gtdl.failure": "the worker was killed by <b>SIGKILL</b>"}))
    plant(make_run(*caffe, seed=1, **{"gtdl.unavailable": "no GPU"}))


@pytest.fixture(scope="module")
def report(planted: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert cli.main(["report", "--tracking-uri", planted, "--output", str(path)]) == 0
    return path


def open_report(browser: Browser, report: Path, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
    """Open the report without a network. Any message on the console is an error."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        offline=True,
        color_scheme=scheme,  # type: ignore[arg-type]
        accept_downloads=True,
    )
    messages: list[str] = []
    tab = context.new_page()
    tab.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.goto(report.as_uri())
    yield tab
    assert messages == []
    context.close()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["desktop", "phone"])
def tab(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    yield from open_report(browser, report, *request.param)


@pytest.mark.slow
def test_report_is_one_small_file_without_references(report: Path) -> None:
    text = report.read_text()
    assert len(text) < 5e6
    without_scripts = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=|url\(", without_scripts)


@pytest.mark.browser
def test_ranking_comes_first(tab: Page) -> None:
    article = tab.locator("article", has_text="all under caffe_mnist")
    assert article.locator("table").first.is_visible()
    text = article.inner_text()
    assert text.index("training time, s") < text.index("PyTorch 2.13.0 trained fastest: 10.20 s.")
    assert "Theano 1.1.2 failed the quality gate, so its times are not ranked: the accuracy is no better" in text
    assert (
        article.locator("tr", has_text="Theano").first.inner_text().count("not ranked: the accuracy is no better") == 2
    )
    assert "Caffe 1.0.0: 1 of 1 seeds failed: the worker was killed by" in tab.locator("#ranking").inner_text()


CUT = """() => [...document.querySelectorAll("main *")].filter(element => {
    const style = getComputedStyle(element);
    if (element.closest("svg, option") || !element.clientWidth) return false;
    if (element.scrollWidth <= element.clientWidth + 1) return false;
    const ellipsis = style.textOverflow === "ellipsis", shadow = style.backgroundImage.includes("linear-gradient");
    return !(style.overflowX === "auto" && shadow) && !ellipsis && style.overflowX !== "visible";
}).map(element => element.outerHTML.slice(0, 200))"""
"""Elements whose content is cut without a shadow or an ellipsis."""


@pytest.mark.browser
def test_every_chart_is_drawn_and_nothing_scrolls_sideways(tab: Page) -> None:
    tab.evaluate("document.querySelectorAll('article > details').forEach(each => each.open = true)")
    charts = tab.locator(".chart")
    assert charts.count() >= 10
    for index in range(charts.count()):
        charts.nth(index).scroll_into_view_if_needed()
        svg = charts.nth(index).locator("svg")
        svg.wait_for(timeout=60_000)
        box, outer = svg.bounding_box(), charts.nth(index).bounding_box()
        assert box is not None
        assert outer is not None
        assert box["width"] <= outer["width"] + 1
        assert svg.locator("path").count() > 2
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate(CUT) == []
    assert tab.locator(f'.chart svg [fill="{display.color("torch")}"]').count() > 5


@pytest.mark.browser
def test_sections_contain_the_known_results(tab: Page) -> None:
    links = tab.locator("nav a")
    for index in range(links.count()):
        target = links.nth(index).get_attribute("href")
        assert target is not None
        assert tab.locator(target).count() == 1
    published = tab.locator("#gtdlbench").inner_text()
    assert "published: 99.24" in published  # PyTorch's accuracy on the CPU
    assert "GPU:" not in published
    assert "another machine" in tab.locator("#machines").inner_text()
    unfinished = tab.locator("#unfinished").inner_text()
    assert "the worker was killed by <b>SIGKILL</b>" in unfinished  # text, not markup
    assert "no GPU" in unfinished
    assert "own default: training time, s" in tab.locator("#tracks").inner_text()


@pytest.mark.browser
def test_raw_values_are_sorted_filtered_and_downloaded(tab: Page, tmp_path: Path) -> None:
    lines = tab.locator("#raw tbody tr")
    assert lines.count() == 34
    tab.locator("#filter").fill("tensorflow caffe_mnist")
    assert lines.count() == 5
    assert tab.locator("#shown").inner_text() == "5 of 34 runs"
    head = tab.locator('#raw th button[data-column="training_time_s"]')
    head.click()
    columns = [button.inner_text() for button in tab.locator("#raw th button").all()]
    assert "mode" not in columns  # the same in all runs
    assert "budget 1.0" in tab.locator("#values p").inner_text()
    column = columns.index("training_time_s")
    times = [float(line.locator("td").nth(column).inner_text()) for line in lines.all()]
    assert times == sorted(times)
    head.press("Enter")  # from the keyboard, which reverses the order
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


# A store with planted truths.

OWN = "each under its own default (networks differ)"


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Frameworks that take as long as PyTorch, 3 % longer, twice as long, and anything; a failed and a running one."""
    uri = create_store(tmp_path_factory.mktemp("truths") / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        plant_truths()
        mlflow.set_tracking_uri(None)
    return uri


def plant_truths() -> None:
    client = mlflow.MlflowClient()
    common = ("dataset=mnist_5k", "setting=caffe_mnist")
    worker = {"worker/peak_memory_mb": 500.0, "train/cpu_utilization_percent": 90.0}
    factors = {"torch": 1.0, "caffe": 1.0005, "mxnet": 1.03, "tensorflow": 2.0}
    for seed, noise in enumerate((1, 1.002, 0.998, 1.001, 0.999)):
        for name, factor in factors.items():
            accuracy = (95.0 if name == "mxnet" else 97.0) + seed / 100
            measured = worker | {"worker/peak_memory_mb": 800.0} if name == "tensorflow" else worker
            testing_s = (0.5 if name == "caffe" else factor) * noise / 5
            times = {"training_s": 10 * factor * noise, "testing_s": testing_s}
            plant(
                make_finished_run(f"framework={name}", *common, seed=seed, accuracy=accuracy, metrics=measured, **times)
            )
            if name in ("torch", "tensorflow"):  # networks of the own defaults differ
                time_s = {"torch": 100.0, "tensorflow": 2000.0}[name] * noise
                plant(make_finished_run(f"framework={name}", "dataset=mnist", seed=seed, training_s=time_s))
        noisy = 10 * (1.05 + seed / 4)
        plant(make_finished_run("framework=theano", *common, seed=seed, training_s=noisy, accuracy=97, metrics=worker))
    plant(make_finished_run("framework=reference", *common, training_s=1, accuracy=99.9, metrics=worker))
    plant(make_run("framework=theano", *common, seed=7, **{tags.FAILURE: "the worker was killed by SIGKILL"}))
    plant(make_run("framework=tensorflow", *common, seed=5, status="RUNNING"))
    cifar = ("dataset=cifar10", "setting=caffe_cifar10", "budget=0.1", "hardware.threads=1")
    experiment = mlflow.get_experiment_by_name("gtdl")
    assert experiment is not None
    parent = client.create_run(experiment.experiment_id, tags={tags.SWEEP: "experiment=paired"}).info.run_id
    for name, ratio, half in (("PyTorch-2.13.0", 1.0, 0.0), ("TensorFlow-2.21.0", 1.15, 0.02)):
        values = {"ratio": ratio, "ratio_low": ratio - half, "ratio_high": ratio + half}
        for key, value in values.items():
            client.log_metric(parent, f"paired/cpu/training/{name}/{key}", value)
        client.log_metric(parent, f"paired/wall/testing/{name}/ratio", 2 * ratio - 1)  # too few restarts
    client.set_terminated(parent)
    for seed in range(3):
        for name, time_s in (("torch", 3.0), ("tensorflow", 2.0)):  # the whole runs were disturbed
            sweep = {"mlflow.parentRunId": parent, tags.INTERFERENCE: "other processes used 61 % of the CPU"}
            times = {"training_s": time_s + seed / 10, "testing_s": time_s}
            plant(make_finished_run(f"framework={name}", *cifar, seed=seed, accuracy=60, **times, **sweep))


@pytest.fixture(scope="module")
def true_report(truths: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("true report") / "report.html"
    assert cli.main(["report", "--tracking-uri", truths, "--output", str(path)]) == 0
    return path


def cells(table: Locator) -> dict[str, list[str]]:
    """Return the cells of each row by its first cell."""
    rows = [[cell.inner_text() for cell in row.locator("th, td").all()] for row in table.locator("tr").all()]
    return {first.partition("\n")[0]: rest for first, *rest in rows}


@pytest.mark.browser
def test_every_sentence_and_number_is_that_of_the_planted_runs(browser: Browser, true_report: Path) -> None:
    for tab in open_report(browser, true_report):
        assert "44 runs: 42 finished, 1 running, 1 failed." in tab.locator("header").inner_text()
        article = tab.locator("article", has_text="mnist_5k, all under caffe_mnist")
        found = cells(article.locator("table").first)
        assert list(found) == ["framework", "PyTorch 2.13.0", "Caffe 1.0.0", "MXNet 1.9.1", "Theano 1.1.2",
                               "TensorFlow 2.21.0", "NumPy reference 1"]  # fmt: skip
        assert found["framework"] == [
            "training time, s",
            "testing time, s",
            "test accuracy, %",
            "peak memory, MB",
            "runs",
        ]
        assert found["PyTorch 2.13.0"][0] == "10.00 [9.98, 10.02], 5\nbest"
        assert found["Caffe 1.0.0"][0].endswith("1.00x [1.00, 1.00], the same")
        assert found["MXNet 1.9.1"][0].endswith("1.03x [1.03, 1.03]")
        assert found["MXNet 1.9.1"][2].endswith("2.00 points [2.00, 2.00] behind")
        assert found["TensorFlow 2.21.0"][0].endswith("2.00x [1.99, 2.01]")
        assert found["TensorFlow 2.21.0"][3:] == ["800.0", "5 finished, 1 running"]
        assert found["Theano 1.1.2"][0].endswith("not resolved")
        assert found["Theano 1.1.2"][4] == "5 finished, 1 failed"
        assert found["NumPy reference 1"][0] == "(1.00)\nnot ranked"
        text = article.inner_text()
        assert (
            "PyTorch 2.13.0 and Caffe 1.0.0 trained in the same time, within 2 %: 10.00 s. "
            "MXNet 1.9.1 took 1.03x [1.03, 1.03] as long, TensorFlow 2.21.0 2.00x [1.99, 2.01]. Not resolved: Theano"
        ) in text
        assert "MXNet 1.9.1 is 2.00 points [2.00, 2.00] behind." in text
        assert "Frameworks in development only: PyTorch 2.13.0 tested fastest: 0.200 s." in text
        assert text.count("in development") == 1, "in training and accuracy, none is ahead of these"
        assert text.count("last release 2022") == 1  # below MXNet's name
        assert "The same for all: CPU use in training, %: 90.00." in text
        assert "TensorFlow 2.21.0: 1 run still running." in text
        assert "reference 1 trained" not in text
        own = tab.locator("article", has_text=f"mnist, {OWN}").inner_text()
        assert "PyTorch 2.13.0 trained fastest: 100.0 s. TensorFlow 2.21.0 took 20.0x [19.9, 20.1] as long." in own


@pytest.mark.browser
def test_paired_measurement_comes_before_the_whole_runs_of_its_sweep(browser: Browser, true_report: Path) -> None:
    for tab in open_report(browser, true_report):
        article = tab.locator("article", has_text="cifar10, all under caffe_cifar10")
        paired, runs = (cells(article.locator("table").nth(number)) for number in range(2))
        assert paired["framework"] == ["training step, CPU time", "test batch, wall clock"]
        assert paired["PyTorch 2.13.0"] == ["best", "best"]
        assert paired["TensorFlow 2.21.0"] == ["1.15x [1.13, 1.17]", "1.30x"]
        assert runs["TensorFlow 2.21.0"][0] == "2.20; 2.10; 2.00"  # no interval of three values; the turns compare
        text = article.inner_text()
        sentence = (
            "Paired measurement, CPU time of one thread: PyTorch 2.13.0 trained fastest. TensorFlow 2.21.0 took 1.15x"
        )
        assert text.index(sentence) < text.index("Too few runs to compare: TensorFlow")
        assert "TensorFlow 2.21.0 2.10 s" not in text, "the turns replace the training time of whole runs"
        article.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
        titles = article.locator(".charts h4").all_inner_texts()
        assert titles[:2] == ["Training step, CPU time", "Testing time"]
        assert cells(article.locator(".charts table").first)["TensorFlow 2.21.0"] == ["1.15x [1.13, 1.17]"]
        svg = article.locator(".chart svg").first
        svg.wait_for(timeout=60_000)
        assert svg.locator("g.mark-symbol path").count() >= 2
        assert "3 disturbed" in text
        assert "1.15x" not in tab.locator("article", has_text="mnist_5k").inner_text()


@pytest.mark.browser
def test_selection_is_in_the_address(browser: Browser, true_report: Path) -> None:
    for tab in open_report(browser, true_report):
        assert [each.get_attribute("name") for each in tab.locator("#selectors select").all()] == [
            "dataset", "setting", "budget", "framework"]  # fmt: skip
        tab.locator("select[name=dataset]").select_option("mnist")
        tab.locator("select[name=framework]").select_option("PyTorch 2.13.0")
        tab.locator("#filter").fill("finished")
        address = tab.url
        for _ in range(2):  # as selected, and as opened by somebody else
            shown = tab.locator("article:visible h3")
            (title,) = shown.all_inner_texts()
            assert title.startswith(f"mnist, {OWN}, cpu, ")
            assert tab.locator("article:visible tr.other").first.inner_text().startswith("TensorFlow 2.21.0")
            assert tab.locator("article:visible table").first.locator("tr:not(.other)").count() == 2  # with the header
            assert tab.locator("#raw tbody tr").count() == 5
            tab.goto("about:blank")
            tab.goto(address)
        tab.locator("nav a", has_text="Method").click()
        assert tab.url == address
        tab.locator("select[name=setting]").select_option("caffe_cifar10")
        assert tab.locator("#nothing").is_visible()
        tab.evaluate("location.hash = 'dataset=imagenet&budget=0.1'")  # another report's value selects all
        tab.locator("#nothing").wait_for(state="hidden")
        assert tab.locator("article:visible").count() == 1
        assert tab.locator("select[name=dataset]").input_value() == ""


@pytest.mark.browser
def test_axes_have_no_prefix_and_are_logarithmic_over_decades(browser: Browser, true_report: Path) -> None:
    for tab in open_report(browser, true_report, width=390):
        tab.locator("select[name=dataset]").select_option("mnist")
        charts = tab.locator("article:visible .chart")
        assert charts.count() >= 3
        for chart in charts.all():
            chart.scroll_into_view_if_needed()
            chart.locator("svg").wait_for(timeout=60_000)
            numbers = [text for text in chart.locator("svg text").all_text_contents() if re.match("[0-9]", text)]
            assert numbers
            assert not [text for text in numbers if not re.fullmatch(r"[0-9,]+(\.[0-9]+)?", text)]
        assert "training time, s (log)" in charts.first.locator("svg").text_content()  # type: ignore[operator]
        assert "testing time, s (log)" not in charts.nth(1).locator("svg").text_content()  # type: ignore[operator]


@pytest.mark.browser
def test_runs_are_links_where_the_store_has_an_address(browser: Browser, truths: str, tmp_path: Path) -> None:
    loaded = load(truths, ["gtdl"])
    client = Mock(tracking_uri="https://user:secret@mlflow.example:5000/", get_metric_history=lambda *_: [])
    path = tmp_path / "report.html"
    path.write_text(page.page(loaded, client, "gtdl"), encoding="utf-8")
    assert "secret" not in path.read_text(encoding="utf-8").replace(page.library(), "")
    run = loaded.runs[0]
    for tab in open_report(browser, path):
        link = tab.locator(f'#raw a:text-is("{run.run_id}")')
        address = f"https://mlflow.example:5000/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        assert link.get_attribute("href") == address
    assert '"link":""' in page.page(loaded, mlflow.MlflowClient(truths), "gtdl")


HOSTILE = (
    '"><img src=x onerror="window.PWNED=1"><script>window.PWNED=2</script>\'-->{{7*7}}',
    "<!--<script>",
    "datum['x'];window.PWNED=3",
    '=HYPERLINK("http://example.org";"x")',
    "@SUM(1+1)",
    "W" * 400,
)
"""Values of tags that a page, a chart or a spreadsheet could run, or that could make the page wide."""


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on two frameworks whose every text is hostile, with a time that is not finite."""
    runs = []
    for text in HOSTILE:
        names = (tags.DATASET, tags.MODEL, tags.TRAINING, tags.MACHINE, tags.FRAMEWORK_VERSION, tags.CELL,
                 tags.MODE_REQUESTED)  # fmt: skip
        for name in ("torch", "tensorflow"):
            for seed in range(3):
                values = dict.fromkeys((*names, tags.QUALITY if seed else tags.CHECK), text)
                sampled = {"metrics": {"eval/accuracy_percent": 9.0, "train/elapsed_s": 1.0}}
                runs.append(make_finished_run(f"framework={name}", seed=seed, **sampled, **values))  # type: ignore[arg-type]
            runs.append(make_run(f"framework={name}", seed=9, **{tags.FAILURE: text * 20, tags.MACHINE: text}))
    runs.append(make_finished_run("framework=torch", metrics={"training_time_s": float("nan")}))
    runs.append(make_run("framework=torch", seed=3, **{tags.FAILURE: "-1.5"}))
    history = Mock(
        tracking_uri="memory",
        get_metric_history=lambda run_id, name: [Metric(name, 50 + step, 10**12, step) for step in (1, 2)],
    )
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    loaded = read(runs)
    path.write_text(page.page(loaded, history, HOSTILE[0], [*loaded.remarks, HOSTILE[0]]), encoding="utf-8")
    return path


@pytest.mark.browser
def test_nothing_in_a_hostile_store_runs_or_breaks_the_page(
    browser: Browser, hostile_report: Path, tmp_path: Path
) -> None:
    for tab in open_report(browser, hostile_report):
        tab.evaluate("document.querySelectorAll('article > details').forEach(each => each.open = true)")
        charts = tab.locator(".chart")
        assert charts.count() > 12
        for index in range(charts.count()):
            charts.nth(index).scroll_into_view_if_needed()
            charts.nth(index).locator("svg").wait_for(timeout=60_000)
        for mark in tab.locator(".chart svg .mark-symbol path").all()[:10]:
            mark.hover(timeout=5_000, force=True)  # tooltips are HTML
        assert tab.evaluate("window.PWNED") is None
        assert tab.locator("img").count() == 0
        assert tab.locator("script").count() == 4
        assert tab.locator("#raw tbody tr").count() == 6 * 8 + 2
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        with tab.expect_download() as download:
            tab.locator("#csv").click()
        download.value.save_as(tmp_path / "csv")
        with tab.expect_download() as download:
            tab.locator("#json").click()
        download.value.save_as(tmp_path / "json")
    with (tmp_path / "csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert {"'" + HOSTILE[3], "'" + HOSTILE[4], HOSTILE[0]} <= {row["machine"] for row in rows}
    assert {row["reason"] for row in rows} >= {"'-1.5"}
    assert {row["training_time_s"] for row in rows} == {"10", "nan", ""}
    loaded = json.loads((tmp_path / "json").read_text(encoding="utf-8"))
    assert HOSTILE[3] in {row["machine"] for row in loaded}


def test_json_in_a_page_has_no_character_that_html_or_a_script_interprets() -> None:
    text = str(page._json(["</script>", "<!--", "&lt;", "\u2028", "\u2029", float("nan")]))
    assert not re.findall("[<>&\u2028\u2029]", text)
    assert json.loads(text) == ["</script>", "<!--", "&lt;", "\u2028", "\u2029", None]


@pytest.mark.browser
def test_print_is_black_on_white_without_navigation(browser: Browser, report: Path) -> None:
    for tab in open_report(browser, report, scheme="dark"):
        tab.emulate_media(media="print")
        assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert not tab.locator("nav").is_visible()


@pytest.mark.browser
@pytest.mark.server
def test_pages_of_mlflow_show_the_comparison(browser: Browser, planted: str, tmp_path: Path) -> None:
    path = ui.arrange(planted, "gtdl").path
    with mlflow_server(tmp_path, "--backend-store-uri", planted) as server:
        tab = browser.new_context(viewport={"width": 1600, "height": 900}).new_page()
        tab.goto(server.uri + path)
        tab.locator(".ag-root").wait_for(timeout=180_000)
        tab.locator(".ag-header", has_text="accuracy_percent").first.wait_for(timeout=120_000)
        head = tab.locator(".ag-header").first.inner_text()
        for name in ("gtdl.framework", "gtdl.dataset", "gtdl.setting", "training_time_s", "testing_time_s"):
            assert name in head
        tab.get_by_text("Group: torch · ").first.wait_for(timeout=120_000)
        client = mlflow.MlflowClient(planted)
        experiment = client.get_experiment_by_name("gtdl")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=3)
        chosen = json.dumps([run.info.run_id for run in runs])
        tab.goto(f"{server.uri}/#/compare-runs?runs={chosen}&experiments={json.dumps([experiment.experiment_id])}")
        for name in metrics.HEADLINE:
            tab.get_by_text(name, exact=True).first.wait_for(timeout=120_000)
        tab.context.close()
