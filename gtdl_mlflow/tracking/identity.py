"""Identity of a run, and the checkpoint folder that runs of one identity share."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import filelock

from .. import __version__, tags
from ..config import Config
from ..console import info
from ..datasets import PreparedDataset
from ..environments import Environment
from ..files import cache_dir, lock_for, read_state, write_atomically

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
    """As in ``record.Record.reference``."""
    tracker: str
    """Hash of the tracker's address, which may hold a password."""


@contextmanager
def checkpoint_folder(
    run_identity: Identity, framework: str, run: str, uri: str
) -> Iterator[tuple[Path | None, InterruptedRun | None]]:
    """Hold the checkpoint folder of an identity; yield it, and the run that left checkpoints in it, if any.

    The folder is deleted if the block ends without an exception. It is None, with a message, while another process
    holds it, or if it cannot be written: the run does without checkpoints.
    """
    path = cache_dir() / "checkpoints" / f"{framework}-{run_identity.hash()}"
    folder, interrupted = None, None
    with ExitStack() as stack:
        try:
            lock = lock_for(path)
            lock.acquire(timeout=0)
            stack.callback(lock.release)
            interrupted = _take_over(path, InterruptedRun(run, tracker_hash(uri)))
            folder = path
        except filelock.Timeout:
            info("another process trains the same configuration: this run writes no checkpoints")
        except OSError as error:
            info(f"{error.filename or path}: {error.strerror}: this run writes no checkpoints")
        yield folder, interrupted
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                Path(lock.lock_file).unlink()


def _take_over(folder: Path, owner: InterruptedRun) -> InterruptedRun | None:
    """Create the folder, or make it belong to ``owner``. Return its previous owner if it has checkpoints."""
    folder.mkdir(exist_ok=True)
    path = folder / OWNER
    values = read_state(path) if any(folder.glob("step-*")) else None
    write_atomically(path, json.dumps(asdict(owner)))
    run, tracker = (values or {}).get("run"), (values or {}).get("tracker")
    # Any other content was written by an earlier version.
    return InterruptedRun(run, tracker) if isinstance(run, str) and isinstance(tracker, str) else None


def tracker_hash(uri: str) -> str:
    """Return a hash of a tracker's address."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]
