"""A command line as a configuration, by Hydra."""

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

from .checks import ConfigError, check
from .errors import explain, unknown_key
from .resolvers import CONF
from .schema import Config

ConfigStore.instance().store(name="schema", node=Config)


def compose(overrides: list[str]) -> Config:
    """The configuration of a command line.

    Raises:
        ConfigError: it is wrong; the message is one line.
    """
    config = compose_unchecked(overrides)
    check(config)
    return config


def compose_unchecked(overrides: list[str]) -> Config:
    """What a command line says, whether it can be run here or not.

    Raises:
        ConfigError: it says nothing; the message is one line.
    """
    # Inside a running Hydra application there is one to ask already.
    running = GlobalHydra.instance().is_initialized()
    start = nullcontext() if running else initialize_config_dir(str(CONF), version_base="1.3", job_name="gtdl")
    try:
        with start:
            return to_config(hydra_compose("config", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, Config)) from error


def to_checked_config(composed: Any) -> Config:
    """A composed ``DictConfig``, typed and checked.

    Raises:
        ConfigError: a value that cannot be.
    """
    config = to_config(composed)
    check(config)
    return config


def to_config(composed: Any) -> Config:
    """A composed ``DictConfig`` as dataclasses; what its values are is not looked at.

    Raises:
        ConfigError: a key that the schema does not know.
    """
    if complaint := unknown_key(composed):
        raise ConfigError(complaint)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config
