import functools
import math

import pytest
import torch

from diveparse.configs import BackboneConfig, BackboneKind
from diveparse.engine.benchmark.backbone import Setting, build_ours, count_flops, forward
from diveparse.engine.benchmark.scaling import (
    MODELS,
    Assumptions,
    DividedSpaceTime,
    Estimate,
    JointSpaceTime,
    Sizes,
    ring_bytes,
)
from diveparse.models.backbone import Backbone
from diveparse.models.build_encoder import build_encoder
from diveparse.models.timesformer import TimeSformer
from diveparse.models.weights.encoders import IMAGENET_PIXELS, SavedEncoder, parse_config
from diveparse.models.weights.published import PixelStatistics

TINY = BackboneConfig(patch_size=8, embed_dim=24, depth=3, num_heads=2, mlp_ratio=3.0)
# a TFLOP/s a GPU, a GB/s within a node and a tenth of it between nodes
ASSUMED = Assumptions(flops_per_s=1e12, node_bytes_per_s=1e9, network_bytes_per_s=1e8, clips_per_worker=10)


def vjepa2(num_frames: int, image_size: int, **options: object) -> Backbone:
    config = parse_config({"model_type": "vjepa2", **options}, "vjepa2")
    pixels = PixelStatistics(*(tuple(values) for values in IMAGENET_PIXELS.values()))
    cfg = BackboneConfig(kind=BackboneKind.TRANSFORMERS, weights="vjepa2")
    return build_encoder(SavedEncoder("vjepa2", config, pixels), cfg, num_frames=num_frames, image_size=image_size)


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_models_have_as_many_parameters_as_their_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = MODELS[name]
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))  # its values are looked at
    with torch.device("meta"):  # sizes without memory
        if isinstance(sizes, DividedSpaceTime):
            module: Backbone = TimeSformer(sizes.backbone, num_frames=sizes.num_frames, image_size=sizes.image_size)
        else:
            module = vjepa2(sizes.num_frames, sizes.image_size)
    assert sizes.num_parameters == num_parameters(module)


def test_the_operations_of_divided_attention_are_those_that_the_backbone_runs() -> None:
    setting, sizes = Setting(TINY, 5, 16, 1), DividedSpaceTime(TINY, num_frames=5, image_size=16)
    backbone = build_ours(setting)
    assert sizes.forward_flops == count_flops(forward, backbone, setting.clips())
    assert sizes.num_parameters == num_parameters(backbone)


def test_the_operations_of_joint_attention_are_those_that_the_encoder_runs() -> None:
    sizes = JointSpaceTime(embed_dim=32, depth=2, num_frames=4, image_size=48, mlp_ratio=2.0)
    options = {"hidden_size": 32, "num_attention_heads": 2, "mlp_ratio": 2.0, "num_hidden_layers": 2}
    encoder = vjepa2(4, 48, **options)
    assert sizes.num_tokens == 2 * 9
    with torch.no_grad():
        assert sizes.forward_flops == count_flops(encoder.tokens, torch.randn(1, 4, 3, 48, 48))
    assert sizes.num_parameters == num_parameters(encoder)


def test_a_block_of_one_token_is_counted_by_hand() -> None:
    sizes = JointSpaceTime(embed_dim=2, depth=1, num_frames=2, image_size=1, patch_size=1, mlp_ratio=1.0)
    # a tubelet of 6 values; four projections of 2 x 2; one score and one mean over one token; two layers of 2 x 2
    assert sizes.forward_flops == 2 * 6 * 2 + 4 * (2 * 2 * 2) + 2 * (2 * 2) + 2 * (2 * 2 * 2)


def test_a_ring_of_one_process_sends_nothing_and_a_long_one_twice_the_gradients() -> None:
    assert ring_bytes(1000, 1) == 0
    assert ring_bytes(1000, 2) == 4000
    assert ring_bytes(1000, 8) == 7000
    assert ring_bytes(1000, 10**6) == pytest.approx(8000)


def of(num_gpus: int, sizes: Sizes | None = None, batch_size: int = 3) -> Estimate:
    return Estimate(sizes or DividedSpaceTime(TINY, 6, 16), num_gpus, batch_size, ASSUMED)


def test_the_exchange_takes_the_network_as_soon_as_there_is_a_second_node() -> None:
    assert of(1).exchange_s == 0
    assert of(8).exchange_s == of(8).exchanged_bytes / 1e9
    assert of(9).exchange_s == of(9).exchanged_bytes / 1e8


def test_backward_hides_an_exchange_that_is_shorter_and_the_rest_of_a_longer_one_shows() -> None:
    one, long = of(1), of(64)
    assert one.compute_s == 3 * 3 * one.sizes.forward_flops / 1e12
    assert one.update_s == one.overlapped_update_s == one.compute_s
    assert long.exchange_s > long.compute_s
    assert long.update_s == long.compute_s + long.exchange_s
    assert long.overlapped_update_s == pytest.approx(long.compute_s / 3 + long.exchange_s)
    short = of(64, batch_size=10**6)
    assert short.exchange_s < 2 / 3 * short.compute_s
    assert short.overlapped_update_s == pytest.approx(short.compute_s)


def test_as_many_workers_as_read_what_the_gpus_take() -> None:
    each = of(8)  # clips of 6 frames, of which a worker reads four times as many as of 24
    assert each.clips_per_s == 8e12 / (3 * each.sizes.forward_flops)
    assert each.num_workers == math.ceil(each.clips_per_s / 40)


def test_full_sharding_divides_the_sixteen_bytes_of_a_parameter() -> None:
    assert of(8).state_bytes == of(1).sharded_state_bytes == 16 * of(1).sizes.num_parameters
    assert of(8).sharded_state_bytes == 2 * of(8).sizes.num_parameters
