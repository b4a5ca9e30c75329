"""Configuration: schema, composition by Hydra, checks of values, and error messages.

Nothing here imports MLflow or a framework, so a mistake on the command line is reported before anything slow starts.
"""

from .checks import ConfigError, Unavailable, check, check_data, check_tracker, missing_tools
from .composition import compose, compose_part, compose_unchecked, to_checked_config, to_config
from .display import describe
from .own_conf import check_own_conf
from .resolvers import CONF, choices, default_setting, family, own_conf
from .schema import (
    BEST,
    DEFAULT,
    Build,
    Config,
    Dataset,
    DeviceSupport,
    Download,
    Framework,
    Hardware,
    Labels,
    Mode,
    Python,
    Recipe,
    Rerun,
    Study,
    SweepOrder,
    SystemPackage,
    hash_values,
)

__all__ = [
    "BEST",
    "CONF",
    "DEFAULT",
    "Build",
    "Config",
    "ConfigError",
    "Dataset",
    "DeviceSupport",
    "Download",
    "Framework",
    "Hardware",
    "Labels",
    "Mode",
    "Python",
    "Recipe",
    "Rerun",
    "Study",
    "SweepOrder",
    "SystemPackage",
    "Unavailable",
    "check",
    "check_data",
    "check_own_conf",
    "check_tracker",
    "choices",
    "compose",
    "compose_part",
    "compose_unchecked",
    "default_setting",
    "describe",
    "family",
    "hash_values",
    "missing_tools",
    "own_conf",
    "to_checked_config",
    "to_config",
]
