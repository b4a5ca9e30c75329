"""Initial weights: their distributions, and that a seed gives the same bytes everywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gtdl_mlflow.worker import initialization
from gtdl_mlflow.worker.experiment import weights_sha256
from gtdl_mlflow.worker.network import Network, build

ZERO = {"distribution": "constant", "value": 0}


def network(weights: dict[str, Any], biases: dict[str, Any] = ZERO, units: int = 500, **convolution: Any) -> Network:
    """A convolution of fan-in 75, and two dense layers."""
    layers = {
        "conv": {"type": "convolution", "filters": 20, "kernel": 5, **convolution},
        "relu": {"type": "relu"},
        "dense": {"type": "dense", "units": units},
        "last": {"type": "dense", "units": "classes"},
    }
    given = {name: layer if name == "relu" else {**layer, "weights": weights, "biases": biases}
             for name, layer in layers.items()}  # fmt: skip
    return build(given, (3, 16, 16), 10)


def test_uniform_fills_its_bounds() -> None:
    drawn = initialization.weights(network({"distribution": "uniform_fan_in", "gain": 3}), seed=1)
    for name, fan_in in (("conv", 3 * 5 * 5), ("dense", 20 * 12 * 12), ("last", 500)):
        values, limit = drawn[f"{name}/weights"], math.sqrt(3 / fan_in)
        assert 0.98 * limit < abs(values).max() <= limit * (1 + 1e-6)
        assert values.std() == pytest.approx(limit / math.sqrt(3), rel=0.05)
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(values.size)


def test_biases_are_drawn_with_the_fan_in_of_their_layer() -> None:
    spread = {"distribution": "uniform_fan_in", "gain": 1}
    drawn = initialization.weights(network(spread, spread), seed=1)
    assert 0.9 / math.sqrt(2880) < abs(drawn["dense/biases"]).max() <= (1 + 1e-6) / math.sqrt(2880)


def test_fan_in_counts_connected_maps_only() -> None:
    made = network({"distribution": "uniform_fan_in", "gain": 1}, connections=1)
    assert 0.9 / 5 < abs(initialization.weights(made, seed=1)["conv/weights"]).max() <= (1 + 1e-6) / 5


def test_normal_has_its_deviation() -> None:
    values = initialization.weights(network({"distribution": "normal", "stddev": 0.2}), seed=1)["dense/weights"]
    assert values.std() == pytest.approx(0.2, rel=0.005)
    assert abs(values.mean()) < 4 * 0.2 / math.sqrt(values.size)
    assert abs(values).max() > 0.8  # more than 4 deviations, in 1.4 million draws
    assert (abs(values) > 0.4).mean() == pytest.approx(0.0455, rel=0.03)


def test_truncated_normal_is_redrawn_beyond_two_deviations() -> None:
    values = initialization.weights(network({"distribution": "truncated_normal", "stddev": 0.1}), seed=1)[
        "dense/weights"
    ]
    assert 0.1999 < abs(values).max() <= 0.2 * (1 + 1e-6)
    # Redrawn and not clipped: no heap of values at the border. A normal cut at 2 has a deviation of 0.8796.
    assert (abs(values) > 0.199).mean() == pytest.approx(0.00113, rel=0.1)
    assert values.std() == pytest.approx(0.08796, rel=0.005)


def test_deviation_by_fan_in() -> None:
    drawn = initialization.weights(network({"distribution": "normal_fan_in", "gain": 2}), seed=1)
    assert drawn["dense/weights"].std() == pytest.approx(math.sqrt(2 / 2880), rel=0.005)
    assert drawn["conv/weights"].std() == pytest.approx(math.sqrt(2 / 75), rel=0.05)


def test_uniform_by_both_fans() -> None:
    drawn = initialization.weights(network({"distribution": "uniform_fan_in_out", "gain": 6}), seed=1)
    for name, fans in (("conv", 75 + 20 * 25), ("dense", 2880 + 500), ("last", 500 + 10)):
        assert 0.98 * math.sqrt(6 / fans) < abs(drawn[f"{name}/weights"]).max() <= math.sqrt(6 / fans) * (1 + 1e-6)
    pooled = initialization.weights(network({"distribution": "uniform_fan_in_out", "gain": 6, "pool": 2}), seed=1)
    limit = math.sqrt(6 / (75 + 20 * 25 / 4))  # Theano's LeNet tutorial
    assert 0.98 * limit < abs(pooled["conv/weights"]).max() <= limit * (1 + 1e-6)


def test_constant_is_constant() -> None:
    drawn = initialization.weights(network({"distribution": "constant", "value": 0.1}), seed=1)
    assert all((values == (np.float32(0.1) if name.endswith("weights") else 0)).all() for name, values in drawn.items())


def test_values_are_float32_in_canonical_shapes() -> None:
    made = network({"distribution": "normal", "stddev": 1})
    drawn = initialization.weights(made, seed=1)
    assert {name: values.shape for name, values in drawn.items()} == made.parameters
    assert {values.dtype for values in drawn.values()} == {np.dtype(np.float32)}


# If one of these changes, runs of before and after do not start alike: every NumPy must give these bytes (seen with
# 1.23.5, 2.2.6 and 2.4.6).
@pytest.mark.parametrize(
    ("distribution", "sha256"),
    [
        (
            {"distribution": "uniform_fan_in", "gain": 3},
            "aab72253f448985446c4eda135e7e9a2c075ba64a6c1a4c2572c287591eb7643",
        ),
        ({"distribution": "normal", "stddev": 0.1}, "7a8ff45fdbdb1a51ddee18676c75443d32459e8dfb48790456838c1104574e9c"),
        (
            {"distribution": "truncated_normal", "stddev": 0.1},
            "7ccdea02fd5174d9516854ddecb423978fd7da7b0c8870bc2eb687ccd66024cf",
        ),
    ],
)
def test_a_seed_gives_the_same_bytes_with_every_numpy(distribution: dict[str, Any], sha256: str) -> None:
    assert weights_sha256(initialization.weights(network(distribution, connections=2), seed=1)) == sha256


def test_another_seed_gives_other_values() -> None:
    made = network({"distribution": "normal", "stddev": 0.1}, connections=2)
    one, other = initialization.weights(made, seed=1), initialization.weights(made, seed=2)
    for name in ("conv/weights", "dense/weights", "last/weights"):
        assert (one[name] != other[name]).any()
    assert (initialization.masks(made, 1)["conv/weights"] != initialization.masks(made, 2)["conv/weights"]).any()


def test_layers_do_not_repeat_each_other() -> None:
    drawn = initialization.weights(network({"distribution": "normal", "stddev": 1}), seed=1)
    assert not np.intersect1d(drawn["conv/weights"], drawn["last/weights"]).size > 5


def test_a_changed_layer_moves_no_other() -> None:
    how = {"distribution": "normal", "stddev": 0.1}
    one, other = initialization.weights(network(how), seed=1), initialization.weights(network(how, units=100), seed=1)
    assert one["dense/weights"].shape != other["dense/weights"].shape
    assert (one["conv/weights"] == other["conv/weights"]).all()
    assert (one["last/weights"][0] == other["last/weights"][0]).all()


def test_a_layer_without_weights_moves_none() -> None:
    layers: dict[str, Any] = {
        "conv": {"type": "convolution", "filters": 8, "kernel": 3, "connections": 2},
        "dense": {"type": "dense", "units": "classes"},
    }
    for layer in layers.values():
        layer.update(weights={"distribution": "normal", "stddev": 1}, biases=ZERO)
    one, other = build(layers, (3, 5, 5), 10), build({"first": {"type": "tanh"}, **layers}, (3, 5, 5), 10)
    assert weights_sha256(initialization.weights(one, 1)) == weights_sha256(initialization.weights(other, 1))


def test_masks_have_as_many_ones_as_connections() -> None:
    made = network({"distribution": "constant", "value": 1}, connections=2)
    mask = initialization.masks(made, seed=1)["conv/weights"]
    assert mask.shape == (20, 3, 1, 1)
    assert mask.dtype == np.float32
    assert set(mask.ravel()) == {0, 1}
    assert (mask.sum(axis=(1, 2, 3)) == 2).all()
    assert (mask.sum(axis=0) > 0).all()
    assert (mask != mask[0]).any()  # not the same maps for all


def test_unconnected_weights_are_zero() -> None:
    made = network({"distribution": "constant", "value": 1}, connections=2)
    weights = initialization.weights(made, seed=1)["conv/weights"]
    assert (weights == np.broadcast_to(initialization.masks(made, seed=1)["conv/weights"], weights.shape)).all()


def test_all_connected_needs_no_mask() -> None:
    assert initialization.masks(network({"distribution": "constant", "value": 1}), seed=1) == {}
