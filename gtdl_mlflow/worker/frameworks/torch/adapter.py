"""PyTorch: eager modules, one Python loop, the settings of ``conf/framework/torch.yaml``."""

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
    """Options: ``channels_last`` (memory format of images and filters), ``fused`` (few kernels per optimizer step)."""

    def __init__(self, setup: Setup) -> None:
        torch.manual_seed(setup.seed)
        torch.set_num_threads(setup.threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        # The same seed gives the same bits: kernels chosen by a race are others in the next run, and some add up in
        # whatever order their threads come. To do without took 15 to 20 % of a step of caffe_cifar10 on an H200, and
        # nothing that showed of the other four networks.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        self._on_gpu = setup.device == "gpu"
        self._device = torch.device("cuda" if self._on_gpu else "cpu")
        self._channels_last = setup.options["channels_last"]
        self.layout = "NHWC" if self._channels_last else "NCHW"
        self._module = TorchNetwork(setup)
        format = torch.channels_last if self._channels_last else torch.contiguous_format
        self._module.to(self._device, memory_format=format)
        self._set_weights(setup.weights)
        # Where a weight starts at 0 and has no gradient it stays 0: no need to mask it whenever it is used.
        parameters = _named(self._module.named_parameters())
        self._masked = [
            (parameters[name], torch.zeros_like(parameters[name]).copy_(torch.from_numpy(mask)))
            for name, mask in setup.masks.items()
        ]
        self._training, self._momentum = setup.training, setup.training.momentum
        self._optimizer = _optimizer(self._module, setup)
        self._last_rate = 0.0
        self._steps = 0
        self._average = None if setup.training.ema_decay is None else copy.deepcopy(self._module).requires_grad_(False)
        self._wait()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)

    def to_native(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._on_gpu:  # only what is pinned is sent while the CPU goes on
            tensor = tensor.pin_memory()
        return tensor.permute(0, 3, 1, 2) if self._channels_last and tensor.dim() == 4 else tensor

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        module, optimizer = self._module.train(), self._optimizer
        losses = []
        for rate, (images, labels) in zip(rates, batches, strict=False):
            self._set_rate(rate)
            loss = F.cross_entropy(module(self._placed(images)), self._placed(labels))
            optimizer.zero_grad()
            loss.backward()
            for weights, mask in self._masked:
                assert weights.grad is not None
                weights.grad.mul_(mask)
            optimizer.step()
            if self._average is not None:
                self._steps += 1
                self._move_average(1 - self._training.ema_decay_at(self._steps))
            losses.append(loss.detach())
        read = torch.stack(losses).cpu()  # one transfer, not one a step
        self._wait()
        return np.asarray(read)

    def predict(self, batches: Iterable[Tensor]) -> np.ndarray:
        module = self._renewed().eval()
        with torch.inference_mode():
            logits = _gathered(module(self._placed(images)) for images in batches).cpu()
        self._wait()
        return np.asarray(logits)

    def weights(self) -> Weights:
        named = {**_named(self._tested.named_parameters()), **_named(_state(self._module))}
        return {name: _canonical(tensor.detach().cpu().numpy()).copy() for name, tensor in named.items()}

    def save(self, folder: Path) -> None:
        torch.save(self._renewed().state_dict(), folder / "state_dict.pt")

    def load(self, folder: Path) -> None:
        saved = torch.load(folder / "state_dict.pt", map_location=self._device, weights_only=True)
        self._tested.load_state_dict(saved)
        if self._average is not None:
            own = dict(_state(self._module))
            self._module.load_state_dict({name: saved[name] for name in own}, strict=False)
        self._wait()

    def checkpoint(self, folder: Path) -> None:
        torch.save(self._all_state(), folder / "checkpoint.pt")

    def restore(self, folder: Path, step: int) -> None:
        saved = torch.load(folder / "checkpoint.pt", map_location=self._device, weights_only=True)
        self._module.load_state_dict(saved["module"])
        self._optimizer.load_state_dict(saved["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(saved["average"])
        self._last_rate, self._steps = saved["last_rate"], step
        torch.set_rng_state(saved["random"].cpu())
        if self._on_gpu:
            torch.cuda.set_rng_state(saved["random_of_device"].cpu())
        self._wait()

    def _all_state(self) -> dict[str, Any]:
        return {
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "last_rate": self._last_rate,
            "random": torch.get_rng_state(),
            "random_of_device": torch.cuda.get_rng_state() if self._on_gpu else None,
        }

    def metrics(self) -> dict[str, float]:
        if not self._on_gpu:
            return {}
        return {"worker/peak_gpu_memory_mb": torch.cuda.max_memory_allocated(self._device) / 1e6}

    def describe(self) -> dict[str, Any]:
        parameter = next(self._module.parameters())
        facts = {
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
            facts |= {
                "gpu": torch.cuda.get_device_name(parameter.device),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "cudnn_benchmark": torch.backends.cudnn.benchmark,
                "cudnn_deterministic": torch.backends.cudnn.deterministic,
                "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
            }
        return facts

    def _wait(self) -> None:
        """For the device, which is only told what to do if it is a GPU: before any clock is started or stopped."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)

    @property
    def _tested(self) -> TorchNetwork:
        """The module that is tested and saved."""
        return self._module if self._average is None else self._average

    def _renewed(self) -> TorchNetwork:
        """The module that is tested, with the state of the trained one: an average is of parameters only."""
        if self._average is not None:
            with torch.no_grad():
                for averaged, buffer in zip(self._average.buffers(), self._module.buffers(), strict=True):
                    averaged.copy_(buffer)
        return self._tested

    def _move_average(self, share: float) -> None:
        assert self._average is not None
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.parameters()), list(self._module.parameters()), share)

    def _is_channels_last(self) -> bool:
        filters = [tensor for tensor in self._module.parameters() if tensor.dim() == 4]
        return bool(filters) and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in filters)

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True) if self._on_gpu else tensor

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        if self._momentum:
            # torch's velocity is the classical one divided by the rate, so it must shrink as the rate does:
            # V = rate * b turns V' = momentum V + rate' g into b' = (momentum rate / rate') b + g. Set at every
            # step: at the second one of a new rate it is the plain momentum again.
            momentum = self._momentum * (self._last_rate / rate if self._last_rate else 1.0)
            for group in self._optimizer.param_groups:
                group["momentum"] = momentum
            self._last_rate = rate

    def _set_weights(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, tensor in _named([*self._module.named_parameters(), *_state(self._module)]).items():
                tensor.copy_(torch.from_numpy(_canonical(weights[name])))


def _gathered(parts: Iterable[Tensor]) -> Tensor:
    """The same as ``torch.cat(list(parts))``, each copied as it comes.

    A small tensor kept from one batch to the next can lie, by chance, where the large ones of the next would: their
    memory then comes from the kernel, page by page, batch after batch. In one run of four that took 10 to 20 % longer.
    """
    rows, count, room = torch.empty(0), 0, 0
    for part in parts:
        end = count + part.shape[0]  # len() of a tensor is Python code, which shows at batch 1
        if end > room:
            room = max(end, 2 * count)
            longer = part.new_empty(room, *part.shape[1:])
            if count:
                longer[:count] = rows[:count]
            rows = longer
        rows[count:end] = part
        count = end
    return rows[:count]


def _named(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of a module by their canonical names."""
    words = {"weight": "weights", "bias": "biases", "gamma": "gamma", "beta": "beta",
             "running_mean": "mean", "running_var": "variance"}  # fmt: skip
    found = {}
    for name, tensor in tensors:
        layer, word = name.split(".")
        found[f"{layer}/{words[word]}"] = tensor
    return found


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The running statistics among a module's buffers."""
    return [(name, tensor) for name, tensor in module.named_buffers() if ".running_" in name]


def _canonical(value: np.ndarray) -> np.ndarray:
    """Between torch's layout and the canonical one, either way: only a dense layer's (out, in) is turned."""
    return value.T if value.ndim == 2 else value


def _optimizer(module: nn.Module, setup: Setup) -> torch.optim.Optimizer:
    # A group for each pair of rate and decay that occurs: a group is a kernel of its own.
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, tensor in _named(module.named_parameters()).items():
        groups.setdefault((setup.lr_multiplier(name), setup.weight_decay(name)), []).append(tensor)
    given = [
        {"params": tensors, "rate_factor": factor, "weight_decay": decay} for (factor, decay), tensors in groups.items()
    ]
    training, fused = setup.training, setup.options["fused"]
    if training.optimizer is Optimizer.sgd:
        # Plain SGD is one addition a tensor, which a CPU does in less time than the fused kernel, to the same bits.
        kernels = {"foreach": True} if fused and not training.momentum and setup.device == "cpu" else {"fused": fused}
        return torch.optim.SGD(given, lr=training.learning_rate, momentum=training.momentum, **kernels)
    betas = (training.beta1, training.beta2)
    return torch.optim.Adam(given, lr=training.learning_rate, betas=betas, eps=training.epsilon, fused=fused)
