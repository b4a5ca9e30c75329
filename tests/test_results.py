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


def plant_ranking(machine: str, restarts: int, load_percent: float, kernels: str) -> None:
    """Plant a paired measurement of three frameworks with so many restarts."""
    client, names = mlflow.MlflowClient(), {"torch": "PyTorch-2.13.0", "jax": "JAX-0.12.0.1", "caffe": "Caffe-1.0.0"}
    experiment = mlflow.set_experiment("gtdl").experiment_id
    sweep = {"gtdl.sweep": "experiment=paired", "gtdl.sweep_id": machine}
    parent = client.create_run(experiment, tags=sweep).info.run_id
    for position, (framework, name) in enumerate(names.items(), start=1):
        prefix = f"paired/cpu/training/{name}"
        values = {"ratio": position, "ratio_low": position - 0.1, "ratio_high": position + 0.1, "time_ms": 4 * position}
        for kind, value in values.items():
            client.log_metric(parent, f"{prefix}/{kind}", value)
        for step in range(restarts):
            client.log_metric(parent, f"{prefix}/restart_ratio", position + step / 100, step=step)
        for step in range(restarts - 1):
            client.log_metric(parent, f"paired/wall/training/{name}/restart_ratio", position, step=step)
        plant(
            make_finished_run(
                f"framework={framework}", "setting=caffe_mnist", "hardware.threads=1",
                metrics={"interference/foreign_cpu_percent": load_percent, **dict.fromkeys(SCRIPT["PARITY"], 2e-6)},
                reported={"worker.blas_kernels": kernels, "worker.compiler_flags": "-O2 -march=x86-64-v3"}
                if framework == "caffe" else {},
                **{"mlflow.parentRunId": parent, "gtdl.machine": machine},
            )
        )  # fmt: skip


@pytest.mark.usefixtures("store")
def test_rankings_have_their_restarts_their_load_and_the_vector_extensions(tmp_path: Path) -> None:
    plant_ranking("first CPU, 2 cores", restarts=4, load_percent=30, kernels="Haswell")
    plant_ranking("second CPU, 2 cores", restarts=2, load_percent=7, kernels="SkylakeX")
    path = tmp_path / "own.csv"
    assert cli.main(["export", "--output", str(path)]) == 0
    tables = SCRIPT["Results"]([path])
    agreement = tables.agreement().replace("**", "")
    assert "| framework | second CPU | first CPU |" in agreement, "the newest first"
    assert "| PyTorch 2.13.0 | 4.00 ms | 4.00 ms |" in agreement
    assert "| JAX 0.12.0.1 | 2.00x" in agreement
    assert re.search(
        r"^\| Caffe 1\.0\.0 \| 3\.00x .*\(-march=x86-64-v3, SkylakeX\) \| 3\.00x .*\(-march=x86-64-v3, Haswell\) \|$",
        agreement,
        re.MULTILINE,
    )
    assert "| restarts | 2 | 4 |" in agreement
    assert "| undisturbed restarts | 1 | 3 |" in agreement
    assert "| other load in whole runs, % | 7 | 30 |" in agreement
    assert tables.ranking().splitlines()[0].endswith("; second CPU, 2 cores; 2 restarts, 1 of them undisturbed*")
    assert tables.other_rankings() == ""


@pytest.mark.usefixtures("store")
def test_published_accuracies_within_the_prediction_interval_are_counted(tmp_path: Path) -> None:
    # Published: 99.03, 99.24 and 99.28. With three values, the prediction interval is the mean and 4.97 times their
    # standard deviation on each side: Student's t of 4.303, times the square root of 4 / 3.
    accuracies = {"caffe": (98.9, 99.1, 99.0), "torch": (99.4, 99.41, 99.42), "tensorflow": (99.0, 99.01, 99.02)}
    for framework, several in accuracies.items():
        for seed, accuracy in enumerate(several):
            plant(make_finished_run(f"framework={framework}", "dataset=mnist", seed=seed, accuracy=accuracy))
        plant(make_finished_run(f"framework={framework}", "dataset=mnist", "budget=0.5", seed=9, accuracy=10))
    for seed in range(3):
        plant(make_finished_run("framework=theano", "dataset=mnist", "budget=0.5", seed=seed, accuracy=98 + seed / 10))
    path = tmp_path / "own.csv"
    assert cli.main(["export", "--output", str(path)]) == 0
    baseline = SCRIPT["Results"]([path]).baseline()
    assert re.search(
        r"^\| mnist \| Caffe 1\.0\.0 \| 10,000 \| 3 \| 99\.00 .* \| 98\.50 to 99\.50 \| 99\.03 \| -0\.03 \|$",
        baseline,
        re.MULTILINE,
    )
    assert re.search(
        r"^\| mnist \| Theano 1\.1\.2 \| \S+ \(50 %\) \| 3 \| 98\.10 .* \| 99\.08 \|  \|$", baseline, re.MULTILINE
    )
    assert baseline.count("(50 %)") == 1, "only for a framework without a full training"
    sentence = baseline.rpartition("\n")[2]
    assert sentence.startswith(
        "1 of the 3 published accuracies with a difference lie within the interval for one more seed; "
    )
    assert "PyTorch's on mnist is below it" in sentence
    assert "TensorFlow's on mnist is above it" in sentence
    assert "Caffe's" not in sentence


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_results_may_be_published(path: Path) -> None:
    loaded = ResultFiles([path]).loaded
    verdict = check.check(loaded.runs, loaded.skipped)
    assert verdict.passed, verdict.text()
