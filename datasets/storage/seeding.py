"""Independent random streams, each determined by a seed and a key of whole numbers.

NumPy pads a plain tuple of seeds with zeros, so (seed, 5) and (seed, 5, 0) would give the same stream, and a clip would
repeat the numbers of its source. A spawn key is not padded.
"""

from __future__ import annotations

import numpy as np


def stream(seed: int, *key: int) -> np.random.Generator:
    """The generator of this key. Keys that differ in a number or in length give independent streams."""
    return np.random.default_rng(_sequence(seed, *key))


def stream_seed(seed: int, *key: int) -> int:
    """A 64-bit seed for the same stream, for generators other than NumPy's."""
    return int(_sequence(seed, *key).generate_state(1, np.uint64)[0])


def _sequence(seed: int, *key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=key)
