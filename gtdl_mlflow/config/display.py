"""Label and colour of a framework by its name: data in ``conf/framework/NAME.yaml``."""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml

from .resolvers import CONF, choices

UNKNOWN_COLOR = "#767676"
"""Colour of a framework that has no yaml, as in old runs."""


def label(framework: str) -> str:
    """Return the name to show for ``framework``; the name itself if it has no yaml."""
    return str(_yaml(framework).get("label", framework))


def color(framework: str) -> str:
    """Return the colour of ``framework`` in charts as ``#RRGGBB``; a grey if it has no yaml."""
    return str(_yaml(framework).get("color", UNKNOWN_COLOR))


@cache
def _yaml(framework: str) -> dict[str, Any]:
    if framework not in choices("framework"):  # a name from a tracking store may be a path to any other file
        return {}
    path = CONF / "framework" / f"{framework}.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
