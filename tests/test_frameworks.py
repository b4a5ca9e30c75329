"""One contract for every framework in ``conf/framework``, each in its own environment.

Importing a framework takes seconds, so a few processes per framework run all cases (``helpers/contract.py``). Their
results are compared with ``numpy_network.py``. A framework may refuse a network, but not one of its own settings.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cores import all_cores
from helpers.networks import (
    NORMAL,
    NORMALIZE,
    SPREAD,
    TANH,
    average,
    conf_layers,
    convolution,
    dense,
    maximum,
    numbered,
)
from helpers.share import share
from omegaconf import OmegaConf

from gtdl_mlflow import config, environments, worker_process
from gtdl_mlflow.config import checks, display
from gtdl_mlflow.worker import initialization, numpy_network, parity
from gtdl_mlflow.worker.inputs import Preprocessing
from gtdl_mlflow.worker.job import (
    BatchOrder,
    Job,
    LearningRateSchedule,
    Optimizer,
    Precision,
    Schedule,
    Training,
    WeightDecayOn,
)
from gtdl_mlflow.worker.network import Network, build, expand_blocks
from gtdl_mlflow.worker_process import environment_variables

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.frameworks, pytest.mark.slow]

FRAMEWORKS = sorted(path.stem for path in (ROOT / "conf" / "framework").glob("*.yaml"))
ON_GPU = [
    name
    for name in (FRAMEWORKS if checks.has_gpu() else [])
    if "recipes" in OmegaConf.load(ROOT / "conf" / "framework" / f"{name}.yaml").devices.gpu
]
"""Frameworks that run all cases a second time, on the GPU of this machine."""
MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
PROCESS_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Execution:
    """How a process of a framework executes its cases."""

    framework: str
    device: str
    mode: str
    precision: str = "float32"
    threads: int = 1

    def __str__(self) -> str:
        details = [self.precision] * (self.precision != "float32") + ["two threads"] * (self.threads > 1)
        return "-".join([self.framework, *(["gpu"] * (self.device == "gpu")), self.mode, *details])


def executions() -> Iterator[Execution]:
    """Yield each mode, and the default mode on two threads and with each other precision.

    On a busy machine two threads wait for each other at every step, and precisions share the code of the modes, so that
    these run few cases.
    """
    for name, device in [*((name, "cpu") for name in FRAMEWORKS), *((name, "gpu") for name in ON_GPU)]:
        framework = load_framework(name)
        for mode, settings in framework.modes.items():
            if device in settings.devices:
                yield Execution(name, device, mode)
        for precision in framework.precisions[device][1:]:
            yield Execution(name, device, framework.default_mode, precision)
        if framework.max_threads != 1:
            yield Execution(name, device, framework.default_mode, threads=2)


def session_executions() -> Sequence[Execution]:
    """Return what this session runs: every framework in its default mode, and a share of the others and of Keras."""
    every = list(executions())
    default = [
        each
        for each in every
        if each == Execution(each.framework, each.device, load_framework(each.framework).default_mode)
        and not display.plain(each.framework)  # Keras is one adapter for three backends, which are tested themselves
    ]
    return share(every, default)


@functools.cache
def load_framework(name: str) -> config.Framework:
    framework: config.Framework = config.compose_part("framework", name)
    return framework


@dataclass(frozen=True)
class Case:
    """A network, its training, its data, and the steps that a framework does with it."""

    name: str
    layers: dict[str, dict[str, Any]]
    images: np.ndarray
    labels: np.ndarray
    training: Training
    steps: list[list[Any]]
    classes: int
    seed: int = 1

    @property
    def network(self) -> Network:
        return build(self.layers, self.images.shape[1:], self.classes)

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        return initialization.weights(self.network, self.seed)

    @functools.cached_property
    def masks(self) -> dict[str, np.ndarray]:
        return initialization.masks(self.network, self.seed)

    def expected(self, rates: list[float]) -> tuple[list[float], dict[str, np.ndarray]]:
        """Return losses and final weights of the NumPy network, trained on the images in repeated batches."""
        size, count = self.training.batch_size, len(self.images)
        rows = [np.arange(step * size, (step + 1) * size) % count for step in range(len(rates))]
        feed = [(self.images[row], self.labels[row]) for row in rows]
        return numpy_network.train(self.network, self.weights, feed, rates, self.training, self.masks)


def create_case(
    name: str,
    layers: dict[str, dict[str, Any]],
    shape: tuple[int, ...],
    steps: list[list[Any]],
    *,
    count: int = 4,
    batch: int = 4,
    classes: int = 4,
    seed: int = 1,
    **training: Any,
) -> Case:
    random = np.random.RandomState(5)
    images = random.standard_normal((count, *shape)).astype(np.float32)
    labels = random.randint(0, classes, count)
    defaults: dict[str, Any] = {
        "name": name,
        "order": BatchOrder.sequential,
        "batch_size": batch,
        "test_batch_size": batch,
        "iterations": 1,
        "optimizer": Optimizer.sgd,
        "learning_rate": 0.1,
    }
    return Case(name, layers, images, labels, Training(**{**defaults, **training}), steps, classes, seed)


GRADIENT_STEPS: list[list[Any]] = [["weights"], ["predict", 4], ["train", [1.0]], ["weights"]]
"""With a learning rate of 1, the weights before and after differ by the gradient."""


def model_layers(name: str) -> tuple[dict[str, dict[str, Any]], tuple[int, ...]]:
    """Return the layers of ``conf/model`` without dropout and with weights of a useful size, and the image shape."""
    # Fourteen layers have every kind of unit that 110 have: the first unit of a stage and a later one.
    layers = expand_blocks(conf_layers(name, **({"depth": 14} if name == "mxnet_cifar10" else {})))
    for layer in layers.values():
        layer.update({"keep": 1} if layer["type"] == "dropout" else {})
        layer.update({"weights": SPREAD} if "weights" in layer else {})
    preprocessing: Any = {}
    if (path := ROOT / "conf" / "training" / f"{name}.yaml").exists():
        preprocessing = OmegaConf.to_container(OmegaConf.load(path)["preprocessing"])
    return layers, Preprocessing(preprocessing).shape((28, 28, 1) if name.endswith("mnist") else (32, 32, 3))


def between(*layers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the layers between a convolution, whose gradient depends on theirs, and a dense layer."""
    return numbered(convolution(4, 1), *layers, dense())


