"""Results that GTDLBench published, read from ``gtdlbench.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class PublishedResult:
    """Row of a published table, on one device."""

    version: str
    """Name and version of the framework at that time."""
    training_time_s: float
    testing_time_s: float
    accuracy_percent: float


@dataclass(frozen=True)
class PublishedFigures:
    """All published results and their source."""

    source: str
    year: int
    hardware: dict[str, str]
    """Model of the ``cpu`` and of the ``gpu``."""
    notes: dict[str, list[str]]
    """Differences between their procedure and ours by data set; under ``all``, those of every data set."""
    tutorials: dict[str, dict[str, str]]
    """Accuracy that a setting's tutorial reports of itself."""
    datasets: dict[str, Any]

    def figures(self, dataset: str, framework: str, device: str) -> PublishedResult | None:
        """Return what was published for ``framework`` under its own default; None if nothing was."""
        row = self.datasets.get(dataset, {}).get(framework)
        return None if row is None or device not in row else PublishedResult(row["version"], **row[device])


@cache
def load() -> PublishedFigures:
    """Read the published results."""
    path = Path(__file__).with_name("gtdlbench.yaml")
    return PublishedFigures(**yaml.safe_load(path.read_text(encoding="utf-8")))
