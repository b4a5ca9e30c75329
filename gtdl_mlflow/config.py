"""The schema of ``conf/``: a key or a type that is wrong stops at composition, an impossible value right after it.

Nothing here imports MLflow or a framework: a mistake on the command line is answered before anything slow starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Tuning(str, Enum):
    """``plain``: what the framework's own tutorial does; ``best``: the fastest settings found that compute the same."""

    plain = "plain"
    best = "best"


class Order(str, Enum):
    """``sequential``: the data set's own order, over and over; ``shuffled``: a new order every epoch."""

    sequential = "sequential"
    shuffled = "shuffled"


@dataclass
class Python:
    """Which interpreters a framework's environment may use."""

    preferred: str = MISSING
    """Taken when the machine has it, so that all frameworks run on the same one where they can: ``3.11``."""
    supported: str = MISSING
    """A version specifier, as in packaging: ``>=3.10,<3.14``."""


@dataclass
class Recipe:
    """One way to fill an environment."""

    requirements: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    """Further arguments of ``uv pip install``."""
    note: str = ""
    """Said to the user when this way is the one taken."""


@dataclass
class Device:
    """What a framework can do on one kind of device."""

    recipes: list[Recipe] = field(default_factory=list)
    """Tried in this order until one installs. None at all: the driver's own interpreter runs the worker."""
    unavailable: str = ""
    """Why this framework cannot use this device here; empty if it can."""


@dataclass
class Settings:
    """What makes a framework fast or slow without changing what it computes."""

    options: dict[str, Any] = field(default_factory=dict)
    """Read by the adapter."""
    environment: dict[str, str] = field(default_factory=dict)
    """Set for the worker's process before it starts."""


@dataclass
class Framework:
    """One framework: what its environment holds, which adapter speaks for it, what it can run on."""

    name: str = MISSING
    version: str = MISSING
    adapter: str = MISSING
    """``module:Class``, imported in the worker only."""
    python: Python = field(default_factory=Python)
    devices: dict[str, Device] = field(default_factory=dict)
    tuning: dict[str, Settings] = field(default_factory=dict)


@dataclass
class Dataset:
    """One data set, as its publisher describes it."""

    name: str = MISSING
    family: str = MISSING
    """``mnist`` or ``cifar10``: whose default setting fits it."""
    reader: str = MISSING
    """``module:function``: given this configuration and the folder of its files, returns ``Arrays``."""
    classes: int = MISSING
    image_shape: list[int] = MISSING
    """Height, width, channels."""
    train_images: int = MISSING
    test_images: int = MISSING
    files: dict[str, str] = field(default_factory=dict)
    """The publisher's files, unpacked names, with the MD5 of what is inside."""
    source: str = MISSING
    """Where the data set is described."""
    terms: str = MISSING
    """Licence or terms of use."""