ONE_LAYER = {
    "dense after an image": numbered(dense()),
    "two dense": numbered(dense(7), TANH, dense()),
    "relu": between({"type": "relu"}),
    "tanh": between(TANH),
    "convolution": between(convolution(3, 3)),
    "convolution, even kernel": between(convolution(3, 2)),
    "convolution, stride": between(convolution(3, 3, stride=2)),
    "convolution, stride over cells": between(convolution(3, 2, stride=3)),
    "convolution, padding": between(convolution(3, 5, padding=2)),
    "convolution, padding and stride": between(convolution(3, 3, padding=1, stride=2)),
    "convolution, same": between(convolution(3, 5, padding="same")),
    "convolution, same, even kernel": between(convolution(3, 4, padding="same")),
    "convolution, same, stride": between(convolution(3, 3, padding="same", stride=2)),
    "convolution, same, stride, even kernel": between(convolution(3, 4, padding="same", stride=3)),
    "convolution, connections": between(convolution(6, 3, connections=1)),
    "convolution, connections, same": between(convolution(6, 4, connections=3, padding="same", stride=2)),
    "max": between(maximum(2, 2)),
    "max, overlapping": between(maximum(3, 2)),
    "max, stride over cells": between(maximum(2, 3)),
    "max, padding": between(maximum(3, 3, padding=1)),
    "max, wide padding": between(maximum(3, 2, padding=2)),
    "max, same": between(maximum(2, 2, padding="same")),
    "max, same, overlapping": between(maximum(3, 2, padding="same")),
    "max, same, large": between(maximum(5, 1, padding="same")),
    "max, ceil": between(maximum(2, 2, rounding="ceil")),
    "max, ceil, overlapping": between(maximum(3, 2, rounding="ceil")),
    "max, ceil, large stride": between(maximum(2, 4, rounding="ceil")),
    "max, ceil, padding": between(maximum(3, 2, padding=1, rounding="ceil")),
    "max, ceil, padding, stride": between(maximum(2, 3, padding=1, rounding="ceil")),
    "max of negatives, padding": numbered(
        {**convolution(3, 1), "biases": {"distribution": "constant", "value": -9}},
        maximum(3, 2, padding=1, rounding="ceil"), dense(),
    ),
    "average": between(average(2, 2)),
    "average, overlapping": between(average(3, 2)),
    "average, padding": between(average(3, 2, padding=1)),
    "average, wide padding": between(average(3, 2, padding=2)),
    "average, same": between(average(2, 2, padding="same")),
    "average, same, overlapping": between(average(3, 2, padding="same")),
    "average, same, large": between(average(4, 1, padding="same")),
    "average, ceil": between(average(3, 2, rounding="ceil")),
    "average, ceil, large stride": between(average(2, 4, rounding="ceil")),
    "average, ceil, padding": between(average(3, 2, padding=1, rounding="ceil")),
    "average, ceil, wide padding": between(average(3, 3, padding=2, rounding="ceil")),
    "normalization": between({**NORMALIZE, "radius": 1, "alpha": 0.7}),
    "normalization, wider than the maps": between({**NORMALIZE, "bias": 2.0, "alpha": 0.3, "beta": 0.5}),
    "normalization, default constants": between({**NORMALIZE}),
    "dropout that keeps all": between({"type": "dropout", "keep": 1}, TANH),
    "batch normalization": between(NORMAL, TANH),
    "batch normalization without scale": between({**NORMAL, "scale": False, "epsilon": 0.1}, TANH),
    "batch normalization first": numbered({**NORMAL, "scale": False}, convolution(4, 3), TANH, dense()),
    "convolution without biases": between({**convolution(3, 3), "biases": None}, TANH),
    "global average": between(TANH, {"type": "global_average_pool"}),
    "sum": between({"type": "relu"}, convolution(4, 3, padding=1), {"type": "add", "to": "convolution0"}),
    "sum of the same": between(TANH, {"type": "add", "to": "tanh1"}),
    "sum with the input of a relu": between(convolution(4, 1), {"type": "relu"}, {"type": "add", "to": "convolution1"}),
    "residual blocks": {
        "first": {**convolution(4, 3), "biases": None},
        "block": {"type": "block", "times": 2, "layers": {
            "normal": NORMAL, "relu": {"type": "relu"}, "conv": {**convolution(4, 3, padding=1), "biases": None},
            "sum": {"type": "add", "to": "input"},
        }},
        "shrinking": {"type": "block", "layers": {
            "normal": NORMAL, "relu": {"type": "relu"}, "conv": convolution(6, 3, padding=1, stride=2),
            "shortcut": {**convolution(6, 1, stride=2), "input": "relu", "biases": None},
            "sum": {"type": "add", "to": "conv"},
        }},
        "pool": {"type": "global_average_pool"}, "dense": dense(),
    },
}  # fmt: skip
SHAPES = ((2, 7, 10), (2, 8, 9))

