import sys

import pytest
import torch
from torch import nn

from diveparse.configs import BackboneConfig
from diveparse.engine.benchmark import backbone as speed
from diveparse.engine.benchmark.backbone import (
    OURS,
    TASKS,
    Setting,
    build_huggingface,
    build_ours,
    measure_backbone,
    peak_of_training,
    require_same_features,
)

CPU = torch.device("cpu")
TINY = Setting(BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2), 3, 16, 2)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each measurement of memory takes seconds, which are mostly imports."""
    monkeypatch.setattr(speed, "in_a_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(speed, "give_back_what_is_freed", lambda: None)  # it would stay so in this process
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setitem(speed.MATRIX_SIZE, "cpu", 64)


@pytest.mark.usefixtures("in_this_process")
def test_every_installed_model_does_every_task_in_every_repeat():
    measurements, peak = measure_backbone(TINY, 3, CPU)
    installed = [name for name, (_, package) in speed.BUILDERS.items() if speed.is_installed(package)]
    assert [(each.task, each.model) for each in measurements] == [(task, name) for task in TASKS for name in installed]
    assert {OURS, "HuggingFace"} <= set(installed)
    own = {each.task: each for each in measurements if each.model == OURS}
    for each in measurements:
        assert len(each.times_s) == 3
        assert min(each.times_s) > 0
        assert each.ratios == [a / b for a, b in zip(each.times_s, own[each.task].times_s, strict=True)]
        middle = sorted(each.times_s)[1]
        assert each.share_of_peak == pytest.approx(each.num_flops / middle / peak)
        assert each.memory is not None
    assert own["train"].num_flops > 2 * own["forward"].num_flops > 0


@pytest.mark.usefixtures("in_this_process")
def test_less_is_computed_than_by_huggingface():
    measurements, _ = measure_backbone(TINY, 1, CPU)
    flops = {(each.task, each.model): each.num_flops for each in measurements}
    for task in TASKS:
        assert flops[task, OURS] < flops[task, "HuggingFace"]


def test_the_peers_weights_are_ours_and_others_are_refused():
    ours, theirs = build_ours(TINY), build_huggingface(TINY)
    require_same_features({OURS: ours, "HuggingFace": theirs}, TINY.clips())
    nn.init.normal_(ours.blocks[1].time_proj.bias)
    with pytest.raises(ValueError, match="differ from HuggingFace's by"):
        require_same_features({OURS: ours, "HuggingFace": theirs}, TINY.clips())


def test_an_update_takes_at_least_its_weights_gradients_and_what_adam_keeps():
    setting = Setting(BackboneConfig(patch_size=8, embed_dim=384, depth=4, num_heads=3), 2, 16, 1)
    num_bytes = sum(4 * parameter.numel() for parameter in build_ours(setting).parameters())
    assert 4 * num_bytes < peak_of_training(setting, CPU) < 10 * num_bytes
