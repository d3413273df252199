import pytest
import torch
from torch import Tensor, nn

from diveparse.configs import BackboneConfig, ClipConfig, Config, OptimizerKind, StemKind, TrainConfig
from diveparse.datasets.dives import DIVING48
from diveparse.engine.training.optim import (
    WEIGHT_MATRICES,
    build_optimizer,
    build_schedule,
    learning_rate_factor,
)
from diveparse.models.backbone import Backbone
from diveparse.models.classifier import DiveClassifier, build_classifier
from diveparse.models.timesformer import TimeSformer


class Toy(Backbone):
    """A backbone of two layers, with parameters of every kind; the last of them can be left out of the layers."""

    def __init__(self, *, forgotten: bool = False) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(torch.zeros(1, 3, 4))
        self.embed = nn.Embedding(5, 4)
        self.patches = nn.Conv2d(3, 4, 2)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.adapter = nn.Parameter(torch.zeros(2)) if forgotten else None

    def tokens(self, inputs: Tensor) -> Tensor:
        raise AssertionError("not to be run")

    def frozen_tokens(self, clips: Tensor) -> Tensor:
        raise AssertionError("not to be run")

    def freeze(self, num_blocks: int) -> None:
        raise AssertionError("not to be run")

    def layers(self) -> list[list[nn.Parameter]]:
        lower = [self.position_embedding, *self.embed.parameters(), *self.patches.parameters()]
        return [lower, [*self.frozen.parameters(), *self.norm.parameters()]]


DEPTH = 3


def tiny_classifier(num_frozen_blocks: int = 0, stem: StemKind = StemKind.PATCH) -> DiveClassifier:
    backbone = BackboneConfig(stem, embed_dim=16, depth=DEPTH, num_heads=2, num_frozen_blocks=num_frozen_blocks)
    clip = ClipConfig(num_frames=2, image_size=32)
    return build_classifier(Config(name="tiny", arm="joint", clip=clip, backbone=backbone), DIVING48)


def settings(backbone: Backbone, head: nn.Module, cfg: TrainConfig) -> dict[str, tuple[float, float]]:
    parts = {"backbone": backbone, "head": head}
    names = {id(p): f"{part}.{name}" for part, module in parts.items() for name, p in module.named_parameters()}
    optimizer = build_optimizer(backbone, head, cfg)
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_only_weight_matrices_decay_the_head_has_its_own_rate_and_the_frozen_stay_out():
    got = settings(
        Toy(), nn.Linear(4, 2), TrainConfig(learning_rate=0.1, head_learning_rate_factor=5, weight_decay=0.3)
    )
    assert got == {
        "backbone.patches.weight": (0.1, 0.3),
        "backbone.patches.bias": (0.1, 0.0),
        "backbone.position_embedding": (0.1, 0.0),
        "backbone.embed.weight": (0.1, 0.0),
        "backbone.norm.weight": (0.1, 0.0),
        "backbone.norm.bias": (0.1, 0.0),
        "head.weight": (0.5, 0.3),
        "head.bias": (0.5, 0.0),
    }


@pytest.mark.parametrize("layer_decay", [0.5, 0.75, 1.0])
@pytest.mark.parametrize(("num_frozen_blocks", "stem"), [(0, StemKind.PATCH), (0, StemKind.CONV), (2, StemKind.PATCH)])
def test_each_layer_learns_at_its_share_of_the_rate_of_the_layer_above_it(layer_decay, num_frozen_blocks, stem):
    model = tiny_classifier(num_frozen_blocks, stem)
    assert isinstance(model.backbone, TimeSformer)
    layers: list[nn.Module] = [model.backbone.norm, *reversed(model.backbone.blocks)]  # from the top down
    expected, rate = {}, 0.1
    for layer in layers:
        expected |= {id(parameter): rate for parameter in layer.parameters()}
        rate *= layer_decay
    expected |= {id(p): rate for p in model.backbone.parameters() if id(p) not in expected}  # the embeddings
    expected |= {id(parameter): 0.5 for parameter in model.head.parameters()}
    cfg = TrainConfig(learning_rate=0.1, head_learning_rate_factor=5, layer_decay=layer_decay)
    rates = {name: rate for name, (rate, _) in settings(model.backbone, model.head, cfg).items()}
    assert rates == pytest.approx({name: expected[id(p)] for name, p in model.named_parameters() if p.requires_grad})


