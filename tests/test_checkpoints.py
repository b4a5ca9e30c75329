"""Checkpoints on the disk: complete or absent, and exclusive to one worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gtdl_mlflow.worker.checkpoints import Checkpoints


class Interrupted(Exception):
    """Stands in for the end of the process."""


def content(checkpoints: Checkpoints) -> dict[str, str]:
    newest = checkpoints.newest()
    assert newest is not None
    return {path.name: path.read_text() for path in newest.iterdir()}


def test_checkpoint_is_complete_or_absent(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise Interrupted

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.newest() is None
        checkpoints.save(9, lambda folder: (folder / "a").write_text("nine") and None)
        with pytest.raises(Interrupted):
            checkpoints.save(10, interrupted)
        assert content(checkpoints) == {"a": "nine"}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert content(checkpoints) == {"a": "nine"}
        checkpoints.save(10, lambda folder: (folder / "b").write_text("ten") and None)
        assert content(checkpoints) == {"b": "ten"}


@pytest.mark.slow
def test_worker_waits_until_another_has_left_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gtdl_mlflow.worker.checkpoints import Checkpoints; "
        "Checkpoints(Path(sys.argv[1])).__enter__(); print('entered')"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        with Checkpoints(tmp_path), pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=5)
        assert other.communicate(timeout=60)[0] == "entered\n"
