"""Error messages of Hydra and OmegaConf in one line: the key, the value, and what is allowed."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ..redaction import redact
from ..worker.job import Optimizer
from .own_conf import check_own_conf
from .resolvers import choices

RENAMED = {
    "dataset.downloads.*.bytes": "dataset.downloads.*.size_bytes",
    "dataset.target_accuracy": "dataset.target_accuracy_percent",
    "dataset.test_each": "dataset.test_per_class",
    "dataset.train_each": "dataset.train_per_class",
    "latency.seconds": "latency.limit_s",
    "training.average": "training.ema_decay",
    "training.bias_rate": "training.bias_lr_multiplier",
    "training.checkpoint_every": "training.checkpoint_every_s",
    "training.decayed": "training.weight_decay_on",
    "training.early_stopping.patience": "training.early_stopping.patience_iterations",
    "training.evaluate_every": "training.evaluate_every_epochs",
    "training.inputs": "training.preprocessing",
    "training.schedule.boundaries": "training.schedule.boundary_iterations",
    "training.schedule.every": "training.schedule.every_iterations",
    "training.target_accuracy": "training.target_accuracy_percent",
    "framework.tuning": "mode",
    "tuning": "mode",
}
"""Keys of older versions, and their names now. ``*`` is any one name, the same on both sides."""

RENAMED_METRICS = {
    "noise/mhz_*": "interference/cpu_mhz_*",
    "noise/throttles": "interference/cpu_throttle_count",
    "noise/*": "interference/*",
    "step/*": "train_step/*",
    "train/compile_s": "train/first_step_overhead_s",
    "train/steady_images_per_s": "train/steady_state_images_per_s",
    "worker/energy_j": "system/cpu_energy_j",
    "worker/gpu_energy_j": "system/gpu_energy_j",
}
"""Metric names of older versions, and their current names. The first pattern that matches is used."""

EARLY_STOPPING = "training.early_stopping"
"""The only section that is null by default."""


NAMED = ("framework", "dataset", "model", "training", "hardware")
"""Config groups whose choices have a name of their own."""

SYNONYMS = {
    "cpu": "hardware",
    "cuda": "gpu",
    "device": "hardware",
    "gpu": "hardware",
    "learning": "learning_rate",
    "lr": "learning_rate",
    "wd": "weight_decay",
    "experiment_name": "experiment",
    "experiment-name": "experiment",
    "32": "float32",
    "fp32": "float32",
    "float64": "float32",
    "16": "bfloat16",
    "bf16": "bfloat16",
    "fp16": "bfloat16",
    "float16": "bfloat16",
}
"""Common terms of deep-learning frameworks, and the corresponding key or value here."""


def renamed(name: str, table: Mapping[str, str]) -> str | None:
    """Return the current name of an old key or metric, or None if it was never renamed."""
    for old, new in table.items():
        if match := re.fullmatch(re.escape(old).replace(r"\*", r"([^./]+)"), name):
            return new.replace("*", match[1]) if "*" in old else new
    return None


def similar(name: str, choices: Iterable[str]) -> str:
    """Return the choice that is most similar to ``name``, as the end of a message; empty if none is similar.

    Case is ignored. An abbreviation such as ``tf`` matches if its letters occur in the same order. A prefix shared by
    several choices, such as ``keras``, returns all of them.
    """
    every = list(choices)
    word = SYNONYMS.get(name.lower(), name.lower())
    variants = [each for each in every if each.startswith(f"{word}_")]
    if len(variants) > 1:
        return f" (did you mean {', '.join(variants[:-1])} or {variants[-1]}?)"
    close = difflib.get_close_matches(word, every, 1) or [each for each in every if _abbreviates(word, each)]
    return f" (did you mean {close[0]}?)" if close else ""


def _abbreviates(word: str, name: str) -> bool:
    letters = iter(name)
    return len(word) > 1 and word[:1] == name[:1] and all(letter in letters for letter in word)


def refusal(overrides: Iterable[str]) -> str | None:
    """Return a message if an override would change the name of a choice, or is one that Hydra fails on; else None.

    An unusable ``GTDL_CONF`` results in a message, too.
    """
    if message := check_own_conf():
        return message
    every = list(overrides)
    for override in every:
        key, _, value = override.partition("=")
        group, _, name = key.lstrip("+").rpartition(".")
        if name == "name" and group in NAMED:
            return f"{key}: the name of the choice cannot be set; {group}=NAME selects another one"
        if key in NAMED and re.fullmatch(r"(?i)[+-]?\d+(\.\d*)?|true|false|null|none", value):
            return f"{key}={value}: expected one of {', '.join(choices(key))}"
        if value.startswith("="):
            return f"{override}: one = too many; write {key}={value.lstrip('=')}"
        if (
            value.startswith("interval(")
            and not key.startswith("hydra")
            and not any("optuna" in each for each in every)
        ):
            return f"{override}: an interval needs a search: gtdl sweep hydra/sweeper=optuna {shlex.quote(override)}"
    return None


def explain(error: Exception, schema: type, overrides: Iterable[str]) -> str:
    """Return an error of Hydra or OmegaConf in one line, redacted.

    Args:
        error: the error.
        schema: the dataclass of the configuration.
        overrides: the command line.
    """
    return redact(_explain_list(error, overrides) or _explain(error, schema))


def _explain_list(error: Exception, overrides: Iterable[str]) -> str:
    """Return the message if a list is given where one name is expected; Hydra blames an interpolation then."""
    if "interpolation" not in str(error):
        return ""
    for key, _, value in (override.partition("=") for override in overrides):
        if value.startswith("[") and "." not in key:
            return f"{key}={value}: expected one name; several make a sweep: gtdl sweep {key}={value.strip('[]')}"
    return ""


def _explain(error: Exception, schema: type) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or []
        if not group:
            return f"--config-name={name}: no such configuration; leave the option out"
        hint = f" (did you mean training.optimizer={name}?)" if name in list(Optimizer) else similar(name, options)
        return f"{group}={name}: expected one of {', '.join(options)}{hint}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            key = str(cause.full_key)
            if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
                siblings = (
                    [str(name) for name in cause.parent_node] if isinstance(cause.parent_node, DictConfig) else []
                )
                return _unknown_key(key, siblings, schema)
            return _wrong_value(key, _first_line(cause))
        cause = cause.__cause__
    message = _first_line(error)
    if existing := re.search(r"An item is already at '(.*)'", message):
        return f"+{existing[1]}: the key exists already; write {existing[1]}=... without the +"
    if search := re.search(r"Sweep parameters '(.*)' requires --multirun", message):
        return f"{search[1]}: several values make a sweep: gtdl sweep {search[1]}"
    if ambiguous := re.search(r"Ambiguous value for argument '(.*)'", message):
        key, _, value = ambiguous[1].partition("=")
        if _is_list(schema, key):
            return f"{ambiguous[1]}: expected a list, {key}=[{value}]; without brackets, the values make a sweep"
        return f"{ambiguous[1]}: several values make a sweep: gtdl sweep, mlflow run . -e sweep, or the option -m"
    if isinstance(error, OverrideParseException):
        if str(error.override).endswith(","):
            return f"{error.override}: ends with a comma; write several values without spaces"
        if "=" not in str(error.override):
            return f"{error.override}: expected key=value without spaces, such as framework=torch or hardware=cpu"
        if ",," in str(error.override):
            return f"{error.override}: a value is missing between two commas"
        return f"{error.override}: expected key=value, with every quotation mark and bracket closed"
    return message


def explain_null_section(error: Exception, overrides: Iterable[str]) -> str | None:
    """Return OmegaConf's failure to change a section that is null in one line; None for any other error.

    OmegaConf 2.3 raises AssertionError or AttributeError for it, without the key.
    """
    if not isinstance(error, (AssertionError, AttributeError)) or "NoneType" not in str(error):
        return None
    keys = (override.lstrip("+").partition("=")[0] for override in overrides)
    key = next((key for key in keys if key.startswith(EARLY_STOPPING)), None)
    if key is None:
        return None
    if new := renamed(key, RENAMED):
        return f"{key}: renamed; write {new}=VALUE"
    return f"{key}: {EARLY_STOPPING} is null here; choose a training that sets it"


def unknown_key(composed: Any) -> str | None:
    """Return a message if a composed configuration has a key that its schema lacks, otherwise None.

    Hydra's ``+key=value`` can add keys to any node, and nothing would read them.
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
        if not OmegaConf.is_missing(composed, key) and (message := _unknown_below(composed[key], schema)):
            return message
    return None


