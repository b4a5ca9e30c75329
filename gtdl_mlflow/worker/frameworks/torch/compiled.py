"""Compiled execution: one graph for the whole training step, one for inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch._dynamo
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor

from ...job import Optimizer
from ..base import Setup
from .execution import Execution, Networks
from .network import by_canonical_name

Moments = list[tuple[Tensor, ...]]
"""Optimizer state of each parameter: velocity (momentum), first and second moment (Adam), or empty (plain SGD)."""


class Compiled(Execution):
    """The network and its optimizer as functions that ``torch.compile`` compiles for fixed shapes.

    Inference has one graph for batches of ``training.test_batch_size`` and one for single images. Other batches, such
    as the last of the test set, are computed eagerly.
    """

    def __init__(self, networks: Networks, setup: Setup) -> None:
        self._mode: str = setup.options["compile"]
        self._is_cuda_graph = self._mode == "reduce-overhead"
        # Discard the code of earlier models in this process, such as those of the parity check. Every call would
        # evaluate the guards of that code.
        torch.compiler.reset()
        torch._dynamo.config.trace_autograd_ops = True
        torch._inductor.config.deterministic = setup.deterministic
        self._network, self._training = networks.evaluated, setup.training
        training = setup.training
        moments = 2 if training.optimizer is Optimizer.adam else 1 if training.momentum else 0
        parameters = list(networks.trained.parameters())
        self._moments: Moments = [
            tuple(torch.zeros_like(parameter, requires_grad=False) for _ in range(moments)) for parameter in parameters
        ]
        self._device = parameters[0].device
        self._steps = 0
        self._sizes = {1, training.test_batch_size}
        if self._is_cuda_graph:  # a CUDA graph copies every other input to a fixed address
            for network in (networks.trained, networks.evaluated):
                _mark_static(*network.parameters(), *network.buffers())
            _mark_static(*networks.masks.values(), *(moment for each in self._moments for moment in each))
        step = _training_step(networks, self._moments, setup)
        self._step = torch.compile(step, fullgraph=True, dynamic=False, mode=self._mode)
        self._predict = torch.compile(networks.evaluated, fullgraph=True, dynamic=False, mode=self._mode)

    def train(self, batches: Iterable[tuple[Tensor, Tensor]], rates: list[float]) -> list[Tensor]:
        losses = []
        for scalars, (images, labels) in zip(self._step_scalars(rates).unbind(), batches, strict=False):
            self._begin()
            loss = self._step(images, labels, scalars)
            losses.append(loss.clone() if self._is_cuda_graph else loss)  # the next replay overwrites the output
        self._steps += len(rates)
        return losses

    def classify(self, images: Tensor) -> Tensor:
        network = self._predict if images.shape[0] in self._sizes else self._network
        self._begin()
        logits: Tensor = network(images)
        return logits

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self._moments}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        for tensors, saved in zip(self._moments, state["moments"], strict=True):
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        self._steps = step

    def describe(self) -> dict[str, Any]:
        return {"optimizer": self._training.optimizer.value, "compile": self._mode}

    def _begin(self) -> None:
        if self._is_cuda_graph:
            torch.compiler.cudagraph_mark_step_begin()

    def _step_scalars(self, rates: list[float]) -> Tensor:
        """Return the scalar inputs of each step, float32 (steps, 4).

        The columns are the step size, the root of Adam's bias correction of the second moment, the weight of the new
        parameters in the moving average, and 0.

        The result is a tensor, because numbers would be constants of the graph. The fourth column pads each row to 16
        bytes, the alignment that inductor requires.
        """
        training, rows = self._training, []
        for step, rate in enumerate(rates, self._steps + 1):
            share = 0.0 if training.ema_decay is None else 1 - training.ema_decay_at(step)
            if training.optimizer is Optimizer.adam:
                rows.append([rate / (1 - training.beta1**step), (1 - training.beta2**step) ** 0.5, share, 0.0])
            else:
                rows.append([rate, 1.0, share, 0.0])
        return torch.tensor(rows).to(self._device, non_blocking=True)


def _training_step(networks: Networks, moments: Moments, setup: Setup) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a function (images, labels, scalars) that does one training step in place and returns the loss."""
    training, network = setup.training, networks.trained
    named = by_canonical_name(network.named_parameters())
    parameters = list(named.values())
    masks = [networks.masks.get(parameter) for parameter in parameters]
    multipliers, decays = [list(map(of, named)) for of in (setup.lr_multiplier, setup.weight_decay)]
    average = list(networks.evaluated.parameters()) if networks.is_averaged else []

    def change(gradient: Tensor, moments: tuple[Tensor, ...], rate: Tensor, correction: Tensor) -> Tensor:
        """Update the moments and return the value to subtract from the parameter."""
        if training.optimizer is Optimizer.adam:
            mean, square = moments
            mean.lerp_(gradient, 1 - training.beta1)
            square.mul_(training.beta2).addcmul_(gradient, gradient, value=1 - training.beta2)
            return rate * mean / (square.sqrt() / correction + training.epsilon)
        if training.momentum:
            (velocity,) = moments
            return velocity.mul_(training.momentum).add_(rate * gradient)
        return rate * gradient

    def step(images: Tensor, labels: Tensor, scalars: Tensor) -> Tensor:
        rate, correction, share, _ = scalars.unbind()
        loss = F.cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for position, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                if (mask := masks[position]) is not None:
                    gradient = gradient * mask
                if decays[position]:
                    gradient = gradient + decays[position] * parameter
                parameter.sub_(change(gradient, moments[position], multipliers[position] * rate, correction))
            for averaged, parameter in zip(average, parameters, strict=bool(average)):
                averaged.lerp_(parameter, share)
        return loss.detach()

    return step


def _mark_static(*tensors: Tensor) -> None:
    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor, guard=False)
