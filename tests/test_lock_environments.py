"""The script that writes the locks of environments."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from helpers.project import ROOT

from gtdl_mlflow.environments import locks


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock_environments", ROOT / "scripts" / "lock_environments.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_versions_that_differ_between_pythons_have_a_marker_and_earlier_hashes_stay(script: ModuleType) -> None:
    earlier = "# python: 3.10\nboth==1 \\\n    --hash=sha256:old\none==1 --hash=sha256:gone\n"
    resolved = {
        "3.10": {"both==1": {"sha256:b"}, "one==2": {"sha256:c"}},
        "3.11": {"both==1": {"sha256:a"}, "one==3": {"sha256:d"}},
    }
    text = script.lock(resolved, earlier)
    assert text == (
        "# Written by scripts/lock_environments.py; do not edit.\n"
        "# platform: linux x86_64\n"
        "# python: 3.10 3.11\n"
        "both==1 \\\n    --hash=sha256:a \\\n    --hash=sha256:b \\\n    --hash=sha256:old\n"
        "one==2 ; python_version == '3.10' \\\n    --hash=sha256:c\n"
        "one==3 ; python_version == '3.11' \\\n    --hash=sha256:d\n"
    )
    assert [pin.name for pin in locks.read_pins(text)] == ["both", "one", "one"]
    assert script.lock({python: script.read(text) for python in ("3.10",)}, "").count("--hash") == 5


def test_unknown_lock_is_refused_with_the_known_ones(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["torch"]) == 2
    assert "unknown: torch; locks: caffe-cpu, " in capsys.readouterr().err
