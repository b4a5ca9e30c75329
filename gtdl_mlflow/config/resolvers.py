"""What is in ``conf/``, and what its files compute: the resolvers of ``${...}``."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import ListConfig, OmegaConf

from ..worker.job import WARM_UP_STEPS

_PACKAGE = Path(__file__).parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""``conf/``: beside the package in a checkout, inside it when installed."""

LARGEST_SIDE = 256
"""Pixels of a side of ``dataset.image_size``: the prepared images have to fit into memory, and into a network."""


def choices(group: str) -> list[str]:
    """The names that ``group=`` takes."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def family(dataset: str) -> str:
    """``family`` in the data set's yaml; the name itself if there is none, so that Hydra says what is wrong."""
    path = CONF / "dataset" / f"{dataset}.yaml"
    return _family(path) if path.is_file() else dataset


@cache
def _family(path: Path) -> str:
    return str(OmegaConf.select(OmegaConf.load(path), "family"))


def _other_family(dataset: str) -> str:
    """The kind of data that ``dataset`` is not of."""
    others = {family(name) for name in choices("dataset")} - {family(dataset)}
    return min(others)


def _settings_for(dataset: str) -> str:
    """The defaults of all frameworks with an environment of their own, for this kind of data, as a sweep lists them."""
    kind, names = family(dataset), []
    for path in sorted((CONF / "framework").glob("*.yaml")):
        if OmegaConf.select(OmegaConf.load(path), "devices.cpu.recipes"):
            names.append(f"{path.stem}_{kind}")
    return ",".join(names)


def _image_shape(size: Any, channels: int) -> list[int]:
    """``dataset.image_shape`` for a ``dataset.image_size``; zeros for one that cannot be, which ``check`` refuses."""
    return [*(sides(size) or (0, 0)), channels]


def sides(size: Any) -> list[int] | None:
    """Height and width in ``dataset.image_size``; None for what cannot be."""
    asked = list(size) if isinstance(size, (list, ListConfig)) else [size, size]
    possible = len(asked) == 2 and all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in asked)
    return asked if possible else None


def _residual_units(depth: Any) -> int:
    """Units of a stage after its first, in a residual network of ``depth``; 0 for one that ``check`` refuses."""
    return (depth - 2) // 6 - 1 if is_depth(depth) else 0


def is_depth(depth: Any) -> bool:
    return type(depth) is int and depth >= 8 and (depth - 2) % 6 == 0


def _thread_counts() -> str:
    """1, 2, 4, ... up to the cores that this process may use, as a sweep lists them."""
    cores = len(os.sched_getaffinity(0))
    return ",".join(map(str, sorted({cores, *(2**power for power in range(cores.bit_length()))})))


def _iterations_for(images: int, batch_size: Any) -> int:
    """Iterations that train on so many images, though enough of them to have a steady pace after the warm-up."""
    size = batch_size if type(batch_size) is int and batch_size > 0 else 1  # `check` refuses what it cannot be
    return max(3 * WARM_UP_STEPS, round(images / size))


OmegaConf.register_new_resolver("dataset_family", family, replace=True)
OmegaConf.register_new_resolver("other_family", _other_family, replace=True)
OmegaConf.register_new_resolver("settings_for", _settings_for, replace=True)
OmegaConf.register_new_resolver("residual_units", _residual_units, replace=True)
OmegaConf.register_new_resolver("image_shape", _image_shape, replace=True)
OmegaConf.register_new_resolver("thread_counts", _thread_counts, replace=True)
OmegaConf.register_new_resolver("iterations_for", _iterations_for, replace=True)
