"""How far from the machine's limit a run was: operations and bytes of its network, against the peak.

The roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009): a kernel computes at most as fast as the machine
does, and at most its operations per byte times as fast as memory is. Operations are those of convolutions and dense
layers, a product and a sum each; what a framework computes and throws away (in a convolution that reads only some maps)
does not count. Bytes are what layers move if each array goes to memory once: a layer reads its input and its parameters
and writes its output. Caches, and layers that are computed together, need less, so that a run may lie above the slanted
roof, though never above the flat one.
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
    """What one image costs."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class LayerWork:
    """Of the table: a layer, classifying an image."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    work: Work


def layer_work(network: Network, batch: int) -> list[LayerWork]:
    """What each layer costs an image of a ``batch`` that is classified."""
    rows = []
    for node in network.nodes:
        parameters = sum(math.prod(shape) for shape in node.parameters.values())
        values = len(node.sources) * math.prod(node.input) + math.prod(node.output)
        work = Work(node.layer.flops(node.input), FLOAT * (values + parameters / batch))
        rows.append(LayerWork(node.layer.name, type(node.layer).__name__, node.output, parameters, work))
    return rows


def testing_work(network: Network, batch: int) -> Work:
    """Of an image that is classified."""
    rows = layer_work(network, batch)
    return Work(sum(row.work.flops for row in rows), sum(row.work.bytes for row in rows))


def training_work(network: Network, hyper: Training) -> Work:
    """Of an image that is trained on.

    Backwards, a layer with weights computes as much for their gradient as forwards, and as much again for its input's,
    which the first layer that learns does without. What goes through a layer is moved three times: forwards, for the
    gradient of its input, for that of its weights. Parameters are read both ways, their gradient is written and read,
    and they and the optimizer's moments are read and written by the update.
    """
    rows = layer_work(network, hyper.batch_size)
    learning = [row for row in rows if row.parameters]
    moments = 2 if hyper.optimizer is Optimizer.adam else 1 if hyper.momentum else 0
    parameters = FLOAT * sum(row.parameters for row in rows) / hyper.batch_size
    values = sum(row.work.bytes for row in rows) - parameters
    flops = 3 * sum(row.work.flops for row in rows) - sum(row.work.flops for row in learning[:1])
    return Work(flops, 3 * values + (6 + 2 * moments) * parameters)


def peak_shares(metrics: Mapping[str, float], network: Network, hyper: Training, peak: Peak | None) -> dict[str, float]:
    """Metrics: operations per second of steady training and of testing, per byte, and their share of the peak."""
    made: dict[str, float] = {}
    works = {"train": (training_work(network, hyper), "train/steady_state_images_per_s"),
             "test": (testing_work(network, hyper.test_batch_size), "test/images_per_s")}  # fmt: skip
    for phase, (work, speed) in works.items():
        if speed not in metrics:
            continue
        made[f"{phase}/gflops"] = metrics[speed] * work.flops / 1e9
        made[f"{phase}/flops_per_byte"] = work.intensity
        if peak is not None:
            made[f"{phase}/peak_share_percent"] = 100 * metrics[speed] * work.flops / peak.flops_per_s
    return made


def write_table(path: Path, network: Network, hyper: Training, peak: Peak) -> None:
    """A table of the layers, classifying a batch of the size that is trained with, as CSV."""
    balance = peak.flops_per_s / peak.bytes_per_s
    header = ["layer", "type", "output", "parameters", "flops_per_image", "bytes_per_image", "flops_per_byte", "limit"]
    rows = []
    for row in layer_work(network, hyper.batch_size):
        shape, work = "x".join(map(str, row.output)), row.work
        limit = "computing" if work.intensity >= balance else "memory"
        rows.append([row.name, row.kind, shape, row.parameters, f"{work.flops:.0f}", f"{work.bytes:.0f}",
                     f"{work.intensity:.3g}", limit])  # fmt: skip
    files.write_csv(path, header, rows)
