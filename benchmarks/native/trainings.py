"""Hyper-parameters of the default networks, for the hand-written loops."""

from __future__ import annotations

from typing import NamedTuple


class Optimizer(NamedTuple):
    """Hyper-parameters of SGD, or of Adam."""

    rate: float
    momentum: float = 0.0
    decay: float = 0.0
    biases: float = 1.0
    """Multiple of the learning rate for biases."""
    gamma: float = 0.0
    power: float = 1.0
    adam: bool = False


TRAININGS = {
    "tensorflow_mnist": (Optimizer(1e-4, adam=True), 50),
    "caffe_mnist": (Optimizer(0.01, 0.9, 5e-4, 2, gamma=1e-4, power=0.75), 64),
    "torch_mnist": (Optimizer(0.05, gamma=5e-7), 10),
    "caffe_cifar10": (Optimizer(0.001, 0.9, 0.004, 2), 100),
    "torch_cifar10": (Optimizer(0.001, gamma=5e-7), 1),
}
"""Optimizer and batch size of each network."""
