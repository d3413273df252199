from __future__ import annotations

from itertools import product

import numpy as np

from diveparse.datasets.storage.seeding import stream, stream_seed

KEYS = [(seed, *key) for seed in (0, 1, 5) for length in range(4) for key in product((0, 1, 5), repeat=length)]


def test_the_same_key_gives_the_same_stream() -> None:
    for key in KEYS:
        assert (stream(*key).random(4) == stream(*key).random(4)).all()
        assert stream_seed(*key) == stream_seed(*key)


def test_keys_of_other_lengths_or_numbers_have_other_streams() -> None:
    """Among them (0, 5), (0, 5, 0) and (0, 5, 0, 0), which NumPy takes for one as plain tuples of seeds."""
    assert len({stream(*key).random() for key in KEYS}) == len(KEYS)
    assert len({stream_seed(*key) for key in KEYS}) == len(KEYS)


def test_streams_of_neighbouring_keys_are_unrelated() -> None:
    draws = np.stack([stream(0, number, 0).standard_normal(2000) for number in range(8)])
    between = np.corrcoef(draws)[~np.eye(len(draws), dtype=bool)]
    assert np.abs(between).max() < 0.1


def test_a_stream_seed_fits_generators_of_64_bits_and_uses_them() -> None:
    seeds = [stream_seed(*key) for key in KEYS]
    assert 2**63 < max(seeds) < 2**64
