"""Configuration: schema, composition by Hydra, checks of values, and error messages.

Nothing here imports MLflow or a framework, so a mistake on the command line is reported before anything slow starts.
"""

from .checks import ConfigError, Unavailable, check, check_tracker
from .composition import compose, compose_part, compose_unchecked, to_checked_config, to_config
from .display import describe
from .resolvers import CONF, choices, family
from .schema import (
    Build,
    Config,
    Dataset,
    DeviceSupport,
    Download,
    Framework,
    Hardware,
    Labels,
    Python,
    Recipe,
    Rerun,
    SpeedSettings,
    Study,
    SweepOrder,
    SystemPackage,
    Tuning,
    hash_values,
)

__all__ = [
    "CONF",
    "Build",
    "Config",
    "ConfigError",
    "Dataset",
    "DeviceSupport",
    "Download",
    "Framework",
    "Hardware",
    "Labels",
    "Python",
    "Recipe",
    "Rerun",
    "SpeedSettings",
    "Study",
    "SweepOrder",
    "SystemPackage",
    "Tuning",
    "Unavailable",
    "check",
    "check_tracker",
    "choices",
    "compose",
    "compose_part",
    "compose_unchecked",
    "describe",
    "family",
    "hash_values",
    "to_checked_config",
    "to_config",
]
