"""Every number of the default settings in ``conf/``, compared with a second transcript of GTDLBench's text."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import pytest

from gtdl_mlflow.config import CONF, Config, choices, compose
from gtdl_mlflow.metrics import HEADLINE
from gtdl_mlflow.reporting import published_figures
from gtdl_mlflow.worker import layers
from gtdl_mlflow.worker.job import Training
from gtdl_mlflow.worker.layers import Initializer
from gtdl_mlflow.worker.network import Node

SETTINGS = choices("setting")

TINYGRAD = ["conv 5x5x32", "relu", "conv 5x5x32", "relu", "batch 0.9 1e-05", "max 2/2", "conv 3x3x64", "relu",
            "conv 3x3x64", "relu", "batch 0.9 1e-05", "max 2/2", "dense 10"]  # fmt: skip

# Layers in order, without their initial values, which are in INITIAL.
LAYERS: dict[str, list[str]] = {
    "tensorflow_mnist": ["conv 5x5x32 same", "relu", "max 2/2 same", "conv 5x5x64 same", "relu", "max 2/2 same",
                         "dense 1024", "relu", "keep 0.5", "dense 10"],
    "caffe_mnist": ["conv 5x5x20", "max 2/2 ceil", "conv 5x5x50", "max 2/2 ceil", "dense 500", "relu", "dense 10"],
    "torch_mnist": ["conv 5x5x32", "tanh", "max 3/3 pad 1", "conv 5x5x64", "tanh", "max 2/2", "dense 200", "tanh",
                    "dense 10"],
    # Bias and tanh after the pool, as in the tutorial; a bias before the pool is equivalent.
    "theano_mnist": ["conv 5x5x20", "max 2/2", "tanh", "conv 5x5x50", "max 2/2", "tanh", "dense 500", "tanh",
                     "dense 10"],
    "mxnet_mnist": ["conv 5x5x20", "tanh", "max 2/2", "conv 5x5x50", "tanh", "max 2/2", "dense 500", "tanh",
                    "dense 10"],
    "tensorflow_cifar10": ["conv 5x5x64 same", "relu", "max 3/2 same", "norm 4 1 0.001/9 0.75", "conv 5x5x64 same",
                           "relu", "norm 4 1 0.001/9 0.75", "max 3/2 same", "dense 384", "relu", "dense 192", "relu",
                           "dense 10"],
    "caffe_cifar10": ["conv 5x5x32 pad 2", "max 3/2 ceil", "relu", "conv 5x5x32 pad 2", "relu", "average 3/2 ceil",
                      "conv 5x5x64 pad 2", "relu", "average 3/2 ceil", "dense 64", "dense 10"],
    "torch_cifar10": ["conv 5x5x16 of 1", "tanh", "max 2/2", "conv 5x5x256 of 4", "tanh", "max 2/2", "dense 128",
                      "tanh", "dense 10"],
    "theano_cifar10": ["conv 3x3x4", "relu", "max 3/3", "conv 3x3x8", "relu", "max 2/2", "dense 100", "relu",
                       "dense 10"],
    "jax_mnist": ["dense 512", "relu", "dense 512", "relu", "dense 10"],
    "jax_cifar10": ["dense 512", "relu", "dense 512", "relu", "dense 10"],
    "paddle_mnist": ["conv 5x5x6 pad 2", "relu", "max 2/2", "conv 5x5x16", "relu", "max 2/2", "dense 120", "relu",
                     "dense 84", "relu", "dense 10"],
    "paddle_cifar10": ["conv 3x3x32", "relu", "max 2/2", "conv 3x3x64", "relu", "max 2/2", "conv 3x3x64", "relu",
                       "dense 64", "relu", "dense 10"],
    "tinygrad_mnist": TINYGRAD,
    "tinygrad_cifar10": TINYGRAD,
    "keras_mnist": ["conv 3x3x32", "relu", "max 2/2", "conv 3x3x64", "relu", "max 2/2", "keep 0.5", "dense 10"],
    "keras_cifar10": ["conv 3x3x32 same", "relu", "conv 3x3x32", "relu", "max 2/2", "keep 0.75", "conv 3x3x64 same",
                      "relu", "conv 3x3x64", "relu", "max 2/2", "keep 0.75", "dense 512", "relu", "keep 0.5",
                      "dense 10"],
    "reference_mnist": ["dense 10"],
    "reference_cifar10": ["dense 10"],
}  # fmt: skip


def unit(maps: int, stride: int, first: bool) -> list[str]:
    """Return the layers of a residual unit; the first of a stage has a projection as its shortcut."""
    step = "" if stride == 1 else f" stride {stride}"
    body = ["batch 0.9 2e-05", "relu", f"conv 3x3x{maps} pad 1{step}", "batch 0.9 2e-05", "relu"]
    shortcut = [f"conv 1x1x{maps}{step} from 4 back", "add 1 back"] if first else ["add 6 back"]
    return [*body, f"conv 3x3x{maps} pad 1", *shortcut]


LAYERS["mxnet_cifar10"] = [
    "batch 0.9 2e-05 unscaled", "conv 3x3x16 pad 1",
    *(layer for maps in (16, 32, 64) for number in range(18)
      for layer in unit(maps, 2 if maps > 16 and number == 0 else 1, number == 0)),
    "batch 0.9 2e-05", "relu", "mean", "dense 10",
]  # fmt: skip

TRUNCATED, NORMAL, FAN_IN = "truncated_normal", "normal", "uniform_fan_in"
# (distribution, its parameter) of weights and of biases, in the order of the layers; the last one applies to all that
# follow. A number is a constant.
INITIAL: dict[str, tuple[list[Any], list[Any]]] = {
    "tensorflow_mnist": ([(TRUNCATED, 0.1)], [0.1]),
    "caffe_mnist": ([(FAN_IN, 3)], [0]),
    "torch_mnist": ([(FAN_IN, 1)], [(FAN_IN, 1)]),
    # The fan_out of the convolutions is divided by the four cells of the pool that follows.
    "theano_mnist": ([("uniform_fan_in_out", 6, 2), ("uniform_fan_in_out", 6, 2), ("uniform_fan_in_out", 6), 0], [0]),
    "mxnet_mnist": ([("normal_fan_in", 2)], [0]),
    "tensorflow_cifar10": (
        [(TRUNCATED, 0.05), (TRUNCATED, 0.05), (TRUNCATED, 0.04), (TRUNCATED, 0.04), (TRUNCATED, 1 / 192)],
        [0, 0.1, 0.1, 0.1, 0],
    ),
    "caffe_cifar10": ([(NORMAL, 0.0001), (NORMAL, 0.01), (NORMAL, 0.01), (NORMAL, 0.1)], [0]),
    "torch_cifar10": ([(FAN_IN, 1)], [(FAN_IN, 1)]),
    "theano_cifar10": ([(NORMAL, 0.1)], [(NORMAL, 0.1)]),
    "mxnet_cifar10": ([("normal_fan_in", 2)], [0]),
    "jax_mnist": ([(NORMAL, 0.01)], [(NORMAL, 0.01)]),
    "jax_cifar10": ([(NORMAL, 0.01)], [(NORMAL, 0.01)]),
    "paddle_mnist": ([("normal_fan_in", 2)] * 2 + [("uniform_fan_in_out", 6)], [0]),
    "paddle_cifar10": ([("normal_fan_in", 2)] * 3 + [("uniform_fan_in_out", 6)], [0]),
    "tinygrad_mnist": ([(FAN_IN, 1)], [(FAN_IN, 1)]),
    "tinygrad_cifar10": ([(FAN_IN, 1)], [(FAN_IN, 1)]),
    "keras_mnist": ([("uniform_fan_in_out", 6)], [0]),
    "keras_cifar10": ([("uniform_fan_in_out", 6)], [0]),
    "reference_mnist": ([0], [0]),
    "reference_cifar10": ([0], [0]),
}

UNIT = {"scale": {"factor": 1 / 255}}
# Values that differ from the defaults of the schema: no momentum, no weight decay, a constant learning rate.
HYPER_PARAMETERS: dict[str, dict[str, Any]] = {
    "tensorflow_mnist": {
        "preprocessing": UNIT, "order": "shuffled", "validation": {"images": 5000, "out_of": 60000, "take": "first"},
        "batch_size": 50, "test_batch_size": 10000, "iterations": 20000, "optimizer": "adam", "learning_rate": 1e-4,
        "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8,
    },
    "caffe_mnist": {
        "preprocessing": {"scale": {"factor": 1 / 256}}, "order": "sequential", "batch_size": 64,
        "test_batch_size": 100, "iterations": 10000, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0005,
        "weight_decay_on": "all",
        "learning_rate": 0.01, "bias_lr_multiplier": 2, "schedule": {"type": "inverse", "gamma": 0.0001, "power": 0.75},
    },
    "torch_mnist": {
        "preprocessing": {"pad": {"pixels": 2}, "standardize": {}}, "order": "sequential", "batch_size": 10,
        "test_batch_size": 10, "epochs": 20, "optimizer": "sgd", "learning_rate": 0.05,
        "schedule": {"type": "inverse", "gamma": 5e-7, "power": 1},
    },
    "theano_mnist": {
        "preprocessing": UNIT, "order": "sequential", "validation": {"images": 10000, "out_of": 60000, "take": "last"},
        "early_stopping": {"patience_iterations": 10000, "increase": 2, "improvement": 0.995}, "batch_size": 500,
        "test_batch_size": 500, "epochs": 200, "optimizer": "sgd", "learning_rate": 0.1,
    },
    "mxnet_mnist": {
        "preprocessing": UNIT, "order": "shuffled", "batch_size": 100, "test_batch_size": 100, "epochs": 10,
        "optimizer": "sgd", "learning_rate": 0.1,
    },
    "tensorflow_cifar10": {
        "preprocessing": {
            "random_crop": {"pixels": 24, "padding": 0}, "random_flip": {}, "random_brightness": {"delta": 63},
            "random_contrast": {"lower": 0.2, "upper": 1.8}, "standardize_image": {},
        },
        "order": "shuffled", "batch_size": 128, "test_batch_size": 128, "iterations": 1000000, "optimizer": "sgd",
        "learning_rate": 0.1, "schedule": {"type": "step", "gamma": 0.1, "every_iterations": 350 * 50000 / 128},
        "weight_decay": 0.004, "weight_decay_on": "hidden_dense_weights", "ema_decay": 0.9999,
    },
    "caffe_cifar10": {
        "preprocessing": {"subtract_mean": {}}, "order": "sequential", "batch_size": 100, "test_batch_size": 100,
        "iterations": 5000, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.004, "weight_decay_on": "all",
        "learning_rate": 0.001, "bias_lr_multiplier": 2,
        "schedule": {"type": "multistep", "gamma": 0.1, "boundary_iterations": [4000]},
    },
    "torch_cifar10": {
        "preprocessing": {"yuv": {}, "contrastive_normalization": {}}, "order": "sequential", "batch_size": 1,
        "test_batch_size": 1, "epochs": 45, "optimizer": "sgd", "learning_rate": 0.001,
        "schedule": {"type": "inverse", "gamma": 5e-7, "power": 1},
    },
    "theano_cifar10": {
        "preprocessing": UNIT, "order": "sequential", "batch_size": 50, "test_batch_size": 50, "epochs": 50,
        "optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.01,
    },
    "mxnet_cifar10": {
        "preprocessing": {"random_crop": {"pixels": 28, "padding": 4}, "random_flip": {}}, "order": "shuffled",
        "batch_size": 128, "test_batch_size": 128, "epochs": 300, "optimizer": "sgd", "momentum": 0.9,
        "weight_decay": 0.0001, "weight_decay_on": "weights", "learning_rate": 0.05,
        "schedule": {"type": "multistep", "gamma": 0.1, "boundary_iterations": [200 * 50000 / 128, 250 * 50000 / 128]},
    },
    "jax_mnist": {
        "preprocessing": {}, "order": "sequential", "batch_size": 128, "test_batch_size": 10000, "epochs": 8,
        "optimizer": "sgd", "learning_rate": 0.001,
    },
    "jax_cifar10": {
        "preprocessing": {}, "order": "sequential", "batch_size": 128, "test_batch_size": 10000, "epochs": 8,
        "optimizer": "sgd", "learning_rate": 0.001,
    },
    "paddle_mnist": {
        "preprocessing": {"normalize": {"mean": 127.5, "deviation": 127.5}}, "order": "shuffled", "batch_size": 64,
        "test_batch_size": 64, "epochs": 2, "optimizer": "adam", "learning_rate": 0.001,
    },
    "paddle_cifar10": {
        "preprocessing": UNIT, "order": "shuffled", "batch_size": 32, "test_batch_size": 32, "epochs": 10,
        "optimizer": "adam", "learning_rate": 0.001,
    },
    "tinygrad_mnist": {
        "preprocessing": {}, "order": "shuffled", "batch_size": 512, "test_batch_size": 10000, "iterations": 70,
        "optimizer": "adam", "learning_rate": 0.001,
    },
    "tinygrad_cifar10": {
        "preprocessing": {}, "order": "shuffled", "batch_size": 512, "test_batch_size": 10000, "iterations": 70,
        "optimizer": "adam", "learning_rate": 0.001,
    },
    "keras_mnist": {
        "preprocessing": UNIT, "order": "shuffled", "validation": {"images": 1, "out_of": 10, "take": "last"},
        "batch_size": 128, "test_batch_size": 32, "epochs": 15, "optimizer": "adam", "learning_rate": 1e-3,
        "epsilon": 1e-7,
    },
    "keras_cifar10": {
        "preprocessing": {**UNIT, "random_flip": {}},
        "order": "shuffled", "batch_size": 32, "test_batch_size": 32, "epochs": 100, "optimizer": "adam",
        "learning_rate": 1e-4, "epsilon": 1e-7,
    },
    "reference_mnist": {
        "preprocessing": UNIT, "order": "shuffled", "batch_size": 50, "test_batch_size": 1000, "epochs": 20,
        "optimizer": "sgd", "learning_rate": 0.1,
    },
    "reference_cifar10": {
        "preprocessing": UNIT, "order": "shuffled", "batch_size": 50, "test_batch_size": 1000, "epochs": 20,
        "optimizer": "sgd", "learning_rate": 0.01,
    },
}  # fmt: skip


def describe(node: Node, index: int) -> str:
    """Return a layer in the notation of ``LAYERS``."""
    layer = node.layer
    words: list[Any]
    if isinstance(layer, layers.Convolution):
        words = [f"conv {layer.kernel}x{layer.kernel}x{layer.filters}", _padding(layer.padding)]
        words += [f"stride {layer.stride}"] if layer.stride > 1 else []
        words += [f"of {layer.connections}"] if layer.connections else []
    elif isinstance(layer, layers.Pool):
        kind = "max" if isinstance(layer, layers.MaxPool) else "average"
        words = [f"{kind} {layer.size}/{layer.stride}", _padding(layer.padding)]
        words += ["ceil"] if layer.rounding == "ceil" else []
    elif isinstance(layer, layers.Dense):
        words = [f"dense {layer.units}"]
    elif isinstance(layer, layers.Dropout):
        words = [f"keep {layer.keep}"]
    elif isinstance(layer, layers.LocalResponseNormalization):
        assert layer.alpha == 0.001 / 9
        words = [f"norm {layer.radius} {layer.bias} 0.001/9 {layer.beta}"]
    elif isinstance(layer, layers.BatchNormalization):
        words = [f"batch {layer.momentum} {layer.epsilon}", "" if layer.scale else "unscaled"]
    elif isinstance(layer, layers.Add):
        words = [f"add {index - 1 - node.sources[1]} back"]
    else:
        words = [{"Relu": "relu", "Tanh": "tanh", "GlobalAveragePool": "mean"}[type(layer).__name__]]
    if node.sources[0] != index - 1:
        words.append(f"from {index - 1 - node.sources[0]} back")
    return " ".join(filter(None, words))


def _padding(padding: Any) -> str:
    return {"valid": "", "same": "same"}.get(padding, f"pad {padding}")


def initial(entry: Any) -> Initializer:
    """Return the distribution of an entry of ``INITIAL``."""
    if not isinstance(entry, tuple):
        return Initializer("constant", value=entry)
    name, number, *pool = entry
    key = "gain" if "fan_in" in name else "stddev"
    return Initializer(name, **{key: number}, pool=pool[0] if pool else 1)


@cache
def default(setting: str) -> Config:
    """Return the configuration of a setting on the data set that it was made for."""
    return compose([f"setting={setting}", f"dataset={setting.partition('_')[2]}"])


def test_tables_contain_every_default() -> None:
    for table in (LAYERS, INITIAL, HYPER_PARAMETERS):
        assert sorted(table) == SETTINGS


@pytest.mark.parametrize("setting", SETTINGS)
def test_network_is_the_original(setting: str) -> None:
    nodes = default(setting).network.nodes
    assert [describe(node, index) for index, node in enumerate(nodes)] == LAYERS[setting]
    for name, entries in zip(("weights", "biases"), INITIAL[setting], strict=True):
        distributions = [getattr(node.layer, name) for node in nodes if getattr(node.layer, name, None)]
        expected = [entries[min(index, len(entries) - 1)] for index in range(len(distributions))]
        assert distributions == [initial(entry) for entry in expected]


@pytest.mark.parametrize("setting", SETTINGS)
def test_hyper_parameters_are_the_original(setting: str) -> None:
    composed = default(setting)
    training = asdict(composed.training)
    assert training.pop("target_accuracy_percent") == composed.dataset.target_accuracy_percent
    required = ("name", "order", "batch_size", "test_batch_size", "optimizer", "learning_rate")
    schema = asdict(Training(**{key: training[key] for key in required}))
    del schema["target_accuracy_percent"]
    expected = {**schema, **HYPER_PARAMETERS[setting]}
    for key in ("schedule", "validation"):
        expected[key] = {**schema[key], **expected[key]}
    assert list(training["preprocessing"]) == list(expected["preprocessing"])  # the order matters
    assert training == expected


@pytest.mark.parametrize("group", ["model", "training"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_default_names_its_source(group: str, setting: str) -> None:
    first = (CONF / group / f"{setting}.yaml").read_text().splitlines()[0]
    sources = {
        "tensorflow": "tutorial",
        "caffe": "examples/",
        "torch": "Torch7's demos",
        "theano": "tutorial",
        "mxnet": "MXNet's",
        "jax": "tutorial",
        "paddle": "tutorial",
        "tinygrad": "tutorial",
        "keras": "Keras's example",
        "reference": "Softmax regression",
    }
    assert first.startswith("#")
    assert sources[setting.partition("_")[0]] in first


# As in the papers' tables: training and testing time in seconds and accuracy in percent, on the CPU, then on the GPU.
TABLES = {
    "mnist": {
        "tensorflow": [1114.34, 2.73, 99.28, 68.51, 0.26, 99.22],
        "caffe": [512.18, 3.33, 99.03, 97.02, 0.55, 99.13],
        "theano": [11555.43, 4.49, 99.08, 560.04, 0.19, 99.05],
        "torch": [9647.34, 56.52, 99.24, 338.46, 1.73, 99.22],
    },
    "cifar10": {
        "tensorflow": [119102.62, 2.69, 87.00, 26160.37, 5.76, 86.00],
        "caffe": [2708.88, 16.81, 75.79, 183.49, 1.09, 75.86],
        "torch": [46850.68, 52.10, 66.20, 2314.23, 4.80, 65.52],
        "theano": [532.81, 1.17, 49.66, 221.17, 0.21, 56.48],
    },
}


def test_published_figures_are_those_of_the_papers() -> None:
    published = published_figures.load()
    assert {name: set(rows) for name, rows in published.datasets.items()} == {
        name: set(rows) for name, rows in TABLES.items()
    }
    for dataset, rows in TABLES.items():
        for framework, row in rows.items():
            results = [published.figures(dataset, framework, device) for device in ("cpu", "gpu")]
            assert row == [getattr(result, name) for result in results if result for name in HEADLINE]
    assert published.figures("mnist", "mxnet", "cpu") is None
    assert published.figures("att_faces", "torch", "cpu") is None
