"""Build the model of a job: the network, with its initial weights, in a framework."""

from __future__ import annotations

import importlib
from typing import Any

from . import initialization
from .frameworks.base import Adapter, Setup
from .inputs import Preprocessing
from .job import Job
from .network import Network, build


def load_adapter(path: str) -> type[Adapter]:
    """Return the class at ``module:Class``. This imports the framework."""
    module, _, name = path.partition(":")
    adapter_class: type[Adapter] = getattr(importlib.import_module(module), name)
    return adapter_class


def build_model(job: Job, adapter_class: type[Adapter]) -> tuple[Preprocessing, Adapter, Network]:
    """Return the preprocessing of a job, its model with initial weights, and the network."""
    preprocessing = Preprocessing(job.training.preprocessing)
    height, width, channels = job.image_shape
    network = build(job.layers, preprocessing.shape((height, width, channels)), job.classes)
    setup = Setup(
        network=network,
        weights=initialization.weights(network, job.seed),
        masks=initialization.masks(network, job.seed),
        training=job.training,
        device=job.device,
        threads=job.threads,
        seed=job.seed,
        options=job.options,
        precision=job.precision,
        deterministic=job.deterministic,
    )
    return preprocessing, adapter_class(setup), network


def description(model: Adapter) -> dict[str, Any]:
    """Return the metadata that the adapter reports, with ``version`` renamed to ``framework_version``."""
    return {f"framework_{key}" if key == "version" else key: value for key, value in model.describe().items()}
