"""The descendants of a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from helpers.project import wait_until

from gtdl_mlflow import process_tree
from gtdl_mlflow.process_tree import descendants

CHILD = "import time; time.sleep(600)"
THREAD = f"subprocess.Popen([sys.executable, '-c', {CHILD!r}]).wait()"
PARENT = f"import subprocess, sys, threading; threading.Thread(target=lambda: {THREAD}).start(); {THREAD}"


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process with two children, one of which a thread has started."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT])
    try:
        wait_until(lambda: len(psutil.Process(parent.pid).children()) == 2, "both children run", timeout_s=60)
        yield parent
    finally:
        for each in psutil.Process(parent.pid).children():
            each.kill()
        parent.wait()


@pytest.mark.parametrize("has_children", [process_tree.HAS_CHILDREN, False])
def test_children_of_all_threads_are_found(
    family: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, has_children: bool
) -> None:
    monkeypatch.setattr(process_tree, "HAS_CHILDREN", has_children)
    expected = {each.pid for each in psutil.Process(family.pid).children(recursive=True)}
    assert set(descendants(family.pid)) == expected
    assert len(expected) == 2
    assert set(descendants(psutil.Process().pid)) >= {family.pid, *expected}


def test_process_that_has_ended_has_no_descendants() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert descendants(ended.pid) == []
