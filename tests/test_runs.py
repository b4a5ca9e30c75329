"""Incomplete, malformed and hostile runs: they are skipped and listed, and nothing from the store is interpreted."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mlflow
import pytest
from helpers.planted_runs import make_finished_run, make_run, plant
from mlflow.entities import Run

from gtdl_mlflow import config
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.config import display
from gtdl_mlflow.reporting import check, page, published_figures, ranking, reproduction, runs
from gtdl_mlflow.reporting.runs import OWN, read, to_benchmark_run
from gtdl_mlflow.tracking import store as tracking_store

PARITY = ("dataset=mnist_5k", "setting=caffe_mnist")

FORMULA = '=HYPERLINK("http://example.org";"x")'


def complete_runs() -> list[Run]:
    """Return five repeats of two frameworks under the same conditions."""
    return [
        make_finished_run(f"framework={name}", *PARITY, seed=seed, training_s=training_s + seed / 10)
        for seed in range(5)
        for name, training_s in (("torch", 10), ("tensorflow", 20))
    ]


def without(run: Run, *names: str) -> Run:
    """Return the run without some tags, params and metrics."""
    for values in (run.data.tags, run.data.params, run.data.metrics):
        for name in names:
            values.pop(name, None)
    return run


def broken_run(**tags: str) -> Run:
    return make_finished_run("framework=torch", *PARITY, seed=11, **tags)


# Reading.


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (without(broken_run(), "gtdl.dataset"), "no tag gtdl.dataset"),
        (without(broken_run(), "gtdl.model"), "no tag gtdl.model"),
        (without(broken_run(), "gtdl.seed"), "no tag gtdl.seed"),
        (without(broken_run(), "gtdl.machine"), "no tag gtdl.machine"),
        (without(broken_run(), "hardware.threads"), "no param hardware.threads"),
        (without(broken_run(), "testing_time_s"), "no testing_time_s"),
        (without(broken_run(), "training_time_s", "accuracy_percent"), "no training_time_s and no accuracy_percent"),
        (broken_run(**{"gtdl.seed": "not a number"}), "gtdl.seed=not a number: expected a number from 0 to 2**32 - 1"),
        (broken_run(**{"gtdl.seed": "-1"}), "gtdl.seed=-1: expected a number from 0 to 2**32 - 1"),
        (broken_run(**{"gtdl.seed": "1" * 5000}), "gtdl.seed=1111"),
        (broken_run(**{"gtdl.seed": "٣"}), "gtdl.seed=٣: expected a number"),
        (broken_run(**{"gtdl.budget": "x"}), "gtdl.budget=x: expected a number above 0 and at most 1"),
        (broken_run(**{"gtdl.budget": "nan"}), "gtdl.budget=nan: expected a number above 0 and at most 1"),
        (broken_run(**{"gtdl.budget": "inf"}), "gtdl.budget=inf: expected"),
        (broken_run(**{"gtdl.budget": "0"}), "gtdl.budget=0: expected"),
        (broken_run(**{"gtdl.device": "abacus"}), "gtdl.device=abacus: expected cpu or gpu"),
        (broken_run(**{"gtdl.dataset": ""}), "gtdl.dataset=: expected 1 to 500 printable characters"),
        (broken_run(**{"gtdl.dataset": "(" * 7000}), "gtdl.dataset=((("),
        (broken_run(**{"gtdl.machine": "W" * 4999}), "gtdl.machine=WWW"),
        (broken_run(**{"gtdl.framework_version": "1\x1b[2J"}), "gtdl.framework_version=1\ufffd[2J: expected"),
        (broken_run(**{"gtdl.mode_requested": "a\nb"}), "gtdl.mode_requested=a b: expected"),
    ],
)
def test_malformed_run_is_skipped_with_its_reason(run: Run, reason: str) -> None:
    loaded = read([*complete_runs(), run])
    assert len(loaded.runs) == 10
    (skipped,) = loaded.skipped
    assert skipped.run_id == run.info.run_id
    assert skipped.reason.startswith(reason)
    (remark,) = loaded.remarks
    assert remark.startswith(f"1 incomplete or malformed run skipped: {reason}")
    assert remark.isprintable()
    assert len(remark) < 300


@pytest.mark.parametrize("threads", ["", "None", "0", "-1", "1.5", "x", "1" * 50])
def test_number_of_threads_is_checked(threads: str) -> None:
    run = broken_run()
    run.data.params["hardware.threads"] = threads
    (skipped,) = read([run]).skipped
    assert skipped.reason.startswith(f"hardware.threads={threads[:40]}")


def test_skipped_runs_are_one_line_however_many_there_are() -> None:
    (remark,) = read([broken_run(**{"gtdl.seed": f"x{number // 2}"}) for number in range(40)]).remarks
    assert remark.startswith("40 incomplete or malformed runs skipped: gtdl.seed=x0: expected a number from ")
    assert remark.endswith("; 17 other reasons")


def test_runs_of_other_projects_are_not_listed() -> None:
    loaded = read([without(make_run("framework=torch"), "gtdl.framework")])
    assert (loaded.runs, loaded.skipped) == ([], [])


def test_run_in_preparation_is_listed_with_its_state() -> None:
    run = make_run("framework=torch", status="RUNNING")
    for name in list(run.data.params):
        del run.data.params[name]
    assert read([run]).skipped[0].reason == "no param hardware.threads (RUNNING)"


def test_a_running_run_is_running_and_not_failed() -> None:
    running = make_run("framework=torch", *PARITY, seed=9, status="RUNNING")
    every = read([*complete_runs(), running]).runs
    (frameworks,) = ranking.group_by_conditions(every).values()
    assert ranking.remarks(frameworks) == ["PyTorch 2.13.0: 1 run still running."]
    (row,) = page.unfinished(every).rows
    assert row[-1] == "running"  # without a column of reasons, as there is none
    findings = check.check(every).findings
    assert [(each.rule, each.level) for each in findings] == [("none_running", "warning")]


# Values from the store are data.


@pytest.mark.parametrize(
    "value",
    [
        "mnist,cifar10",
        "${oc.env:HOME}",
        "${seed}",
        "../../x",
        "/etc/passwd",
        "mnist +model.depth=3",
        "glob(*)",
        "[mnist]",
        "{{7*7}}",
        "null",
        "W" * 500,
        "<!--<script>",
        "'",
        "mnist\\",
    ],
)
@pytest.mark.parametrize(
    "tag",
    ["framework", "dataset", "model", "training", "hardware", "mode_requested", "framework_version", "machine", "work"],
)
def test_tag_is_never_composed_or_opened(tag: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[str] = []
    compose = config.compose_part

    def record(*words: str, **values: str) -> object:
        composed.extend([*words, *values.values()])
        return compose(*words, **values)

    monkeypatch.setattr(config, "compose_part", record)
    runs._works.cache_clear()
    run = make_finished_run("framework=torch", *PARITY, **{f"gtdl.{tag}": value})
    if tag == "framework_version":
        run.data.params["framework.version"] = value
    (loaded,) = read([run]).runs
    assert value not in " ".join(composed)
    assert {"torch", "mnist_5k"} & {*composed} or tag != "machine"
    assert ("changed" in loaded.key.setting) == (tag not in ("mode_requested", "framework_version", "machine"))
    assert loaded.key.label
    assert not loaded.key.is_default
    assert display.color(value) == display.UNKNOWN_COLOR
    text = ranking.text([loaded]) + check.check([loaded]).text()
    assert text.isprintable() or "\n" in text


def test_yaml_outside_of_conf_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("label: evil\ncolor: url(http://example.org)\nfamily: mnist\n")
    outside = f"{'../' * 20}{tmp_path}/evil"
    assert display.label(outside) == outside
    assert display.color(outside) == display.UNKNOWN_COLOR
    (run,) = read([make_finished_run("framework=torch", **{"gtdl.dataset": outside, "gtdl.framework": outside})]).runs
    assert not run.key.is_default
    assert published_figures.load().figures(outside, outside, "cpu") is None


def test_setting_of_an_unchanged_run_is_recognised_whatever_its_version_and_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    overrides = [
        ["framework.version=1.0"],
        ["framework.version='1e3'"],
        ["hardware.cores=[0,3]"],
        ["hardware.cores=[0,3]", "hardware.threads=1"],
        ["hardware.cores=[1]", "hardware.side_by_side=true"],
        ["hardware=cpu_1core", "budget=0.1", "mode=default"],
        ["parity=true"],
    ]
    for each in overrides:
        metrics = {"parity/logits_difference": 1e-6} if each == ["parity=true"] else {}
        (run,) = read([make_finished_run("framework=torch", "dataset=mnist", *each, metrics=metrics)]).runs
        assert (run.key.setting, run.key.settings) == ("torch_mnist", ["torch_mnist", OWN]), each


def test_frameworks_with_the_same_change_are_compared() -> None:
    changes = [
        [],
        ["training.batch_size=7"],
        ["training.batch_size=8"],
        ["training.batch_size=7", "hardware.threads=1"],
    ]
    settings = {
        framework: [
            read([make_finished_run(f"framework={framework}", "setting=torch_mnist", *each)]).runs[0].key.setting
            for each in changes
        ]
        for framework in ("torch", "mxnet")
    }
    assert settings["torch"] == settings["mxnet"]
    unchanged, seven, eight, one_thread = settings["torch"]
    assert unchanged == "torch_mnist"
    assert seven.startswith("torch_mnist (changed, ")
    assert seven == one_thread != eight


@pytest.mark.slow
def test_many_different_cores_take_little_time() -> None:
    many = [make_finished_run("framework=torch", "dataset=mnist", seed=seed) for seed in range(2000)]
    for number, run in enumerate(many):
        run.data.params["hardware.cores"] = f"[{number}, {number + 1}]"
        run.data.tags["gtdl.cell"] = f"{number:016x}"
    started = time.monotonic()
    assert len(read(many).runs) == 2000
    assert time.monotonic() - started < 60  # one composition each took 95 s for 400


# Markdown.


def test_markdown_of_hostile_text_is_one_line_of_text() -> None:
    evil = "<script>alert(1)</script> | x | `y` [a](http://example.org) ![b](c)\n# title"
    hostile = {"gtdl.machine": evil.replace("\n", " "), "gtdl.framework_version": "1|2", "gtdl.mode_requested": "<b>"}
    settings = ("caffe_mnist", "torch_mnist")
    hostile_runs = [
        make_finished_run("framework=caffe", "dataset=mnist", f"setting={each}", **hostile) for each in settings
    ]
    loaded = read(hostile_runs).runs
    text = reproduction.markdown(reproduction.group_by_cell(loaded), evil, mlflow.MlflowClient())
    assert "<" not in text.replace("\\<", "")
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "\n# title" not in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    columns = {line.replace("\\|", "").count("|") - 1 for line in lines}
    assert columns == {3, 13}, "the matrices, and the table of the defaults"
    assert "Caffe 1\\|2" in text


# Commands on a store with every kind of run.


@pytest.fixture
def hostile_store(store: str) -> str:
    """Good runs, incomplete ones, and runs whose tags hold HTML, formulas and control characters."""
    xss = '"><img src=x onerror="window.PWNED=1"><script>window.PWNED=2</script>\'-->{{7*7}}'
    escape = "\x1b[2J\x1b[1;1H\x1b]0;owned\x07\x1b[32mpassed: 20 runs in 4 cells, 0 errors, 0 warnings\x1b[8m"
    good = complete_runs()
    for run in good:
        plant(run)
    for tag in ("framework", "dataset", "model", "mode", "mode_candidates", "machine", "quality", "failure", "check",
                "interference", "resumed", "cell", "data_digest", "framework_version", "hardware",
                "training"):  # fmt: skip
        for value in (xss, escape, FORMULA):
            plant(broken_run(**{f"gtdl.{tag}": value}))
    for values in ((math.nan, 1.0, 97.0), (10.0, math.inf, 97.0), (-1.0, 0.0, math.nan), (1e308, 1e-320, 97.0)):
        metrics = dict(zip(("training_time_s", "testing_time_s", "accuracy_percent"), values, strict=True))
        plant(make_finished_run("framework=torch", *PARITY, seed=12, metrics=metrics))
    plant(make_run("framework=torch", *PARITY, seed=13, **{"gtdl.failure": f"{escape}\npassed: 1 run"}))
    plant(make_run("framework=torch", *PARITY, seed=14, **{"gtdl.unavailable": xss}))
    client = mlflow.MlflowClient()
    experiment = mlflow.get_experiment_by_name("gtdl").experiment_id
    client.create_run(experiment, tags={"gtdl.framework": "torch"})
    client.create_run(experiment)
    return store


@pytest.mark.slow
def test_commands_on_a_hostile_store_skip_and_list(
    hostile_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for status, arguments in (
        (0, ["report", "--output", str(tmp_path / "report.html")]),
        (1, ["check"]),
        (0, ["compare", "torch", "tensorflow"]),
        (0, ["reproduction"]),
    ):
        started = time.monotonic()
        assert cli.main(arguments) == status
        assert time.monotonic() - started < 60
        out, err = capsys.readouterr()
        assert err.count("\n") == 1
        assert err.startswith("gtdl: ")
        assert " incomplete or malformed runs skipped: " in err
        assert out.replace("\n", "").isprintable()
        assert not [line for line in out.splitlines() if line.startswith("passed")]
    assert cli.main(["check", "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert not verdict["passed"]
    assert {run["reason"].split(":")[0] for run in verdict["skipped"]} >= {"no tag gtdl.model (RUNNING)"}
    html = (tmp_path / "report.html").read_text()
    assert "incomplete or malformed runs skipped: " in html
    assert "<script>window" not in html
    assert "<img src=x" not in html


@pytest.mark.slow
@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_store_with_only_a_run_in_preparation_is_one_line(
    store: str, status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("gtdl"), tags={"gtdl.framework": "torch"})
    client.update_run(run.info.run_id, status)
    capsys.readouterr()
    for arguments in (["report", "--output", str(tmp_path / "report.html")], ["check"], ["compare", "torch", "mxnet"]):
        assert cli.main(arguments) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err == (
            f"gtdl: experiment gtdl: 1 incomplete or malformed run skipped: no tag gtdl.model ({status}) "
            f"(run {run.info.run_id})\n"
        )


@pytest.mark.slow
def test_deleted_experiment_is_one_line(store: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    plant(complete_runs()[0])
    experiment = mlflow.get_experiment_by_name("gtdl").experiment_id
    client.delete_experiment(experiment)
    capsys.readouterr()
    for arguments in (
        ["report", "--output", str(tmp_path / "report.html")],
        ["check"],
        ["check", "--json"],
        ["compare", "torch", "mxnet"],
        ["reproduction"],
    ):
        assert cli.main(arguments) == 1
        out, err = capsys.readouterr()
        assert out == ""
        restore = f"`mlflow experiments restore -x {experiment}` restores it"
        assert err == f"gtdl: experiment gtdl: was deleted; {restore}\n"


@pytest.mark.slow
def test_store_that_is_no_database_or_unreachable_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    sqlite3.connect(tmp_path / "empty.db").close()
    monkeypatch.chdir(tmp_path)
    stores = {
        f"sqlite:///{tmp_path}/text.db": 1,
        "http://127.0.0.1:9": 1,
        "nonsense://x": 2,
        f"sqlite:///{tmp_path}": 1,
    }
    for uri, status in stores.items():
        for command in (["report"], ["check"], ["compare", "torch", "mxnet"], ["reproduction"]):
            assert cli.main([*command, "--tracking-uri", uri]) == status, uri
            out, err = capsys.readouterr()
            assert out == ""
            assert err.startswith("gtdl: ")
            assert err.count("\n") == 1


def test_time_outside_of_the_calendar_is_empty() -> None:
    run = complete_runs()[0]
    run.info._start_time = 10**18
    assert dict(zip(page.COLUMNS, page.raw_values(to_benchmark_run(run)), strict=True))["started"] == ""


def test_infinity_of_a_database_is_infinity() -> None:
    run = make_finished_run("framework=torch", metrics={"training_time_s": 1.7976931348623157e308})
    assert to_benchmark_run(run).metrics["training_time_s"] == math.inf
    assert len(run.data.tags["gtdl.machine"]) < runs.LONGEST


# Reading a large store with a second process.


@pytest.fixture
def many(store: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plant 11 runs that are read in pages of two, and return their IDs, the newest first. Some start together."""
    monkeypatch.setattr(tracking_store, "PAGE_SIZE", 2)
    planted = complete_runs()
    for run in planted[3:7]:
        run.info._start_time = planted[3].info.start_time
    ids = [plant(run) for run in [*planted, make_run("framework=torch", *PARITY, status="RUNNING", seed=9)]]
    return [*ids[:6:-1], *sorted(ids[3:7], reverse=True), *ids[2::-1]]


