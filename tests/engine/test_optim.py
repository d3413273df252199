import pytest
import torch
from torch import nn

from diveparse.configs import OptimizerKind, TrainConfig
from diveparse.engine.optim import build_optimizer, build_schedule, learning_rate_factor


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(torch.zeros(1, 3, 4))
        self.embed = nn.Embedding(5, 4)
        self.patches = nn.Conv2d(3, 4, 2)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 2)


def settings(model: Toy, cfg: TrainConfig) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, model.head, cfg)
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_only_weight_matrices_decay_the_head_has_its_own_rate_and_the_frozen_stay_out():
    got = settings(Toy(), TrainConfig(learning_rate=0.1, head_learning_rate_factor=5, weight_decay=0.3))
    assert got == {
        "patches.weight": (0.1, 0.3),
        "patches.bias": (0.1, 0.0),
        "position_embedding": (0.1, 0.0),
        "embed.weight": (0.1, 0.0),
        "norm.weight": (0.1, 0.0),
        "norm.bias": (0.1, 0.0),
        "head.weight": (0.5, 0.3),
        "head.bias": (0.5, 0.0),
    }


@pytest.mark.parametrize(("kind", "expected"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_each_kind_builds_its_optimizer(kind, expected):
    model = Toy()
    assert type(build_optimizer(model, model.head, TrainConfig(optimizer=OptimizerKind(kind)))) is expected


def test_the_rate_rises_linearly_to_its_peak_and_falls_towards_zero():
    factors = [learning_rate_factor(step, 20, 4) for step in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == sorted(set(factors[4:]), reverse=True)
    assert 0 < factors[-1] < 0.05
    assert factors[12] == pytest.approx(0.5)  # half way down


def test_without_warm_up_the_first_update_has_the_peak_rate():
    assert learning_rate_factor(0, 10, 0) == 1.0


@pytest.mark.parametrize("num_steps", [1, 2, 3, 100])
def test_every_update_has_a_rate_above_zero(num_steps):
    for warmup_steps in range(num_steps):
        assert all(0 < learning_rate_factor(step, num_steps, warmup_steps) <= 1 for step in range(num_steps))


def test_the_schedule_scales_every_group_alike():
    model, cfg = Toy(), TrainConfig(learning_rate=0.1, head_learning_rate_factor=5, warmup_fraction=0.5)
    optimizer = build_optimizer(model, model.head, cfg)
    schedule = build_schedule(optimizer, cfg, num_steps=4)
    for step in range(4):
        factor = learning_rate_factor(step, 4, 2)
        assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.1 * factor, 0.5 * factor])
        optimizer.step()
        schedule.step()
