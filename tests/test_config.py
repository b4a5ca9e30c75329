"""A valid command line composes; an invalid one is refused in one line with the key, the value and the choices."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import yaml
from helpers.project import Command
from helpers.share import share
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from gtdl_mlflow import metrics
from gtdl_mlflow.config import (
    CONF,
    Config,
    ConfigError,
    Unavailable,
    choices,
    compose,
    compose_part,
    compose_unchecked,
    to_checked_config,
)
from gtdl_mlflow.config.errors import RENAMED, RENAMED_METRICS, renamed

FRAMEWORKS, SETTINGS, DATASETS, EXPERIMENTS = map(choices, ("framework", "setting", "dataset", "experiment"))


@cache
def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("config", list(overrides))


def changed(values: list[str], *overrides: str) -> Config:
    """Return the checked configuration of ``overrides`` with other values, without another composition of 0.15 s."""
    config = copy.deepcopy(composed(*overrides))
    for value in values:
        key, _, text = value.partition("=")
        OmegaConf.update(config, key, yaml.safe_load(text))
    return to_checked_config(config)


def pairs(first: list[str], second: list[str], always: tuple[str, ...]) -> list[Any]:
    """Return the pairs with a name in ``always``, and a share of the others. Composing takes a quarter of a second."""
    every = list(product(first, second))
    fixed = [pair for pair in every if {*pair} & {*always}]
    return [pytest.param(*pair, marks=[] if pair in fixed else pytest.mark.slow) for pair in share(every, fixed)]


@pytest.mark.parametrize(("framework", "dataset"), pairs(FRAMEWORKS, DATASETS, always=("mnist_5k",)))
def test_framework_has_a_default_setting_for_every_data_set(framework: str, dataset: str) -> None:
    config = compose([f"framework={framework}", f"dataset={dataset}"])
    expected = f"{config.framework.default_settings or framework}_{config.dataset.family}"
    assert (config.model.name, config.training.name) == (expected, expected)


@pytest.mark.parametrize(("setting", "dataset"), pairs(SETTINGS, DATASETS, always=("cifar10",)))
def test_every_setting_composes_on_every_data_set(setting: str, dataset: str) -> None:
    config = compose(["framework=torch", f"setting={setting}", f"dataset={dataset}"])
    assert (config.model.name, config.training.name) == (setting, setting)
    assert config.network.nodes[-1].output == (config.dataset.classes,)


def test_model_and_training_of_one_name_are_a_setting() -> None:
    assert SETTINGS == choices("model") == choices("training")


@pytest.mark.parametrize("group", ["framework", "dataset", "model", "training", "hardware"])
def test_file_name_is_the_name_in_it(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        assert f"name: {path.stem}\n" in path.read_text()


def test_model_and_training_can_be_chosen_separately() -> None:
    both = compose(["setting=caffe_mnist"])
    assert (both.framework.name, both.model.name, both.training.name) == ("torch", "caffe_mnist", "caffe_mnist")
    assert compose(["model=caffe_mnist"]).training.name == "torch_mnist"
    assert compose(["training=caffe_mnist"]).model.name == "torch_mnist"


def test_depth_of_the_residual_network_is_a_parameter() -> None:
    overrides = ["framework=mxnet", "dataset=cifar10"]
    for depth in (8, 20, 110):
        network = changed([f"model.depth={depth}"], *overrides).network
        weighted = [node for node in network.nodes if "weights" in node.parameters]
        assert len(weighted) == depth + 3  # the projections are not counted
    for depth in (2, 7, 21, 109):
        with pytest.raises(ConfigError, match=rf"^model.depth={depth}: expected 6 n \+ 2, at least 8"):
            changed([f"model.depth={depth}"], *overrides)


@pytest.mark.parametrize(("experiment", "framework"), pairs(EXPERIMENTS, FRAMEWORKS, always=("torch",)))
def test_every_experiment_composes(experiment: str, framework: str) -> None:
    hardware = ["hardware=cpu"] if experiment == "gpu" else []  # this machine may have no GPU
    compose([f"experiment={experiment}", f"framework={framework}", *hardware])


@pytest.mark.parametrize(
    ("experiment", "overrides", "dataset", "setting"),
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
def test_experiment_selects_data_set_and_setting(
    experiment: str, overrides: list[str], dataset: str, setting: str
) -> None:
    config = compose([f"experiment={experiment}", "framework=caffe", *overrides])
    assert (config.dataset.name, config.model.name, config.training.name) == (dataset, setting, setting)


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "family"), [("mnist", "mnist"), ("cifar10", "cifar10"), ("caltech101", "cifar10")])
def test_transfer_frameworks_sweeps_over_all_defaults_for_the_data_set(
    gtdl: Command, store: str, dataset: str, family: str
) -> None:
    done = gtdl("experiment=transfer_frameworks", f"dataset={dataset}", "--cfg", "hydra", "--resolve")
    assert done.returncode == 0, done.stderr
    settings = OmegaConf.create(done.stdout).hydra.sweeper.params.setting
    names = dict.fromkeys("keras" if name.startswith("keras_") else name for name in FRAMEWORKS if name != "reference")
    assert settings.split(",") == [f"{name}_{family}" for name in names]


@pytest.mark.parametrize(("dataset", "setting"), [("mnist_5k", "caffe_mnist"), ("cifar10", "caffe_cifar10")])
def test_paired_measurement_uses_the_network_of_caffe_for_the_data_set(dataset: str, setting: str) -> None:
    config = compose(["experiment=paired", "framework=torch", f"dataset={dataset}"])
    assert (config.model.name, config.training.name) == (setting, setting)
    assert compose(["experiment=paired", "setting=torch_mnist"]).model.name == "torch_mnist"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "included"),
    [
        ("today", lambda each: not each.last_release and each.devices["cpu"].recipes),
        ("gpu", lambda each: each.devices["gpu"].recipes),
    ],
)
def test_experiment_takes_its_frameworks_from_their_files(
    gtdl: Command, store: str, experiment: str, included: Callable[[Any], bool]
) -> None:
    done = gtdl(f"experiment={experiment}", "--cfg", "hydra", "--resolve")
    assert done.returncode == 0, done.stderr
    names = OmegaConf.create(done.stdout).hydra.sweeper.params.framework.split(",")
    assert 1 < len(names) < len(FRAMEWORKS)
    assert names == [name for name in FRAMEWORKS if included(compose_part("framework", name))]


def test_framework_gets_no_more_threads_than_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    assert compose(["framework=tinygrad", "hardware.threads=1"]).threads == compose(["framework=tinygrad"]).threads == 1
    with pytest.raises(
        Unavailable, match=r"hardware\.threads=2: framework=tinygrad computes with at most 1 on the CPU"
    ):
        compose(["framework=tinygrad", "hardware.threads=2"])


def test_one_core_is_the_first_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5})
    one = compose(["hardware=cpu_1core"])
    assert (one.hardware.cores, one.threads) == ([3], 1)


def test_cell_ignores_the_seed() -> None:
    one, other = changed(["seed=1"]), changed(["seed=2"])
    assert one.cell() == other.cell()
    assert one.hash() != other.hash()
    assert one.cell() != changed(["seed=1", "budget=0.5"]).cell()
    assert one.cell() == changed(["seed=1", "training.checkpoint_every_s=0"]).cell()


def test_framework_version_changes_the_requirement() -> None:
    recipes = compose(["framework.version=2.9.1"]).framework.devices["cpu"].recipes
    assert recipes[0].requirements[0] == "torch==2.9.1+cpu"


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ([], False),
        (["tracking.experiment=other"], False),
        (["limits.run_timeout_s=5"], False),
        (["latency.repeats=5"], False),
        (["sweep.order=grouped"], False),
        (["framework.label=Another name"], False),
        (["framework.color='#000000'"], False),
        (["training.target_accuracy_percent=5"], False),
        (["training.checkpoint_every_s=5"], False),
        (["seed=1"], True),
        (["budget=0.5"], True),
        (["mode=default"], True),
        (["training.batch_size=11"], True),
        (["framework.version=2.9.1"], True),
    ],
)
def test_hash_depends_on_what_can_change_a_result(values: list[str], changes: bool) -> None:
    assert (changed(values).hash() != changed([]).hash()) == changes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(old, new, marks=[] if "early_stopping" in old or "schedule" in old else pytest.mark.slow)
        for old, new in RENAMED.items()
    ],
)
def test_old_key_is_answered_with_its_new_name(old: str, new: str) -> None:
    old, new = old.replace("*", "binary"), new.replace("*", "binary")
    with pytest.raises(ConfigError) as failure:
        compose(["dataset=cifar10", f"{old}=1"])
    assert str(failure.value) == f"{old}: renamed; write {new}=VALUE"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("noise/mhz_before", "interference/cpu_mhz_before"),
        ("noise/throttles", "interference/cpu_throttle_count"),
        ("noise/gpu_throttled_s", "interference/gpu_throttled_s"),
        ("noise/steal_percent", "interference/steal_percent"),
        ("step/p50_ms", "train_step/p50_ms"),
        ("worker/energy_j", "system/cpu_energy_j"),
    ],
)
def test_old_metric_is_answered_with_its_new_name(old: str, new: str) -> None:
    with pytest.raises(ConfigError) as failure:
        changed([f"sweep.objective={old}"])
    assert str(failure.value) == f"sweep.objective={old}: renamed to {new}"


def test_new_names_exist() -> None:
    for new in RENAMED.values():
        key, _, name = new.replace("*", "train_images").rpartition(".")
        assert name in OmegaConf.select(composed("framework=theano", "dataset=mnist"), key)
    for new in RENAMED_METRICS.values():
        assert fnmatch.filter(metrics.METRICS, new)


def test_new_names_are_not_in_the_tables_of_old_names() -> None:
    assert not [new for new in RENAMED.values() if renamed(new, RENAMED)]
    assert not [name for name in metrics.METRICS if renamed(name, RENAMED_METRICS)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("framework.adapter=", "framework.adapter=: expected MODULE:CLASS, such as my_package.adapter:MyFramework"),
        ("framework=torchh", r"framework=torchh: expected one of .*torch.* \(did you mean torch\?\)"),
        ("dataset=imagenet", r"dataset=imagenet: expected one of .*mnist"),
        ("training=adam", r"training=adam: expected one of .* \(did you mean training\.optimizer=adam\?\)"),
        ("setting=torch_svhn", r"setting=torch_svhn: expected one of .*torch_mnist"),
        ("hardware=tpu", r"hardware=tpu: expected one of cpu, cpu_1core, gpu"),
        ("experiment=gtdlbenc", r"experiment=gtdlbenc: expected one of .*gtdlbench_mnist"),
        ("training.batch_siz=3", r"training\.batch_siz: no such key; training has .*\(did you mean batch_size\?\)"),
        ("batch_size=3", r"batch_size: no such key; the configuration has .*\(did you mean training\.batch_size\?\)"),
        ("+batch_size=3", r"batch_size: no such key; the configuration has .*"),
        ("+training.foo=1", r"training\.foo: no such key; training has "),
        ("training.batch_size=many", r"training\.batch_size=many: expected a whole number"),
        ("training.learning_rate=fast", r"training\.learning_rate=fast: expected a number"),
        (
            "training.weight_decay_on=biases",
            r"training\.weight_decay_on=biases: expected one of all, weights, hidden_dense_weights",
        ),
        ("training.schedule.type=cosine", r"training\.schedule\.type=cosine: expected one of .*multistep"),
        ("training.optimizer=lion", r"training\.optimizer=lion: expected one of sgd, adam"),
        ("tuning=plain", r"tuning: renamed; write mode=VALUE"),
        ("mode=fastest", r"mode=fastest: framework=torch has best, default, eager, eager_tuned, compiled"),
        ("mode=eagr", r"\(did you mean eager\?\)"),
        ("mode=compiled_autotuned", r"mode=compiled_autotuned: .* bit-for-bit reproducible; add deterministic=false"),
        ("mode=cuda_graphs", r"mode=cuda_graphs: framework=torch has this mode on gpu only"),
        ("precision=tf32", r"precision=tf32: framework=torch has float32, bfloat16 on hardware.device=cpu"),
        ("precision=int8", r"precision=int8: expected one of float32, tf32, bfloat16"),
        ("precision=fp16", r"precision=fp16: .* \(did you mean bfloat16\?\)"),
        ("deterministic=maybe", r"deterministic=maybe: expected true or false"),
        ("mode=[eager,compiled]", r"expected one name; several make a sweep: gtdl sweep mode=eager,compiled"),
        ("seed=[0,1]", r"seed=.*: expected a whole number; several make a sweep: gtdl sweep seed=0,1"),
        ("+seed=3", r"\+seed: the key exists already; write seed=\.\.\. without the \+"),
        ("framework==torch", r"framework==torch: one = too many; write framework=torch"),
        ("latency.batch_sizes=1,8", r"latency\.batch_sizes=1,8: expected a list, latency\.batch_sizes=\[1,8\]"),
        ("framework=10", r"framework=10: expected one of .*torch"),
        ("dataset=true", r"dataset=true: expected one of .*mnist"),
        ("framework.version=latest", r"framework\.version=latest: expected a version, such as 2\.13\.0"),
        ("framework.name=tensorflow", r"framework\.name: the name of the choice cannot be set; framework=NAME selects"),
        ("dataset.name=mnist", r"dataset\.name: the name of the choice cannot be set"),
        ("training.schedule=cosine", r"training\.schedule=cosine: expected keys below it"),
        ("training.target_accuracy_percent=150", r"must be above 0 and at most 100"),
        (
            "training.learning_rate=interval(0.1,0.2)",
            r"needs a search: gtdl sweep hydra/sweeper=optuna 'training",
        ),
        ("seed=range(3)", r"seed=range\(3\): several values make a sweep: gtdl sweep seed=range\(3\)"),
        ("dataset.train_limit=1000000", r"dataset\.train_limit=1000000: must be at most 4000"),
        ("tracking.uri=htp://host:5000", r"tracking\.uri=htp://host:5000: expected http://HOST:PORT"),
        ("framework.tuning=best", r"framework\.tuning: renamed; write mode=VALUE"),
        ("gpu=1", r"gpu: no such key; .*\(did you mean hardware\?\)"),
        ("seed=1.5", r"seed=1\.5: expected a whole number"),
        ("model.layers.conv1.filter=3", r"model\.layers\.conv1\.filter: .*\(did you mean filters\?\)"),
        ("seed", r"seed: expected key=value"),
        ("seed=[1", r"seed=\[1: expected key=value"),
        (
            "framework=torch,reference",
            r"framework=torch,reference: several values make a sweep: gtdl sweep, mlflow run \. -e sweep",
        ),
        (
            "framework=[torch,reference]",
            r"framework=\[torch,reference\]: expected one name; .*: gtdl sweep framework=torch,reference",
        ),
        ("framework=tf", r"framework=tf: expected one of .*\(did you mean tensorflow\?\)"),
        ("framework=keras", r"\(did you mean keras_jax, keras_tensorflow or keras_torch\?\)"),
        ("framework.plain=nothing", r"framework\.plain=nothing: expected one of caffe, jax, "),
        ("hardware=cuda", r"hardware=cuda: expected one of .*\(did you mean gpu\?\)"),
        ("lr=0.1", r"lr: no such key; .*\(did you mean training\.learning_rate\?\)"),
        ("training.lr=0.1", r"training\.lr: no such key; .*\(did you mean training\.learning_rate\?\)"),
        ("tracking.experiment=", r"tracking\.experiment=: expected the name of an MLflow experiment"),
        ("'seed=1", r"'seed=1: expected key=value, with every quotation mark and bracket closed"),
        ("dataset=MNIST", r"dataset=MNIST: expected one of .*\(did you mean mnist\?\)"),
        ("framework=torch,", r"framework=torch,: ends with a comma"),
        ("hardware.cores=0", r"hardware\.cores: expected a list, such as hardware\.cores=\[1,8\]"),
        ("tracking.uri=", r"tracking\.uri=: expected http://HOST:PORT, or a database"),
        ("tracking.uri=mlruns", r"tracking\.uri=mlruns: expected http://HOST:PORT, or a database"),
        ("dataset.labels=medium", r"dataset\.labels=medium: expected one of fine, coarse"),
        ("training.early_stopping.increase=3", r"early_stopping\.increase: training\.early_stopping is null here"),
        (
            "training.early_stopping={patience_iterations: 5}",
            r"training\.early_stopping is null here; choose a training",
        ),
    ],
)
def test_wrong_override_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as failure:
        compose([override])
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("training.batch_size=0", r"training\.batch_size=0: must be at least 1"),
        ("training.batch_size=4001", r"training\.batch_size=4001: must be at most 4000, the number of training images"),
        ("training.epochs=-1", r"training\.epochs=-1.*: must be above 0"),
        ("training.epochs=null", r"training\.epochs=null, training\.iterations=null: set one of them"),
        ("training.epochs=nan", r"training\.epochs=nan: must be above 0"),
        ("training.momentum=1", r"training\.momentum=1\.0: must be at least 0 and below 1"),
        ("training.ema_decay=1", r"training\.ema_decay=1\.0: must be above 0 and below 1"),
        ("training.validation.images=1", r"training\.validation\.images=1: must be below .*out_of=1"),
        (
            "training.preprocessing.pad.pixels=-1",
            r"training\.preprocessing\.pad\.pixels=-1: expected a whole number of at least 0",
        ),
        ("budget=0", r"budget=0\.0: must be above 0 and at most 1"),
        ("budget=2", r"budget=2\.0: must be above 0 and at most 1"),
        ("seed=-1", r"seed=-1: must be at least 0"),
        ("limits.run_timeout_s=0", r"limits\.run_timeout_s=0\.0: must be above 0"),
        ("hardware.device=tpu", r"hardware\.device=tpu: expected one of cpu, gpu"),
        ("hardware.threads=0", r"hardware\.threads=0: must be at least 1"),
        ("hardware.threads=10000", r"hardware\.threads=10000: must be at most \d+, the number of cores"),
        ("hardware.cores=[9999]", r"hardware\.cores=\[9999\]: expected some of \[\d"),
        ("model.layers.conv1.filters=0", r"layer conv1: filters=0: expected a whole number of at least 1"),
        ("model.layers.conv1.kernel=99", r"layer conv1: a window of 99 does not fit an input of 32x32"),
        ("model.layers.dense2.units=7", r"layer dense2: gives \(7,\), but the data set has 10 classes"),
        ("dataset.train_limit=0", r"dataset\.train_limit=0: must be at least 1"),
        ("dataset.train_limit=9", r"training\.batch_size=10: must be at most 9"),
        ("dataset.labels=fine", r"dataset\.labels=fine: dataset=mnist_5k has only one kind of labels"),
        (
            "dataset.split_seed=1",
            r"dataset\.split_seed, .*: dataset=mnist_5k has a fixed split; use dataset\.train_limit",
        ),
        ("sweep.objective=acuracy_percent", r"no such metric, .*\(did you mean accuracy_percent\?\)"),
        (
            "dataset.image_size=40",
            r"dataset\.image_size=40: the images of dataset=mnist_5k are not resized; they have 28 x 28",
        ),
    ],
)
def test_impossible_value_is_refused_in_one_line(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as failure:
        changed([value])
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["type=step", "gamma=0.1"], r"training\.schedule\.every_iterations=0\.0: must be above 0"),
        (["type=step", "gamma=0", "every_iterations=10"], r"training\.schedule\.gamma=0\.0: must be above 0"),
        (["type=multistep", "gamma=0.1"], r"training\.schedule\.boundary_iterations=\[\]: expected increasing numbers"),
        (
            ["type=multistep", "gamma=0.1", "boundary_iterations=[20,10]"],
            r"boundary_iterations=\[20\.0, 10\.0\]: expected increasing",
        ),
    ],
)
def test_impossible_schedule_is_refused(values: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed([f"training.schedule.{item}" for item in values])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("patience_iterations=0", r"training\.early_stopping\.patience_iterations=0: must be at least 1"),
        ("increase=0.5", r"training\.early_stopping\.increase=0\.5: must be at least 1"),
        ("improvement=2", r"training\.early_stopping\.improvement=2\.0: must be above 0 and at most 1"),
    ],
)
def test_impossible_early_stopping_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed([f"training.early_stopping.{override}"], "setting=theano_mnist")


def test_early_stopping_requires_validation_images() -> None:
    with pytest.raises(ConfigError, match=r"training\.early_stopping: requires validation images; set training\.val"):
        changed(["training.validation.images=0"], "setting=theano_mnist")


def test_missing_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    with pytest.raises(ConfigError, match=r"hardware\.device=gpu: no NVIDIA GPU on this machine; hardware=cpu"):
        compose(["hardware=gpu"])


def test_unsupported_device_is_reported_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"hardware\.device=gpu: framework=reference runs on cpu: it is NumPy"):
        compose(["framework=reference", "hardware=gpu"])


@pytest.mark.parametrize(
    ("overrides", "shape", "classes"),
    [
        (["dataset=att_faces"], [32, 32, 1], 40),
        (["dataset=att_faces", "dataset.image_size=[56,46]"], [56, 46, 1], 40),
        (["dataset=caltech101", "dataset.image_size=48"], [48, 48, 3], 101),
        (["dataset=cifar100"], [32, 32, 3], 100),
        (["dataset=cifar100", "dataset.labels=coarse"], [32, 32, 3], 20),
    ],
)
def test_image_size_and_labels_determine_shape_and_classes(
    overrides: list[str], shape: list[int], classes: int
) -> None:
    dataset = compose(["setting=caffe_cifar10", *overrides]).dataset
    assert (dataset.image_shape, dataset.classes) == (shape, classes)


IMAGE_SIZES = ("0", "257", "abc", "null", "[32]", "[32,0]", "[1,2,3]", "true", "1.5", "{a:1}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *(
            (f"image_size={size}", r"dataset\.image_size=.*: expected a whole number from 1 to 256")
            for size in IMAGE_SIZES
        ),
        ("image_shape=[8,8,1]", r"dataset\.image_size=32: the images of dataset=att_faces are not resized; .* 8 x 8"),
        ("split_seed=null", r"dataset\.split_seed, .*: dataset=att_faces needs all three"),
        ("train_per_class=0", r"dataset\.train_per_class=0: must be at least 1"),
        ("split_seed=-1", r"dataset\.split_seed=-1: must be at least 0"),
    ],
)
def test_impossible_preparation_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as failure:
        changed([f"dataset.{override}"], "setting=caffe_cifar10", "dataset=att_faces")
    assert "\n" not in str(failure.value)


@pytest.mark.slow
def test_part_of_a_configuration_equals_that_of_the_whole() -> None:
    for group in ("framework", "dataset", "model", "training", "hardware"):
        for choice in choices(group):
            part = compose_part(group, choice)
            whole = getattr(compose_unchecked([f"{group}={choice}"]), group)
            if group == "training":  # set for every data set by conf/config.yaml
                part.target_accuracy_percent = whole.target_accuracy_percent
            if group == "dataset":  # addresses are concealed in a whole configuration
                part.downloads = whole.downloads
            assert part == whole, choice
    old = compose_part("framework", "torch", version="1.0")
    assert old.devices["gpu"].recipes[0].requirements[0] == "torch==1.0"


@pytest.mark.parametrize("name", [name for name in FRAMEWORKS if compose([f"framework={name}"]).framework.plain])
def test_framework_has_the_packages_of_the_one_that_it_runs_on(name: str) -> None:
    framework = compose([f"framework={name}"]).framework
    plain = compose([f"framework={framework.plain}"]).framework
    for device, support in plain.devices.items():
        for own, other in zip(framework.devices[device].recipes, support.recipes, strict=True):
            assert set(other.requirements) < set(own.requirements)


def test_default_setting_may_belong_to_several_frameworks() -> None:
    settings = {compose([f"framework=keras_{name}", "dataset=cifar10"]).setting_name for name in ("jax", "torch")}
    assert settings == {"keras_cifar10"}
