"""Execution modes: which one ``mode=best`` takes, what it costs, and what the user sees of the choice."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from helpers.planted_runs import make_finished_run
from helpers.project import Command, need_framework
from helpers.share import only_in
from mlflow.entities import Run

from gtdl_mlflow import config, datasets, modes
from gtdl_mlflow.config import Config, Unavailable
from gtdl_mlflow.environments import Environment
from gtdl_mlflow.files import cache_dir
from gtdl_mlflow.modes import ModeCost
from gtdl_mlflow.reporting.ranking import FrameworkResults, group_by_conditions
from gtdl_mlflow.reporting.runs import read
from gtdl_mlflow.reporting.tables import modes_table

NO_FRAMEWORK = Environment("torch", "0", "cpu", None, Path("no-python"), "3.11", [], [], "key")
"""An environment that no process can run in: a test that measures by accident fails."""


def compose(*overrides: str) -> Config:
    return config.compose(
        ["framework=torch", "dataset=mnist_5k", "setting=torch_mnist", "hardware=cpu_1core", *overrides]
    )


def store(composed: Config, **costs: ModeCost) -> Path:
    """Store measured costs as an earlier run would; return their file."""
    path = modes.ModeStudy(composed, NO_FRAMEWORK)._path
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: asdict(cost) for name, cost in costs.items()}
    path.write_text(json.dumps({"costs": values, "failures": {}}))
    return path


def run_gtdl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gtdl_mlflow.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def frameworks(*runs: Run) -> list[FrameworkResults]:
    """Return the frameworks under the first conditions of some runs."""
    return next(iter(group_by_conditions(read(runs).runs).values()))


COSTS = {
    "eager": ModeCost(0.004, ratio=2.0),
    "eager_tuned": ModeCost(0.003, ratio=1.5, low=1.45, high=1.55, restarts=5),
    "compiled": ModeCost(0.002, 3.0, 15.0, ratio=1.0, low=1.0, high=1.0, restarts=5),
}


@pytest.mark.parametrize(("iterations", "best"), [(100, "eager_tuned"), (2900, "eager_tuned"), (3100, "compiled")])
def test_the_length_of_the_training_decides_whether_compilation_pays(
    iterations: int, best: str, tmp_path: Path, cache_folders: None
) -> None:
    composed = compose("training.epochs=null", f"training.iterations={iterations}")
    store(composed, **COSTS)
    data = datasets.prepare(composed.dataset)
    chosen, choice = modes.choose(composed, NO_FRAMEWORK, data, tmp_path)
    assert (chosen.mode, choice.name) == (best, best)
    assert choice.text.startswith(f"{best} 1.")
    assert "compiled 1.00x" in choice.text
    assert "compilation 3.0 s" in choice.text
    assert "eager 2.00x (4 ms/step)" in choice.text
    assert modes.break_even_steps(COSTS["compiled"], COSTS["eager_tuned"]) == pytest.approx(3000)


def test_a_mode_that_never_pays() -> None:
    assert modes.break_even_steps(ModeCost(0.004, 3.0), ModeCost(0.003)) == math.inf
    lines = modes.table(
        {"eager": ModeCost(0.003, ratio=1.0), "compiled": ModeCost(0.004, 3.0, 15.0, ratio=1.33)},
        compose().framework.modes, 64, 1000,
    )  # fmt: skip
    assert re.split(r"\s{2,}", lines[1].strip())[:3] == ["eager", "3", "21,333"]
    assert re.search(r"^compiled .* 1\.33x +15\.0 +3\.0 +never +7\.0 s", lines[2])


@pytest.mark.parametrize(
    "change",
    ["training.batch_size=32", "hardware=cpu", "precision=bfloat16", "model=caffe_mnist", "deterministic=false"],
)
def test_costs_belong_to_the_work_and_the_machine(change: str, cache_folders: None, all_cores: None) -> None:
    path = store(compose(), **COSTS)
    assert modes.ModeStudy(compose(change), NO_FRAMEWORK)._path != path
    assert modes.ModeStudy(compose("seed=3", "budget=0.1"), NO_FRAMEWORK)._path == path


def test_a_run_whose_mode_is_known_starts_its_worker_early(cache_folders: None) -> None:
    composed = compose()
    assert modes.recall(composed, NO_FRAMEWORK) is None
    store(composed, **COSTS)
    known = modes.recall(composed, NO_FRAMEWORK)
    assert known is not None
    assert known.mode == "compiled"


def test_a_mode_that_failed_is_not_tried_again(tmp_path: Path, cache_folders: None) -> None:
    composed = compose()
    path = store(composed, **{name: cost for name, cost in COSTS.items() if name != "compiled"})
    path.write_text(json.dumps({**json.loads(path.read_text()), "failures": {"compiled": "the worker crashed"}}))
    _, choice = modes.choose(composed, NO_FRAMEWORK, datasets.prepare(composed.dataset), tmp_path)
    assert choice.name == "eager_tuned"
    assert choice.text.endswith("compiled not measured: the worker crashed")


def test_a_short_training_measures_no_mode_that_compiles(tmp_path: Path, cache_folders: None) -> None:
    composed = compose("training.epochs=null", "training.iterations=19000")  # 57 s in eager_tuned
    store(composed, **{name: cost for name, cost in COSTS.items() if name != "compiled"})
    _, choice = modes.choose(composed, NO_FRAMEWORK, datasets.prepare(composed.dataset), tmp_path)
    assert choice.text.endswith(
        "compiled not measured: the training takes 57.0 s, too short to save the time of a compilation"
    )
    study = modes.ModeStudy(composed, NO_FRAMEWORK)
    assert study.missing(list(COSTS), 20_400) == ["compiled"]  # 61.2 s
    assert modes.ModeStudy(composed, NO_FRAMEWORK, longest_s=36).missing(list(COSTS), 20_400) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"eager": 1}', '{"costs": {"eager": {"speed": 2}}}'])
def test_unreadable_costs_are_measured_again(content: str, cache_folders: None) -> None:
    store(compose()).write_text(content)
    study = modes.ModeStudy(compose(), NO_FRAMEWORK)
    assert study.costs == {}
    assert study.missing(["eager", "eager_tuned", "compiled"], 1000) == ["eager", "eager_tuned"]


def test_modes_without_their_compiler_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_folders: None
) -> None:
    composed = compose()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert modes.usable(composed) == (["eager", "eager_tuned"], {"compiled": "g++ is not on the PATH"})
    with pytest.raises(
        Unavailable, match=r"^mode=compiled: needs g\+\+ on the PATH; on Debian: apt-get install g\+\+$"
    ):
        config.check(replace(composed, mode="compiled"))
    theano = config.compose(["framework=theano"])
    with pytest.raises(Unavailable, match=r"^mode=best: framework=theano has no mode that can run: default: g\+\+"):
        modes.choose(theano, NO_FRAMEWORK, datasets.prepare(theano.dataset), tmp_path)


def test_a_named_mode_needs_no_measurement(tmp_path: Path, cache_folders: None) -> None:
    composed = compose("mode=default")
    chosen, choice = modes.choose(composed, NO_FRAMEWORK, datasets.prepare(composed.dataset), tmp_path)
    assert (chosen.mode, choice.name, choice.text) == ("eager", "eager", "")


def test_modes_of_one_framework_are_ranked_like_frameworks() -> None:
    runs = [
        make_finished_run("framework=torch", f"mode={mode}", f"precision={precision}", seed=seed, **{"gtdl.mode": mode})
        for mode, precision in (("best", "float32"), ("eager", "float32"), ("eager", "bfloat16"))
        for seed in range(3)
    ]
    assert runs[-1].data.tags["gtdl.series"] == "torch eager bfloat16 · torch_mnist · mnist_5k"
    labels = {each.label for each in frameworks(*runs)}
    assert labels == {"PyTorch 2.13.0", "PyTorch 2.13.0 eager", "PyTorch 2.13.0 eager bfloat16"}


def test_report_shows_how_the_candidates_compare() -> None:
    text = "eager_tuned 1.00x (3 ms/step); eager 1.50x [1.45, 1.55] (4.5 ms/step)"
    run = make_finished_run("framework=torch", **{"gtdl.mode": "eager_tuned", "gtdl.mode_candidates": text})
    some = frameworks(run)
    table = modes_table(some)
    assert table is not None
    assert table.rows == [["PyTorch 2.13.0", "eager_tuned 1.00x (3 ms/step)", "eager 1.50x [1.45, 1.55] (4.5 ms/step)"]]
    assert some[0].finished[0].mode == "eager_tuned (best)"
    assert modes_table(frameworks(make_finished_run("framework=torch"))) is None


def test_wrong_limit_of_tune_is_one_line(tmp_path: Path) -> None:
    done = run_gtdl(tmp_path, "tune", "framework=reference", "--minutes", "nan")
    assert done.returncode == 2
    assert done.stderr.strip() == "gtdl: --minutes nan: expected a number of at least 0.1"


@pytest.mark.slow
@pytest.mark.frameworks
def test_the_first_run_measures_the_modes_and_later_ones_recall_them(gtdl: Command, store: str, tmp_path: Path) -> None:
    need_framework("mxnet")
    for path in (cache_dir() / "modes").glob("*.json"):
        if "hybrid" in path.read_text():
            path.unlink()
    command = ["framework=mxnet", "budget=0.05", "hardware=cpu_1core", "tracking.model=false"]
    for seed in (0, 1):
        done = gtdl(*command, f"seed={seed}")
        assert done.returncode == 0, done.stderr
    runs: Any = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    first, second = sorted(runs, key=lambda run: run.info.start_time)
    for run in (first, second):
        assert run.data.tags["gtdl.mode_requested"] == "best"
        candidates = run.data.tags["gtdl.mode_candidates"]
        assert candidates.startswith(f"{run.data.tags['gtdl.mode']} ")
        assert {part.split()[0] for part in candidates.split("; ")} == {"hybrid", "hybrid_static"}
        assert run.data.params["framework.options.static"] == str(run.data.tags["gtdl.mode"] == "hybrid_static")
    assert first.data.tags["gtdl.mode_candidates"] == second.data.tags["gtdl.mode_candidates"]
    assert second.info.end_time - second.info.start_time < first.info.end_time - first.info.start_time


@pytest.mark.slow
@pytest.mark.frameworks
@only_in(5)
def test_tune_prints_every_mode_with_its_compilation(tmp_path: Path) -> None:
    need_framework("torch")
    work = ["framework=torch", "model=reference_mnist", "training=torch_mnist", "hardware=cpu_1core"]
    done = run_gtdl(tmp_path, "tune", *work, "--minutes", "0.1")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines() if "x" in line}
    assert {"eager", "eager_tuned", "compiled"} <= rows.keys()
    for name in ("eager", "eager_tuned", "compiled"):
        assert re.fullmatch(r"\d\.\d\dx( \[.*\])?", rows[name][3])
    cold, warm = float(rows["compiled"][4]), float(rows["compiled"][5])
    assert 0 < warm < cold