# A framework may compute this schedule itself; the learning rates passed to ``train`` must take effect.
INVERSE = {"schedule": LearningRateSchedule(Schedule.inverse, gamma=0.3, power=0.75)}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "weight decay": {"weight_decay": 0.3},
    "weight decay on weights": {"weight_decay": 0.3, "weight_decay_on": WeightDecayOn.weights},
    "weight decay on hidden weights": {"weight_decay": 0.3, "weight_decay_on": WeightDecayOn.hidden_dense_weights},
    "bias learning rate": {"bias_lr_multiplier": 2.0},
    "ema_decay": {"ema_decay": 0.5},
    "ema_decay, slow": {"ema_decay": 0.9999, "momentum": 0.9},
    "caffe": {"momentum": 0.9, "weight_decay": 0.1, "bias_lr_multiplier": 2.0},
    "caffe, inverse": {"momentum": 0.9, "weight_decay": 0.1, "bias_lr_multiplier": 2.0, **INVERSE},
    "adam": {"optimizer": Optimizer.adam},
    "adam, all options": {
        "optimizer": Optimizer.adam,
        "beta1": 0.8,
        "beta2": 0.9,
        "epsilon": 0.1,
        "weight_decay": 0.1,
        "bias_lr_multiplier": 2.0,
    },
}
# Falling, constant, falling to a third, constant, rising.
RATES = [0.1, 0.1, 0.09, 0.08, 0.08, 0.025, 0.025, 0.025, 0.03, 0.03]
MIXED_NETWORK = numbered(
    {**convolution(4, 3), "biases": None}, NORMAL, TANH, {"type": "dropout", "keep": 0.5}, convolution(4, 1),
    {"type": "add", "to": "batch_normalization1"}, {**NORMAL, "scale": False}, TANH, dense(),
)  # fmt: skip
RESUMED: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1, "bias_lr_multiplier": 2.0},
    "adam": {"optimizer": Optimizer.adam},
    "ema_decay": {"momentum": 0.9, "ema_decay": 0.5},
    "inverse": {"momentum": 0.9, "weight_decay": 0.1, **INVERSE},
}
STATISTICS: dict[str, dict[str, Any]] = {
    "plain": {"weight_decay": 0.3, "weight_decay_on": WeightDecayOn.weights},
    "ema_decay": {"momentum": 0.9, "ema_decay": 0.5},
}
MIXED_WITHOUT_DROPOUT = {name: layer for name, layer in MIXED_NETWORK.items() if layer["type"] != "dropout"}
SMALL = between(TANH, convolution(6, 3, connections=2), TANH, dense(7), TANH)
DROPOUT_NETWORK = numbered(
    {"type": "dropout", "keep": 0.25}, {**dense(), "weights": {"distribution": "constant", "value": 0}}
)
SMALL_RATE = 1e-4  # leaves the softmax of 2,000 ones undecided
DROPOUT_STEPS: list[list[Any]] = [
    ["predict", 1], ["weights"], ["train", [SMALL_RATE]], ["weights"], ["predict", 1], ["predict", 1],
    ["train", [SMALL_RATE]], ["weights"],
]  # fmt: skip
USE_STEPS: list[list[Any]] = [
    ["train", [0.1] * 3], ["weights"], ["save", "saved"], ["predict", 7], ["predict", 1], ["predict", 3], ["weights"],
]  # fmt: skip
CONVOLUTIONAL = numbered(convolution(4, 3), TANH, maximum(2, 2), dense(9), TANH, dense())


