"""Composition of a configuration from ``conf/`` and the command line, by Hydra."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..redaction import conceal_all
from .checks import ConfigError, check
from .errors import explain, explain_null_section, refusal, unknown_key
from .resolvers import CONF, choices, option_file, own_conf
from .schema import Config


def store_settings() -> None:
    """Make each model and training of the same name a setting of that name for Hydra."""
    for name in choices("setting"):
        if not option_file("setting", name).is_file():
            defaults = [{"/model": name}, {"/training": name}]
            ConfigStore.instance().store(name, {"defaults": defaults}, group="setting", package="_global_")


ConfigStore.instance().store(name="schema", node=Config)
store_settings()


def compose(overrides: list[str]) -> Config:
    """Return the configuration of a command line.

    Raises:
        Unavailable: the device, mode, precision or number of threads is not available here.
        ConfigError: a key, a choice or a value is wrong; the message is one line.
    """
    config = compose_unchecked(overrides)
    check(config)
    return config


def compose_unchecked(overrides: list[str]) -> Config:
    """Return the configuration of a command line without checking whether its values make sense together.

    Raises:
        ConfigError: a key, a choice or a type is wrong; the message is one line.
    """
    if message := refusal(overrides):
        raise ConfigError(message)
    if own_conf() is not None:
        store_settings()  # the folder may have changed since the import
    # Inside a running Hydra application, Hydra is initialized already.
    running = GlobalHydra.instance().is_initialized()
    start = nullcontext() if running else initialize_config_dir(str(CONF), version_base="1.3", job_name="gtdl")
    try:
        with start:
            return to_config(hydra_compose("config", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, Config, overrides)) from error
    except Exception as error:
        if message := explain_null_section(error, overrides):
            raise ConfigError(message) from error
        raise


def compose_part(group: str, choice: str, **values: Any) -> Any:
    """Return the part of a configuration that one choice of a config group decides, with some of its values replaced.

    It equals that part of ``compose_unchecked([f"{group}={choice}"])`` and takes a tenth of the time. The yaml of a
    choice depends on no other choice.
    """
    part = OmegaConf.merge(OmegaConf.load(option_file(group, choice)), values)
    merged = OmegaConf.merge(OmegaConf.structured(Config), {group: part})
    return OmegaConf.to_object(OmegaConf.select(merged, group))


def to_checked_config(composed: Any) -> Config:
    """Return a composed ``DictConfig`` as checked dataclasses; raise as ``compose`` does."""
    config = to_config(composed)
    check(config)
    return config


def to_config(composed: Any) -> Config:
    """Return a composed ``DictConfig`` as dataclasses, with unchecked values and with secrets of addresses concealed.

    Raises:
        ConfigError: a key is not in the schema.
    """
    if message := unknown_key(composed):
        raise ConfigError(message)
    config = conceal_all(OmegaConf.to_object(composed))
    assert isinstance(config, Config)
    return config
