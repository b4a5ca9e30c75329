"""Where the checkpoints of a run are, so that the same command goes on after a kill instead of starting anew."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
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
class Identity:
    """What makes two runs the same: all that can change a result, in configuration, environment, data and code."""

    config: str
    environment: str
    data: str
    code: str

    def fits(self, tags: Mapping[str, str]) -> bool:
        """Whether a run with these tags was the same, as far as it came to know."""
        ours = {"gtdl.config_hash": self.config, "gtdl.environment": self.environment, "gtdl.data_digest": self.data,
                "gtdl.code": self.code}  # fmt: skip
        return all(tags.get(name, value) == value for name, value in ours.items())

    def hash(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def identity(config: Config, environment: Environment, data: Prepared) -> Identity:
    return Identity(config.hash(), environment.key, data.digest, code())


@cache
def code() -> str:
    """This project's version, and a hash of what runs in a worker: a version says little in a checkout."""
    worker = Path(__file__).parent / "worker"
    total = hashlib.sha256()
    for path in sorted(worker.rglob("*.py")):
        total.update(path.relative_to(worker).as_posix().encode())
        total.update(path.read_bytes())
    return f"{__version__}+{total.hexdigest()[:10]}"


@dataclass(frozen=True)
class Interrupted:
    """The run that ended without a word, and is gone on with."""

    run: str
    """As in ``delivery.Record.reference``."""
    tracker: str
    """A hash of the tracker's address, which may hold a password."""


@contextmanager
def checkpoints(same: Identity, framework: str, run: str, uri: str) -> Iterator[tuple[Path | None, Interrupted | None]]:
    """The folder of the checkpoints of such a run, and whose they are if there are any.

    It is this process's alone until the block is left, and gone if the block is left without an exception; None where
    another process has it.
    """
    folder = home() / "checkpoints" / f"{framework}-{same.hash()}"
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
        interrupted = _interrupted(owner) if any(folder.glob("step-*")) else None
        new = owner.with_suffix(".part")
        new.write_text(json.dumps(asdict(Interrupted(run, tracker(uri)))))
        new.replace(owner)
        yield folder, interrupted
        shutil.rmtree(folder)
        Path(held.lock_file).unlink()
    finally:
        held.release()


def _interrupted(owner: Path) -> Interrupted | None:
    try:
        return Interrupted(**json.loads(owner.read_text()))
    except (FileNotFoundError, TypeError):  # of an earlier version
        return None


def tracker(uri: str) -> str:
    """A tracker's address, unreadable."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]
