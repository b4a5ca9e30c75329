"""One virtual environment per framework, created on first use in the cache directory."""

from .create import ensure
from .environment import Environment, EnvironmentFailed, find, list_environments, remove

__all__ = ["Environment", "EnvironmentFailed", "ensure", "find", "list_environments", "remove"]
