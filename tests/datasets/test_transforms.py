import pytest
import torch
from torch import Tensor

from diveparse.configs import ClipConfig
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.transforms import (
    SPATIAL_VIEWS,
    decode_size,
    eval_transform,
    random_area_share,
    train_transform,
)
from diveparse.datasets.video import VideoInfo

PLAIN = ClipConfig(image_size=16, flip=False, color_jitter=0.0)


def some_frames(num_frames: int = 3, height: int = 20, width: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator)


def normalised(frames: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (frames / 255 - mean) / std


def test_all_frames_of_a_clip_are_transformed_alike() -> None:
    still = some_frames(1).expand(8, -1, -1, -1)
    transform = train_transform(ClipConfig(image_size=16, color_jitter=0.4))
    for seed in range(10):
        torch.manual_seed(seed)
        clip = transform(still)
        assert clip.shape == (8, 3, 16, 16)
        assert torch.equal(clip, clip[:1].expand_as(clip))


def test_training_clips_differ_from_draw_to_draw_and_repeat_with_the_seed() -> None:
    transform = train_transform(ClipConfig(image_size=16))
    clips = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        clips.append(transform(some_frames()))
    assert not torch.equal(clips[0], clips[1])
    assert torch.equal(clips[0], clips[2])


def test_a_training_crop_is_a_square_of_the_frames_anywhere_in_them() -> None:
    frames, transform = some_frames(1), train_transform(PLAIN)
    squares = normalised(frames).unfold(-2, 16, 1).unfold(-2, 16, 1)  # (time, 3, top, left, 16, 16)
    corners = set()
    for seed in range(100):
        torch.manual_seed(seed)
        difference = (squares - transform(frames)[:, :, None, None]).abs().amax(dim=(0, 1, 4, 5))
        corners |= {tuple(corner) for corner in (difference < 1e-5).nonzero().tolist()}
    assert len(corners) > 45  # of 75


def test_half_of_the_training_clips_are_mirrored_and_otherwise_the_same() -> None:
    frames = some_frames(height=16, width=16)
    transform = train_transform(ClipConfig(image_size=16, flip=True, color_jitter=0.0))
    num_mirrored = 0
    for seed in range(100):
        torch.manual_seed(seed)
        clip = transform(frames)
        mirrored = torch.allclose(clip, normalised(frames.flip(-1)), atol=1e-5)
        assert mirrored or torch.allclose(clip, normalised(frames), atol=1e-5)
        num_mirrored += mirrored
    assert 35 < num_mirrored < 65


def test_colours_are_changed_only_if_asked_and_stay_in_range() -> None:
    frames = some_frames(height=16, width=16)
    assert torch.allclose(train_transform(PLAIN)(frames), normalised(frames), atol=1e-5)
    clip = train_transform(ClipConfig(image_size=16, flip=False, color_jitter=0.5))(frames)
    assert not torch.allclose(clip, normalised(frames), atol=0.05)
    assert clip.min() >= (0 - PIXEL_MEAN[0]) / PIXEL_STD[0] - 1e-5
    assert clip.max() <= (1 - PIXEL_MEAN[0]) / PIXEL_STD[0] + 1e-5


@pytest.mark.parametrize(("height", "width"), [(16, 30), (30, 16), (16, 16)])
def test_the_three_spatial_views_are_the_ends_and_the_middle_of_the_long_side(height: int, width: int) -> None:
    frames = some_frames(height=height, width=width)
    for position, start in zip(SPATIAL_VIEWS[3], (0, (max(height, width) - 16) // 2, -16), strict=True):
        long_side = range(max(height, width))[start:][:16]
        square = frames[..., :16, long_side] if width > height else frames[..., long_side, :16]
        assert torch.allclose(eval_transform(PLAIN, position)(frames), normalised(square), atol=1e-5)


def test_one_spatial_view_is_the_middle() -> None:
    frames = some_frames(height=16)
    assert torch.equal(eval_transform(PLAIN, *SPATIAL_VIEWS[1])(frames), eval_transform(PLAIN)(frames))


@pytest.mark.parametrize(("height", "width"), [(480, 640), (120, 160), (640, 360), (100, 100), (10, 300)])
@pytest.mark.parametrize("area_share", [0.3, 0.7, 1.0])
def test_frames_are_decoded_just_large_enough_and_in_proportion(height: int, width: int, area_share: float) -> None:
    info = VideoInfo(1.0, 25, 25.0, width=width, height=height, codec="h264")
    size = decode_size(info, ClipConfig(image_size=112), area_share=area_share)
    assert min(size) >= 112
    assert 112**2 / min(size) ** 2 == pytest.approx(area_share, rel=0.02)
    assert size[1] / size[0] == pytest.approx(width / height, rel=0.02)


def test_the_area_that_a_training_crop_keeps_is_spread_over_its_range() -> None:
    torch.manual_seed(0)
    shares = torch.tensor([random_area_share(ClipConfig(crop_scale_min=0.6)) for _ in range(2000)])
    assert shares.min() > 0.6
    assert shares.max() <= 1
    assert shares.mean() == pytest.approx(0.8, abs=0.01)
    assert random_area_share(ClipConfig(crop_scale_min=1.0)) == 1
