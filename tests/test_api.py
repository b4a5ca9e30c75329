"""The Python API, as a notebook uses it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import nbformat
import pytest
from helpers.planted_runs import make_finished_run, plant
from helpers.project import ROOT, need_framework
from helpers.share import only_in
from nbclient import NotebookClient

import gtdl_mlflow as gtdl

SMALL = {"framework": "reference", "setting": "reference_mnist", "budget": 0.05, "hardware": "cpu_1core"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_run_returns_what_mlflow_has(store: str, folder: Path) -> None:
    result = gtdl.run("training.epochs=2", "training.evaluate_every_epochs=1", **{**SMALL, "budget": 1})
    recorded = mlflow.get_run(result.run_id)
    assert recorded.info.status == "FINISHED"
    for name in ("training_time_s", "testing_time_s", "accuracy_percent"):
        assert result.metrics[name] == recorded.data.metrics[name]
        assert name.split("_")[0] in repr(result)
    curve = result.curve
    assert list(curve.columns) == ["iteration", "training_time_s", "accuracy_percent"]
    assert curve.accuracy_percent.iloc[-1] == result.metrics["accuracy_percent"]
    assert len(curve) > 1
    html = result._repr_html_()
    assert "reference" in html
    assert result.run_id in html


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"framework": "torhc"}, ["torhc", "torch"]),
        ({"budget": 2}, ["budget=2"]),
        ({"nonsense": 1}, ["nonsense"]),
    ],
)
def test_wrong_request_raises_the_line_of_the_command_line(
    store: str, values: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(gtdl.ConfigError) as error:
        gtdl.run(**values)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words)
    command = [sys.executable, "-m", "gtdl_mlflow", *(f"{key}={value}" for key, value in values.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_sweep_returns_its_runs(store: str, capfd: pytest.CaptureFixture[str]) -> None:
    table = gtdl.sweep("training.batch_size=32,64", seed=range(2), **SMALL)
    assert len(table) == 4
    assert sorted(table.seed) == [0, 0, 1, 1]
    assert set(table.state) == {"finished"}
    assert table.accuracy_percent.notna().all()
    assert "4 finished of 4 cells" in capfd.readouterr().out
    assert list(gtdl.results().run_id) == list(table.run_id)


def test_sweep_with_a_wrong_value_raises_the_line_of_the_command_line(store: str) -> None:
    with pytest.raises(gtdl.ConfigError, match="torhc"):
        gtdl.sweep(framework=["torhc", "torch"])


@pytest.mark.slow
def test_results_compare_and_report(store: str, folder: Path) -> None:
    for framework, seconds in (("torch", 10.0), ("tensorflow", 20.0)):
        for seed in range(5):
            plant(
                make_finished_run(
                    f"framework={framework}",
                    "setting=caffe_mnist",
                    seed=seed,
                    training_s=seconds + seed / 10,
                    **{"gtdl.mode": "compiled"},
                )
            )
    table = gtdl.results()
    assert len(table) == 10
    assert {"framework", "setting", "seed", "training_time_s", "accuracy_percent", "run_id"} <= set(table.columns)
    assert (set(table["mode"]), set(table["used_mode"])) == ({"best"}, {"compiled"})
    assert table.groupby("framework").training_time_s.median().to_dict() == {"tensorflow": 20.2, "torch": 10.2}
    comparison = gtdl.compare("torch", "tensorflow")
    assert "x as fast" in str(comparison)
    assert "x as fast" in comparison._repr_html_()
    report = gtdl.report()
    report.save("report.html")
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "srcdoc=" in report._repr_html_()


def test_a_run_without_its_data_raises_a_failure(store: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTDL_HOME", str(folder / "home"))
    monkeypatch.setenv("GTDL_DATA", str(folder / "data"))
    with pytest.raises(gtdl.Failure, match="gtdl data fetch mnist"):
        gtdl.run(dataset="mnist", **SMALL)


@pytest.mark.parametrize("read", [gtdl.results, gtdl.report, lambda **uri: gtdl.compare("torch", "jax", **uri)])
def test_an_unreachable_store_raises_a_failure(read: Callable[..., object], folder: Path) -> None:
    with pytest.raises(gtdl.Failure) as error:
        read(tracking_uri=f"sqlite:///{folder}/missing/mlflow.db")
    assert "\n" not in str(error.value)
    assert "missing/mlflow.db" in str(error.value)


def test_unknown_experiment_is_named(store: str) -> None:
    plant(make_finished_run("framework=torch"))
    with pytest.raises(gtdl.Failure, match="experiment nothing: not found"):
        gtdl.results("nothing")


def test_import_of_the_package_imports_nothing_else() -> None:
    code = (
        "import sys, gtdl_mlflow; assert not {'hydra', 'mlflow', 'numpy', 'pandas'} & set(sys.modules); gtdl_mlflow.run"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.frameworks
@only_in(0)
def test_notebook_of_the_guide_runs(store: str, folder: Path) -> None:
    need_framework("torch")
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    done = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    shown = [
        output["text"]
        if output["output_type"] == "stream"
        else output["data"].get("text/html", output["data"]["text/plain"])
        for cell in done.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    text = "\n".join(shown)
    assert "PyTorch" in text or "torch 2" in text
    assert "TensorFlow" in text
    assert "8 finished of 8 cells" in text
    assert "array([[" in text  # probabilities
    assert "expected one of caffe, " in text
    assert (folder / "report.html").is_file()
