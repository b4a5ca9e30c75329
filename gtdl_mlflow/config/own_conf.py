"""Check of the user's folder ``GTDL_CONF``, before Hydra composes a configuration from it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .resolvers import CONF, choices, family, own_conf
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
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    groups = sorted({*groups, "setting"})
    for path in sorted(root.glob("*/*.yaml")):
        group, name = path.parent.name, path.relative_to(root)
        if group not in groups:
            return f"{path}: {group}/ is no config group; expected one of {', '.join(groups)}"
        if (CONF / name).is_file():
            return f"{path}: gtdl_mlflow has {name} already; give the file, and `name` in it, another name"
        if fault := _fault(path):
            return f"{path}: {fault}"
    return None


def _fault(path: Path) -> str | None:
    """Return what is wrong with the yaml of an option; None if nothing is."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        return f"not readable as YAML ({' '.join(str(error).split())})"
    if not isinstance(values, dict):
        return "expected lines such as `name: NAME`"
    group = path.parent.name
    if group not in {field.name for field in fields(Config)}:  # a setting or an experiment has keys of several groups
        return None
    schema = OmegaConf.structured(Config)[group]
    try:
        merged = OmegaConf.merge(schema, {key: value for key, value in values.items() if key != "defaults"})
    except OmegaConfBaseException as error:
        return f"{error.full_key}: {str(error.msg).splitlines()[0]}"
    if values.get("name", path.stem) != path.stem:
        return f"name: {values['name']}: expected {path.stem}, as in the name of the file"
    if missing := sorted(key.removeprefix(f"{group}.") for key in OmegaConf.missing_keys(merged)):
        return f"missing: {', '.join(missing)}"
    if group == "dataset":
        families = sorted(
            {family(dataset) for dataset in choices("dataset") if (CONF / group / f"{dataset}.yaml").is_file()}
        )
        if values["family"] not in families:
            return f"family: {values['family']}: expected {' or '.join(families)}"
    return None
