"""The contents of ``conf/`` and of the user's own folder, and the resolvers ``${name:...}`` that its files use."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import ListConfig, OmegaConf

from .. import cgroups
from ..redaction import VARIABLE, redact
from ..worker.job import WARM_UP_STEPS

_PACKAGE = Path(__file__).parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""Folder ``conf/``: beside the package in a checkout, inside it when installed."""

LARGEST_IMAGE_SIDE = 256
"""Largest side of ``dataset.image_size`` in pixels: the prepared images must fit into memory."""


def own_conf() -> Path | None:
    """Return the user's folder ``GTDL_CONF``, which has groups and options as ``conf/``; None if there is none."""
    chosen = os.environ.get("GTDL_CONF")
    if not chosen:
        return None
    with suppress(RuntimeError):  # no home directory: `check_own_conf` reports that the folder does not exist
        return Path(chosen).expanduser().absolute()
    return Path(chosen).absolute()


def _folders() -> list[Path]:
    own = own_conf()
    return [CONF] if own is None else [CONF, own]


def option_file(group: str, name: str) -> Path:
    """Return the path of the yaml of an option. It does not exist if there is no such option."""
    paths = [folder / group / f"{name}.yaml" for folder in _folders()]
    return next((path for path in paths if path.is_file()), paths[0])


def _search_path() -> list[str]:
    """Return the folders in which Hydra searches besides ``conf/``."""
    own = own_conf()
    return [] if own is None else [f"file://{own}"]


def options(folder: Path, group: str) -> list[str]:
    """Return the names of the files of a config group in a folder, sorted. Hidden files do not count."""
    return sorted(path.stem for path in (folder / group).glob("*.yaml") if not path.name.startswith("."))


def choices(group: str, own: bool = True) -> list[str]:
    """Return the options of a config group, with or without the user's ``own`` ones.

    A model and a training of the same name are a setting of that name; ``conf/setting/`` may add other pairs.
    """
    found = {name for folder in (_folders() if own else [CONF]) for name in options(folder, group)}
    if group == "setting":
        found |= {*choices("model", own)} & {*choices("training", own)}
    return sorted(found)


def family(dataset: str) -> str:
    """Return ``family`` of a data set's yaml. Return an unknown name as it is: Hydra reports it."""
    path = option_file("dataset", dataset)
    return _family(path, path.stat().st_mtime_ns) if path.is_file() else dataset


@cache
def _family(path: Path, mtime_ns: int) -> str:
    return str(OmegaConf.select(OmegaConf.load(path), "family"))


def _other_family(dataset: str) -> str:
    """Return the family that ``dataset`` does not belong to."""
    others = {family(name) for name in choices("dataset")} - {family(dataset)}
    return min(others)


@cache
def framework_yaml(name: str) -> dict[str, Any]:
    """Return the contents of a framework's yaml as they are written; empty for a name that is no framework."""
    if name not in choices("framework"):  # a name from a tracking store may be a path to any other file
        return {}
    return dict(yaml.safe_load(option_file("framework", name).read_text(encoding="utf-8")))


def default_setting(framework: str, dataset: str) -> str:
    """Return the default setting of a framework for a data set, ``FRAMEWORK_FAMILY``.

    ``default_settings`` in the framework's yaml replaces ``FRAMEWORK``. Unknown names are not rejected: Hydra reports
    them.
    """
    return f"{framework_yaml(framework).get('default_settings', framework)}_{family(dataset)}"


def _frameworks() -> dict[str, dict[str, Any]]:
    """Return the yaml of each framework that has an environment of its own, by name."""
    every = {name: framework_yaml(name) for name in choices("framework")}
    return {name: values for name, values in every.items() if "recipes" in values["devices"]["cpu"]}


def _settings_for(dataset: str) -> str:
    """Return the default settings, for this family of data, of all frameworks that have an environment of their own.

    The names are separated by commas, as a sweep takes them.
    """
    return ",".join(dict.fromkeys(default_setting(name, dataset) for name in _frameworks()))


def _frameworks_in_development() -> str:
    """Return the frameworks that have an environment of their own and are still developed, separated by commas."""
    return ",".join(name for name, values in _frameworks().items() if "last_release" not in values)


def _frameworks_on_gpu() -> str:
    """Return the frameworks that have an environment for GPUs, separated by commas."""
    return ",".join(name for name, values in _frameworks().items() if "recipes" in values["devices"]["gpu"])


def _image_shape(size: Any, channels: int) -> list[int]:
    """Return ``dataset.image_shape`` for ``dataset.image_size``; zeros for an invalid size, which ``check`` reports."""
    return [*(image_sides(size) or (0, 0)), channels]


def image_sides(size: Any) -> list[int] | None:
    """Return height and width in pixels of ``dataset.image_size``; None if it is invalid."""
    sides = list(size) if isinstance(size, (list, ListConfig)) else [size, size]
    valid = len(sides) == 2 and all(type(side) is int and 1 <= side <= LARGEST_IMAGE_SIDE for side in sides)
    return sides if valid else None


def _residual_units(depth: Any) -> int:
    """Return the number of units per stage after its first, in a residual network; 0 for an invalid ``depth``."""
    return (depth - 2) // 6 - 1 if is_residual_depth(depth) else 0


def is_residual_depth(depth: Any) -> bool:
    """Return whether a residual network can have ``depth`` layers with weights: 6 n + 2, at least 8."""
    return type(depth) is int and depth >= 8 and (depth - 2) % 6 == 0


def _first_core() -> int:
    """Return the first core that this process may use: a container or a scheduler may have taken core 0 away."""
    return min(cgroups.usable_cores())


def _thread_counts() -> str:
    """Return 1, 2, 4, ... and the number of threads that can run all the time, as a sweep takes them."""
    cores = cgroups.threads_for(len(cgroups.usable_cores()))
    return ",".join(map(str, sorted({cores, *(2**power for power in range(cores.bit_length()))})))


def _iterations_for(images: int, batch_size: Any) -> int:
    """Return the iterations for ``images`` training images, at least enough to measure throughput after the warm-up."""
    size = batch_size if type(batch_size) is int and batch_size > 0 else 1  # `check` reports other values
    return max(3 * WARM_UP_STEPS, round(images / size))


def _tracking_uri(default: str) -> str:
    """Return MLFLOW_TRACKING_URI without its secrets, or ``default``; ``redaction.reveal`` restores them."""
    return redact(os.environ.get(VARIABLE) or default)


OmegaConf.register_new_resolver("search_path", _search_path, replace=True)
OmegaConf.register_new_resolver("tracking_uri", _tracking_uri, replace=True)
OmegaConf.register_new_resolver("dataset_family", family, replace=True)
OmegaConf.register_new_resolver("default_setting", default_setting, replace=True)
OmegaConf.register_new_resolver("other_family", _other_family, replace=True)
OmegaConf.register_new_resolver("settings_for", _settings_for, replace=True)
OmegaConf.register_new_resolver("frameworks_in_development", _frameworks_in_development, replace=True)
OmegaConf.register_new_resolver("frameworks_on_gpu", _frameworks_on_gpu, replace=True)
OmegaConf.register_new_resolver("residual_units", _residual_units, replace=True)
OmegaConf.register_new_resolver("image_shape", _image_shape, replace=True)
OmegaConf.register_new_resolver("first_core", _first_core, replace=True)
OmegaConf.register_new_resolver("thread_counts", _thread_counts, replace=True)
OmegaConf.register_new_resolver("iterations_for", _iterations_for, replace=True)
