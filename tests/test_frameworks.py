"""One contract over every framework in ``conf/framework``, each in its own environment.

The cases are worked off in as few processes as will do (``contract.py``), as importing a framework takes seconds; what
comes back is held against ``numpy_network.py``. A framework may refuse a network, but not its own.
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from omegaconf import OmegaConf

from gtdl_mlflow import config, environments, worker_process
from gtdl_mlflow.config import checks
from gtdl_mlflow.worker import initialization, numpy_network
from gtdl_mlflow.worker.inputs import Preprocessing
from gtdl_mlflow.worker.job import BatchOrder, Job, LearningRateSchedule, Optimizer, Schedule, Training, WeightDecayOn
from gtdl_mlflow.worker.network import Network, build, expand_blocks

ROOT = Path(__file__).parents[1]
FRAMEWORKS = sorted(path.stem for path in (ROOT / "conf" / "framework").glob("*.yaml"))
ON_GPU = [
    name
    for name in (FRAMEWORKS if checks.has_gpu() else [])
    if "recipes" in OmegaConf.load(ROOT / "conf" / "framework" / f"{name}.yaml").devices.gpu
]
"""Each is asked everything a second time, on the GPU of the machine."""
MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
WORKER = ROOT / "gtdl_mlflow" / "worker"
PROCESSES = {"plain": ("plain", 1), "best": ("best", 1), "best on two threads": ("best", 2)}
"""Tuning and threads. The last does few cases: on a busy machine two threads wait for each other at every step."""


@dataclass(frozen=True)
class Case:
    """A network, images for it, and what is done with it."""

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
        """Losses and last weights of the slow network; the images in batches, over and over."""
        size, count = self.training.batch_size, len(self.images)
        rows = [np.arange(step * size, (step + 1) * size) % count for step in range(len(rates))]
        feed = [(self.images[row], self.labels[row]) for row in rows]
        return numpy_network.train(self.network, self.weights, feed, rates, self.training, self.masks)


def case(
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
    given: dict[str, Any] = {"name": name, "order": BatchOrder.sequential, "batch_size": batch, "test_batch_size": batch,
                             "iterations": 1, "optimizer": Optimizer.sgd, "learning_rate": 0.1}  # fmt: skip
    return Case(
        name, layers, images, random.randint(0, classes, count), Training(**{**given, **training}), steps, classes, seed
    )


LEARN: list[list[Any]] = [["weights"], ["predict", 4], ["train", [1.0]], ["weights"]]
"""With a rate of 1, the weights before and after differ by the gradient."""


def model(name: str) -> tuple[dict[str, dict[str, Any]], tuple[int, ...]]:
    """The layers of ``conf/model`` without dropout and with weights of a useful size, and the shape of their images."""
    # Fourteen layers have all that 110 have: a stage's first unit, and a second one.
    layers = expand_blocks(conf_layers(name, **({"depth": 14} if name == "mxnet_cifar10" else {})))
    for layer in layers.values():
        layer.update({"keep": 1} if layer["type"] == "dropout" else {})
        layer.update({"weights": SPREAD} if "weights" in layer else {})
    inputs: dict[str, Any] = {}
    if (path := ROOT / "conf" / "training" / f"{name}.yaml").exists():
        inputs = OmegaConf.to_container(OmegaConf.load(path))["inputs"]  # type: ignore[index,call-overload,assignment]
    return layers, Preprocessing(inputs).shape((28, 28, 1) if name.endswith("mnist") else (32, 32, 3))


def layered(*layers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The layers between a convolution, whose gradient shows theirs, and a dense layer."""
    return numbered(convolution(4, 1), *layers, dense())


