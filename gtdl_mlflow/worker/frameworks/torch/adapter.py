"""PyTorch adapter: the same modules, run eagerly or compiled; options in ``conf/framework/torch.yaml``."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...initialization import Weights
from ...inputs import Batch
from ...job import Precision
from ..base import Adapter, Setup
from .compiled import Compiled
from .eager import Eager
from .execution import Execution, Networks
from .network import TorchNetwork, by_canonical_name


class Torch(Adapter):
    """Network in PyTorch.

    Options: ``channels_last`` (memory format of images and filters), ``fused`` (few kernels per step of an eager
    optimizer), ``compile`` (mode of ``torch.compile`` for the whole training step; None: eager).
    """

    def __init__(self, setup: Setup) -> None:
        configure(setup)
        self._on_gpu = setup.device == "gpu"
        self._device = torch.device("cuda" if self._on_gpu else "cpu")
        self._channels_last = setup.options["channels_last"]
        self.layout = "NHWC" if self._channels_last else "NCHW"
        self._setup = setup
        self._module = TorchNetwork(setup.network, bfloat16=setup.precision is Precision.bfloat16)
        memory_format = torch.channels_last if self._channels_last else torch.contiguous_format
        self._module.to(self._device, memory_format=memory_format)
        self._set_weights(setup.weights)
        is_averaged = setup.training.ema_decay is not None
        self._evaluated = _copy(self._module, shares_parameters=not is_averaged).eval()
        # A masked weight starts at 0 and stays 0 without a gradient, so the weights themselves need no mask.
        parameters = by_canonical_name(self._module.named_parameters())
        masks = {
            parameters[name]: torch.zeros_like(parameters[name]).copy_(torch.from_numpy(mask)).detach()
            for name, mask in setup.masks.items()
        }
        networks = Networks(self._module, self._evaluated, is_averaged, masks)
        self._compiles = setup.options["compile"] is not None
        self._execution: Execution = Compiled(networks, setup) if self._compiles else Eager(networks, setup)
        self._synchronize()
        self._reset_peak_memory()

    def to_native(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._on_gpu:  # only pinned memory is copied asynchronously
            tensor = tensor.pin_memory()
        return tensor.permute(0, 3, 1, 2) if self._channels_last and tensor.dim() == 4 else tensor

    def compile(self) -> None:
        if not self._compiles:
            return
        before = copy.deepcopy(self._checkpoint_state())
        training = self._setup.training
        batch = self._blank_images(training.batch_size), self._blank_labels(training.batch_size)
        runs = 3 if self._on_gpu else 1  # the second run records a CUDA graph, the third is the first to replay it
        self.train([batch] * runs, [0.0] * runs)
        self.predict([self._blank_images(training.test_batch_size)] * runs)
        self._load_checkpoint_state(before, 0)
        self._reset_peak_memory()

    def train(self, batches: Iterable[Batch], rates: list[float]) -> np.ndarray:
        on_device = ((self._to_device(images), self._to_device(labels)) for images, labels in batches)
        values = torch.stack(self._execution.train(on_device, rates)).cpu()  # one transfer instead of one per step
        self._synchronize()
        return np.asarray(values)

    def predict(self, batches: Iterable[Tensor]) -> np.ndarray:
        with torch.inference_mode():
            logits = _concatenate(self._execution.classify(self._to_device(images)) for images in batches).cpu()
        self._synchronize()
        return np.asarray(logits)

    def weights(self) -> Weights:
        tensors = by_canonical_name([*self._evaluated.named_parameters(), *_state(self._module)])
        return {name: _transposed(tensor.detach().cpu().numpy()).copy() for name, tensor in tensors.items()}

    def save(self, folder: Path) -> None:
        torch.save(self._evaluated.state_dict(), folder / "state_dict.pt")

    def load(self, folder: Path) -> None:
        saved = torch.load(folder / "state_dict.pt", map_location=self._device, weights_only=True)
        self._evaluated.load_state_dict(saved)
        self._synchronize()

    def checkpoint(self, folder: Path) -> None:
        torch.save(self._checkpoint_state(), folder / "checkpoint.pt")

    def restore(self, folder: Path, step: int) -> None:
        saved = torch.load(folder / "checkpoint.pt", map_location=self._device, weights_only=True)
        self._load_checkpoint_state(saved, step)

    def _checkpoint_state(self) -> dict[str, Any]:
        return {
            "module": self._module.state_dict(),
            "evaluated": self._evaluated.state_dict(),
            "execution": self._execution.state_dict(),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state() if self._on_gpu else None,
        }

    def _load_checkpoint_state(self, saved: dict[str, Any], step: int) -> None:
        self._module.load_state_dict(saved["module"])
        self._evaluated.load_state_dict(saved["evaluated"])
        self._execution.load_state_dict(saved["execution"], step)
        torch.set_rng_state(saved["random"].cpu())
        if self._on_gpu:
            torch.cuda.set_rng_state(saved["device_random"].cpu())
        self._synchronize()

    def metrics(self) -> dict[str, float]:
        if not self._on_gpu:
            return {}
        return {"worker/peak_gpu_memory_mb": torch.cuda.max_memory_allocated(self._device) / 1e6}

    def describe(self) -> dict[str, Any]:
        return {
            "version": torch.__version__,
            "precision": self._precision(),
            **describe_build(next(self._module.parameters())),
            **self._execution.describe(),
            "channels_last": self._is_channels_last(),
        }

    def _synchronize(self) -> None:
        """Wait for the GPU, which computes asynchronously; called before a time measurement starts or ends."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)

    def _reset_peak_memory(self) -> None:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)

    def _is_channels_last(self) -> bool:
        filters = [tensor for tensor in self._module.parameters() if tensor.dim() == 4]
        return bool(filters) and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in filters)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True) if self._on_gpu else tensor

    def _precision(self) -> str:
        if self._module.bfloat16:
            return Precision.bfloat16.value
        if self._on_gpu and torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32:
            return Precision.tf32.value
        return str(next(self._module.parameters()).dtype).removeprefix("torch.")

    def _blank_images(self, count: int) -> Tensor:
        channels, height, width = self._setup.network.nodes[0].input
        shape = (height, width, channels) if self._channels_last else (channels, height, width)
        return self.to_native(np.zeros((count, *shape), np.float32))

    def _blank_labels(self, count: int) -> Tensor:
        return self.to_native(np.zeros(count, self.label_type))

    def _set_weights(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, tensor in by_canonical_name([*self._module.named_parameters(), *_state(self._module)]).items():
                tensor.copy_(torch.from_numpy(_transposed(weights[name])))


def configure(setup: Setup) -> None:
    """Set seed, threads, precision and determinism of the process."""
    torch.manual_seed(setup.seed)
    torch.set_num_threads(setup.threads)
    tf32 = setup.precision is Precision.tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    # Kernels that cuDNN selects by timing may differ from run to run, and some kernels add in the order in which their
    # threads finish. Determinism costs 15 to 20 % of an eager step of caffe_cifar10 on an H200 and nothing measurable
    # on the other four networks.
    torch.backends.cudnn.benchmark = not setup.deterministic
    torch.backends.cudnn.deterministic = setup.deterministic


def describe_build(parameter: Tensor) -> dict[str, Any]:
    """Return metadata of the parameter's device, the number of threads and the build."""
    metadata = {
        "device": parameter.device.type.replace("cuda", "gpu"),
        "threads": torch.get_num_threads(),
        "threads_between_operations": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
        "mkl": torch.backends.mkl.is_available(),
        "openmp": torch.backends.openmp.is_available(),
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


def _concatenate(parts: Iterable[Tensor]) -> Tensor:
    """Return ``torch.cat(list(parts))``, copying each part as soon as it is computed.

    A small tensor that stays allocated between batches can occupy memory that large tensors of the next batch would
    reuse. The allocator then requests new pages from the operating system for each batch. One of four runs took 10 to
    20 % longer.
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


def _copy(module: TorchNetwork, shares_parameters: bool) -> TorchNetwork:
    """Return a copy that shares the buffers, such as running means, and optionally the parameters."""
    shared = [*module.buffers(), *(module.parameters() if shares_parameters else ())]
    result = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
    return result if shares_parameters else result.requires_grad_(False)


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the running statistics among a module's buffers."""
    return [(name, tensor) for name, tensor in module.named_buffers() if ".running_" in name]


def _transposed(value: np.ndarray) -> np.ndarray:
    """Convert between PyTorch's and the canonical layout, in either direction: transpose dense weights."""
    return value.T if value.ndim == 2 else value
