"""``GTDL_CONF``: data sets and networks of the user, in files outside the project."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.planted_runs import make_finished_run
from helpers.project import ROOT, Command
from PIL import Image

from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.config import ConfigError, choices, compose
from gtdl_mlflow.files import datasets_dir
from gtdl_mlflow.reporting.runs import read

DATASET = """
name: flowers
family: cifar10
reader: gtdl_mlflow.datasets.image_folder:read
classes: 3
image_size: 32
image_shape: ${image_shape:${.image_size},3}
train_images: 30
test_images: 30
target_accuracy_percent: 90
source: https://example.org
terms: none
"""

MODEL = """
name: small
layers:
  dense1: {type: dense, units: classes, weights: "${model.weights}", biases: "${model.weights}"}
weights: {distribution: constant, value: 0}
"""

TRAINING = """
name: small
order: shuffled
batch_size: 10
test_batch_size: 10
epochs: 1
optimizer: sgd
learning_rate: 0.1
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hydra_restore_singletons: object) -> Path:
    """Folder GTDL_CONF with a data set, a model and a training. Hydra forgets them afterwards."""
    for name, text in (("dataset/flowers", DATASET), ("model/small", MODEL), ("training/small", TRAINING)):
        path = tmp_path / "own" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setenv("GTDL_CONF", "own")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "own"


def test_own_options_are_choices_beside_those_of_the_project(own: Path) -> None:
    assert {"flowers", "mnist_5k"} <= {*choices("dataset")}
    assert {"small", "caffe_mnist"} <= {*choices("model")}
    assert {"small", "caffe_mnist"} <= {*choices("setting")}


def test_own_options_compose(own: Path) -> None:
    config = compose(["framework=torch", "dataset=flowers"])
    assert (config.dataset.classes, config.dataset.image_shape) == (3, [32, 32, 3])
    assert config.model.name == "torch_cifar10"  # the default of its family
    config = compose(["framework=torch", "dataset=flowers", "model=small", "training=small"])
    assert (config.model.name, config.training.batch_size) == ("small", 10)
    config = compose(["framework=torch", "dataset=flowers", "setting=small"])  # GTDL_CONF was set after the import
    assert (config.model.name, config.training.name) == ("small", "small")


@pytest.mark.slow
def test_own_network_and_training_of_one_name_are_a_setting(own: Path, gtdl: Command) -> None:
    done = gtdl("framework=reference", "setting=small", "latency.repeats=0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference 1, small, on mnist_5k, on the cpu\naccuracy ")
    done = gtdl("framework=reference", "setting=smal")
    assert done.returncode == 2
    assert "(did you mean small?)" in done.stderr


WRONG = {
    "not yaml": ("dataset/flowers", "a: [", "not readable as YAML (while parsing"),
    "empty": ("dataset/flowers", "", "missing: classes, family"),
    "list": ("dataset/flowers", "- a", "expected lines such as `name: NAME`"),
    "other name": ("dataset/flowers", DATASET.replace("flowers", "roses"), "name: roses: expected flowers"),
    "missing keys": (
        "dataset/flowers",
        "name: flowers\nfamily: mnist",
        "missing: classes, image_shape, reader",
    ),
    "unknown key": ("dataset/flowers", f"{DATASET}clases: 3", "dataset.clases: Key 'clases' not in 'Dataset'"),
    "no number": ("dataset/flowers", DATASET.replace("classes: 3", "classes: many"), "dataset.classes: Value 'many'"),
    "family": ("dataset/flowers", DATASET.replace("cifar10", "mine"), "family: mine: expected cifar10 or mnist"),
    "training": (
        "training/small",
        "name: small",
        "missing: batch_size, learning_rate, optimizer",
    ),
    "group": ("datasets/flowers", DATASET, "no config group; expected one of dataset, experiment"),
    "existing": ("dataset/mnist", DATASET, "gtdl_mlflow has dataset=mnist already; rename the file"),
    "existing setting": ("setting/caffe_mnist", "seed: 1", "gtdl_mlflow has setting=caffe_mnist already; rename"),
    "twice": ("dataset/flowers", f"{DATASET}classes: 4", "not readable as YAML (while constructing a mapping"),
    "defaults": (
        "training/small",
        "name: small\ndefaults: [keras_mnist]",
        "defaults: not supported here; write all keys",
    ),
}


@pytest.mark.parametrize(("name", "text", "message"), WRONG.values(), ids=WRONG)
def test_wrong_file_is_named_in_one_line(own: Path, name: str, text: str, message: str) -> None:
    path = own / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        compose(["framework=torch"])
    assert str(refused.value).startswith(f"{path.parent if name.startswith('datasets') else path}: ")
    assert message in str(refused.value)
    assert str(refused.value).isprintable()


def test_hidden_files_are_ignored(own: Path) -> None:
    (own / "dataset" / "._flowers.yaml").write_bytes(b"\0\5\26\7")
    (own / ".ipynb_checkpoints").mkdir()
    (own / ".ipynb_checkpoints" / "flowers-checkpoint.yaml").write_text("a: [")
    assert compose(["framework=torch", "dataset=flowers"]).dataset.classes == 3
    assert "._flowers" not in choices("dataset")


def test_data_set_that_fits_no_default_network_can_be_verified(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache_folders: None
) -> None:
    tiny = DATASET.replace("image_size: 32", "image_size: 2").replace("classes: 3", "classes: 2")
    (own / "dataset" / "flowers.yaml").write_text(tiny.replace("30", "2"))
    with pytest.raises(ConfigError, match="model=torch_cifar10 on dataset=flowers"):
        compose(["framework=torch", "dataset=flowers"])
    for part in ("train", "test"):
        for name in ("lily", "rose"):
            folder = datasets_dir() / "flowers" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (2, 2)).save(folder / "1.png")
    assert cli.main(["data", "verify", "flowers"]) == 0
    assert capsys.readouterr().out == "flowers: files readable, not prepared yet\n"


def test_report_of_result_files_names_a_wrong_file(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "dataset" / "flowers.yaml").write_text("a: [")
    assert cli.main(["check", str(ROOT / "results" / "intel-xeon.csv")]) == 2
    assert capsys.readouterr().err.startswith(f"gtdl: {own}/dataset/flowers.yaml: not readable as YAML")


def test_option_that_is_added_after_a_report_is_known_to_the_next(own: Path) -> None:
    loaded = read([make_finished_run("framework=reference", "dataset=flowers", "setting=small")]).runs
    assert [run.key.setting for run in loaded] == ["small"]
    (own / "model" / "other.yaml").write_text(MODEL.replace("small", "other"))
    (own / "training" / "other.yaml").write_text(TRAINING.replace("small", "other"))
    loaded = read([make_finished_run("framework=reference", "dataset=flowers", "setting=other")]).runs
    assert [run.key.setting for run in loaded] == ["other"]


def test_missing_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTDL_CONF", "/nowhere")
    with pytest.raises(ConfigError, match=r"^GTDL_CONF=/nowhere: not a folder; expected one with"):
        compose([])
