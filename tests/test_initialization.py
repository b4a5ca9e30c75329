"""Initial weights and masks: their distributions, and the same bytes from a seed with every NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers.networks import ZERO

from gtdl_mlflow.worker import initialization
from gtdl_mlflow.worker.experiment import weights_sha256
from gtdl_mlflow.worker.network import Network, build


def network(weights: dict[str, Any], biases: dict[str, Any] = ZERO, units: int = 500, **convolution: Any) -> Network:
    """Return a network of a convolution with a fan-in of 75 and two dense layers."""
    layers: dict[str, dict[str, Any]] = {
        "conv": {"type": "convolution", "filters": 20, "kernel": 5, **convolution},
        "relu": {"type": "relu"},
        "dense": {"type": "dense", "units": units},
        "last": {"type": "dense", "units": "classes"},
    }
    for name, layer in layers.items():
        if name != "relu":
            layer.update(weights=weights, biases=biases)
    return build(layers, (3, 16, 16), 10)


def test_uniform_fills_its_bounds() -> None:
    weights = initialization.weights(network({"distribution": "uniform_fan_in", "gain": 3}), seed=1)
    for name, fan_in in (("conv", 3 * 5 * 5), ("dense", 20 * 12 * 12), ("last", 500)):
        values, limit = weights[f"{name}/weights"], math.sqrt(3 / fan_in)
        assert 0.98 * limit < abs(values).max() <= limit * (1 + 1e-6)
        assert values.std() == pytest.approx(limit / math.sqrt(3), rel=0.05)
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(values.size)


def test_biases_use_the_fan_in_of_their_layer() -> None:
    spread = {"distribution": "uniform_fan_in", "gain": 1}
    weights = initialization.weights(network(spread, spread), seed=1)
    assert 0.9 / math.sqrt(2880) < abs(weights["dense/biases"]).max() <= (1 + 1e-6) / math.sqrt(2880)


def test_fan_in_counts_only_connected_maps() -> None:
    built = network({"distribution": "uniform_fan_in", "gain": 1}, connections=1)
    assert 0.9 / 5 < abs(initialization.weights(built, seed=1)["conv/weights"]).max() <= (1 + 1e-6) / 5


def test_normal_has_its_standard_deviation() -> None:
    values = initialization.weights(network({"distribution": "normal", "stddev": 0.2}), seed=1)["dense/weights"]
    assert values.std() == pytest.approx(0.2, rel=0.005)
    assert abs(values.mean()) < 4 * 0.2 / math.sqrt(values.size)
    assert abs(values).max() > 0.8  # more than 4 deviations, in 1.4 million draws
    assert (abs(values) > 0.4).mean() == pytest.approx(0.0455, rel=0.03)


def test_truncated_normal_draws_values_beyond_two_deviations_again() -> None:
    values = initialization.weights(network({"distribution": "truncated_normal", "stddev": 0.1}), seed=1)[
        "dense/weights"
    ]
    assert 0.1999 < abs(values).max() <= 0.2 * (1 + 1e-6)
    # Drawn again and not clipped: no accumulation at the bounds. A normal cut at 2 has a deviation of 0.8796.
    assert (abs(values) > 0.199).mean() == pytest.approx(0.00113, rel=0.1)
    assert values.std() == pytest.approx(0.08796, rel=0.005)


def test_normal_fan_in_has_its_standard_deviation() -> None:
    weights = initialization.weights(network({"distribution": "normal_fan_in", "gain": 2}), seed=1)
    assert weights["dense/weights"].std() == pytest.approx(math.sqrt(2 / 2880), rel=0.005)
    assert weights["conv/weights"].std() == pytest.approx(math.sqrt(2 / 75), rel=0.05)


def test_uniform_fan_in_out_fills_its_bounds() -> None:
    weights = initialization.weights(network({"distribution": "uniform_fan_in_out", "gain": 6}), seed=1)
    for name, fans in (("conv", 75 + 20 * 25), ("dense", 2880 + 500), ("last", 500 + 10)):
        assert 0.98 * math.sqrt(6 / fans) < abs(weights[f"{name}/weights"]).max() <= math.sqrt(6 / fans) * (1 + 1e-6)
    pooled = initialization.weights(network({"distribution": "uniform_fan_in_out", "gain": 6, "pool": 2}), seed=1)
    limit = math.sqrt(6 / (75 + 20 * 25 / 4))  # Theano's LeNet tutorial
    assert 0.98 * limit < abs(pooled["conv/weights"]).max() <= limit * (1 + 1e-6)


def test_constant_is_constant() -> None:
    weights = initialization.weights(network({"distribution": "constant", "value": 0.1}), seed=1)
    assert all(
        (values == (np.float32(0.1) if name.endswith("weights") else 0)).all() for name, values in weights.items()
    )


def test_values_are_float32_in_canonical_shapes() -> None:
    built = network({"distribution": "normal", "stddev": 1})
    weights = initialization.weights(built, seed=1)
    assert {name: values.shape for name, values in weights.items()} == built.parameters
    assert {values.dtype for values in weights.values()} == {np.dtype(np.float32)}


# A change of these values makes earlier and later runs incomparable. Every NumPy must give them (checked with 1.23.5,
# 2.2.6 and 2.4.6). The second digest of each is with a mask.
@pytest.mark.parametrize(
    ("distribution", "dense", "masked"),
    [
        (
            {"distribution": "uniform_fan_in", "gain": 3},
            "e6410076700f4cd60fa4c6911b9cc17e94bcf550db7e7fe4bb8cc01a1dd46bcb",
            "42c43bc08216ac141c0a65eee9b447b958d8837d8096220a00584c80c3f42a6c",
        ),
        (
            {"distribution": "normal", "stddev": 0.1},
            "883adf9fec551b080c525fe77d359a842b02d90f81d1bc86773dc2fd06716141",
            "81bf78d11671fd19e98b9b24afde91891529e9906346c2ec9204fe9a14d9eddf",
        ),
        (
            {"distribution": "truncated_normal", "stddev": 0.1},
            "f13b67f6ceed681440714a39ecd4de4e1c9c1717616f1b3e7e495a104bcb0f41",
            "da3809df6c465b4533fb797564ee64464f89f2a76266b50aa761cc328ccf3cd7",
        ),
    ],
)
def test_weights_of_a_seed_never_change(distribution: dict[str, Any], dense: str, masked: str) -> None:
    assert weights_sha256(initialization.weights(network(distribution), seed=1)) == dense
    assert weights_sha256(initialization.weights(network(distribution, connections=2), seed=1)) == masked


def test_values_depend_on_the_seed() -> None:
    built = network({"distribution": "normal", "stddev": 0.1}, connections=2)
    one, other = initialization.weights(built, seed=1), initialization.weights(built, seed=2)
    for name in ("conv/weights", "dense/weights", "last/weights"):
        assert (one[name] != other[name]).any()
    assert (initialization.masks(built, 1)["conv/weights"] != initialization.masks(built, 2)["conv/weights"]).any()


def test_layers_have_different_values() -> None:
    weights = initialization.weights(network({"distribution": "normal", "stddev": 1}), seed=1)
    assert not np.intersect1d(weights["conv/weights"], weights["last/weights"]).size > 5


def test_change_of_a_layer_leaves_the_others() -> None:
    how = {"distribution": "normal", "stddev": 0.1}
    one, other = initialization.weights(network(how), seed=1), initialization.weights(network(how, units=100), seed=1)
    assert one["dense/weights"].shape != other["dense/weights"].shape
    assert (one["conv/weights"] == other["conv/weights"]).all()
    assert (one["last/weights"][0] == other["last/weights"][0]).all()


def test_layer_without_weights_changes_no_values() -> None:
    layers: dict[str, Any] = {
        "conv": {"type": "convolution", "filters": 8, "kernel": 3, "connections": 2},
        "dense": {"type": "dense", "units": "classes"},
    }
    for layer in layers.values():
        layer.update(weights={"distribution": "normal", "stddev": 1}, biases=ZERO)
    one, other = build(layers, (3, 5, 5), 10), build({"first": {"type": "tanh"}, **layers}, (3, 5, 5), 10)
    assert weights_sha256(initialization.weights(one, 1)) == weights_sha256(initialization.weights(other, 1))


def test_masks_have_as_many_ones_as_connections() -> None:
    built = network({"distribution": "constant", "value": 1}, connections=2)
    mask = initialization.masks(built, seed=1)["conv/weights"]
    assert mask.shape == (20, 3, 1, 1)
    assert mask.dtype == np.float32
    assert set(mask.ravel()) == {0, 1}
    assert (mask.sum(axis=(1, 2, 3)) == 2).all()
    assert (mask.sum(axis=0) > 0).all()
    assert (mask != mask[0]).any()  # not the same maps for all


def test_weights_without_connection_are_zero() -> None:
    built = network({"distribution": "constant", "value": 1}, connections=2)
    weights = initialization.weights(built, seed=1)["conv/weights"]
    assert (weights == np.broadcast_to(initialization.masks(built, seed=1)["conv/weights"], weights.shape)).all()


def test_convolution_with_all_connections_has_no_mask() -> None:
    assert initialization.masks(network({"distribution": "constant", "value": 1}), seed=1) == {}
