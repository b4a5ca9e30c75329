"""The published figures of GTDLBench, ``gtdlbench.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class PublishedResult:
    """One row of a published table, of one device."""

    version: str
    """The framework as it was then."""
    training_time_s: float
    testing_time_s: float
    accuracy_percent: float


@dataclass(frozen=True)
class Published:
    """All of it."""

    source: str
    year: int
    hardware: dict[str, str]
    """What ``cpu`` and ``gpu`` were."""
    notes: dict[str, list[str]]
    """Where it is not like for like, by data set; ``all`` of them."""
    tutorials: dict[str, str]
    """What the tutorial that a setting is from says of its own accuracy."""
    datasets: dict[str, Any]

    def figures(self, dataset: str, framework: str, device: str) -> PublishedResult | None:
        """What was published of ``framework`` under its own default, or None if nothing was."""
        row = self.datasets.get(dataset, {}).get(framework)
        return None if row is None else PublishedResult(row["version"], **row[device])


def load() -> Published:
    """The figures and their source."""
    return Published(**yaml.safe_load(Path(__file__).with_name("gtdlbench.yaml").read_text(encoding="utf-8")))
