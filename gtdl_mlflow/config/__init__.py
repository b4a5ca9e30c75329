"""The schema of ``conf/``: a key or a type that is wrong stops at composition, an impossible value right after it.

Nothing here imports MLflow or a framework: a mistake on the command line is answered before anything slow starts.
"""

from .checks import ConfigError, Unavailable, check
from .composition import compose, load, meaning, typed
from .resolvers import CONF, choices, family
from .schema import (
    Build,
    Config,
    Dataset,
    Device,
    Download,
    Framework,
    Hardware,
    Labels,
    Order,
    Python,
    Recipe,
    Rerun,
    Settings,
    Study,
    SystemPackage,
    Tuning,
)  # fmt: skip

__all__ = [
    "CONF", "Build", "Config", "ConfigError", "Dataset", "Device", "Download", "Framework", "Hardware", "Labels",
    "Order", "Python", "Recipe", "Rerun", "Settings", "Study", "SystemPackage", "Tuning", "Unavailable", "check",
    "choices", "compose", "family", "load", "meaning", "typed",
]  # fmt: skip
