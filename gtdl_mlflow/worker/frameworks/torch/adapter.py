"""PyTorch adapter: eager modules, one Python loop over the steps; options in ``conf/framework/torch.yaml``."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...initialization import Weights
from ...inputs import Batch
from ...job import Optimizer
from ..base import Adapter, Setup
from .network import TorchNetwork


class Torch(Adapter):
    """Network in PyTorch.

    Options: ``channels_last`` (memory format of images and filters), ``fused`` (few kernels per optimizer step).
    """

    def __init__(self, setup: Setup) -> None:
        torch.manual_seed(setup.seed)
        torch.set_num_threads(setup.threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        # The same seed gives the same bits. Kernels that cuDNN selects by timing may differ from run to run, and some
        # kernels add in the order in which their threads finish. Determinism costs 15 to 20 % of a step of
        # caffe_cifar10 on an H200 and nothing measurable on the other four networks.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        self._on_gpu = setup.device == "gpu"
        self._device = torch.device("cuda" if self._on_gpu else "cpu")
        self._channels_last = setup.options["channels_last"]
        self.layout = "NHWC" if self._channels_last else "NCHW"
        self._module = TorchNetwork(setup.network)
        memory_format = torch.channels_last if self._channels_last else torch.contiguous_format
        self._module.to(self._device, memory_format=memory_format)
        self._set_weights(setup.weights)
        # A masked weight starts at 0 and stays 0 without a gradient, so the weights themselves need no mask.
        parameters = _by_canonical_name(self._module.named_parameters())
        self._masked = [
            (parameters[name], torch.zeros_like(parameters[name]).copy_(torch.from_numpy(mask)))
            for name, mask in setup.masks.items()
        ]
        self._training, self._momentum = setup.training, setup.training.momentum
        self._optimizer = _optimizer(self._module, setup)
        self._last_rate = 0.0
        self._steps = 0
        self._average = None if setup.training.ema_decay is None else copy.deepcopy(self._module).requires_grad_(False)
        self._synchronize()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)

    def to_native(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._on_gpu:  # only pinned memory is copied asynchronously
            tensor = tensor.pin_memory()
        return tensor.permute(0, 3, 1, 2) if self._channels_last and tensor.dim() == 4 else tensor

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        module, optimizer = self._module.train(), self._optimizer
        losses = []
        for rate, (images, labels) in zip(rates, batches, strict=False):
            self._set_learning_rate(rate)
            loss = F.cross_entropy(module(self._to_device(images)), self._to_device(labels))
            optimizer.zero_grad()
            loss.backward()
            for weights, mask in self._masked:
                assert weights.grad is not None
                weights.grad.mul_(mask)
            optimizer.step()
            if self._average is not None:
                self._steps += 1
                self._update_average(1 - self._training.ema_decay_at(self._steps))
            losses.append(loss.detach())
        values = torch.stack(losses).cpu()  # one transfer instead of one per step
        self._synchronize()
        return np.asarray(values)

    def predict(self, batches: Iterable[Tensor]) -> np.ndarray:
        module = self._inference_module().eval()
        with torch.inference_mode():
            logits = _concatenate(module(self._to_device(images)) for images in batches).cpu()
        self._synchronize()
        return np.asarray(logits)

    def weights(self) -> Weights:
        tensors = _by_canonical_name([*self._evaluated.named_parameters(), *_state(self._module)])
        return {name: _transposed(tensor.detach().cpu().numpy()).copy() for name, tensor in tensors.items()}

    def save(self, folder: Path) -> None:
        torch.save(self._inference_module().state_dict(), folder / "state_dict.pt")

    def load(self, folder: Path) -> None:
        saved = torch.load(folder / "state_dict.pt", map_location=self._device, weights_only=True)
        self._evaluated.load_state_dict(saved)
        if self._average is not None:
            self._module.load_state_dict({name: saved[name] for name, _ in _state(self._module)}, strict=False)
        self._synchronize()

    def checkpoint(self, folder: Path) -> None:
        torch.save(self._checkpoint_state(), folder / "checkpoint.pt")

    def restore(self, folder: Path, step: int) -> None:
        saved = torch.load(folder / "checkpoint.pt", map_location=self._device, weights_only=True)
        self._module.load_state_dict(saved["module"])
        self._optimizer.load_state_dict(saved["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(saved["average"])
        self._last_rate, self._steps = saved["last_rate"], step
        torch.set_rng_state(saved["random"].cpu())
        if self._on_gpu:
            torch.cuda.set_rng_state(saved["device_random"].cpu())
        self._synchronize()

    def _checkpoint_state(self) -> dict[str, Any]:
        return {
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "last_rate": self._last_rate,
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state() if self._on_gpu else None,
        }

    def metrics(self) -> dict[str, float]:
        if not self._on_gpu:
            return {}
        return {"worker/peak_gpu_memory_mb": torch.cuda.max_memory_allocated(self._device) / 1e6}

    def describe(self) -> dict[str, Any]:
        parameter = next(self._module.parameters())
        metadata = {
            "version": torch.__version__,
            "device": parameter.device.type.replace("cuda", "gpu"),
            "precision": str(parameter.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "threads_between_operations": torch.get_num_interop_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available(),
            "mkl": torch.backends.mkl.is_available(),
            "openmp": torch.backends.openmp.is_available(),
            "optimizer": type(self._optimizer).__name__,
            "optimizer_fused": bool(self._optimizer.param_groups[0]["fused"]),
            "optimizer_foreach": bool(self._optimizer.param_groups[0]["foreach"]),
            "channels_last": self._is_channels_last(),
        }
        if parameter.is_cuda:
            metadata |= {
                "gpu": torch.cuda.get_device_name(parameter.device),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "cudnn_benchmark": torch.backends.cudnn.benchmark,
                "cudnn_deterministic": torch.backends.cudnn.deterministic,
                "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
            }
        return metadata

    def _synchronize(self) -> None:
        """Wait for the GPU, which computes asynchronously; called before a clock starts or stops."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)

    @property
    def _evaluated(self) -> TorchNetwork:
        """Module whose parameters are tested and saved: the moving average if there is one."""
        return self._module if self._average is None else self._average

    def _inference_module(self) -> TorchNetwork:
        """Return the evaluated module after copying the trained module's state to it; only parameters are averaged."""
        if self._average is not None:
            with torch.no_grad():
                for target, buffer in zip(self._average.buffers(), self._module.buffers(), strict=True):
                    target.copy_(buffer)
        return self._evaluated

    def _update_average(self, share: float) -> None:
        assert self._average is not None
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.parameters()), list(self._module.parameters()), share)

    def _is_channels_last(self) -> bool:
        filters = [tensor for tensor in self._module.parameters() if tensor.dim() == 4]
        return bool(filters) and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in filters)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True) if self._on_gpu else tensor

    def _set_learning_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["lr_multiplier"]
        if self._momentum:
            # PyTorch's velocity b is the classical velocity V divided by the learning rate, so the momentum must be
            # scaled when the rate changes: V = rate * b turns V' = momentum V + rate' g into
            # b' = (momentum rate / rate') b + g. Set at every step, because it is the plain momentum again at the
            # second step of a new rate.
            momentum = self._momentum * (self._last_rate / rate if self._last_rate else 1.0)
            for group in self._optimizer.param_groups:
                group["momentum"] = momentum
            self._last_rate = rate

    def _set_weights(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, tensor in _by_canonical_name([*self._module.named_parameters(), *_state(self._module)]).items():
                tensor.copy_(torch.from_numpy(_transposed(weights[name])))


def _concatenate(parts: Iterable[Tensor]) -> Tensor:
    """Return ``torch.cat(list(parts))``, copying each part as soon as it is computed.

    A small tensor that stays allocated from one batch to the next can lie in memory that the large tensors of the next
    batch would reuse; the allocator then requests new pages from the kernel, batch after batch. In one of four runs
    that took 10 to 20 % longer.
    """
    rows, count, capacity = torch.empty(0), 0, 0
    for part in parts:
        end = count + part.shape[0]  # len() of a tensor is Python code, whose time is measurable at batch 1
        if end > capacity:
            capacity = max(end, 2 * count)
            longer = part.new_empty(capacity, *part.shape[1:])
            if count:
                longer[:count] = rows[:count]
            rows = longer
        rows[count:end] = part
        count = end
    return rows[:count]


CANONICAL_NAMES = {
    "weight": "weights",
    "bias": "biases",
    "gamma": "gamma",
    "beta": "beta",
    "running_mean": "mean",
    "running_var": "variance",
}
"""Canonical array names by the names of the modules' tensors."""


def _by_canonical_name(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a module by their canonical names ``layer/array``."""
    renamed = {}
    for name, tensor in tensors:
        layer, array = name.split(".")
        renamed[f"{layer}/{CANONICAL_NAMES[array]}"] = tensor
    return renamed


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the running statistics among a module's buffers."""
    return [(name, tensor) for name, tensor in module.named_buffers() if ".running_" in name]


def _transposed(value: np.ndarray) -> np.ndarray:
    """Convert between PyTorch's and the canonical layout, either way: only a dense layer's (out, in) differs."""
    return value.T if value.ndim == 2 else value


def _optimizer(module: nn.Module, setup: Setup) -> torch.optim.Optimizer:
    # One group per pair of learning-rate multiplier and decay: each group is updated by kernels of its own.
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, tensor in _by_canonical_name(module.named_parameters()).items():
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
