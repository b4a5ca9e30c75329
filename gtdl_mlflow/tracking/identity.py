"""When two runs are the same, and the checkpoint folder that an interrupted run and its successor share."""

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

from .. import __version__, tags
from ..config import Config
from ..console import info
from ..datasets import PreparedDataset
from ..environments import Environment
from ..files import cache_dir, lock_for, write_atomically

OWNER = "run.json"
"""File in a checkpoint folder that names the run that wrote the checkpoints."""

WORKER = Path(__file__).parents[1] / "worker"


@dataclass(frozen=True)
class Identity:
    """Everything that can change a result: configuration, environment, data and code."""

    config: str
    environment: str
    data: str
    code: str

    def matches(self, run_tags: Mapping[str, str]) -> bool:
        """Return whether a run with these tags has the same identity. Tags that are missing are ignored."""
        ours = {
            tags.CONFIG_HASH: self.config,
            tags.ENVIRONMENT: self.environment,
            tags.DATA_DIGEST: self.data,
            tags.CODE: self.code,
        }
        return all(run_tags.get(name, value) == value for name, value in ours.items())

    def hash(self) -> str:
        """Return a hash of 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def identity(config: Config, environment: Environment, data: PreparedDataset) -> Identity:
    """Return the identity of a run."""
    return Identity(config.hash(), environment.key, data.digest, worker_code_version())


@cache
def worker_code_version() -> str:
    """Return the version of gtdl_mlflow with a hash of the worker's code, which may differ in a checkout."""
    total = hashlib.sha256()
    for path in sorted(WORKER.rglob("*.py")):
        total.update(path.relative_to(WORKER).as_posix().encode())
        total.update(path.read_bytes())
    return f"{__version__}+{total.hexdigest()[:10]}"


@dataclass(frozen=True)
class InterruptedRun:
    """The dead run whose checkpoints a new run resumes from."""

    run: str
    """As in ``outbox.Record.reference``."""
    tracker: str
    """Hash of the tracker's address, which may hold a password."""


@contextmanager
def checkpoint_folder(
    run_identity: Identity, framework: str, run: str, uri: str
) -> Iterator[tuple[Path | None, InterruptedRun | None]]:
    """Hold the checkpoint folder of an identity; yield it, and the run that left checkpoints in it, if any.

    The folder is deleted if the block ends without an exception. It is None while another process holds it.
    """
    folder = cache_dir() / "checkpoints" / f"{framework}-{run_identity.hash()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_for(folder)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        info("another process trains the same configuration: this run writes no checkpoints")
        yield None, None
        return
    try:
        folder.mkdir(exist_ok=True)
        owner = folder / OWNER
        interrupted = _read_owner(owner) if any(folder.glob("step-*")) else None
        write_atomically(owner, json.dumps(asdict(InterruptedRun(run, tracker_hash(uri)))))
        yield folder, interrupted
        shutil.rmtree(folder)
        Path(lock.lock_file).unlink()
    finally:
        lock.release()


def _read_owner(owner: Path) -> InterruptedRun | None:
    try:
        return InterruptedRun(**json.loads(owner.read_text()))
    except (FileNotFoundError, TypeError):  # TypeError: written by an earlier version
        return None


def tracker_hash(uri: str) -> str:
    """Return a hash of a tracker's address."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]
