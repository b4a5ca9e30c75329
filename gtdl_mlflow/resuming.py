"""Where the checkpoints of a run are, so that the same command goes on after a kill instead of starting anew."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from . import __version__
from .config import Config
from .datasets import Prepared
from .environments import Environment
from .home import home
from .making import lock, say

OWNER = "run.json"
"""Says which MLflow run wrote the checkpoints."""


@dataclass(frozen=True)
class Interrupted:
    """The run that ended without a word, and is gone on with."""

    run_id: str
    uri: str


@contextmanager
def checkpoints(
    config: Config, environment: Environment, data: Prepared, run_id: str
) -> Iterator[tuple[Path | None, Interrupted | None]]:
    """The folder of the checkpoints of this configuration, and whose they are if there are any.

    It is this process's alone until the block is left, and gone if the block is left without an exception; None where
    another process has it. What makes two runs the same: all that can change a result, in the configuration, the
    environment, the data and this project.
    """
    same = json.dumps([config.hash(), environment.key, data.digest, __version__])
    folder = home() / "checkpoints" / f"{config.framework.name}-{hashlib.sha256(same.encode()).hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        say("another process is training this very configuration: this run keeps no checkpoints")
        yield None, None
        return
    try:
        folder.mkdir(exist_ok=True)
        owner = folder / OWNER
        interrupted = Interrupted(**json.loads(owner.read_text())) if owner.exists() else None
        if not any(folder.glob("step-*")):
            interrupted = None
        new = owner.with_suffix(".part")
        new.write_text(json.dumps({"run_id": run_id, "uri": config.tracking.uri}))
        new.replace(owner)
        yield folder, interrupted
        shutil.rmtree(folder)
        Path(held.lock_file).unlink()
    finally:
        held.release()
