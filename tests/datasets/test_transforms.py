import pickle

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from diveparse.configs import ClipConfig
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.transforms import (
    MEAN_COLOR,
    SPATIAL_VIEWS,
    ClipRandAugment,
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


@pytest.mark.parametrize(
    "clip_cfg",
    [
        ClipConfig(image_size=16, color_jitter=0.4),
        ClipConfig(image_size=16, rand_augment_magnitude=15, erasing_probability=0.5),
    ],
)
def test_all_frames_of_a_clip_are_transformed_alike(clip_cfg: ClipConfig) -> None:
    still = some_frames(1).expand(8, -1, -1, -1)
    transform = train_transform(clip_cfg)
    for seed in range(20):
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
    assert shares.mean() == pytest.approx(0.8, abs=0.01)
    assert random_area_share(ClipConfig(crop_scale_min=1.0)) == 1


def test_without_random_operations_and_erasing_a_clip_costs_the_same_draws_and_comes_out_the_same() -> None:
    plain = v2.Compose(
        [
            v2.RandomCrop(16),
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.ColorJitter(0.2, 0.2, 0.2),
            v2.Normalize(PIXEL_MEAN, PIXEL_STD),
        ]
    )
    outcomes = []
    for transform in (plain, train_transform(ClipConfig(image_size=16))):
        torch.manual_seed(5)
        outcomes.append((transform(some_frames()), torch.get_rng_state()))
    assert all(torch.equal(one, other) for one, other in zip(*outcomes, strict=True))


MEASURING = {"AutoContrast", "Contrast", "Equalize"}  # operations that first look at how bright the picture is


def only(operation: str, transform: v2.RandAugment) -> v2.RandAugment:
    """The transform, whose random choice of operations falls on this one."""
    transform._AUGMENTATION_SPACE = {operation: transform._AUGMENTATION_SPACE[operation]}
    return transform


@pytest.mark.parametrize("operation", sorted(v2.RandAugment._AUGMENTATION_SPACE.keys() - MEASURING))
def test_each_frame_of_a_clip_gets_the_operation_and_strength_that_it_would_get_alone(operation: str) -> None:
    frames = some_frames(num_frames=4)
    clips = []
    for part in (frames, *frames.split(1)):
        torch.manual_seed(3)
        clips.append(only(operation, ClipRandAugment(12))(part))
    assert torch.equal(clips[0], torch.cat(clips[1:]))
    assert torch.equal(clips[0], frames) == (operation == "Identity")


@pytest.mark.parametrize("operation", sorted(MEASURING))
def test_an_operation_that_measures_pictures_maps_a_colour_to_the_same_one_in_every_frame(operation: str) -> None:
    frames = some_frames(num_frames=4) // torch.tensor([2, 3, 4, 5], dtype=torch.uint8).view(4, 1, 1, 1)
    num_targets = []  # the most colours that one colour is mapped to, by channel
    for transform in (ClipRandAugment(12), v2.RandAugment(2, 12)):
        torch.manual_seed(3)
        clip = only(operation, transform)(frames)
        assert not torch.equal(clip, frames)
        for before, after in zip(frames.unbind(1), clip.unbind(1), strict=True):
            num_targets.append(max(len(after[before == value].unique()) for value in before.unique()))
    assert num_targets[:3] == [1, 1, 1]
    assert max(num_targets[3:]) > 1  # frame by frame it would not hold


def test_random_operations_differ_from_draw_to_draw_and_repeat_with_the_seed_in_another_process() -> None:
    clip_cfg = ClipConfig(image_size=16, flip=False, color_jitter=0.0, rand_augment_magnitude=12)
    frames, transform = some_frames(height=16, width=16), train_transform(clip_cfg)
    clips = []
    for seed in range(8):
        torch.manual_seed(seed)
        clips.append(transform(frames))
        torch.manual_seed(seed)
        assert torch.equal(clips[-1], pickle.loads(pickle.dumps(transform))(frames))
    assert len({tuple(clip.flatten().tolist()) for clip in clips}) > 4


def test_what_an_operation_uncovers_is_filled_with_the_mean_colour() -> None:
    torch.manual_seed(0)
    clip = only("TranslateX", ClipRandAugment(20))(torch.full((2, 3, 30, 30), 255, dtype=torch.uint8))
    uncovered = clip[clip < 255]
    assert len(uncovered) > 0
    assert (uncovered - MEAN_COLOR[0]).abs().max() < 1


def test_erasing_blanks_one_box_of_all_frames_with_the_mean_colour_as_often_as_asked() -> None:
    clip_cfg = ClipConfig(image_size=32, flip=False, color_jitter=0.0, erasing_probability=0.25)
    frames, transform = some_frames(num_frames=4, height=32, width=32), train_transform(clip_cfg)
    num_erased = 0
    for seed in range(200):
        torch.manual_seed(seed)
        clip = transform(frames)
        changed = (clip - normalised(frames)).abs() > 1e-5  # (time, 3, height, width)
        assert (clip[changed] == 0).all()
        box = changed.any(0).any(0)
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        num_erased += len(rows) > 0
        if len(rows) > 0:
            top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            assert (clip[:, :, top:bottom, left:right] == 0).all()
            assert (bottom - top) * (right - left) < 0.4 * 32 * 32
    assert 35 < num_erased < 65