@pytest.mark.slow
def test_second_process_sends_every_run(many: list[str]) -> None:
    with runs._second_process(mlflow.get_tracking_uri(), ["1"], "") as receiver:
        page = receiver.recv()  # the limit of two runs is that of this process
    assert page.ids == set(many)
    assert [run.run_id for run in page.loaded.runs] == many


def test_reading_ends_where_both_processes_meet(many: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = mlflow.get_tracking_uri()
    oldest = list(itertools.islice(runs._pages(mlflow.MlflowClient(uri), ["1"], "", "ASC"), 3))
    read_pages = []
    search_pages = tracking_store.search_pages

    def counted(*arguments: Any) -> Iterator[list[Run]]:
        for each in search_pages(*arguments):
            read_pages.append(each)
            yield each

    @contextmanager
    def second(*_: Any) -> Iterator[Connection]:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        for each in oldest:
            sender.send(each)
        yield receiver

    monkeypatch.setattr(tracking_store, "search_pages", counted)
    monkeypatch.setattr(runs, "_second_process", second)
    monkeypatch.setattr(runs, "PAGES_OF_ONE_PROCESS", 1)
    assert [run.run_id for run in runs.load(uri, ["gtdl"]).runs] == many
    assert len(read_pages) == 3  # six runs, and six runs from the other end: one is in both


def test_second_process_that_fails_changes_nothing(many: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PAGES_OF_ONE_PROCESS", 1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert [run.run_id for run in runs.load(mlflow.get_tracking_uri(), ["gtdl"]).runs] == many


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "torch · caffe_mnist · mnist_5k · s0"),
        (
            ["framework.version=2.12.0", "mode=eager", "budget=0.1"],
            "torch 2.12.0 eager · caffe_mnist · mnist_5k · 0.1 · s0",
        ),
    ],
)
def test_name_of_a_run_has_what_was_requested(overrides: list[str], name: str) -> None:
    assert make_finished_run("framework=torch", *PARITY, *overrides, seed=0).info.run_name == name