def create_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}

    def add(name: str, *arguments: Any, **options: Any) -> Case:
        cases[name] = create_case(name, *arguments, **options)
        return cases[name]

    for name in MODELS:
        layers, shape = model_layers(name)
        add(f"model {name}", layers, shape, GRADIENT_STEPS, classes=10)
        add(f"ten steps {name}", layers, shape, [["train", [0.001] * 4], ["train", [0.001] * 6]], classes=10, count=10)
    for name, layers in ONE_LAYER.items():
        for shape in SHAPES:
            add(f"layer {name}, {shape[1]}x{shape[2]}", layers, shape, GRADIENT_STEPS)
    shape = (3, 6, 5)
    for name, training in OPTIMIZERS.items():
        steps: list[list[Any]] = [["train", RATES[:3]], ["train", RATES[3:6]], ["train", RATES[6:]], ["weights"]]
        add(f"optimizer {name}", SMALL, shape, steps, count=10, **training)
    for name, training in STATISTICS.items():
        steps = [["train", RATES[:4]], ["predict", 4], ["weights"]]
        add(f"statistics {name}", MIXED_WITHOUT_DROPOUT, shape, steps, count=10, **training)
    for name, training in RESUMED.items():
        steps = [["train", RATES[:4]], ["checkpoint", f"checkpoint {name}"], ["train", RATES[4:]], ["weights"]]
        add(f"resumed {name}", MIXED_NETWORK, shape, steps, count=10, **training)
    softmax = {"dense": dense()}
    for seed in (1, 2):
        one = {"count": 1, "batch": 1, "classes": 2, "seed": seed}
        add(f"dropout {seed}", DROPOUT_NETWORK, (1, 40, 50), DROPOUT_STEPS, **one).images[...] = 1
        steps = [["train", [0.1] * 5], ["weights"]]
        add(f"repeat dropout {seed}", between({"type": "dropout", "keep": 0.5}, TANH), shape, steps, seed=seed)
        add(f"repeat {seed}", CONVOLUTIONAL, shape, steps, seed=seed)
        add(f"repeat softmax {seed}", softmax, shape, steps, seed=seed)
    networks: dict[str, tuple[Any, dict[str, Any]]] = {
        "softmax": (softmax, {}),
        "network": (CONVOLUTIONAL, {}),
        "averaged": (MIXED_WITHOUT_DROPOUT, {"ema_decay": 0.5}),
    }
    for name, (layers, training) in networks.items():
        training = {"preprocessing": {"scale": {"factor": 1 / 255}}, **training}
        case = add(f"use {name}", layers, shape, USE_STEPS, count=7, **training)
        # Preprocessed uint8 pixels: a saved model receives the pixels and preprocesses them itself.
        pixels = np.random.RandomState(2).randint(0, 256, case.images.shape)
        case.images[...] = pixels.astype(np.float32) * np.float32(1 / 255)
        add(f"describe {name}", layers, shape, [["predict", 4], ["describe"]])
    steps = [["record synchronizations"], ["train", [0.1] * 2], ["synchronizations"], ["predict", 4]]
    add("synchronizations", softmax, shape, [*steps, ["synchronizations"]])
    add("copies", softmax, shape, [["train on copies", [0.1] * 20]])
    return cases


CASES = create_cases()
COMPILED = (
    "model caffe_", "model reference_", "ten steps torch_mnist",
    "optimizer sgd", "optimizer momentum", "optimizer caffe, inverse", "optimizer adam", "optimizer ema_decay",
    "statistics ", "resumed momentum", "resumed adam", "resumed ema_decay", "dropout 1", "repeat dropout",
    "use network", "use averaged", "describe ", "synchronizations", "copies",
    "layer convolution, connections, same, 8x9", "layer max, ceil, padding, 7x10", "layer max, same, overlapping, 8x9",
    "layer average, ceil, padding, 7x10", "layer average, same, overlapping, 8x9", "layer normalization, 7x10",
    "layer batch normalization without scale, 8x9", "layer global average, 7x10", "layer residual blocks, 8x9",
)  # fmt: skip
"""Prefixes of the cases of a mode that compiles, because a case takes seconds to compile, beside the framework's own
networks. If it is the framework's default, a share of the others runs too; otherwise all networks."""


