"""From a job to a network with its initial weights in a framework."""

from __future__ import annotations

import importlib

from . import initialization
from .frameworks.base import Adapter, Setup
from .inputs import Preprocessing
from .job import Job
from .network import Network, build


def load_adapter(path: str) -> type[Adapter]:
    """The class at ``module:Class``; importing it imports the framework."""
    module, _, name = path.partition(":")
    found: type[Adapter] = getattr(importlib.import_module(module), name)
    return found


def build_model(job: Job, adapter_class: type[Adapter]) -> tuple[Preprocessing, Adapter, Network]:
    """Treatment and network of a job, with its initial weights."""
    treatment = Preprocessing(job.training.preprocessing)
    height, width, channels = job.image_shape
    network = build(job.layers, treatment.shape((height, width, channels)), job.classes)
    setup = Setup(
        network, initialization.weights(network, job.seed), initialization.masks(network, job.seed), job.training,
        job.device, job.threads, job.seed, job.options,
    )  # fmt: skip
    return treatment, adapter_class(setup), network
