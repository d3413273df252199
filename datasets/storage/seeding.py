"""Random streams that follow from whole numbers alone, each apart from every other.

NumPy pads a plain tuple of seeds with zeros, so that (seed, 5) and (seed, 5, 0) would be one stream: a clip would draw
the numbers of its source again. A spawn key is not padded.
"""

from __future__ import annotations

import numpy as np


def stream(seed: int, *key: int) -> np.random.Generator:
    """The generator of this key; keys of other lengths or other numbers have other streams."""
    return np.random.default_rng(_sequence(seed, *key))


def stream_seed(seed: int, *key: int) -> int:
    """A 64-bit seed for the same purpose, for generators that are not NumPy's."""
    return int(_sequence(seed, *key).generate_state(1, np.uint64)[0])


def _sequence(seed: int, *key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=key)
