"""The comparison of the harness with hand-written loops."""

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


def test_order_of_creation_does_not_change_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    native_speed = importlib.import_module(SCRIPT.stem)

    def first_is_faster(
        composed: object, data: object, seconds: float, *sides: str
    ) -> dict[str, tuple[float, float, float]]:
        first, second = ({"harness": 90.0, "native": 100.0}[side] for side in sides)
        return {"train": (1.1 * first, second, 1.1 * first / second)}

    monkeypatch.setattr(native_speed, "measure_paired", first_is_faster)
    harness, native, ratio = native_speed.paired(config.compose([]), Path(), 1.0, 0)["train"]
    assert ratio == pytest.approx(0.9)
    assert harness / native == pytest.approx(0.9)


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("mode", ["--one-process", "--control"])
def test_paired_modes_print_speeds_and_ratio_of_both_phases(mode: str) -> None:
    need_torch()
    command = [sys.executable, SCRIPT, mode, "--repeats", "1", "--seconds", "0.5"]
    done = subprocess.run(
        [*command, "--frameworks", "torch", "--networks", "torch_mnist"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"^torch torch_mnist (\w+) +([\d,]+) over +([\d,]+) images/s +ratio ([\d.]+) ", done.stdout, re.MULTILINE
    )
    assert [phase for phase, *_ in rows] == ["train", "test"]
    assert all(float(value.replace(",", "")) > 0 for _, *values in rows for value in values)