AUTOTUNED = (
    "model caffe_mnist", "model torch_mnist", "ten steps torch_mnist", "describe ", "synchronizations", "copies",
)  # fmt: skip
"""The same for a mode that also measures kernels when it compiles."""


def cases_of(execution: Execution) -> list[Case]:
    framework = load_framework(execution.framework)
    if execution.precision != "float32" or execution.threads > 1:
        return [CASES[name] for name in CASES if name.startswith(("model ", "describe "))]
    names: Sequence[str] = list(CASES)
    if not framework.modes[execution.mode].deterministic:  # tries several kernels for each operation
        names = [name for name in CASES if name.startswith(AUTOTUNED)]
    elif framework.modes[execution.mode].compiles:
        is_default = execution.mode == framework.default_mode
        networks = f"model {execution.framework.partition('_')[0]}_" if is_default else "model "
        always = [name for name in CASES if name.startswith((*COMPILED, networks))]
        names = share(names, always) if is_default else always
    return [CASES[name] for name in names]


USES = [name for name in CASES if name.startswith("use ")]


@functools.cache
def expected_logits(name: str) -> np.ndarray:
    case = CASES[name]
    return numpy_network.logits(case.network, case.weights, case.images, case.masks)


@functools.cache
def expected_gradients(name: str) -> tuple[float, dict[str, np.ndarray]]:
    case = CASES[name]
    return numpy_network.gradients(case.network, case.weights, case.images, case.labels, case.masks)


@functools.cache
def expected_training(name: str) -> tuple[list[float], dict[str, np.ndarray]]:
    rates = [rate for action, *arguments in CASES[name].steps if action == "train" for rate in arguments[0]]
    return CASES[name].expected(rates)


# Running the frameworks.


@dataclass
class Results:
    """Results of one process of a framework."""

    execution: Execution
    plain: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def array(self, name: str, step: int) -> np.ndarray:
        self.need(name)
        return self.arrays[f"{name}|{step}"]

    def weights(self, name: str, step: int) -> dict[str, np.ndarray]:
        self.need(name)
        prefix = f"{name}|{step}|"
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def need(self, name: str) -> None:
        if name not in self.plain:
            pytest.skip("left out today, because this mode takes seconds to compile a network")
        if not self.completed(name):
            pytest.skip("the framework does not support this network")

    def completed(self, *prefixes: str) -> list[str]:
        """Return the cases whose names begin with one of ``prefixes`` and that the framework did not refuse."""
        return [name for name, data in self.plain.items() if name.startswith(prefixes) and "refused" not in data]


@dataclass
class FrameworkResults:
    """Results of a mode of one framework, and of a process that repeats them."""

    first: Results
    fresh: Results
    """Results of a process that repeats some cases of the first one and loads what it saved."""

    def need(self, name: str) -> None:
        self.first.need(name)


FIRST: dict[Execution, tuple[Path, Results]] = {}
"""Folder and results of each process so far."""


