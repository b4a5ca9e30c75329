"""The registries of metrics and tags: what runs log is registered, and what is registered is logged."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from helpers.project import ROOT, runs, start
from mlflow.entities import Run
from mlflow.system_metrics import metrics as mlflow_monitors

from gtdl_mlflow import metrics, tags

EVERYTHING = (
    "framework=reference",
    "model=reference_mnist",
    "training=theano_mnist",  # with early stopping
    "training.epochs=10",
    "training.batch_size=50",
    "training.early_stopping.patience_iterations=1000",
    "training.evaluate_every_epochs=1",
    "training.checkpoint_every_s=0.05",
    "training.target_accuracy_percent=50",
    "parity=true",
    "latency.batch_sizes=[1,8]",
    "tracking.system_metrics_interval_s=0.02",
)
"""Overrides of a run that takes a second and logs everything that a CPU allows."""

STABILITY = ("framework=reference", "experiment=stability", "hardware=cpu_1core", "sweep.paired_minutes=0.01")
"""Overrides of a sweep with a study."""

UNITS = {
    "_percent": "%",
    "_percentage": "%",
    "_mb": "MB",
    "_megabytes": "MB",
    "_j": "J",
    "_w": "W",
    "_watts": "W",
    "_ms": "ms",
    "images_per_s": "images/s",
    "switches_per_s": "1/s",
    "_mb_per_s": "MB/s",
    "_s": "s",
}
"""End of a metric's name to its unit; the first that fits counts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


def finished_runs(folder: Path, experiment: str, *overrides: str) -> list[Run]:
    """Run a command to its end and return the runs of its experiment."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    process = start(*overrides, f"tracking.experiment={experiment}", cwd=folder, env={"MLFLOW_TRACKING_URI": uri})
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return runs(uri, experiment)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """One run with everything on."""
    (run,) = finished_runs(folder, "run", *EVERYTHING)
    return run


@pytest.fixture(scope="module")
def parent(folder: Path) -> Run:
    """The parent run of a sweep with a study."""
    found = finished_runs(folder, "sweep", *STABILITY)
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return parent


@cache
def source() -> str:
    """Return the code of the package without the registry, and that of MLflow's own system metrics."""
    ours = [path for path in (ROOT / "gtdl_mlflow").rglob("*.py") if path.name != "metrics.py"]
    theirs = [path for folder in mlflow_monitors.__path__ for path in Path(folder).glob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*ours, *theirs])


def is_written(name: str) -> bool:
    """Return whether the code has the name as a whole, or its group and the rest of it apart, as in f"test/{rest}"."""
    fixed = re.split(r"\{\w+\}", name.removeprefix("system/"))
    group, _, rest = name.partition("/")
    apart = f'f"{group}/' in source() and f'"{rest}"' in source()
    return all(part in source() for part in fixed) or apart


@pytest.mark.slow
def test_a_run_logs_registered_metrics_only(run: Run) -> None:
    assert [name for name in run.data.metrics if metrics.find(name) is None] == []


@pytest.mark.slow
def test_a_sweeps_parent_logs_registered_metrics_only(parent: Run) -> None:
    assert [name for name in parent.data.metrics if metrics.find(name) is None] == []
    assert "sweep/finished" in parent.data.metrics
    assert "stability/cpu/training/NumPy-reference-1/restarts_needed" in parent.data.metrics
    artifacts = {path.name for path in Path(unquote(urlparse(parent.info.artifact_uri).path)).iterdir()}
    assert artifacts == {"summary.csv", "turns.csv", "stability.csv"}


@pytest.mark.slow
def test_runs_have_registered_tags_only(run: Run, parent: Run) -> None:
    used = {name for each in (run, parent) for name in each.data.tags if name.startswith("gtdl.")}
    assert used
    assert used - tags.TAGS.keys() == set()


@pytest.mark.slow
def test_a_run_in_the_drivers_interpreter_has_no_locked_environment(run: Run) -> None:
    assert run.data.tags["gtdl.environment_locked"] == "no"


@pytest.mark.slow
def test_a_run_has_every_metric_without_a_condition(run: Run) -> None:
    unconditional = {name for name, metric in metrics.METRICS.items() if not metric.requires}
    assert unconditional - run.data.metrics.keys() == set()


@pytest.mark.slow
def test_a_run_has_the_metrics_of_its_options(run: Run) -> None:
    conditions = ("parity", "interval_s", "early_stopping", "latency", "target", "evaluate_every_epochs")
    optional = {name for name, metric in metrics.METRICS.items() if any(word in metric.requires for word in conditions)}
    assert len(optional) > 10
    assert optional - run.data.metrics.keys() == set()


@pytest.mark.slow
def test_every_registered_metric_is_logged_or_occurs_in_the_code(run: Run, parent: Run) -> None:
    logged = {metric.name for each in (run, parent) for name in each.data.metrics if (metric := metrics.find(name))}
    assert [name for name in metrics.METRICS if name not in logged and not is_written(name)] == []


def test_a_name_that_no_code_has_is_noticed() -> None:
    assert is_written("sweep/running")
    assert is_written("system/gpu_{index}_power_usage_watts")
    assert not is_written("sweep/never_logged")
    assert not is_written("system/gpu_{index}_never_logged")


def test_every_registered_tag_is_used() -> None:
    names = [name for name, value in vars(tags).items() if isinstance(value, str) and value in tags.TAGS]
    assert len(names) == len(tags.TAGS)
    unused = [name for name in names if not re.search(rf"\btags\.{name}\b", source())]
    assert set(unused) <= {name for name in names if getattr(tags, name) in tags.DATASET_VARIANTS}


def test_the_headline_metrics_are_these_three() -> None:
    assert metrics.HEADLINE == ("training_time_s", "testing_time_s", "accuracy_percent")


def test_no_metric_is_registered_twice() -> None:
    assert len(metrics.METRICS) == len(metrics._ALL)


def test_the_name_of_a_metric_ends_in_its_unit() -> None:
    wrong = []
    for metric in metrics.METRICS.values():
        expected = next((unit for end, unit in UNITS.items() if metric.name.endswith(end)), None)
        if metric.unit != expected and (expected or metric.unit in UNITS.values()):
            wrong.append(f"{metric.name}: {metric.unit!r}, expected {expected!r}")
    assert not wrong


def test_a_metric_of_a_family_is_found_by_any_of_its_names() -> None:
    family = metrics.find("stability/cpu/training/torch/restarts_needed")
    assert family is metrics.METRICS["stability/{clock}/{activity}/{framework}/restarts_needed"]
    assert metrics.find("stability/torch/restarts_needed") is None
    assert metrics.find("nonsense") is None
