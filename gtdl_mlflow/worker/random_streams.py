"""Named random streams: one function for every use of a run's seed.

All streams but ``step_seed`` are ``RandomState`` and not ``Generator``, because the frameworks need different versions
of NumPy and only the older stream is frozen across all of them (NEP 19).

The keys are such that no two uses share a stream:

* Keys of equal length differ in their second element, which identifies the use; among the keys of two elements there is
  one use only.
* Keys of different length need care. ``RandomState`` adds ``key[j] + j`` to its state word by word and repeats the key
  until all 624 words are done, so two keys are equivalent if these repeated sums agree: ``[8, 7]`` and ``[8, 7, 6]``
  give the same stream. A key of four elements can agree with a shorter one only if its second and fourth sums are equal
  (every shorter period forces that). With a fourth element of 0 the sums are ``id + 1`` and ``3``, so any id but 2 is
  safe.

The keys of two and three elements predate this rule and stay as they are, so that results remain comparable. They agree
for two seeds only: seed 8 (array 7 and the order of epoch 6) and seed 14 (array 13 and the augmentation of step 12).
"""

from __future__ import annotations

import numpy as np


def weights(seed: int, array: int) -> np.random.RandomState:
    """Return the stream of the initial values of the trainable array number ``array``."""
    return np.random.RandomState([seed, array])


def batch_order(seed: int, epoch: int) -> np.random.RandomState:
    """Return the stream of the order of the training images in ``epoch``."""
    return np.random.RandomState([seed, 7, epoch])


def augmentation(seed: int, step: int) -> np.random.RandomState:
    """Return the stream of the augmentation of the batch of training iteration ``step``."""
    return np.random.RandomState([seed, 13, step])


def masks(seed: int, array: int) -> np.random.RandomState:
    """Return the stream of the connection mask of the trainable array number ``array``."""
    return np.random.RandomState([seed, 1, array, 0])


def parity(seed: int) -> np.random.RandomState:
    """Return the stream of the images and labels of the parity check."""
    return np.random.RandomState([seed, 11, 0, 0])


def step_seed(seed: int, step: int) -> int:
    """Return the seed, below 2**31, of a framework's own generator in training iteration ``step``.

    ``SeedSequence`` hashes its key, so these seeds are unrelated to the streams above.
    """
    return int(np.random.SeedSequence([seed, 17, step]).generate_state(1)[0] >> 1)
