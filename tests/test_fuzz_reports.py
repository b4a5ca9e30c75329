"""For any contents of a tracking store, reports are written, and runs that make no sense are skipped.

The ordinary test run tries a few fixed stores. `GTDL_FUZZ_EXAMPLES=100000 pytest tests/test_fuzz_reports.py -k memory`
tries 100,000 random ones and takes an hour.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import mlflow
import pytest
from helpers.planted_runs import make_finished_run, make_run, plant
from helpers.project import create_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric, Run

from gtdl_mlflow import tags
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.console import Failure
from gtdl_mlflow.reporting import check, comparison, page, ranking, reproduction
from gtdl_mlflow.reporting.runs import read

EXAMPLES = int(os.environ.get("GTDL_FUZZ_EXAMPLES", "30"))
SECONDS = 10
"""Limit for one store, in CPU time; it takes 0.03 s."""

REMOVED = "removed"
"""Stands for a tag, a param or a metric that is removed."""


def many(examples: int) -> settings:
    return settings(
        max_examples=max(1, examples),
        deadline=None,
        database=None,
        # The ordinary run uses the same stores every time, a long one uses new ones.
        derandomize="GTDL_FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )


HOSTILE = [
    '"><img src=x onerror="window.PWNED=1"><script>window.PWNED=2</script>\'-->{{7*7}}',
    "<!--<script>",
    "</script>",
    "\u2028\u2029\ufeff\u202e",
    "\x1b[2J\x1b]0;owned\x07",
    "mnist,cifar10",
    "${oc.env:HOME}",
    "../../../../etc/passwd",
    "=cmd|' /C calc'!A0",
    "| a | b\n\n# c",
    "(" * 7000,
    "W" * 4999,
    "\n\npassed: 1 run",
    "",
    " ",
    "nan",
    "-1",
    "1e400",
    "9" * 5000,
    "None",
    "null",
    "torch",
    "caffe_mnist",
    "cifar100",
    "gpu",
    "0.1",
    "[0, 1]",
    "[" * 3000,
    "reference",
    "\udcff",
]

values = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20), st.integers(-3, 40).map(str), st.just(REMOVED))
numbers = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, -1e308, 1.7976931348623157e308, 5e-324, 1e-320]),
    st.floats(),
    st.floats(0, 100),
)


@cache
def planted() -> tuple[Run, ...]:
    """Return runs of three frameworks, some of them not finished."""
    parity = ("dataset=mnist_5k", "setting=caffe_mnist")
    found = [
        make_finished_run(f"framework={name}", *parity, seed=seed, training_s=10 * number + seed / 10)
        for number, name in enumerate(("torch", "tensorflow", "caffe"), 1)
        for seed in range(4)
    ]
    found += [make_finished_run("framework=torch", "dataset=cifar10", "budget=0.1", seed=seed) for seed in range(2)]
    found += [make_run("framework=mxnet", *parity, status=status) for status in ("FAILED", "KILLED", "RUNNING")]
    return tuple(found)


TAGS = sorted({*tags.TAGS} - {tags.SWEEP, tags.PROCESS, tags.RECORD})
PARAMS = ["framework.version", "hardware.threads", "hardware.cores", "hardware.side_by_side", "worker.device",
          "worker.threads", "worker.precision", "worker.resumed_from_iteration"]  # fmt: skip
METRICS = ["training_time_s", "testing_time_s", "accuracy_percent", "train/first_step_s", "train/iterations",
           "worker/wall_s", "train/images_per_s", "setup/import_s", "eval/accuracy_percent", "train/elapsed_s",
           "system/cpu_utilization_percentage"]  # fmt: skip


@st.composite
def stores(draw: st.DrawFn) -> list[Run]:
    """Return a few of the planted runs, each after some changes."""
    chosen = draw(st.lists(st.sampled_from(range(len(planted()))), min_size=1, max_size=8))
    runs = []
    for index in chosen:
        run = copy.deepcopy(planted()[index])
        run.info._run_id = f"{len(runs):032x}"
        for _ in range(draw(st.integers(0, 4))):
            change(draw, run)
        runs.append(run)
    return runs


def change(draw: st.DrawFn, run: Run) -> None:
    kind = draw(st.sampled_from(["tag", "tag", "param", "metric", "metric", "status", "time", "same"]))
    if kind == "status":
        run.info._status = draw(st.sampled_from(["FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED"]))
    elif kind == "time":
        run.info._start_time = draw(st.sampled_from([None, 0, -1, 10**12, 10**15, 10**18, 2**63 - 1]))
    elif kind == "same":
        run.data.tags.update(dict.fromkeys([tags.SEED, tags.BUDGET], "1"))
    else:
        names, held, strategy = {
            "tag": (TAGS, run.data.tags, values),
            "param": (PARAMS, run.data.params, values),
            "metric": (METRICS, run.data.metrics, st.one_of(numbers, st.just(REMOVED))),
        }[kind]
        name, value = draw(st.sampled_from(names)), draw(strategy)
        if value == REMOVED:
            held.pop(name, None)
        else:
            held[name] = value


class Histories:
    """A tracker that has only histories of metrics, with any values."""

    tracking_uri = "memory"

    def get_metric_history(self, run_id: str, name: str) -> list[Metric]:
        points = [(0, 1.0), (100, 50.0), (100, math.nan), (-5, math.inf), (2**62, 1e308), (300, -1e308)]
        return [Metric(name, value, 10**12, step) for step, value in points[int(run_id, 16) % 4 :]]


def assert_reports(runs: list[Run], client: Histories) -> None:
    """Write everything that the commands write, and check what must never be in it."""
    loaded = read(runs)
    assert len(loaded.runs) + len(loaded.skipped) == sum(tags.FRAMEWORK in run.data.tags for run in runs)
    for remark in loaded.remarks:
        assert remark.isprintable()
    verdict = check.check(loaded.runs, loaded.skipped)
    json.dumps(verdict.json())
    texts = [verdict.text(), ranking.text(loaded.runs)]
    assert not [line for line in verdict.text().splitlines()[:-1] if line.startswith(("passed", "not passed"))]
    for first, second in (("torch", "tensorflow"), (",".join(run.info.run_id for run in runs), "caffe")):
        with suppress(Failure):  # nothing to compare, or the same runs twice
            rows = comparison.rows(loaded.runs, lambda search: [], first, second)
            texts.append(comparison.text(rows, first, second))
    cells = reproduction.group_by_cell(loaded.runs)
    if cells:
        markdown = reproduction.markdown(cells, "experiment <b>", client)  # type: ignore[arg-type]
        assert "<" not in markdown
    if not loaded.runs:
        return
    html = page.page(loaded, client, "experiment <b>", loaded.remarks)  # type: ignore[arg-type]
    own, rest = html.split(page.library(), 1)
    for part in (own, rest):
        assert "<img" not in part
        assert "<!--" not in part
        assert part.count("<script") <= 3
    for text in texts:
        text.encode("utf-8", "surrogateescape")


def limited(seconds: int) -> None:
    """Raise TimeoutError in this process after some seconds of CPU time; 0 ends the limit."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"still busy after {seconds} s of CPU time")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1 if seconds else 0)


@pytest.mark.slow
@many(EXAMPLES)
@given(stores())
def test_any_store_in_memory_is_reported(runs: list[Run]) -> None:
    limited(SECONDS)
    try:
        assert_reports(runs, Histories())
    finally:
        limited(0)


@pytest.mark.slow
@many(EXAMPLES // 15)
@given(stores())
def test_any_store_in_a_database_is_reported(runs: list[Run]) -> None:
    folder = Path(tempfile.mkdtemp())
    uri = create_store(folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.chdir(folder)
        mlflow.set_tracking_uri(uri)
        try:
            planted_runs = 0
            for run in runs:
                try:
                    plant(run)
                    planted_runs += 1
                except mlflow.MlflowException:  # the store refuses the value
                    continue
            limited(SECONDS)
            if planted_runs:
                for command in (["report"], ["check"], ["check", "--json"], ["compare", "torch", "tensorflow"],
                                ["reproduction"]):  # fmt: skip
                    assert cli.main(command) in (0, 1)
        finally:
            limited(0)
            mlflow.set_tracking_uri(None)
            shutil.rmtree(folder)
