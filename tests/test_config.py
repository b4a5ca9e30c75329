"""A right command line composes into what it says; a wrong one is one line with the key, the value, the choices."""

from __future__ import annotations

from itertools import product

import pytest
from helpers.project import Command
from omegaconf import OmegaConf

from gtdl_mlflow.config import CONF, ConfigError, compose

FRAMEWORKS = sorted(path.stem for path in (CONF / "framework").glob("*.yaml"))
SETTINGS = sorted(path.stem for path in (CONF / "setting").glob("*.yaml"))
DATASETS = sorted(path.stem for path in (CONF / "dataset").glob("*.yaml"))


@pytest.mark.parametrize(("framework", "dataset"), list(product(FRAMEWORKS, DATASETS)))
def test_a_framework_has_a_default_setting_for_a_data_set(framework: str, dataset: str) -> None:
    config = compose([f"framework={framework}", f"dataset={dataset}"])
    expected = f"{framework}_{config.dataset.family}"
    assert (config.model.name, config.training.name) == (expected, expected)


@pytest.mark.parametrize(("setting", "dataset"), list(product(SETTINGS, DATASETS)))
def test_every_setting_composes_on_every_data_set(setting: str, dataset: str) -> None:
    config = compose(["framework=torch", f"setting={setting}", f"dataset={dataset}"])
    assert (config.model.name, config.training.name) == (setting, setting)
    assert config.network.nodes[-1].output == (config.dataset.classes,)


