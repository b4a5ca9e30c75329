"""``GTDL_CONF``: data sets and networks of the user, in files outside the project."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.project import Command

from gtdl_mlflow.config import ConfigError, choices, compose

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
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder GTDL_CONF with a data set, a model and a training."""
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
    "empty": ("dataset/flowers", "", "expected lines such as `name: NAME`"),
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
    "group": ("datasets/flowers", DATASET, "datasets/ is no config group; expected one of dataset, experiment"),
    "existing": ("dataset/mnist", DATASET, "gtdl_mlflow has dataset/mnist.yaml already; give the file"),
}


@pytest.mark.parametrize(("name", "text", "message"), WRONG.values(), ids=WRONG)
def test_wrong_file_is_named_in_one_line(own: Path, name: str, text: str, message: str) -> None:
    path = own / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        compose(["framework=torch"])
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)
    assert str(refused.value).isprintable()


def test_missing_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTDL_CONF", "/nowhere")
    with pytest.raises(ConfigError, match=r"^GTDL_CONF=/nowhere: not a folder; expected one with"):
        compose([])
