"""Random streams: every use of a seed has its own, and those that results depend on never change."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from gtdl_mlflow.worker import random_streams
from gtdl_mlflow.worker.random_streams import augmentation, batch_order, masks, parity, step_seed, weights

NUMBERS = 40
"""Arrays, epochs and steps of every seed that are compared."""


def test_all_streams_of_a_seed_differ_but_for_the_two_documented_coincidences() -> None:
    shared = []
    for seed in [*range(24), 2**32 - 1]:
        streams = collections.defaultdict(list)
        for number in range(NUMBERS):
            for use in (weights, batch_order, augmentation, masks):
                streams[use(seed, number).bytes(16)].append((use.__name__, seed, number))
        streams[parity(seed).bytes(16)].append(("parity", seed, 0))
        shared += [set(uses) for uses in streams.values() if len(uses) > 1]
    assert shared == [
        {("weights", 8, 7), ("batch_order", 8, 6)},
        {("weights", 14, 13), ("augmentation", 14, 12)},
    ]


def test_keys_of_different_length_can_give_the_same_stream() -> None:
    # The reason for the fourth element of the newer keys: with three, masks(2, 0) would be weights(2, 1).
    assert np.random.RandomState([2, 1]).bytes(16) == np.random.RandomState([2, 1, 0]).bytes(16)
    assert weights(2, 1).bytes(16) != masks(2, 0).bytes(16)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (weights(1, 2), [362985527, 412874776, 1110386547, 1872056496]),
        (batch_order(1, 3), [1052880721, 889231149, 398406489, 1781095668]),
        (augmentation(1, 5), [517490415, 401148167, 1700166159, 989520891]),
    ],
)
def test_streams_that_results_depend_on_never_change(stream: np.random.RandomState, expected: list[int]) -> None:
    assert stream.randint(0, 2**31 - 1, 4).tolist() == expected


def test_step_seeds_never_change_and_fit_31_bits() -> None:
    assert [step_seed(1, step) for step in range(3)] == [267047914, 198213736, 1670763920]
    assert all(0 <= step_seed(seed, 0) < 2**31 for seed in (0, 7, 2**32 - 1))


def test_module_has_no_other_stream() -> None:
    functions = {name for name in vars(random_streams) if callable(vars(random_streams)[name])}
    assert functions == {"weights", "batch_order", "augmentation", "masks", "parity", "step_seed"}
