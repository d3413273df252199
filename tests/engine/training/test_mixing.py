import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diveparse.configs import TrainConfig
from diveparse.engine.training.mixing import build_mixing

NUM_DIVES = 5
LABELS = torch.tensor([0, 3, 1, 4])


def plain_clips() -> Tensor:
    """Four clips of 3 frames, each of one value: its number."""
    return torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 3, 8, 8).clone()


def mixed(clips: Tensor, seed: int, **options: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    mix = build_mixing(TrainConfig(batch_size=4, **options), NUM_DIVES)
    assert mix is not None
    return mix(clips, LABELS)


def share_of_itself(shares: Tensor) -> Tensor:
    """By how much each clip's labels are its own; the rest must be those of the clip before it."""
    own = shares.gather(1, LABELS[:, None]).squeeze(1)
    expected = own[:, None] * F.one_hot(LABELS, NUM_DIVES) + (1 - own)[:, None] * F.one_hot(LABELS.roll(1), NUM_DIVES)
    torch.testing.assert_close(shares, expected)
    return own


def test_nothing_is_mixed_unless_the_config_asks_for_it():
    assert build_mixing(TrainConfig(), NUM_DIVES) is None


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_each_clip_and_its_label_with_the_one_before_by_one_share(seed):
    clips = plain_clips()
    result, shares = mixed(clips, seed, mixup_alpha=0.8)
    own = share_of_itself(shares)
    assert (own == own[0]).all()
    torch.testing.assert_close(result, own[0] * clips + (1 - own[0]) * clips.roll(1, 0))
    assert type(result) is Tensor


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_puts_one_box_of_the_clip_before_into_all_frames_and_shares_the_label_by_its_area(seed):
    clips = plain_clips()
    result, shares = mixed(clips, seed, cutmix_alpha=1.0)
    replaced = result != clips  # (batch, time, channel, height, width)
    assert (replaced == replaced[:1, :1, :1]).all()
    torch.testing.assert_close(result, torch.where(replaced, clips.roll(1, 0), clips))
    rows, columns = replaced[0, 0, 0].any(dim=1), replaced[0, 0, 0].any(dim=0)
    assert torch.equal(replaced[0, 0, 0], rows[:, None] & columns)
    torch.testing.assert_close(share_of_itself(shares), 1 - replaced[:, 0, 0].float().mean(dim=(1, 2)))


def test_with_both_a_batch_gets_either():
    blended = [
        bool((mixed(plain_clips(), seed, mixup_alpha=0.8, cutmix_alpha=1.0)[0] % 1 != 0).any()) for seed in range(20)
    ]
    assert 5 <= sum(blended) <= 15


def test_the_seed_decides():
    first, again, other = (mixed(plain_clips(), seed, mixup_alpha=1.0)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