def test_layer_decay_changes_no_weight_decay_and_the_first_group_learns_at_the_peak_rate():
    model = tiny_classifier()
    off, on = TrainConfig(learning_rate=0.1), TrainConfig(learning_rate=0.1, layer_decay=0.5)
    decays = [
        {name: decay for name, (_, decay) in settings(model.backbone, model.head, cfg).items()} for cfg in (off, on)
    ]
    assert decays[0] == decays[1]
    rates = [group["lr"] for group in build_optimizer(model.backbone, model.head, on).param_groups]
    assert rates[0] == 0.1  # the one that TensorBoard shows
    assert rates[:-2] == sorted(rates[:-2], reverse=True)  # the head's two come last


def test_without_layer_decay_the_groups_are_those_of_earlier_runs_so_that_their_checkpoints_fit():
    model = tiny_classifier()
    cfg = TrainConfig(learning_rate=3e-4, head_learning_rate_factor=7, weight_decay=0.1)
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, WEIGHT_MATRICES)}
    expected = [
        ([id(p) for p in part.parameters() if (id(p) in matrices) == decays], rate, 0.1 if decays else 0.0)
        for part, rate in ((model.backbone, 3e-4), (model.head, 3e-4 * 7))
        for decays in (True, False)
    ]
    groups = build_optimizer(model.backbone, model.head, cfg).param_groups
    assert [([id(p) for p in g["params"]], g["lr"], g["weight_decay"]) for g in groups] == expected


def test_a_parameter_in_no_layer_is_refused_by_name_instead_of_trained_at_some_rate():
    with pytest.raises(ValueError, match=r"Toy.layers\(\) lacks the parameter adapter"):
        build_optimizer(Toy(forgotten=True), nn.Linear(4, 2), TrainConfig(layer_decay=0.5))


def test_a_parameter_in_two_layers_is_refused():
    backbone = Toy()
    backbone.layers = lambda: [*Toy.layers(backbone), [backbone.norm.weight]]
    with pytest.raises(ValueError, match="in layers 1 and 2"):
        build_optimizer(backbone, nn.Linear(4, 2), TrainConfig())


@pytest.mark.parametrize(("kind", "expected"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_each_kind_builds_its_optimizer(kind, expected):
    assert type(build_optimizer(Toy(), nn.Linear(4, 2), TrainConfig(optimizer=OptimizerKind(kind)))) is expected


def test_the_rate_rises_linearly_to_its_peak_and_falls_towards_zero():
    factors = [learning_rate_factor(number, 20, 4) for number in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == sorted(set(factors[4:]), reverse=True)
    assert 0 < factors[-1] < 0.05
    assert factors[12] == pytest.approx(0.5)  # half way down


def test_without_warm_up_the_first_update_has_the_peak_rate():
    assert learning_rate_factor(0, 10, 0) == 1.0


@pytest.mark.parametrize("num_updates", [1, 2, 3, 100])
def test_every_update_has_a_rate_above_zero(num_updates):
    for num_warmup in range(num_updates):
        factors = [learning_rate_factor(number, num_updates, num_warmup) for number in range(num_updates)]
        assert min(factors) > 0
        assert max(factors) <= 1


def test_the_schedule_scales_every_group_alike():
    cfg = TrainConfig(learning_rate=0.1, head_learning_rate_factor=5, warmup_fraction=0.5)
    optimizer = build_optimizer(Toy(), nn.Linear(4, 2), cfg)
    schedule = build_schedule(optimizer, cfg, num_updates=4)
    for number in range(4):
        factor = learning_rate_factor(number, 4, 2)
        assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.1 * factor, 0.5 * factor])
        optimizer.step()
        schedule.step()