def first_process(execution: Execution, factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """Return the folder and the results of a process, which runs once."""
    if execution not in FIRST:
        folder = factory.mktemp("framework") / str(execution)
        FIRST[execution] = folder, run_cases(execution, folder, cases_of(execution))
    return FIRST[execution]


ALONE = [each for each in session_executions() if each.precision == "float32" and each.threads == 1]
"""One execution for each mode."""


@pytest.fixture(scope="module", params=ALONE, ids=str)
def framework_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrameworkResults:
    """Results of a mode, and of a fresh process."""
    folder, first = first_process(request.param, tmp_path_factory)
    cases = cases_of_fresh_process(folder, first)
    return FrameworkResults(first, run_cases(request.param, folder.with_name("fresh"), cases))


def cases_of_fresh_process(first: Path, results: Results) -> list[Case]:
    """Return cases that repeat those of the process with the folder ``first``, or load what it saved."""
    ran = results.completed("")
    cases = [case for name, case in CASES.items() if name.startswith("repeat") and name in ran]
    for name in USES:
        if name not in ran:
            continue
        saved = str(first / f"saved {name}")
        steps: list[list[Any]] = [["load", saved], ["predict", 7], ["weights"], ["pyfunc", saved]]
        cases.append(replace(CASES[name], steps=steps, seed=9))
    for name in RESUMED:
        if f"resumed {name}" not in ran:
            continue
        steps = [["restore", str(first / f"checkpoint {name}"), 4], ["train", RATES[4:]], ["weights"]]
        # The same seed, because masks and dropout depend on it; all weights come from the checkpoint.
        cases.append(replace(CASES[f"resumed {name}"], steps=steps))
    return cases


def run_cases(execution: Execution, folder: Path, cases: list[Case], environment_of: str = "") -> Results:
    """Run cases in a process; ``environment_of`` names the device of the environment if it is another one."""
    framework, device, threads = load_framework(execution.framework), execution.device, execution.threads
    try:
        environment = environments.ensure(framework, environment_of or device)
    except environments.EnvironmentFailed as error:
        if os.environ.get("GTDL_REQUIRE_FRAMEWORKS") == "1":
            raise
        pytest.skip(str(error))
    folder.mkdir()
    mode = framework.modes[execution.mode]
    arrays, requests = {}, []
    for case in cases:
        arrays.update({f"{case.name}/images": case.images, f"{case.name}/labels": case.labels})
        job = Job(
            adapter=framework.adapter,
            options=mode.options,
            saved_options=framework.modes[framework.default_mode].options,
            precision=Precision(execution.precision),
            deterministic=mode.deterministic,
            layers=case.layers,
            image_shape=[*case.images.shape[2:], case.images.shape[1]],
            classes=case.classes,
            data="",
            training=case.training,
            budget=1.0,
            seed=case.seed,
            device=device,
            threads=threads,
            cores=None,
            folder="",
        )
        steps = [
            [action, f"saved {case.name}"] if action == "save" else [action, *rest] for action, *rest in case.steps
        ]
        requests.append({"name": case.name, "job": asdict(job), "steps": steps})
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "request.json").write_text(json.dumps(requests))
    with all_cores() if threads > 1 else contextlib.nullcontext():
        done = subprocess.run(
            [environment.python, "-I", ROOT / "tests" / "helpers" / "contract.py", folder / "request.json"],
            env=worker_process.worker_environment(threads, environment_variables(mode, environment.compile_cache)),
            capture_output=True,
            text=True,
            timeout=PROCESS_TIMEOUT_S,
        )
    assert done.returncode == 0, f"{execution}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    with np.load(folder / "results.npz") as results:
        return Results(execution, json.loads((folder / "results.json").read_text()), dict(results))


@pytest.fixture(scope="module", params=ALONE, ids=str)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results of each mode."""
    return first_process(request.param, tmp_path_factory)[1]


@pytest.fixture(scope="module", params=session_executions(), ids=str)
def network_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results of each process, all of which ran at least the cases of whole networks."""
    return first_process(request.param, tmp_path_factory)[1]


def relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference as a share of the largest expected value."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-3))


# The contract.


def test_logits_match_the_numpy_network(network_results: Results) -> None:
    names = network_results.completed("model ", "layer ")
    assert names
    differences = {name: relative_difference(network_results.array(name, 1), expected_logits(name)) for name in names}
    bound = parity.BOUNDS[Precision(network_results.execution.precision)][0]
    assert {name: difference for name, difference in differences.items() if not difference <= bound} == {}
    assert {network_results.array(name, 1).dtype for name in names} == {np.dtype(np.float32)}


def test_gradients_match_the_numpy_network(network_results: Results) -> None:
    wrong: dict[str, Any] = {}
    execution = network_results.execution
    _, rough, rough_loss = parity.BOUNDS[Precision(execution.precision)]
    exact = execution.precision == "float32"
    for name in network_results.completed("model ", "layer "):
        loss, gradients = expected_gradients(name)
        if network_results.array(name, 2) != pytest.approx([loss], rel=1e-4 if exact else rough_loss):
            wrong[f"{name}: loss"] = network_results.array(name, 2), loss
        before, after = network_results.weights(name, 0), network_results.weights(name, 3)
        largest = max(float(np.abs(gradient).max()) for gradient in gradients.values())
        # See parity.BOUNDS: a deep network has activations at the very edge of a ReLU. A GPU's convolutions may be
        # Winograd's, which round more: 4e-4 was measured for a whole network.
        rounds_more = execution.device == "gpu" and name.startswith("model ")
        deep = name in ("model mxnet_cifar10", "model tinygrad_mnist", "model tinygrad_cifar10")
        if not exact and "tinygrad" in name:
            continue  # in bfloat16, its pools after batch normalization have equal maxima, and may take any of them
        bound = 1e-4 if exact and not deep and not rounds_more else rough
        for key, gradient in gradients.items():
            difference = np.abs(before[key].astype(np.float64) - after[key] - gradient).max()
            # The difference of two float32 values near 1 is exact to 1e-7.
            if not difference <= bound * largest + 2e-7:
                wrong[f"{name}: {key}"] = difference / largest
    assert wrong == {}


