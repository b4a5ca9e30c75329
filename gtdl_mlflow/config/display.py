"""Display of a configuration: a framework's label and colour, and a short description of a run."""

from __future__ import annotations

import re

from ..worker.job import Precision
from .resolvers import framework_yaml
from .schema import BEST, Config

UNKNOWN_COLOR = "#767676"
"""Colour of a framework that has no yaml, as in old runs."""


def label(framework: str) -> str:
    """Return the name to show for ``framework``; the name itself if it has no yaml."""
    return str(framework_yaml(framework).get("label", framework))


def color(framework: str) -> str:
    """Return the colour of ``framework`` in charts as ``#RRGGBB``; a grey if it has no yaml."""
    return str(framework_yaml(framework).get("color", UNKNOWN_COLOR))


def version(framework: str) -> str:
    """Return the version of ``framework`` in ``conf/``; empty if it has no yaml."""
    return str(framework_yaml(framework).get("version", ""))


def last_release(framework: str) -> int | None:
    """Return the year of the last release of ``framework`` if it is no longer developed, else None."""
    return framework_yaml(framework).get("last_release")


def plain(framework: str) -> str:
    """Return the framework that ``framework`` runs on; empty if there is none."""
    return str(framework_yaml(framework).get("plain", ""))


def part_of_metric(label: str) -> str:
    """Return a label as a part of a metric's name, in which MLflow allows few characters: ``Keras-JAX-3.15.1``."""
    return re.sub(r"[^\w.]+", "-", label)


def variant(mode: str, precision: str, deterministic: bool) -> str:
    """Return what distinguishes runs of one framework and version: `` eager bfloat16``; empty for the defaults."""
    words = [mode] if mode != BEST else []
    words += [precision] if precision != Precision.float32.value else []
    words += [] if deterministic else ["nondeterministic"]
    return "".join(f" {word}" for word in words)


def describe(config: Config) -> str:
    """Return a short description of the run: framework, training, budget and data set."""
    share = "" if config.budget == 1 else f" (budget {config.budget:g})"
    framework = config.framework
    return f"{framework.name} {framework.version}, {config.training.name}{share}, on {config.dataset.name}"
