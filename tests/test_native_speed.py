"""The instrument that holds our speed against hand-written loops."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.project import ROOT, need_torch

from gtdl_mlflow import config

SCRIPT = ROOT / "benchmarks" / "native_speed.py"


def test_it_does_not_matter_who_is_made_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    native_speed = importlib.import_module(SCRIPT.stem)

    def leaning(composed: object, data: object, seconds: float, *sides: str) -> dict[str, tuple[float, float, float]]:
        first, second = ({"ours": 90.0, "native": 100.0}[side] for side in sides)
        return {"train": (1.1 * first, second, 1.1 * first / second)}

    monkeypatch.setattr(native_speed, "in_turns", leaning)
    ours, native, ratio = native_speed.both(config.compose([]), Path(), 1.0, 0)["train"]
    assert ratio == pytest.approx(0.9)
    assert ours / native == pytest.approx(0.9)


@pytest.mark.parametrize("mode", ["--one-process", "--control"])
def test_ours_and_a_loop_take_turns(mode: str) -> None:
    need_torch()
    command = [sys.executable, SCRIPT, mode, "--repeats", "1", "--seconds", "0.5"]
    done = subprocess.run([*command, "--frameworks", "torch", "--networks", "torch_mnist"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.findall(
        r"^torch torch_mnist (\w+) +([\d,]+) over +([\d,]+) images/s +ratio ([\d.]+) ", done.stdout, re.M
    )
    assert [phase for phase, *_ in found] == ["train", "test"]
    assert all(float(value.replace(",", "")) > 0 for _, *values in found for value in values)
