"""Hydra's and OmegaConf's complaints, in one line for a person: the key, the value, the choices."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException


def explain(error: Exception, schema: type) -> str:
    """Hydra's or OmegaConf's complaint in one line: the key, the value, the choices."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name}: expected one of {', '.join(error.options or [])}{_similar(name, error.options or [])}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
                there = [str(key) for key in cause.parent_node] if isinstance(cause.parent_node, DictConfig) else []
                return _unknown_key(str(cause.full_key), there, schema)
            return _wrong_value(str(cause.full_key), _first_line(cause))
        cause = cause.__cause__
    message = _first_line(error)
    if ambiguous := re.search(r"Ambiguous value for argument '(.*)'", message):
        return f"{ambiguous[1]}: several values make a sweep, which needs -m"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: expected key=value ({message})"
    return message


def _unknown_key(key: str, there: list[str], schema: type) -> str:
    parent, _, leaf = key.rpartition(".")
    elsewhere = [name for name in _keys(schema) if name.rpartition(".")[2] == leaf]
    if not parent:
        there = [name for name in there if name != "hydra"] + ["setting"]
    hint = f" (did you mean {elsewhere[0]}?)" if elsewhere else _similar(leaf, there)
    return f"{key}: no such key; {f'{parent} has' if parent else 'there are'} {', '.join(there) or 'none'}{hint}"


def _wrong_value(key: str, message: str) -> str:
    if found := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", message):
        kind = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}.get(found[2], found[2])
        return f"{key}={found[1]}: expected {kind}"
    if found := re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", message):
        return f"{key}={found[1]}: expected one of {found[2]}"
    return f"{key}: {message}"


def unknown_key(composed: Any) -> str | None:
    """A complaint if a composed configuration has a key that its schema lacks.

    Hydra's ``+key=value`` adds to any node, and what it added would be read by nobody.
    """
    schema = OmegaConf.get_type(composed)
    return _unknown_below(composed, schema) if schema else None


def _unknown_below(composed: Any, schema: type) -> str | None:
    kind = OmegaConf.get_type(composed)
    if not is_dataclass(kind):
        return None
    known = [item.name for item in fields(kind)]
    for key in composed:
        if key not in known:
            return _unknown_key(str(composed._get_full_key(key)), known, schema)
        if not OmegaConf.is_missing(composed, key) and (complaint := _unknown_below(composed[key], schema)):
            return complaint
    return None


def _keys(schema: type, prefix: str = "") -> list[str]:
    """Every key of the schema, dotted."""
    found = []
    for name, kind in get_type_hints(schema).items():
        found.append(prefix + name)
        if is_dataclass(kind):
            found += _keys(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
    return found


def _similar(given: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, choices, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