ONE_LAYER = {
    "dense after an image": numbered(dense()),
    "two dense": numbered(dense(7), TANH, dense()),
    "relu": layered({"type": "relu"}),
    "tanh": layered(TANH),
    "convolution": layered(convolution(3, 3)),
    "convolution, even kernel": layered(convolution(3, 2)),
    "convolution, stride": layered(convolution(3, 3, stride=2)),
    "convolution, stride over cells": layered(convolution(3, 2, stride=3)),
    "convolution, padding": layered(convolution(3, 5, padding=2)),
    "convolution, padding and stride": layered(convolution(3, 3, padding=1, stride=2)),
    "convolution, same": layered(convolution(3, 5, padding="same")),
    "convolution, same, even kernel": layered(convolution(3, 4, padding="same")),
    "convolution, same, stride": layered(convolution(3, 3, padding="same", stride=2)),
    "convolution, same, stride, even kernel": layered(convolution(3, 4, padding="same", stride=3)),
    "convolution, connections": layered(convolution(6, 3, connections=1)),
    "convolution, connections, same": layered(convolution(6, 4, connections=3, padding="same", stride=2)),
    "max": layered(maximum(2, 2)),
    "max, overlapping": layered(maximum(3, 2)),
    "max, stride over cells": layered(maximum(2, 3)),
    "max, padding": layered(maximum(3, 3, padding=1)),
    "max, wide padding": layered(maximum(3, 2, padding=2)),
    "max, same": layered(maximum(2, 2, padding="same")),
    "max, same, overlapping": layered(maximum(3, 2, padding="same")),
    "max, same, large": layered(maximum(5, 1, padding="same")),
    "max, ceil": layered(maximum(2, 2, rounding="ceil")),
    "max, ceil, overlapping": layered(maximum(3, 2, rounding="ceil")),
    "max, ceil, large stride": layered(maximum(2, 4, rounding="ceil")),
    "max, ceil, padding": layered(maximum(3, 2, padding=1, rounding="ceil")),
    "max, ceil, padding, stride": layered(maximum(2, 3, padding=1, rounding="ceil")),
    "max of negatives, padding": numbered(
        {**convolution(3, 1), "biases": {"distribution": "constant", "value": -9}},
        maximum(3, 2, padding=1, rounding="ceil"), dense(),
    ),
    "ema_decay": layered(average(2, 2)),
    "average, overlapping": layered(average(3, 2)),
    "average, padding": layered(average(3, 2, padding=1)),
    "average, wide padding": layered(average(3, 2, padding=2)),
    "average, same": layered(average(2, 2, padding="same")),
    "average, same, overlapping": layered(average(3, 2, padding="same")),
    "average, same, large": layered(average(4, 1, padding="same")),
    "average, ceil": layered(average(3, 2, rounding="ceil")),
    "average, ceil, large stride": layered(average(2, 4, rounding="ceil")),
    "average, ceil, padding": layered(average(3, 2, padding=1, rounding="ceil")),
    "average, ceil, wide padding": layered(average(3, 3, padding=2, rounding="ceil")),
    "normalization": layered({**NORMALIZE, "radius": 1, "alpha": 0.7}),
    "normalization, wider than the maps": layered({**NORMALIZE, "bias": 2.0, "alpha": 0.3, "beta": 0.5}),
    "normalization, the original's": layered({**NORMALIZE}),
    "kept": layered({"type": "dropout", "keep": 1}, TANH),
    "batch normalization": layered(NORMAL, TANH),
    "batch normalization without scale": layered({**NORMAL, "scale": False, "epsilon": 0.1}, TANH),
    "batch normalization first": numbered({**NORMAL, "scale": False}, convolution(4, 3), TANH, dense()),
    "convolution without biases": layered({**convolution(3, 3), "biases": None}, TANH),
    "global average": layered(TANH, {"type": "global_average_pool"}),
    "sum": layered({"type": "relu"}, convolution(4, 3, padding=1), {"type": "add", "to": "convolution0"}),
    "sum of the same": layered(TANH, {"type": "add", "to": "tanh1"}),
    "sum with what a relu took": layered(convolution(4, 1), {"type": "relu"}, {"type": "add", "to": "convolution1"}),
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

# A framework may follow it by itself; what counts are the rates it is given.
INVERSE = {"schedule": LearningRateSchedule(Schedule.inverse, gamma=0.3, power=0.75)}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "weight decay": {"weight_decay": 0.3},
    "weight decay on weights": {"weight_decay": 0.3, "weight_decay_on": WeightDecayOn.weights},
    "weight decay on hidden dense weights": {"weight_decay": 0.3, "weight_decay_on": WeightDecayOn.hidden_dense_weights},
    "bias rate": {"bias_lr_multiplier": 2.0},
    "ema_decay": {"ema_decay": 0.5},
    "average, slow": {"ema_decay": 0.9999, "momentum": 0.9},
    "caffe": {"momentum": 0.9, "weight_decay": 0.1, "bias_lr_multiplier": 2.0},
    "caffe, inverse": {"momentum": 0.9, "weight_decay": 0.1, "bias_lr_multiplier": 2.0, **INVERSE},
    "adam": {"optimizer": Optimizer.adam},
    "adam, all of it": {"optimizer": Optimizer.adam, "beta1": 0.8, "beta2": 0.9, "epsilon": 0.1, "weight_decay": 0.1,
                        "bias_lr_multiplier": 2.0},
}  # fmt: skip
# Falling, resting, dropping to a third and resting, rising.
RATES = [0.1, 0.1, 0.09, 0.08, 0.08, 0.025, 0.025, 0.025, 0.03, 0.03]
NETWORK_OF_ALL = numbered(
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
FOLLOWED: dict[str, dict[str, Any]] = {
    "plain": {"weight_decay": 0.3, "weight_decay_on": WeightDecayOn.weights},
    "ema_decay": {"momentum": 0.9, "ema_decay": 0.5},
}
NOT_DROPPED = {name: layer for name, layer in NETWORK_OF_ALL.items() if layer["type"] != "dropout"}
SMALL = layered(TANH, convolution(6, 3, connections=2), TANH, dense(7), TANH)
TWO = numbered({"type": "dropout", "keep": 0.25}, {**dense(), "weights": {"distribution": "constant", "value": 0}})
LITTLE = 1e-4  # a rate that leaves the softmax of 2,000 ones undecided
DROPPED: list[list[Any]] = [
    ["predict", 1], ["weights"], ["train", [LITTLE]], ["weights"], ["predict", 1], ["predict", 1], ["train", [LITTLE]],
    ["weights"],
]  # fmt: skip
USED: list[list[Any]] = [["train", [0.1] * 3], ["weights"], ["save", "saved"], ["predict", 7], ["predict", 1],
                         ["predict", 3], ["weights"]]  # fmt: skip
PLAIN = conf_layers("reference_mnist")
CONVOLUTIONAL = numbered(convolution(4, 3), TANH, maximum(2, 2), dense(9), TANH, dense())


def listed() -> dict[str, Case]:
    cases = []
    for name in MODELS:
        layers, shape = model(name)
        cases.append(case(f"model {name}", layers, shape, LEARN, classes=10))
        ten: list[list[Any]] = [["train", [0.001] * 4], ["train", [0.001] * 6]]
        cases.append(case(f"ten steps {name}", layers, shape, ten, classes=10, count=10))
    for name, layers in ONE_LAYER.items():
        cases += [case(f"layer {name}, {shape[1]}x{shape[2]}", layers, shape, LEARN) for shape in SHAPES]
    for name, training in OPTIMIZERS.items():
        steps: list[list[Any]] = [["train", RATES[:3]], ["train", RATES[3:6]], ["train", RATES[6:]], ["weights"]]
        cases.append(case(f"optimizer {name}", SMALL, (3, 6, 5), steps, count=10, **training))
    for name, training in FOLLOWED.items():
        steps = [["train", RATES[:4]], ["predict", 4], ["weights"]]
        cases.append(case(f"followed {name}", NOT_DROPPED, (3, 6, 5), steps, count=10, **training))
    for name, training in RESUMED.items():
        steps = [["train", RATES[:4]], ["checkpoint", f"checkpoint {name}"], ["train", RATES[4:]], ["weights"]]
        cases.append(case(f"resumed {name}", NETWORK_OF_ALL, (3, 6, 5), steps, count=10, **training))
    for seed in (1, 2):
        cases.append(case(f"dropout {seed}", TWO, (1, 40, 50), DROPPED, count=1, batch=1, classes=2, seed=seed))
        cases[-1].images[...] = 1
        some: list[list[Any]] = [["train", [0.1] * 5], ["weights"]]
        dropping = layered({"type": "dropout", "keep": 0.5}, TANH)
        cases.append(case(f"repeat dropout {seed}", dropping, (3, 6, 5), some, seed=seed))
        cases.append(case(f"repeat {seed}", CONVOLUTIONAL, (3, 6, 5), some, seed=seed))
        softmax = {"dense": dense()}
        cases.append(case(f"repeat softmax {seed}", softmax, (3, 6, 5), some, seed=seed))
    networks: dict[str, tuple[Any, dict[str, Any]]] = {
        "softmax": ({"dense": dense()}, {}),
        "network": (CONVOLUTIONAL, {}),
        "averaged": (NOT_DROPPED, {"ema_decay": 0.5}),
    }
    for name, (layers, more) in networks.items():
        used = case(f"use {name}", layers, (3, 6, 5), USED, count=7, inputs={"scale": {"factor": 1 / 255}}, **more)
        # Pixels that a saved model, which treats what it is given, can be shown.
        raw = np.random.RandomState(2).randint(0, 256, used.images.shape)
        used.images[...] = raw.astype(np.float32) * np.float32(1 / 255)
        cases.append(used)
        cases.append(case(f"describe {name}", layers, (3, 6, 5), [["predict", 4], ["describe"]]))
    watched: list[list[Any]] = [["watch"], ["train", [0.1] * 2], ["waits"], ["predict", 4], ["waits"]]
    cases.append(case("waits", {"dense": dense()}, (3, 6, 5), watched))
    cases.append(case("copies", {"dense": dense()}, (3, 6, 5), [["train on copies", [0.1] * 20]]))
    return {made.name: made for made in cases}


CASES = listed()
USES = [name for name in CASES if name.startswith("use ")]


@functools.cache
def expected_logits(name: str) -> np.ndarray:
    made = CASES[name]
    return numpy_network.logits(made.network, made.weights, made.images, made.masks)


@functools.cache
def expected_gradients(name: str) -> tuple[float, dict[str, np.ndarray]]:
    made = CASES[name]
    return numpy_network.gradients(made.network, made.weights, made.images, made.labels, made.masks)


@functools.cache
def expected_training(name: str) -> tuple[list[float], dict[str, np.ndarray]]:
    rates = [rate for action, *arguments in CASES[name].steps if action == "train" for rate in arguments[0]]
    return CASES[name].expected(rates)


# Asking the frameworks.


@dataclass
class Answers:
    """What one framework said, in one process."""

    plain: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def array(self, name: str, step: int) -> np.ndarray:
        self.need(name)
        return self.arrays[f"{name}|{step}"]

    def weights(self, name: str, step: int) -> dict[str, np.ndarray]:
        self.need(name)
        start = f"{name}|{step}|"
        return {key.removeprefix(start): value for key, value in self.arrays.items() if key.startswith(start)}

    def need(self, name: str) -> None:
        if not self.run(name):
            pytest.skip("not a network of this framework")

    def run(self, *start: str) -> list[str]:
        """The cases that begin like this and that the framework did not refuse."""
        return [name for name, said in self.plain.items() if name.startswith(start) and "refused" not in said]


@dataclass
class Contestant:
    """A framework and all that it answered."""

    framework: config.Framework
    device: str
    answers: dict[str, Answers]
    """By process."""
    afresh: Answers
    """Of a process that repeats some of ``plain`` and uses what it saved."""


@pytest.fixture(scope="module", params=[*FRAMEWORKS, *(f"{name} on gpu" for name in ON_GPU)])
def contestant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Contestant:
    """Each framework, asked everything once."""
    name, _, device = request.param.partition(" on ")
    device = device or "cpu"
    framework = config.compose([f"framework={name}", "setting=reference_mnist"]).framework
    try:
        environment = environments.ensure(framework, device)
    except environments.EnvironmentFailed as error:
        if os.environ.get("GTDL_REQUIRE_FRAMEWORKS") == "1":
            raise
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp(request.param)
    ask = functools.partial(_ask, framework, environment.python, device=device)
    everything, few = list(CASES.values()), [CASES[name] for name in CASES if name.startswith(("model ", "describe "))]
    answers = {name: ask(folder / name, few if threads > 1 else everything, tuning, threads)
               for name, (tuning, threads) in PROCESSES.items()}  # fmt: skip
    afresh = ask(folder / "afresh", _afresh(folder / "plain"), *PROCESSES["plain"])
    return Contestant(framework, device, answers, afresh)


def _afresh(first: Path) -> list[Case]:
    """What a second process is asked: to do the same again, and to use what the one in ``first`` saved."""
    again = [made for name, made in CASES.items() if name.startswith("repeat")]
    for name in USES:
        place = str(first / f"saved {name}")
        steps: list[list[Any]] = [["load", place], ["predict", 7], ["weights"], ["pyfunc", place]]
        again.append(replace(CASES[name], steps=steps, seed=9))
    for name in RESUMED:
        steps = [["restore", str(first / f"checkpoint {name}"), 4], ["train", RATES[4:]], ["weights"]]
        # Other masks and dropout would come of another seed; the weights all come from the checkpoint.
        again.append(replace(CASES[f"resumed {name}"], steps=steps))
    return again


def _ask(
    framework: config.Framework, python: Path, folder: Path, cases: list[Case], tuning: str, threads: int,
    device: str = "cpu",
) -> Answers:  # fmt: skip
    folder.mkdir()
    settings = framework.tuning[tuning]
    arrays, asked = {}, []
    for made in cases:
        arrays.update({f"{made.name}/images": made.images, f"{made.name}/labels": made.labels})
        job = Job(
            adapter=framework.adapter,
            options=settings.options,
            layers=made.layers,
            image_shape=[*made.images.shape[2:], made.images.shape[1]],
            classes=made.classes,
            data="",
            training=made.training,
            budget=1.0,
            seed=made.seed,
            device=device,
            threads=threads,
            cores=None,
            folder="",
        )
        steps = [
            [action, f"saved {made.name}"] if action == "save" else [action, *rest] for action, *rest in made.steps
        ]
        asked.append({"name": made.name, "data": made.name, "job": asdict(job), "steps": steps})
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "request.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [python, "-I", ROOT / "tests" / "helpers" / "contract.py", folder / "request.json"],
        env=worker_process.worker_environment(threads, settings.environment),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{framework.name}, tuning={tuning}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    with np.load(folder / "answers.npz") as given:
        return Answers(json.loads((folder / "answers.json").read_text()), dict(given))


@pytest.fixture(params=["plain", "best"])
def answers(contestant: Contestant, request: pytest.FixtureRequest) -> Answers:
    return contestant.answers[request.param]


@pytest.fixture(params=PROCESSES)
def learned(contestant: Contestant, request: pytest.FixtureRequest) -> Answers:
    """With the cases that show how networks learn, which every process has done some of."""
    return contestant.answers[request.param]


def away(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, as a share of the largest value there is."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-3))


# The contract.


def test_logits_are_those_of_the_definition(learned: Answers) -> None:
    names = learned.run("model ", "layer ")
    assert names
    wrong = {name: away(learned.array(name, 1), expected_logits(name)) for name in names}
    assert {name: share for name, share in wrong.items() if not share <= 1e-4} == {}
    assert {learned.array(name, 1).dtype for name in names} == {np.dtype(np.float32)}


def test_gradients_are_those_of_the_definition(contestant: Contestant, learned: Answers) -> None:
    wrong: dict[str, Any] = {}
    for name in learned.run("model ", "layer "):
        loss, gradients = expected_gradients(name)
        if learned.array(name, 2) != pytest.approx([loss], rel=1e-4):
            wrong[f"{name}: loss"] = learned.array(name, 2), loss
        before, after = learned.weights(name, 0), learned.weights(name, 3)
        largest = max(float(np.abs(gradient).max()) for gradient in gradients.values())
        # See parity.BOUNDS: a deep network has activations at the very edge of a ReLU. A GPU's convolutions may be
        # Winograd's, which round more: 4e-4 was seen of a whole network.
        rounds_more = contestant.device == "gpu" and name.startswith("model ")
        bound = 1e-3 if name == "model mxnet_cifar10" or rounds_more else 1e-4
        for key, gradient in gradients.items():
            difference = np.abs(before[key].astype(np.float64) - after[key] - gradient).max()
            # The difference of two float32 values near 1 is exact to 1e-7.
            if not difference <= bound * largest + 2e-7:
                wrong[f"{name}: {key}"] = difference / largest
    assert wrong == {}


def test_training_starts_from_the_weights_of_the_seed(learned: Answers) -> None:
    for name in learned.run("model ", "layer "):
        found, wanted = learned.weights(name, 0), CASES[name].weights
        assert set(found) == set(wanted), name
        for key, value in wanted.items():
            assert found[key].dtype == np.float32, f"{name}: {key}"
            assert found[key].shape == value.shape, f"{name}: {key}"
            assert (found[key] == value).all(), f"{name}: {key}"


@pytest.mark.parametrize("name", MODELS)
def test_ten_steps_lose_the_same(answers: Answers, name: str) -> None:
    name = f"ten steps {name}"
    answers.need(name)
    found = np.concatenate([answers.array(name, 0), answers.array(name, 1)])
    assert found.dtype == np.float32
    assert found == pytest.approx(expected_training(name)[0], rel=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_follows_its_formula(answers: Answers, name: str) -> None:
    name = f"optimizer {name}"
    answers.need(name)
    losses, weights = expected_training(name)
    found, start = answers.weights(name, 3), CASES[name].weights
    assert np.concatenate([answers.array(name, step) for step in range(3)]) == pytest.approx(losses, rel=1e-4)
    for key, value in weights.items():
        moved = np.abs(value - start[key]).max()
        # Caffe adds Adam's 1e-8 to the second moment before correcting it: 1e-4 of the way for the smallest gradients.
        assert np.abs(found[key] - value).max() <= 2e-4 * moved + 1e-6, key
        mask = CASES[name].masks.get(key, np.ones(1))
        assert (found[key] == found[key] * mask).all(), f"{key}: an unconnected weight has moved"


@pytest.mark.parametrize("name", FOLLOWED)
def test_running_statistics_follow_their_formula_and_classify(answers: Answers, name: str) -> None:
    name = f"followed {name}"
    answers.need(name)
    made, (_, wanted) = CASES[name], expected_training(name)
    found = answers.weights(name, 2)
    assert set(found) == set(wanted) == {*made.network.parameters, *made.network.state}
    for key in wanted:
        assert found[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-5), key
    assert away(answers.array(name, 1), numpy_network.logits(made.network, wanted, made.images)) <= 1e-4


@pytest.mark.parametrize("name", RESUMED)
def test_training_goes_on_from_a_checkpoint_to_the_last_bit(contestant: Contestant, name: str) -> None:
    uninterrupted, resumed = contestant.answers["plain"], contestant.afresh
    name = f"resumed {name}"
    assert (uninterrupted.array(name, 2) == resumed.array(name, 1)).all()
    before, after = uninterrupted.weights(name, 3), resumed.weights(name, 2)
    assert before.keys() == after.keys() == CASES[name].weights.keys()
    assert [key for key in before if (before[key] != after[key]).any()] == []


def kept(answers: Answers, name: str) -> list[np.ndarray]:
    """What dropout made of ones in each of two training steps, told by the gradient of the dense layer after it."""
    weights = [answers.weights(name, step)["dense1/weights"].astype(np.float64) for step in (1, 3, 7)]
    moved = [np.abs(before - after)[:, 0] / LITTLE for before, after in itertools.pairwise(weights)]
    # The softmax of two equal logits is a half each, and so is its gradient, whichever class is right. In the second
    # step they are equal no more: what is kept is known to be 4, which tells how much they differ.
    return [2 * moved[0], 4 * moved[1] / moved[1].max()]


def test_dropout_keeps_its_share_and_the_mean(answers: Answers) -> None:
    first, second = kept(answers, "dropout 1")
    for values in (first, second):
        assert set(values.round(3)) == {0, 4}  # dropped, or scaled by 1 / keep
        assert (values > 0).mean() == pytest.approx(0.25, abs=0.04)  # 2,000 values: four standard deviations
        assert values.mean() == pytest.approx(1, abs=0.16)
    assert ((first > 0) != (second > 0)).any()  # drawn anew each step


def test_dropout_is_off_when_classifying(answers: Answers) -> None:
    assert (answers.array("dropout 1", 4) == answers.array("dropout 1", 5)).all()
    made, weights = CASES["dropout 1"], answers.weights("dropout 1", 3)
    assert away(answers.array("dropout 1", 4), numpy_network.logits(made.network, weights, made.images)) <= 1e-4


def test_another_seed_drops_others(answers: Answers) -> None:
    one, other = kept(answers, "dropout 1")[0], kept(answers, "dropout 2")[0]
    assert ((one > 0) != (other > 0)).any()


@pytest.mark.parametrize("name", ["repeat softmax", "repeat", "repeat dropout"])
def test_a_seed_repeats_to_the_last_bit(contestant: Contestant, name: str) -> None:
    once, again = contestant.answers["plain"].weights(f"{name} 1", 1), contestant.afresh.weights(f"{name} 1", 1)
    assert once
    assert all((once[key] == again[key]).all() for key in once)
    other = contestant.answers["plain"].weights(f"{name} 2", 1)
    assert all((once[key] != other[key]).any() for key in once)


@pytest.mark.parametrize("name", USES)
def test_a_saved_model_predicts_the_same_in_a_fresh_process(contestant: Contestant, name: str) -> None:
    saved, loaded = contestant.answers["plain"], contestant.afresh
    logits = saved.array(name, 3)
    assert (loaded.array(name, 1) == logits).all()
    weights = loaded.weights(name, 2)
    assert all((weights[key] == value).all() for key, value in saved.weights(name, 1).items())
    exponents = np.exp(logits.astype(np.float64))
    assert away(loaded.array(name, 3), exponents / exponents.sum(axis=1, keepdims=True)) <= 1e-5


@pytest.mark.parametrize("name", USES)
def test_the_batch_size_of_classifying_changes_nothing(answers: Answers, name: str) -> None:
    logits = answers.array(name, 3)
    assert logits.shape == (7, 4)
    assert away(answers.array(name, 4), logits) <= 1e-5
    assert away(answers.array(name, 5), logits) <= 1e-5
    before, after = answers.weights(name, 1), answers.weights(name, 6)
    assert before
    assert all((before[key] == after[key]).all() for key in before)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ["describe softmax", "describe network"])
def test_a_framework_says_what_it_was_asked_for(contestant: Contestant, process: str, name: str) -> None:
    framework, said, (tuning, threads) = contestant.framework, contestant.answers[process], PROCESSES[process]
    said.need(name)
    facts = said.plain[name]["1"]["facts"]
    assert facts["device"] == contestant.device
    assert contestant.device == "cpu" or facts["tf32"] is False
    assert facts["precision"] == "float32"
    if framework.devices[contestant.device].recipes:  # else the driver's NumPy, of any version and number of threads
        assert facts["version"].partition("+")[0] == framework.version
        assert facts["threads"] == threads
    if name == "describe network":
        options = framework.tuning[tuning].options
        assert {key: facts[key] for key in options if key in facts}.items() <= options.items()


def test_the_device_is_waited_for_at_the_end_of_training_and_of_classifying(contestant: Contestant) -> None:
    if not contestant.framework.devices["gpu"].recipes:
        pytest.skip("no GPU to wait for")
    for tuning in ("plain", "best"):
        said = contestant.answers[tuning].plain["waits"]
        assert [said[step]["facts"]["count"] for step in ("2", "4")] == [1, 2]


def test_batches_that_were_trained_on_are_let_go(answers: Answers) -> None:
    said = answers.plain["copies"]["0"]["facts"]
    assert said["made"] >= 2 * 20
    assert said["kept"] <= 2  # the last one's images and labels


def test_a_gpu_that_is_not_there_is_no_cpu(contestant: Contestant, tmp_path: Path) -> None:
    if contestant.device == "gpu" or not contestant.framework.devices["gpu"].recipes:
        pytest.skip("never on a GPU, or on one")
    python = environments.ensure(contestant.framework, "cpu").python  # whose build knows no GPU
    with pytest.raises(AssertionError, match=r"CUDA|no GPU"):
        _ask(contestant.framework, python, tmp_path / "gpu", [CASES["waits"]], "best", 1, device="gpu")


def test_a_framework_refuses_only_in_words_and_never_its_own(contestant: Contestant) -> None:
    own = [f"model {name}" for name in MODELS if name.startswith(f"{contestant.framework.name}_")]
    for answers in contestant.answers.values():
        refused = {name: said["refused"] for name, said in answers.plain.items() if "refused" in said}
        assert not refused.keys() & {"model reference_mnist", "ten steps reference_mnist", "use softmax", *own}
        for name, reason in refused.items():
            assert f"framework={contestant.framework.name} " in reason
            assert any(f"layer {layer}" in reason for layer in CASES[name].layers) or "trains by" in reason, reason


def imported(path: Path) -> set[str]:
    """First words of all that a file imports; a relative import is its package's."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= len(path.relative_to(WORKER).parts), f"{path} reaches out of worker/"
            found.add("" if node.level else str(node.module).partition(".")[0])
    return found - {""} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted(WORKER.rglob("*.py")), ids=lambda path: str(path.relative_to(WORKER)))
def test_the_worker_needs_numpy_and_its_framework_only(path: Path) -> None:
    allowed = {"numpy"}
    framework = path.stem.partition("_")[0]  # a framework's adapter may have a second file
    if path.parent.name == "frameworks" and framework in FRAMEWORKS:
        allowed.add(framework)
    if path.name == "peak.py":  # no part of a run: it measures the machine, with PyTorch where there is one
        allowed.add("torch")
    assert imported(path) <= allowed