def test_training_starts_from_the_weights_of_the_seed(network_results: Results) -> None:
    for name in network_results.completed("model ", "layer "):
        actual, expected = network_results.weights(name, 0), CASES[name].weights
        assert set(actual) == set(expected), name
        for key, value in expected.items():
            assert actual[key].dtype == np.float32, f"{name}: {key}"
            assert actual[key].shape == value.shape, f"{name}: {key}"
            assert (actual[key] == value).all(), f"{name}: {key}"


@pytest.mark.parametrize("name", MODELS)
def test_losses_of_ten_steps_match_the_numpy_network(results: Results, name: str) -> None:
    name = f"ten steps {name}"
    results.need(name)
    losses = np.concatenate([results.array(name, 0), results.array(name, 1)])
    assert losses.dtype == np.float32
    assert losses == pytest.approx(expected_training(name)[0], rel=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_follows_its_formula(results: Results, name: str) -> None:
    name = f"optimizer {name}"
    results.need(name)
    losses, weights = expected_training(name)
    actual, initial = results.weights(name, 3), CASES[name].weights
    assert np.concatenate([results.array(name, step) for step in range(3)]) == pytest.approx(losses, rel=1e-4)
    for key, value in weights.items():
        change = np.abs(value - initial[key]).max()
        # Caffe adds Adam's 1e-8 to the second moment before correcting it: 1e-4 of the change for small gradients.
        assert np.abs(actual[key] - value).max() <= 2e-4 * change + 1e-6, key
        mask = CASES[name].masks.get(key, np.ones(1))
        assert (actual[key] == actual[key] * mask).all(), f"{key}: a masked weight has changed"


@pytest.mark.parametrize("name", STATISTICS)
def test_running_statistics_follow_their_formula_and_are_used_to_predict(results: Results, name: str) -> None:
    name = f"statistics {name}"
    results.need(name)
    case, (_, expected) = CASES[name], expected_training(name)
    actual = results.weights(name, 2)
    assert set(actual) == set(expected) == {*case.network.parameters, *case.network.state}
    for key in expected:
        assert actual[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key
    logits = numpy_network.logits(case.network, expected, case.images)
    assert relative_difference(results.array(name, 1), logits) <= 1e-4


@pytest.mark.parametrize("name", RESUMED)
def test_training_from_a_checkpoint_is_bitwise_identical(framework_results: FrameworkResults, name: str) -> None:
    uninterrupted, resumed = framework_results.first, framework_results.fresh
    name = f"resumed {name}"
    framework_results.need(name)
    assert (uninterrupted.array(name, 2) == resumed.array(name, 1)).all()
    before, after = uninterrupted.weights(name, 3), resumed.weights(name, 2)
    assert before.keys() == after.keys() == CASES[name].weights.keys()
    assert [key for key in before if (before[key] != after[key]).any()] == []


def dropout_outputs(results: Results, name: str) -> list[np.ndarray]:
    """Return dropout's output for an input of ones in two training steps, from the dense layer's gradients."""
    weights = [results.weights(name, step)["dense1/weights"].astype(np.float64) for step in (1, 3, 7)]
    gradients = [np.abs(before - after)[:, 0] / SMALL_RATE for before, after in itertools.pairwise(weights)]
    # The softmax of two equal logits is a half each, and so is its gradient, whichever class is correct. In the second
    # step the logits differ; a value that is not dropped must be 4, which gives the scale.
    return [2 * gradients[0], 4 * gradients[1] / gradients[1].max()]


def test_dropout_keeps_its_share_and_the_mean(results: Results) -> None:
    first, second = dropout_outputs(results, "dropout 1")
    for values in (first, second):
        assert set(values.round(3)) == {0, 4}  # dropped, or scaled by 1 / keep
        assert (values > 0).mean() == pytest.approx(0.25, abs=0.04)  # 2,000 values: four standard deviations
        assert values.mean() == pytest.approx(1, abs=0.16)
    assert ((first > 0) != (second > 0)).any()  # a new mask in each step


def test_dropout_is_off_in_prediction(results: Results) -> None:
    assert (results.array("dropout 1", 4) == results.array("dropout 1", 5)).all()
    case, weights = CASES["dropout 1"], results.weights("dropout 1", 3)
    logits = numpy_network.logits(case.network, weights, case.images)
    assert relative_difference(results.array("dropout 1", 4), logits) <= 1e-4


def test_another_seed_drops_other_values(results: Results) -> None:
    one, other = dropout_outputs(results, "dropout 1")[0], dropout_outputs(results, "dropout 2")[0]
    assert ((one > 0) != (other > 0)).any()


@pytest.mark.parametrize("name", ["repeat softmax", "repeat", "repeat dropout"])
def test_same_seed_gives_bitwise_identical_weights(framework_results: FrameworkResults, name: str) -> None:
    plain = framework_results.first
    framework_results.need(f"{name} 1")
    if not load_framework(plain.execution.framework).modes[plain.execution.mode].deterministic:
        pytest.skip("the mode is not deterministic")
    first, second = plain.weights(f"{name} 1", 1), framework_results.fresh.weights(f"{name} 1", 1)
    assert first
    assert all((first[key] == second[key]).all() for key in first)
    other_seed = plain.weights(f"{name} 2", 1)
    assert all((first[key] != other_seed[key]).any() for key in first)


@pytest.mark.parametrize("name", USES)
def test_saved_model_predicts_the_same_in_a_fresh_process(framework_results: FrameworkResults, name: str) -> None:
    saved, loaded = framework_results.first, framework_results.fresh
    framework_results.need(name)
    logits = saved.array(name, 3)
    assert (loaded.array(name, 1) == logits).all()
    weights = loaded.weights(name, 2)
    assert all((weights[key] == value).all() for key, value in saved.weights(name, 1).items())
    exponents = np.exp(logits.astype(np.float64))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    assert relative_difference(loaded.array(name, 3), probabilities) <= 1e-5


@pytest.mark.parametrize("name", USES)
def test_test_batch_size_does_not_change_predictions(results: Results, name: str) -> None:
    logits = results.array(name, 3)
    assert logits.shape == (7, 4)
    assert relative_difference(results.array(name, 4), logits) <= 1e-5
    assert relative_difference(results.array(name, 5), logits) <= 1e-5
    before, after = results.weights(name, 1), results.weights(name, 6)
    assert before
    assert all((before[key] == after[key]).all() for key in before)


@pytest.mark.parametrize("name", ["describe softmax", "describe network"])
def test_framework_reports_the_requested_configuration(network_results: Results, name: str) -> None:
    execution = network_results.execution
    framework, device, threads = load_framework(execution.framework), execution.device, execution.threads
    network_results.need(name)
    metadata = network_results.plain[name]["1"]
    assert metadata["device"] == device
    assert device == "cpu" or metadata["tf32"] is (execution.precision == "tf32")
    assert metadata["precision"] == execution.precision
    if framework.devices[device].recipes:  # otherwise the driver's NumPy, of any version and number of threads
        assert metadata["version"].partition("+")[0] == framework.version
        assert metadata["threads"] == threads
    if name == "describe network":
        options = framework.modes[execution.mode].options
        assert {key: metadata[key] for key in options if key in metadata}.items() <= options.items()


def test_training_and_prediction_end_by_synchronizing_the_device(results: Results) -> None:
    if not load_framework(results.execution.framework).devices["gpu"].recipes:
        pytest.skip("the framework runs on no GPU")
    counts = results.plain["synchronizations"]
    assert [counts[step]["count"] for step in ("2", "4")] == [1, 2]


def test_batches_are_released_after_training(results: Results) -> None:
    batches = results.plain["copies"]["0"]
    assert batches["created"] >= 2 * 20
    assert batches["alive"] <= 2  # images and labels of the last batch


@pytest.mark.parametrize("name", [name for name in FRAMEWORKS if load_framework(name).devices["gpu"].recipes])
def test_missing_gpu_is_an_error_instead_of_a_run_on_the_cpu(name: str, tmp_path: Path) -> None:
    execution = Execution(name, "gpu", load_framework(name).default_mode)
    with pytest.raises(AssertionError, match=r"CUDA|no GPU"):  # a build without GPU support
        run_cases(execution, tmp_path / "gpu", [CASES["synchronizations"]], environment_of="cpu")


def test_refusals_name_the_layer_and_never_concern_own_settings(network_results: Results) -> None:
    framework = network_results.execution.framework
    own = [f"model {config.default_setting(framework, dataset)}" for dataset in ("mnist", "cifar10")]
    refused = {name: data["refused"] for name, data in network_results.plain.items() if "refused" in data}
    assert not refused.keys() & {"model reference_mnist", "ten steps reference_mnist", "use softmax", *own}
    for name, reason in refused.items():
        assert f"framework={framework} " in reason
        assert any(f"layer {layer}" in reason for layer in CASES[name].layers) or "trains by" in reason, reason