def _unknown_key(key: str, siblings: list[str], schema: type) -> str:
    if new := renamed(key, RENAMED):
        return f"{key}: renamed; write {new}=VALUE"
    parent, _, name = key.rpartition(".")
    elsewhere = [other for other in _keys(schema) if other.rpartition(".")[2] == SYNONYMS.get(name, name)]
    if not parent:
        siblings = [sibling for sibling in siblings if sibling != "hydra"] + ["setting"]
    hint = f" (did you mean {elsewhere[0]}?)" if elsewhere else similar(name, siblings)
    return f"{key}: no such key; {parent or 'the configuration'} has {', '.join(siblings) or 'no keys'}{hint}"


def _wrong_value(key: str, message: str) -> str:
    if match := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", message):
        kind = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}.get(match[2], match[2])
        if match[1].startswith("["):
            return _one_value(key, match[1], kind)
        return (
            f"{key}={match[1]}: expected {'a number above 0 and at most 1, such as 0.1' if key == 'budget' else kind}"
        )
    if match := re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", message):
        return f"{key}={match[1]}: expected one of {match[2]}{similar(match[1], match[2].split(', '))}"
    if match := re.match(r"Value '(.*)' is not a valid bool", message):
        return f"{key}={match[1]}: expected true or false"
    if match := re.match(r"Cannot convert 'list' to string: '(.*)'", message):
        return _one_value(key, match[1].replace("'", ""), "one name")
    if match := re.match(r"Invalid type assigned: \w+ is not a subclass of (\w+)\. value: (.*)", message):
        return f"{key}={match[2]}: expected keys below it, such as {key}.type={match[2]}; --cfg job prints them"
    if "is not a ListConfig, list or tuple" in message:
        return f"{key}: expected a list, such as {key}=[1,8]"
    return f"{key}: {message}"


def _one_value(key: str, value: str, kind: str) -> str:
    several = value.strip("[]").replace(" ", "")
    return f"{key}={value}: expected {kind}; several make a sweep: gtdl sweep {key}={several}"


def _is_list(schema: type, key: str) -> bool:
    """Return whether a dotted key of a dataclass is a list."""
    kind: Any = schema
    for name in key.split("."):
        kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return "list[" in str(kind)


def _keys(schema: type, prefix: str = "") -> list[str]:
    """Return all dotted keys of a dataclass."""
    keys = []
    for name, kind in get_type_hints(schema).items():
        keys.append(prefix + name)
        if is_dataclass(kind):
            keys += _keys(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
    return keys


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
