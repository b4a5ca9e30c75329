"""Eager execution: Python calls one operator after another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...job import Optimizer
from ..base import Setup
from .execution import Execution, Networks
from .network import by_canonical_name


class Eager(Execution):
    """Modules called one by one, and an optimizer of ``torch.optim``."""

    def __init__(self, networks: Networks, setup: Setup) -> None:
        self._networks, self._training, self._momentum = networks, setup.training, setup.training.momentum
        self._optimizer = _optimizer(networks.trained, setup)
        self._last_rate = 0.0
        self._steps = 0

    def train(self, batches: Iterable[tuple[Tensor, Tensor]], rates: list[float]) -> list[Tensor]:
        network, optimizer = self._networks.trained, self._optimizer
        losses = []
        for rate, (images, labels) in zip(rates, batches, strict=False):
            self._set_learning_rate(rate)
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            for weights, mask in self._networks.masks.items():
                assert weights.grad is not None
                weights.grad.mul_(mask)
            optimizer.step()
            if self._networks.is_averaged:
                self._steps += 1
                self._update_average(1 - self._training.ema_decay_at(self._steps))
            losses.append(loss.detach())
        return losses

    def classify(self, images: Tensor) -> Tensor:
        logits: Tensor = self._networks.evaluated(images)
        return logits

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict(), "last_rate": self._last_rate}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        self._last_rate, self._steps = state["last_rate"], step

    def describe(self) -> dict[str, Any]:
        return {
            "optimizer": type(self._optimizer).__name__,
            "optimizer_fused": bool(self._optimizer.param_groups[0]["fused"]),
            "optimizer_foreach": bool(self._optimizer.param_groups[0]["foreach"]),
        }

    def _update_average(self, share: float) -> None:
        with torch.no_grad():
            networks = self._networks
            torch._foreach_lerp_(list(networks.evaluated.parameters()), list(networks.trained.parameters()), share)

    def _set_learning_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["lr_multiplier"]
        if self._momentum:
            # PyTorch's velocity b is the classical velocity V divided by the learning rate, so the momentum must be
            # scaled when the rate changes: V = rate * b turns V' = momentum V + rate' g into
            # b' = (momentum rate / rate') b + g. It is set at every step, because the second step at a new rate uses
            # the plain momentum again.
            momentum = self._momentum * (self._last_rate / rate if self._last_rate else 1.0)
            for group in self._optimizer.param_groups:
                group["momentum"] = momentum
            self._last_rate = rate


def _optimizer(module: nn.Module, setup: Setup) -> torch.optim.Optimizer:
    # One group per pair of learning-rate multiplier and decay: separate kernels update each group.
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, tensor in by_canonical_name(module.named_parameters()).items():
        groups.setdefault((setup.lr_multiplier(name), setup.weight_decay(name)), []).append(tensor)
    parameters = [
        {"params": tensors, "lr_multiplier": multiplier, "weight_decay": decay}
        for (multiplier, decay), tensors in groups.items()
    ]
    training, fused = setup.training, setup.options["fused"]
    if training.optimizer is Optimizer.sgd:
        # Plain SGD is one addition per tensor: on a CPU foreach is faster than the fused kernel, with the same bits.
        kernels = {"foreach": True} if fused and not training.momentum and setup.device == "cpu" else {"fused": fused}
        return torch.optim.SGD(parameters, lr=training.learning_rate, momentum=training.momentum, **kernels)
    betas = (training.beta1, training.beta2)
    return torch.optim.Adam(parameters, lr=training.learning_rate, betas=betas, eps=training.epsilon, fused=fused)
