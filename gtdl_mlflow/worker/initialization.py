"""Initial weights and connection masks from a seed, in NumPy: the same ones in every framework."""

from __future__ import annotations

import math

import numpy as np

from .layers import Convolution, Initializer
from .network import Network, Node
from .random_streams import Use, stream

Weights = dict[str, np.ndarray]
"""Parameters and state of a network: canonical float32 arrays by ``layer/array``."""


def weights(network: Network, seed: int) -> Weights:
    """Return the initial value of every array.

    Each trainable array has a separate random stream, so a change of one layer does not change the random numbers of
    the others.
    """
    arrays: Weights = {}
    for node in network.nodes:
        for name, shape in node.parameters.items():
            random = stream(Use.WEIGHTS, seed, len(arrays))
            arrays[f"{node.layer.name}/{name}"] = _sample(node.layer.initializer(name), shape, node, random)
    for name, mask in masks(network, seed).items():
        arrays[name] *= mask
    for node in network.nodes:
        for name, shape in node.state.items():
            arrays[f"{node.layer.name}/{name}"] = np.full(shape, node.layer.initializer(name).value, np.float32)
    return arrays


def masks(network: Network, seed: int) -> dict[str, np.ndarray]:
    """Return the 0/1 mask (out, in, 1, 1), float32, of each convolution that reads only some input maps."""
    arrays: dict[str, np.ndarray] = {}
    index = 0  # of the weights among all trainable arrays: layers without parameters do not change masks
    for node in network.nodes:
        if isinstance(node.layer, Convolution) and node.layer.connections is not None:
            random = stream(Use.MASKS, seed, index)
            mask = np.zeros((node.layer.filters, node.input[0], 1, 1), np.float32)
            for row in mask:
                row[random.permutation(node.input[0])[: node.layer.connections]] = 1
            arrays[f"{node.layer.name}/weights"] = mask
        index += len(node.parameters)
    return arrays


def _sample(initializer: Initializer, shape: tuple[int, ...], node: Node, random: np.random.RandomState) -> np.ndarray:
    distribution, gain = initializer.distribution, initializer.gain
    fan_in, fan_out = node.layer.fan_in(node.input), node.layer.fan_out(node.input) / initializer.pool**2
    if distribution == "constant":
        return np.full(shape, initializer.value, np.float32)
    if distribution.startswith("uniform"):
        limit = math.sqrt(gain / (fan_in if distribution == "uniform_fan_in" else fan_in + fan_out))
        return random.uniform(-limit, limit, shape).astype(np.float32)
    values = random.standard_normal(shape)
    if distribution == "truncated_normal":
        while (beyond := np.abs(values) > 2).any():
            values[beyond] = random.standard_normal(int(beyond.sum()))
    stddev = math.sqrt(gain / fan_in) if distribution == "normal_fan_in" else initializer.stddev
    return (stddev * values).astype(np.float32)
