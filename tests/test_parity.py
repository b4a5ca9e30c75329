"""The parity check passes for a framework that computes the network, and fails for any other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import mlflow
import numpy as np
import pytest
from helpers.networks import TANH, convolution, dense, maximum, numbered
from helpers.project import Command
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from gtdl_mlflow.config import CONF, choices
from gtdl_mlflow.sweeps.hydra_callbacks import check_lines
from gtdl_mlflow.worker import numpy_network, parity
from gtdl_mlflow.worker.frameworks.base import Adapter, Setup
from gtdl_mlflow.worker.frameworks.reference.adapter import Reference
from gtdl_mlflow.worker.job import BatchOrder, Job, Optimizer, Precision, Training

LAYERS = numbered(convolution(4, 3), TANH, maximum(2, 2), {"type": "dropout", "keep": 0.5}, dense())


def job(layers: dict[str, dict[str, Any]]) -> Job:
    training = Training(
        name="other",
        preprocessing={"pad": {"pixels": 1}},
        order=BatchOrder.shuffled,
        batch_size=64,
        test_batch_size=64,
        epochs=1,
        optimizer=Optimizer.adam,
        learning_rate=3,
    )
    return Job(
        adapter="",
        options={},
        layers=layers,
        image_shape=[6, 5, 2],
        classes=3,
        data="",
        training=training,
        budget=1.0,
        seed=1,
        device="cpu",
        threads=1,
        cores=None,
        folder="",
    )


class Exact(Adapter):
    """The NumPy network with float32 weights. Subclasses add an error."""

    rate_error, bias_error = 1.0, 0.0

    def __init__(self, setup: Setup) -> None:
        self._setup, self._weights = setup, setup.weights

    def train(self, batches: Iterable[Any], rates: list[float]) -> np.ndarray:
        taken = [batch for _, batch in zip(rates, batches, strict=False)]
        rates = [rate * self.rate_error for rate in rates]
        losses, weights = numpy_network.train(
            self._setup.network, self._weights, taken, rates, self._setup.training, self._setup.masks
        )
        self._weights = {name: value.astype(np.float32) for name, value in weights.items()}
        return np.array(losses, np.float32)

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        parts = [numpy_network.logits(self._setup.network, self._weights, images) for images in batches]
        return np.concatenate(parts).astype(np.float32) + np.float32(self.bias_error)

    def weights(self) -> dict[str, np.ndarray]:
        return dict(self._weights)

    def save(self, folder: Any) -> None:
        raise NotImplementedError

    def load(self, folder: Any) -> None:
        raise NotImplementedError

    def checkpoint(self, folder: Any) -> None:
        raise NotImplementedError

    def restore(self, folder: Any, step: int) -> None:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {}


class TooFast(Exact):
    rate_error = 1.01


class Biased(Exact):
    bias_error = 0.01


def test_correct_framework_passes() -> None:
    for layers, adapter in ((LAYERS, Exact), ({"dense": dense()}, Reference)):
        differences = parity.check(job(layers), adapter)
        assert list(differences) == list(parity.METRICS)
        parity.require(differences, Precision.float32)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [(TooFast, "parity/gradient_difference=0.0099 .at most 0.001."), (Biased, "parity/logits_difference=0.00")],
)
def test_framework_with_an_error_fails(adapter: type[Adapter], message: str) -> None:
    with pytest.raises(parity.ParityBroken, match=message):
        parity.require(parity.check(job(LAYERS), adapter), Precision.float32)


def test_nan_difference_fails() -> None:
    with pytest.raises(parity.ParityBroken, match="loss_difference=nan"):
        parity.require({**dict.fromkeys(parity.METRICS, 0.0), "parity/loss_difference": math.nan}, Precision.float32)


@pytest.mark.slow
def test_parity_experiment_records_and_prints_the_differences(gtdl: Command, store: str) -> None:
    done = gtdl("experiment=parity", "framework=reference", "setting=reference_mnist")
    assert done.returncode == 0, done.stderr
    assert "parity: largest relative differences from float64: logits " in done.stdout
    runs: Any = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    (run,) = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert run.info.status == "FINISHED"
    parity.require({name: run.data.metrics[name] for name in parity.METRICS}, Precision.float32)


@pytest.mark.slow
def test_parity_experiment_covers_every_framework_and_every_default_setting(gtdl: Command, store: str) -> None:
    done = gtdl("experiment=parity", "--cfg", "hydra")
    assert done.returncode == 0, done.stderr
    composed = OmegaConf.create(done.stdout)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        lines = check_lines([f"{key}={value}" for key, value in composed.hydra.sweeper.params.items()])
    reference = {"reference", "reference_mnist", "reference_cifar10"}
    for group in ("framework", "setting"):
        names = {word.removeprefix(f"{group}=") for words in lines for word in words if word.startswith(f"{group}=")}
        assert names == set(choices(group)) - reference
