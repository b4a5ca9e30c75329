"""Named random streams: every use of a run's seed has a separate stream.

A key is always (use, seed, index). ``SeedSequence`` hashes it to 128 bits (the construction of M. O'Neill's
``seed_seq_fe``), so different keys give unrelated streams. ``RandomState`` alone is not sufficient: it repeats a list
of numbers and adds their positions, so the lists ``[8, 7]`` and ``[8, 7, 6]`` give the same stream.

The streams are ``RandomState`` and not ``Generator``, because the frameworks need different versions of NumPy and only
the older distributions are frozen across all of them (NEP 19).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Use(IntEnum):
    """Uses of a seed, with the meaning of their index. Numbers are never reused: results depend on them."""

    WEIGHTS = 0
    """Initial values. Index: position of the trainable array."""
    MASKS = 1
    """Connection masks. Index: position of the trainable array."""
    BATCH_ORDER = 2
    """Order of the training images. Index: epoch."""
    AUGMENTATION = 3
    """Augmentation of a training batch. Index: iteration."""
    FRAMEWORK = 4
    """Seeds of the frameworks' random generators (dropout). Index: iteration."""
    PARITY = 5
    """Images and labels of the parity check. Index: 0."""


def stream(use: Use, seed: int, index: int = 0) -> np.random.RandomState:
    """Return the stream of a use. ``seed`` and ``index`` are below 2**32."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([use, seed, index])))


def framework_seed(seed: int, iteration: int) -> int:
    """Return the seed, below 2**31, of a framework's random generator in a training iteration."""
    return int(np.random.SeedSequence([Use.FRAMEWORK, seed, iteration]).generate_state(1)[0] >> 1)