@pytest.mark.parametrize("group", ["framework", "dataset", "model", "training", "hardware"])
def test_a_file_is_called_what_it_holds(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        assert f"name: {path.stem}\n" in path.read_text()


def test_model_and_training_move_one_by_one() -> None:
    both = compose(["setting=caffe_mnist"])
    assert (both.framework.name, both.model.name, both.training.name) == ("torch", "caffe_mnist", "caffe_mnist")
    assert compose(["model=caffe_mnist"]).training.name == "torch_mnist"
    assert compose(["training=caffe_mnist"]).model.name == "torch_mnist"


def test_the_depth_of_the_residual_network_is_a_parameter() -> None:
    given = ["framework=mxnet", "dataset=cifar10"]
    for depth in (8, 20, 110):
        network = compose([*given, f"model.depth={depth}"]).network
        weighted = [node for node in network.nodes if "weights" in node.parameters]
        assert len(weighted) == depth + 3  # the projections are not counted
    for depth in (2, 7, 21, 109):
        with pytest.raises(ConfigError, match=rf"^model.depth={depth}: expected 6 n \+ 2, at least 8"):
            compose([*given, f"model.depth={depth}"])


EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("framework", ["torch", "mxnet"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str, framework: str) -> None:
    compose([f"experiment={experiment}", f"framework={framework}"])


@pytest.mark.parametrize(
    ("experiment", "given", "dataset", "setting"),
    [
        ("gtdlbench_mnist", [], "mnist", "caffe_mnist"),
        ("gtdlbench_cifar10", [], "cifar10", "caffe_cifar10"),
        ("transfer_frameworks", [], "mnist", "caffe_mnist"),
        ("transfer_frameworks", ["dataset=cifar10", "setting=torch_cifar10"], "cifar10", "torch_cifar10"),
        ("transfer_datasets", ["dataset=mnist"], "mnist", "caffe_cifar10"),
        ("transfer_datasets", ["dataset=cifar10"], "cifar10", "caffe_mnist"),
        ("transfer_datasets", ["dataset=mnist_5k"], "mnist_5k", "caffe_cifar10"),
    ],
)
def test_an_experiment_is_of_its_data_and_settings(
    experiment: str, given: list[str], dataset: str, setting: str
) -> None:
    config = compose([f"experiment={experiment}", "framework=caffe", *given])
    assert (config.dataset.name, config.model.name, config.training.name) == (dataset, setting, setting)


@pytest.mark.parametrize(("dataset", "family"), [("mnist", "mnist"), ("cifar10", "cifar10"), ("caltech101", "cifar10")])
def test_frameworks_are_transferred_to_all_defaults_of_the_kind_of_data(
    gtdl: Command, store: str, dataset: str, family: str
) -> None:
    done = gtdl("experiment=transfer_frameworks", f"dataset={dataset}", "--cfg", "hydra", "--resolve")
    assert done.returncode == 0, done.stderr
    swept = OmegaConf.create(done.stdout).hydra.sweeper.params.setting
    assert swept.split(",") == [f"{name}_{family}" for name in ("caffe", "mxnet", "tensorflow", "theano", "torch")]


def test_cells_are_runs_but_for_the_seed() -> None:
    one, other = compose(["seed=1"]), compose(["seed=2"])
    assert one.cell() == other.cell()
    assert one.hash() != other.hash()
    assert one.cell() != compose(["seed=1", "budget=0.5"]).cell()
    assert one.cell() == compose(["seed=1", "training.checkpoint_every_s=0"]).cell()


def test_the_framework_version_is_an_axis() -> None:
    recipes = compose(["framework.version=2.9.1"]).framework.devices["cpu"].recipes
    assert recipes[0].requirements[0] == "torch==2.9.1+cpu"


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ([], False),
        (["tracking.experiment=other"], False),
        (["limits.run_timeout_s=5"], False),
        (["seed=1"], True),
        (["budget=0.5"], True),
        (["tuning=plain"], True),
        (["training.batch_size=11"], True),
        (["framework.version=2.9.1"], True),
    ],
)
def test_the_hash_is_of_what_can_change_a_result(given: list[str], changes: bool) -> None:
    assert (compose(given).hash() != compose([]).hash()) == changes


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("framework=torchh", r"framework=torchh: expected one of .*torch.* \(did you mean torch\?\)"),
        ("dataset=imagenet", r"dataset=imagenet: expected one of .*mnist"),
        ("setting=torch_svhn", r"setting=torch_svhn: expected one of .*torch_mnist"),
        ("hardware=tpu", r"hardware=tpu: expected one of cpu, cpu_1core, gpu"),
        ("experiment=gtdlbench", r"experiment=gtdlbench: expected one of .*gtdlbench_mnist"),
        ("training.batch_siz=3", r"training\.batch_siz: no such key; training has .*\(did you mean batch_size\?\)"),
        ("batch_size=3", r"batch_size: no such key; there are .*\(did you mean training\.batch_size\?\)"),
        ("+batch_size=3", r"batch_size: no such key; there are .*"),
        ("+training.foo=1", r"training\.foo: no such key; training has "),
        ("training.batch_size=many", r"training\.batch_size=many: expected a whole number"),
        ("training.learning_rate=fast", r"training\.learning_rate=fast: expected a number"),
        ("training.batch_size=0", r"training\.batch_size=0: must be at least 1"),
        ("training.batch_size=4001", r"training\.batch_size=4001: there are only 4000 training images"),
        ("training.epochs=-1", r"training\.epochs=-1.*: must be above 0"),
        ("training.epochs=null", r"training\.epochs=null: .*training\.iterations"),
        ("training.epochs=nan", r"training\.epochs=nan: must be above 0"),
        ("training.momentum=1", r"training\.momentum=1\.0: must be at least 0 and below 1"),
        ("training.ema_decay=1", r"training\.ema_decay=1\.0: must be above 0 and below 1"),
        (
            "training.weight_decay_on=biases",
            r"training\.weight_decay_on=biases: expected one of all, weights, hidden_dense_weights",
        ),
        ("training.schedule.type=cosine", r"training\.schedule\.type=cosine: expected one of .*multistep"),
        ("training.optimizer=lion", r"training\.optimizer=lion: expected one of sgd, adam"),
        ("training.validation.images=1", r"training\.validation\.images=1: must be below .*out_of=1"),
        (
            "training.preprocessing.pad.pixels=-1",
            r"training\.preprocessing\.pad\.pixels=-1: expected a whole number of at least 0",
        ),
        ("tuning=fastest", r"tuning=fastest: expected one of plain, best"),
        ("budget=0", r"budget=0\.0: must be above 0 and at most 1"),
        ("budget=2", r"budget=2\.0: must be above 0 and at most 1"),
        ("seed=-1", r"seed=-1: must be at least 0"),
        ("seed=1.5", r"seed=1\.5: expected a whole number"),
        ("limits.run_timeout_s=0", r"limits\.run_timeout_s=0\.0: must be above 0"),
        ("hardware.device=tpu", r"hardware\.device=tpu: expected one of cpu, gpu"),
        ("hardware.threads=0", r"hardware\.threads=0: must be at least 1"),
        ("hardware.threads=10000", r"hardware\.threads=10000: there are \d+ cores to use"),
        ("hardware.cores=[9999]", r"hardware\.cores=\[9999\]: expected some of \[0"),
        ("model.layers.conv1.filters=0", r"layer conv1: filters=0: expected a whole number of at least 1"),
        ("model.layers.conv1.filter=3", r"model\.layers\.conv1\.filter: .*\(did you mean filters\?\)"),
        ("model.layers.conv1.kernel=99", r"layer conv1: a window of 99 does not fit an input of 32x32"),
        ("model.layers.dense2.units=7", r"layer dense2: gives \(7,\), but the data set has 10 classes"),
        ("seed", r"seed: expected key=value"),
        ("seed=[1", r"seed=\[1: expected key=value"),
        ("framework=torch,reference", r"framework=torch,reference: several values make a sweep, which needs -m"),
        ("dataset.train_limit=0", r"dataset\.train_limit=0: must be at least 1"),
        ("dataset.train_limit=9", r"training\.batch_size=10: there are only 9 training images"),
        ("dataset.labels=medium", r"dataset\.labels=medium: expected one of fine, coarse"),
        ("dataset.labels=fine", r"dataset\.labels=fine: dataset=mnist_5k has one kind of labels only"),
        ("dataset.split_seed=1", r"dataset\.split_seed, .*: dataset=mnist_5k has a fixed split; dataset\.train_limit"),
        ("dataset.image_size=40", r"dataset\.image_size=40: dataset=mnist_5k has images of 28 x 28"),
    ],
)
def test_a_mistake_is_answered_in_one_line(given: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as failure:
        compose([given])
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["type=step", "gamma=0.1"], r"training\.schedule\.every_iterations=0\.0: must be above 0"),
        (["type=step", "gamma=0", "every_iterations=10"], r"training\.schedule\.gamma=0\.0: must be above 0"),
        (["type=multistep", "gamma=0.1"], r"training\.schedule\.boundary_iterations=\[\]: expected rising iterations"),
        (
            ["type=multistep", "gamma=0.1", "boundary_iterations=[20,10]"],
            r"boundary_iterations=\[20\.0, 10\.0\]: expected rising",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_answered_in_one_line(given: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        compose([f"training.schedule.{item}" for item in given])


def test_a_device_that_is_not_there_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    with pytest.raises(ConfigError, match=r"hardware\.device=gpu: no NVIDIA GPU on this machine; hardware=cpu"):
        compose(["hardware=gpu"])


def test_a_device_that_a_framework_cannot_use_is_said_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"hardware\.device=gpu: framework=reference runs on cpu: it is NumPy"):
        compose(["framework=reference", "hardware=gpu"])


@pytest.mark.parametrize(
    ("given", "shape", "classes"),
    [
        (["dataset=att_faces"], [32, 32, 1], 40),
        (["dataset=att_faces", "dataset.image_size=[56,46]"], [56, 46, 1], 40),
        (["dataset=caltech101", "dataset.image_size=48"], [48, 48, 3], 101),
        (["dataset=cifar100"], [32, 32, 3], 100),
        (["dataset=cifar100", "dataset.labels=coarse"], [32, 32, 3], 20),
    ],
)
def test_shapes_and_classes_follow_what_is_chosen(given: list[str], shape: list[int], classes: int) -> None:
    dataset = compose(["setting=caffe_cifar10", *given]).dataset
    assert (dataset.image_shape, dataset.classes) == (shape, classes)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        *((f"image_size={size}", r"dataset\.image_size=.*: expected a whole number from 1 to 256, or two of them")
          for size in ("0", "257", "abc", "null", "[32]", "[32,0]", "[1,2,3]", "true", "1.5", "{a:1}")),
        ("image_shape=[8,8,1]", r"dataset\.image_size=32: dataset=att_faces has images of 8 x 8 .*not resized"),
        ("split_seed=null", r"dataset\.split_seed, .*: dataset=att_faces needs all three"),
        ("train_per_class=0", r"dataset\.train_per_class=0: must be at least 1"),
        ("split_seed=-1", r"dataset\.split_seed=-1: must be at least 0"),
    ],
)  # fmt: skip
def test_a_data_set_that_cannot_be_prepared_so_is_answered_in_one_line(given: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as failure:
        compose(["setting=caffe_cifar10", "dataset=att_faces", f"dataset.{given}"])
    assert "\n" not in str(failure.value)
