"""The schema of ``conf/``: a key or a type that is wrong stops at composition, an impossible value right after it.

Nothing here imports MLflow or a framework: a mistake on the command line is answered before anything slow starts.
"""

from .checks import ConfigError, Unavailable, check
from .composition import compose, compose_unchecked, to_checked_config, to_config
from .resolvers import CONF, choices, family
from .schema import (  # fmt: skip
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
)

__all__ = [
    "CONF", "Build", "Config", "ConfigError", "Dataset", "DeviceSupport", "Download", "Framework", "Hardware", "Labels",
    "Python", "Recipe", "Rerun", "SpeedSettings", "Study", "SweepOrder", "SystemPackage", "Tuning", "Unavailable", "check",
    "choices", "compose", "compose_unchecked", "family", "to_checked_config", "to_config",
]  # fmt: skip
