"""Check of the user's folder ``GTDL_CONF``, before Hydra composes a configuration from it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .resolvers import CONF, choices, family, options, own_conf
from .schema import Config


def check_own_conf() -> str | None:
    """Return the first fault of ``GTDL_CONF`` in one line; None if there is none, or no such folder is set.

    Faults are a missing folder, a folder in it that is no config group, an option that ``conf/`` has too, and a file
    that does not have the keys of its group.
    """
    root = own_conf()
    if root is None:
        return None
    if not root.is_dir():
        return f"GTDL_CONF={root}: not a folder; expected one with files such as dataset/NAME.yaml"
    groups = sorted({"setting", *(path.name for path in CONF.iterdir() if path.is_dir())})
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        names = options(root, folder.name)
        if names and folder.name not in groups:
            return f"{folder}: no config group; expected one of {', '.join(groups)}"
        for name in names:
            path = folder / f"{name}.yaml"
            if name in choices(folder.name, own=False):
                return f"{path}: gtdl_mlflow has {folder.name}={name} already; rename the file, and `name` in it"
            if fault := _fault(path):
                return f"{path}: {fault}"
    return None


def _fault(path: Path) -> str | None:
    """Return what is wrong with the yaml of an option; None if nothing is."""
    try:
        values = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        return f"not readable as YAML ({' '.join(str(error).split())})"
    if not isinstance(values, DictConfig):
        return "expected lines such as `name: NAME`"
    group = path.parent.name
    if group not in {field.name for field in fields(Config)}:  # a setting or an experiment has keys of several groups
        return None
    if "defaults" in values:
        return "defaults: not supported here; write all keys"
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config)[group], values)
    except OmegaConfBaseException as error:
        return f"{error.full_key}: {str(error.msg).splitlines()[0]}"
    if missing := sorted(key.removeprefix(f"{group}.") for key in OmegaConf.missing_keys(merged)):
        return f"missing: {', '.join(missing)}"
    if merged.name != path.stem:
        return f"name: {merged.name}: expected {path.stem}, as in the name of the file"
    if group == "dataset":
        families = sorted({family(dataset) for dataset in choices("dataset", own=False)})
        if merged.family not in families:
            return f"family: {merged.family}: expected {' or '.join(families)}"
    return None
