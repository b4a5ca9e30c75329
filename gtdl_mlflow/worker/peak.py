"""``python -I peak.py DEVICE THREADS``: measure the machine's peak compute and memory rates, and print them as JSON.

The kernels run in float32. PyTorch is used if this interpreter has it (a matrix product of its BLAS, a convolution of
oneDNN or cuDNN, a copy), otherwise NumPy (a matrix product, a copy). Each rate is the best of many repeats, because any
disturbance makes a machine slower. The output is one line: ``library``, ``gflops`` of each kernel, and ``gb_per_s`` of
a copy of an array that is larger than the caches. ``gb_per_s`` is the sum of bytes read and written.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

REPEATS, SECONDS = 5, 0.4
"""Minimum number of repeats of each kernel, and minimum total time of its repeats in seconds."""

SIZES = {"cpu": (1024, 2048), "gpu": (2048, 4096, 8192)}
"""Rows and columns of the matrices. The larger ones are faster on a large machine, the smaller ones on a small one."""

CONVOLUTION = {"batch": 32, "maps": 64, "side": 28, "kernel": 5}
"""Shape of the convolution, with same padding and as many output maps as input maps."""

COPIED = {"cpu": 64 * 2**20, "gpu": 2**30}
"""Size of the copied array in bytes.

On a GPU, it exceeds the cache of up to 60 MB, and the copy takes longer than its launch.
"""


def main(device: str, threads: int) -> dict[str, Any]:
    try:
        return with_torch(device, threads)
    except ImportError:
        return with_numpy()


def with_torch(device: str, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    target_device = torch.device("cuda" if device == "gpu" else "cpu")
    wait = torch.cuda.synchronize if device == "gpu" else lambda: None
    gflops = {}
    with torch.inference_mode():
        for size in SIZES[device]:
            left, right = (torch.rand(size, size, device=target_device) for _ in range(2))
            product = torch.empty(size, size, device=target_device)
            seconds = best(partial(torch.mm, left, right, out=product), wait)
            gflops[f"matrix product of {size}"] = 2 * size**3 / seconds / 1e9
        shape = CONVOLUTION
        layer = torch.nn.Conv2d(shape["maps"], shape["maps"], shape["kernel"], padding="same", bias=False)
        images = torch.rand(shape["batch"], shape["maps"], shape["side"], shape["side"])
        layer, images = (each.to(target_device, memory_format=torch.channels_last) for each in (layer, images))
        seconds = best(lambda: layer(images), wait)
        work = 2 * images.numel() * shape["maps"] * shape["kernel"] ** 2
        gflops["convolution"] = work / seconds / 1e9
        source = torch.rand(COPIED[device] // 4, device=target_device)
        target = torch.empty_like(source)
        seconds = best(lambda: target.copy_(source), wait)
    gb_per_s = 2 * COPIED[device] / seconds / 1e9
    return {"library": f"torch {torch.__version__}", "gflops": gflops, "gb_per_s": gb_per_s}


def with_numpy() -> dict[str, Any]:
    import numpy as np

    gflops = {}
    for size in SIZES["cpu"]:
        left, right = (np.random.default_rng(seed).random((size, size), np.float32) for seed in range(2))
        product = np.empty((size, size), np.float32)
        seconds = best(partial(np.matmul, left, right, out=product))
        gflops[f"matrix product of {size}"] = 2 * size**3 / seconds / 1e9
    source = np.ones(COPIED["cpu"] // 4, np.float32)
    target = np.empty_like(source)
    seconds = best(lambda: np.copyto(target, source))
    return {"library": f"numpy {np.__version__}", "gflops": gflops, "gb_per_s": 2 * source.nbytes / seconds / 1e9}


def best(operation: Callable[[], object], wait: Callable[[], object] = lambda: None) -> float:
    """Return the shortest time of a call in seconds, excluding the first two calls."""
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < REPEATS + 2 or time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        operation()
        wait()
        taken.append(time.perf_counter() - start)
    return min(taken[2:])


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
