"""Layers and networks as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gtdl_mlflow import config  # noqa: F401  (registers the resolvers of conf/)

CONF = Path(__file__).parents[2] / "conf"

ZERO = {"distribution": "constant", "value": 0}
SPREAD = {"distribution": "uniform_fan_in", "gain": 6}
TANH = {"type": "tanh"}
NORMAL = {"type": "batch_normalization", "momentum": 0.8, "epsilon": 0.001}
NORMALIZE = {"type": "local_response_normalization", "radius": 4, "bias": 1.0, "alpha": 0.001 / 9, "beta": 0.75}


def conf_layers(model: str, **changes: Any) -> Any:
    """Return the layers of ``conf/model/MODEL.yaml`` with changed keys."""
    loaded = OmegaConf.create({"model": {**OmegaConf.load(CONF / "model" / f"{model}.yaml"), **changes}})
    return OmegaConf.to_container(loaded, resolve=True)["model"]["layers"]  # type: ignore[index,call-overload]


def convolution(filters: int, kernel: int = 5, **more: Any) -> dict[str, Any]:
    return {"type": "convolution", "filters": filters, "kernel": kernel, "weights": SPREAD, "biases": ZERO, **more}


def dense(units: int | str = "classes") -> dict[str, Any]:
    return {"type": "dense", "units": units, "weights": SPREAD, "biases": ZERO}


def maximum(size: int, stride: int, **more: Any) -> dict[str, Any]:
    return {"type": "max_pool", "size": size, "stride": stride, **more}


def average(size: int, stride: int, **more: Any) -> dict[str, Any]:
    return {**maximum(size, stride, **more), "type": "average_pool"}


def numbered(*layers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the layers by names of their type and position."""
    return {f"{layer['type']}{number}": layer for number, layer in enumerate(layers)}
