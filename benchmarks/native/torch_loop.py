"""Hand-written PyTorch loops of default networks, as an expert would write them: the baseline of native_speed.py.

They do not use gtdl_mlflow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn

Run = Callable[[int], None]

SCHEDULES = {"torch_mnist": (5e-7, 1.0), "torch_cifar10": (5e-7, 1.0), "caffe_mnist": (1e-4, 0.75)}
"""Gamma and power of learning rates that fall with every step: rate (1 + gamma step)^-power."""


def tensorflow_mnist() -> tuple[nn.Module, torch.optim.Optimizer, int]:
    net = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 1024), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1024, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    return net, torch.optim.Adam(net.parameters(), lr=1e-4, fused=True), 50


def caffe_mnist() -> tuple[nn.Module, torch.optim.Optimizer, int]:
    net = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    weights = [p for n, p in net.named_parameters() if n.endswith("weight")]
    biases = [p for n, p in net.named_parameters() if n.endswith("bias")]
    groups = [{"params": weights, "lr": 0.01}, {"params": biases, "lr": 0.02}]
    return net, torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4, fused=True), 64


def torch_mnist() -> tuple[nn.Module, torch.optim.Optimizer, int]:
    net = nn.Sequential(
        nn.Conv2d(1, 32, 5), nn.Tanh(), nn.MaxPool2d(3, 3, 1), nn.Conv2d(32, 64, 5), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(576, 200), nn.Tanh(), nn.Linear(200, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    return net, torch.optim.SGD(net.parameters(), lr=0.05, foreach=True), 10


def torch_cifar10() -> tuple[nn.Module, torch.optim.Optimizer, int]:
    net = nn.Sequential(
        Connected(3, 16, 5, 1), nn.Tanh(), nn.MaxPool2d(2), Connected(16, 256, 5, 4), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(6400, 128), nn.Tanh(), nn.Linear(128, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    # Without momentum one kernel per tensor and step suffices, which takes 0.6 of the time of the fused one.
    return net, torch.optim.SGD(net.parameters(), lr=0.001, foreach=True), 1


class Connected(nn.Conv2d):
    """A convolution whose output maps read ``maps`` input maps each; the other weights are 0 and get no gradient."""

    def __init__(self, inputs: int, filters: int, kernel: int, maps: int) -> None:
        super().__init__(inputs, filters, kernel)
        mask = torch.zeros_like(self.weight)
        for row in mask:
            row[torch.randperm(inputs)[:maps]] = 1
        self.register_buffer("mask", mask)
        with torch.no_grad():
            self.weight.mul_(mask)


def caffe_cifar10() -> tuple[nn.Module, torch.optim.Optimizer, int]:
    average = partial(nn.AvgPool2d, 3, 2, ceil_mode=True, count_include_pad=False)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(inplace=True), average(),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(inplace=True), average(),
        nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    for layer, deviation in zip((net[0], net[3], net[6], net[10], net[11]), (1e-4, 0.01, 0.01, 0.1, 0.1), strict=True):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    weights = [p for n, p in net.named_parameters() if n.endswith("weight")]
    biases = [p for n, p in net.named_parameters() if n.endswith("bias")]
    groups = [{"params": weights, "lr": 0.001}, {"params": biases, "lr": 0.002}]
    return net, torch.optim.SGD(groups, momentum=0.9, weight_decay=0.004, fused=True), 100


MODES = ("eager", "eager_tuned", "compiled")

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def compiled_step(net: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[torch.Tensor, torch.Tensor]) -> Step:
    """Return a training step (images, labels, decay of the learning rate and step number) as one compiled graph."""
    torch._dynamo.config.trace_autograd_ops = True
    groups = optimizer.param_groups
    states = {p: [torch.zeros_like(p.detach()) for _ in range(2)] for group in groups for p in group["params"]}

    def step(images: torch.Tensor, labels: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        decay, number = scalars.unbind()
        loss = F.cross_entropy(net(images), labels)
        gradients = iter(torch.autograd.grad(loss, list(states)))
        with torch.no_grad():
            for group in groups:
                for p in group["params"]:
                    first, second = states[p]
                    gradient = next(gradients)
                    if p in masks:
                        gradient = gradient * masks[p]
                    if isinstance(optimizer, torch.optim.Adam):
                        first.lerp_(gradient, 0.1)
                        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                        root = (second / (1 - 0.999**number)).sqrt() + 1e-8
                        p.sub_(group["lr"] / (1 - 0.9**number) * first / root)
                        continue
                    if group["weight_decay"]:
                        gradient = gradient + group["weight_decay"] * p
                    if group["momentum"]:
                        gradient = first.mul_(group["momentum"]).add_(gradient)
                    p.sub_(group["lr"] * decay * gradient)
        return loss.detach()

    return torch.compile(step, fullgraph=True, dynamic=False)


def loop(
    name: str, folder: Path, threads: int, test_batch: int, device: str = "cpu", mode: str = "eager_tuned"
) -> tuple[Run, Run, int]:
    """Return the training and testing of a network, and its batch size.

    The first does a number of further steps, the second classifies a number of images. ``eager`` has PyTorch's own
    memory layout and optimizers that are not fused.

    On a GPU the images stay in pinned memory of the host, as those of a larger data set would.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net, optimizer, batch = globals()[name]()
    if mode == "eager":
        for p in net.parameters():  # a clone, because PyTorch takes filters of one map for both layouts
            p.data = p.data.clone(memory_format=torch.contiguous_format)
        for group in optimizer.param_groups:
            group["fused"] = group["foreach"] = False
    on_gpu = device == "gpu"
    target = torch.device("cuda" if on_gpu else "cpu")
    net.to(target)  # the optimizer keeps its parameters
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if on_gpu else tensor

    def to_device(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(target, non_blocking=True) if on_gpu else tensor

    def images(part: str) -> torch.Tensor:
        tensor = torch.from_numpy(np.load(folder / f"{part}_preprocessed.npy")).permute(0, 3, 1, 2)  # channels last
        return pinned(tensor.clone(memory_format=torch.contiguous_format) if mode == "eager" else tensor)

    x, y = images("train"), pinned(torch.from_numpy(np.load(folder / "train_labels.npy").astype(np.int64)))
    x_test = images("test")
    groups = [(group, group["lr"]) for group in optimizer.param_groups] if name in SCHEDULES else []
    gamma, power = SCHEDULES.get(name, (0.0, 0.0))
    masked = [(layer.weight, layer.mask) for layer in net if isinstance(layer, Connected)]

    numbers = itertools.count()
    evaluated = torch.compile(net, fullgraph=True, dynamic=False) if mode == "compiled" else net
    whole_step = compiled_step(net, optimizer, dict(masked))

    def train_compiled(count: int) -> None:
        net.train()
        steps = list(itertools.islice(numbers, count))
        scalars = torch.tensor([[(1 + gamma * step) ** -power, step + 1.0] for step in steps]).to(target)
        for step, row in zip(steps, scalars.unbind(), strict=True):
            start = (step * batch) % (len(x) - batch)
            whole_step(to_device(x[start : start + batch]), to_device(y[start : start + batch]), row)
        wait()

    def train(count: int) -> None:
        net.train()
        steps = [(step, (step * batch) % (len(x) - batch)) for step in itertools.islice(numbers, count)]
        for step, start in steps:
            loss = F.cross_entropy(net(to_device(x[start : start + batch])), to_device(y[start : start + batch]))
            optimizer.zero_grad()
            loss.backward()
            for weight, mask in masked:
                weight.grad.mul_(mask)
            for group, rate in groups:
                group["lr"] = rate * (1 + gamma * step) ** -power
            optimizer.step()
        wait()

    def test(count: int) -> None:
        net.eval()
        with torch.inference_mode():
            # One tensor for all logits: a list of small ones would fragment the free memory.
            logits = torch.empty(count, 10, device=target)
            for start in range(0, count, test_batch):
                logits[start : start + test_batch] = evaluated(to_device(x_test[start : start + test_batch]))
            logits.cpu()

    return train_compiled if mode == "compiled" else train, test, batch
