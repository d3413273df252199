import math
from itertools import product

import pytest
import torch

from diveparse.datasets.sampling import sample_frame_times


@pytest.mark.parametrize("duration_s", [0.04, 1.0, 5.84, 3600.0])
def test_each_equal_segment_of_the_video_gives_one_time(duration_s: float) -> None:
    for num_frames, seed in product((1, 2, 24, 97), (None, 0, 1, 2)):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        times_s = sample_frame_times(duration_s, num_frames, generator=generator)
        assert times_s.shape == (num_frames,)
        assert times_s[-1] < duration_s
        segments = (times_s / (duration_s / num_frames)).floor()
        assert segments.tolist() == list(range(num_frames))


def test_without_a_generator_the_times_are_the_middles() -> None:
    assert sample_frame_times(8.0, 4).tolist() == [1.0, 3.0, 5.0, 7.0]


def test_with_a_generator_the_times_fill_their_segments() -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.stack([sample_frame_times(4.0, 4, generator=generator) for _ in range(2000)]) - torch.arange(4)
    assert offsets.min() < 0.01
    assert offsets.max() > 0.99
    assert (offsets.mean(0) - 0.5).abs().max() < 0.03
    assert (offsets - offsets[:, :1]).abs().max() < 1e-6  # evenly apart, whatever the place


def test_the_last_time_is_before_the_end_even_for_the_largest_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = math.nextafter(1, 0)
    monkeypatch.setattr(torch, "rand", lambda n, *, generator, dtype: torch.full((n,), 1 - 2**-24, dtype=dtype))
    for duration_s in (largest, 0.1, 5.84, 1e6):
        assert sample_frame_times(duration_s, 97, generator=torch.Generator())[-1] < duration_s


def test_a_generator_decides_the_times() -> None:
    first, again = (sample_frame_times(5.0, 8, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, sample_frame_times(5.0, 8, generator=torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("num_views", [1, 2, 5])
def test_views_together_are_evenly_spaced(num_views: int) -> None:
    views = [sample_frame_times(6.0, 4, view=(i, num_views)) for i in range(num_views)]
    together = torch.cat(views).sort().values
    expected = sample_frame_times(6.0, 4 * num_views)
    assert torch.allclose(together, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 4), "duration_s must be > 0"),
        ((-1.0, 4), "duration_s must be > 0"),
        ((math.nan, 4), "duration_s must be > 0"),
        ((math.inf, 4), "duration_s must be > 0"),
        ((1.0, 0), "num_frames must be > 0, got 0"),
    ],
)
def test_impossible_requests_are_refused(arguments: tuple[float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_frame_times(*arguments)


@pytest.mark.parametrize("view", [(1, 1), (-1, 2), (0, 0)])
def test_a_view_that_is_not_one_of_n_is_refused(view: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="view must be"):
        sample_frame_times(1.0, 4, view=view)
