"""Random streams: every use of a seed has its own, and their definition never changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gtdl_mlflow.worker import random_streams
from gtdl_mlflow.worker.random_streams import Use, framework_seed, stream

INDICES = 40
"""Arrays, epochs and iterations of every seed that are compared."""


def test_all_streams_differ() -> None:
    beginnings = [
        stream(use, seed, index).bytes(16)
        for use in Use
        for seed in (*range(20), 2**32 - 1)
        for index in range(INDICES)
    ]
    assert len(set(beginnings)) == len(beginnings)


@pytest.mark.parametrize(
    ("use", "seed", "index", "expected"),
    [
        (Use.WEIGHTS, 1, 2, [1511819504, 1356725779, 1637931090, 2060726511]),
        (Use.BATCH_ORDER, 1, 3, [1956865053, 1011384587, 1054912727, 1601531462]),
        (Use.AUGMENTATION, 2**32 - 1, 5, [13153454, 801217835, 2064969436, 1788471435]),
    ],
)
def test_streams_never_change(use: Use, seed: int, index: int, expected: list[int]) -> None:
    assert stream(use, seed, index).randint(0, 2**31 - 1, 4).tolist() == expected


def test_framework_seeds_never_change_and_fit_31_bits() -> None:
    assert [framework_seed(1, iteration) for iteration in range(3)] == [1285465502, 623481214, 785419323]
    assert all(0 <= framework_seed(seed, 0) < 2**31 for seed in (0, 7, 2**32 - 1))


def test_a_run_draws_from_no_other_stream() -> None:
    package = Path(random_streams.__file__).parent
    sources = {path.relative_to(package).as_posix(): path.read_text() for path in package.rglob("*.py")}
    drawing = [name for name, text in sources.items() if re.search(r"np\.random\.(RandomState|default_rng)\(", text)]
    # Two adapters expand a seed of `framework_seed`; the peak's matrices are no part of a run.
    assert sorted(drawing) == [
        "frameworks/mxnet/adapter.py", "frameworks/theano/adapter.py", "peak.py", "random_streams.py",
    ]  # fmt: skip
