"""The comparison of the harness with hand-written loops."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.project import ROOT, need_framework

SCRIPT = ROOT / "benchmarks" / "native_speed.py"


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return an adapter's setup for a made-up loop, which has 35 test images and batches of 10."""
    monkeypatch.syspath_prepend(SCRIPT.parent / "native")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "made_up_loop.py").write_text(
        "calls = []\n"
        "def loop(network, folder, threads, test_batch):\n"
        "    return (lambda count: calls.append(('train', count))), (lambda count: calls.append(('test', count))), 64\n"
    )
    np.save(tmp_path / "test_labels.npy", np.zeros(35, np.uint8))
    options = {"loop": "made_up_loop", "mode": "best", "network": "caffe_mnist", "data": str(tmp_path)}
    training = SimpleNamespace(batch_size=64, test_batch_size=10)
    yield SimpleNamespace(options=options, training=training, device="cpu", threads=1)
    sys.modules.pop("made_up_loop", None)


def test_a_loop_does_the_steps_and_batches_of_a_turn(setup: Any) -> None:
    model = importlib.import_module("native_adapter").NativeLoop(setup)
    model.train(None, [0.1] * 7)
    model.predict(iter(range(7)))  # more batches than the test set has
    assert sys.modules["made_up_loop"].calls == [("train", 7), ("test", 30), ("test", 30), ("test", 10)]


def test_a_loop_with_another_batch_size_is_refused(setup: Any) -> None:
    setup.training.batch_size = 50
    with pytest.raises(ValueError, match="caffe_mnist: the loop's batches have 64 images, not 50"):
        importlib.import_module("native_adapter").NativeLoop(setup)


@pytest.mark.slow
@pytest.mark.frameworks
def test_times_and_ratio_of_both_activities_are_printed() -> None:
    need_framework("torch")
    command = [sys.executable, str(SCRIPT), "--minutes", "0.01", "--threads", "1"]
    done = subprocess.run(
        [*command, "--frameworks", "torch", "--networks", "torch_mnist", "--modes", "eager_tuned"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    row = r"^torch eager_tuned torch_mnist (\w+) cpu: ([\d.]+) over ([\d.]+) ms a batch  ratio ([\d.]+) .*, 3 restarts"
    rows = re.findall(row, done.stdout, re.MULTILINE)
    assert [activity for activity, *_ in rows] == ["training", "testing"]
    for _, harness, loop, ratio in rows:
        assert float(harness) / float(loop) == pytest.approx(float(ratio), rel=0.3)
