"""The roofline model: a run's operations per second, compared with the machine's peak.

In the roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009) a kernel's speed has two limits: the machine's
peak, and the kernel's operations per byte times the memory bandwidth. Only convolutions and dense layers are counted;
a multiply-add is two operations. Operations that a framework computes and discards (in a convolution
that reads only some maps) do not count. The bytes of a layer are one transfer of each array: its input, its parameters
and its output. Caches and fused layers need fewer transfers, so a run may exceed the memory limit, but not the peak.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..worker.job import Optimizer, Training
from ..worker.network import Network
from .peak import Peak

FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one image."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class LayerWork:
    """One layer of a network and its work to classify an image."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    work: Work


def layer_work(network: Network, batch: int) -> list[LayerWork]:
    """Return the work of each layer to classify one image of a batch of ``batch`` images."""
    rows = []
    for node in network.nodes:
        parameters = sum(math.prod(shape) for shape in node.parameters.values())
        values = len(node.sources) * math.prod(node.input) + math.prod(node.output)
        work = Work(node.layer.flops(node.input), FLOAT * (values + parameters / batch))
        rows.append(LayerWork(node.layer.name, type(node.layer).__name__, node.output, parameters, work))
    return rows


def testing_work(network: Network, batch: int) -> Work:
    """Return the work to classify one image."""
    rows = layer_work(network, batch)
    return Work(sum(row.work.flops for row in rows), sum(row.work.bytes for row in rows))


def training_work(network: Network, hyper: Training) -> Work:
    """Return the work to train on one image.

    In the backward pass, a layer with parameters computes as many operations for their gradient as in the forward pass,
    and as many for the gradient of its input, which the first layer with parameters does not need. The values of a
    layer are moved three times: in the forward pass, for the gradient of its input and for that of its parameters.
    Parameters are read in both passes, their gradient is written and read, and the update reads and writes them and the
    optimizer's moments.
    """
    rows = layer_work(network, hyper.batch_size)
    learning = [row for row in rows if row.parameters]
    moments = 2 if hyper.optimizer is Optimizer.adam else 1 if hyper.momentum else 0
    parameters = FLOAT * sum(row.parameters for row in rows) / hyper.batch_size
    values = sum(row.work.bytes for row in rows) - parameters
    flops = 3 * sum(row.work.flops for row in rows) - sum(row.work.flops for row in learning[:1])
    return Work(flops, 3 * values + (6 + 2 * moments) * parameters)


def peak_shares(metrics: Mapping[str, float], network: Network, hyper: Training, peak: Peak | None) -> dict[str, float]:
    """Return the metrics of training (in the steady state) and testing: GFLOP/s, intensity and share of the peak."""
    shares: dict[str, float] = {}
    for phase, work, throughput in (
        ("train", training_work(network, hyper), "train/steady_state_images_per_s"),
        ("test", testing_work(network, hyper.test_batch_size), "test/images_per_s"),
    ):
        if throughput not in metrics:
            continue
        flops_per_s = metrics[throughput] * work.flops
        shares[f"{phase}/gflops"] = flops_per_s / 1e9
        shares[f"{phase}/flops_per_byte"] = work.intensity
        if peak is not None:
            shares[f"{phase}/peak_share_percent"] = 100 * flops_per_s / peak.flops_per_s
    return shares


def write_table(path: Path, network: Network, hyper: Training, peak: Peak) -> None:
    """Write a CSV table of the layers and what limits each, classifying a batch of the training's size."""
    balance = peak.flops_per_s / peak.bytes_per_s
    header = ["layer", "type", "output", "parameters", "flops_per_image", "bytes_per_image", "flops_per_byte", "limit"]
    rows = []
    for row in layer_work(network, hyper.batch_size):
        shape, work = "x".join(map(str, row.output)), row.work
        limit = "computing" if work.intensity >= balance else "memory"
        sizes = f"{work.flops:.0f}", f"{work.bytes:.0f}", f"{work.intensity:.3g}"
        rows.append([row.name, row.kind, shape, row.parameters, *sizes, limit])
    files.write_csv(path, header, rows)
