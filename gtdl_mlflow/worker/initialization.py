"""Initial weights and connection masks from a seed, in NumPy: the same ones in every framework.

``RandomState`` and not ``Generator``: the frameworks need different versions of NumPy, and only the older stream is
frozen across all of them (NEP 19).
"""

from __future__ import annotations

import math

import numpy as np

from .layers import Convolution, Initial
from .network import Network, Node

Weights = dict[str, np.ndarray]
"""Canonical float32 arrays, by ``layer/array``: all that a network needs to classify."""


def weights(network: Network, seed: int) -> Weights:
    """Starting values of every array; each trainable one has a stream of its own, so a changed layer moves no other."""
    drawn: Weights = {}
    for node in network.nodes:
        for name, shape in node.parameters.items():
            random = np.random.RandomState([seed, len(drawn)])
            drawn[f"{node.layer.name}/{name}"] = _draw(node.layer.initial(name), shape, node, random)
    for name, mask in masks(network, seed).items():
        drawn[name] *= mask
    for node in network.nodes:
        for name, shape in node.state.items():
            drawn[f"{node.layer.name}/{name}"] = np.full(shape, node.layer.initial(name).value, np.float32)
    return drawn


def masks(network: Network, seed: int) -> dict[str, np.ndarray]:
    """The 0/1 mask of each convolution that reads only some input maps, float32, shaped (out, in, 1, 1)."""
    drawn: dict[str, np.ndarray] = {}
    index = 0  # of the weights among all trainable arrays, so that a layer without any moves no mask
    for node in network.nodes:
        if isinstance(node.layer, Convolution) and node.layer.connections is not None:
            random = np.random.RandomState([seed, index, 1])
            mask = np.zeros((node.layer.filters, node.input[0], 1, 1), np.float32)
            for row in mask:
                row[random.permutation(node.input[0])[: node.layer.connections]] = 1
            drawn[f"{node.layer.name}/weights"] = mask
        index += len(node.parameters)
    return drawn


def _draw(how: Initial, shape: tuple[int, ...], node: Node, random: np.random.RandomState) -> np.ndarray:
    fan_in, fan_out = node.layer.fan_in(node.input), node.layer.fan_out(node.input) / how.pool**2
    if how.distribution == "constant":
        return np.full(shape, how.value, np.float32)
    if how.distribution.startswith("uniform"):
        limit = math.sqrt(how.gain / (fan_in if how.distribution == "uniform_fan_in" else fan_in + fan_out))
        return random.uniform(-limit, limit, shape).astype(np.float32)
    values = random.standard_normal(shape)
    if how.distribution == "truncated_normal":
        while (beyond := np.abs(values) > 2).any():
            values[beyond] = random.standard_normal(int(beyond.sum()))
    stddev = math.sqrt(how.gain / fan_in) if how.distribution == "normal_fan_in" else how.stddev
    return (stddev * values).astype(np.float32)
