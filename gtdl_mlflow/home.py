"""Where what takes long to make is kept, and where published data sets are looked for."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Environments and prepared data: ``GTDL_HOME``, or the user's cache folder."""
    chosen = os.environ.get("GTDL_HOME")
    folder = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("gtdl")
    # Hydra may change the working directory of a job: a relative folder must not move with it.
    return folder.absolute()


def write_whole(place: Path, text: str) -> None:
    """Write a file in ``home()`` whole or not at all, whichever other process writes it too."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_suffix(f".{os.getpid()}.part")
    new.write_text(text, encoding="utf-8")
    new.replace(place)


def data_home() -> Path:
    """Data sets as published, one folder each: ``GTDL_DATA``, or a folder in ``home()``."""
    chosen = os.environ.get("GTDL_DATA")
    return Path(chosen).expanduser().absolute() if chosen else home() / "datasets"
