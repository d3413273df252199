from __future__ import annotations

import copy
import json
import shutil
import socket
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from einops import rearrange
from torch import Tensor

from diveparse.configs import BackboneConfig, BackboneKind, ClipConfig, Config, HeadConfig, Pooling
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.dives import DiveSet
from diveparse.engine.training.optim import layer_scales
from diveparse.heads import build_head
from diveparse.models.build import with_own_sizes
from diveparse.models.build_encoder import load_encoder
from diveparse.models.classifier import DiveClassifier, ModelConfig
from diveparse.models.transformers_encoder import TransformersEncoder
from diveparse.models.weights.encoders import FAMILIES, read_encoder

WIDTH, DEPTH = 32, 3
DIVES = DiveSet.from_numbers(["101B", "103B", "203B", "5132D"], "small")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # fp32, and pixels normalised by way of others
PROCESSORS = {
    "timesformer": "VideoMAEVideoProcessor",
    "videomae": "VideoMAEVideoProcessor",
    "vivit": "VivitVideoProcessor",
    "vjepa2": "VJEPA2VideoProcessor",
}

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def folder(family: str, tiny_encoders: dict[str, tuple[Path, Any]]) -> Path:
    return tiny_encoders[family][0]


@pytest.fixture
def made(family: str, tiny_encoders: dict[str, tuple[Path, Any]]) -> Any:
    """The classifier of `transformers` in `folder`."""
    return tiny_encoders[family][1]


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy of `folder`, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "encoder"))


def config(folder: Path, **options: Any) -> BackboneConfig:
    return BackboneConfig(kind=BackboneKind.TRANSFORMERS, weights=str(folder), **options)


def load(folder: Path, *, num_frames: int = 4, image_size: int = 48, **options: Any) -> TransformersEncoder:
    return load_encoder(config(folder, **options), num_frames=num_frames, image_size=image_size).eval()


def random_pixels(num_frames: int = 4, image_size: int = 48) -> Tensor:
    """uint8 (batch, time, channel, height, width)."""
    size = (2, num_frames, 3, image_size, image_size)
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def normalised(pixels: Tensor, mean: Any = PIXEL_MEAN, std: Any = PIXEL_STD) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (pixels / 255 - mean) / std


@torch.no_grad()
def own_forward(classifier: Any, pixels: Tensor, **options: Any) -> Any:
    """What the encoder itself makes of pixels that are normalised its way."""
    skip = {"skip_predictor": True} if classifier.config.model_type == "vjepa2" else {}
    return classifier.base_model(pixels, **skip, **options)


def own_pixels(family: str, pixels: Tensor) -> Tensor:
    steps = FAMILIES[family].steps
    if family == "vivit":
        return normalised(pixels, [0.75] * 3, [0.25] * 3)
    return normalised(pixels, steps.get("image_mean", [0.0] * 3), steps.get("image_std", [1.0] * 3))


def in_our_order(family: str, tokens: Tensor, num_times: int = 4) -> Tensor:
    if family != "timesformer":
        return tokens
    patches = rearrange(tokens[:, 1:], "b (n t) d -> b (t n) d", t=num_times)
    return torch.cat([tokens[:, :1], patches], dim=1)


@every_family
def test_tokens_are_those_of_the_models_own_forward(family: str, made: Any, folder: Path) -> None:
    encoder, pixels = load(folder), random_pixels()
    expected = in_our_order(family, own_forward(made, own_pixels(family, pixels)).last_hidden_state)
    torch.testing.assert_close(encoder.tokens(normalised(pixels)), expected, **CLOSE)
    num_times = 4 if family in ("timesformer", "videoprism_vision_model") else 2
    has_class_token = family in ("timesformer", "vivit")
    assert tuple(expected.shape) == (2, has_class_token + num_times * 9, WIDTH)
    assert (encoder.has_class_token, encoder.embed_dim, encoder.num_heads) == (has_class_token, WIDTH, 2)


@every_family
def test_the_head_of_another_task_and_what_only_reads_tokens_are_left_out(family: str, folder: Path) -> None:
    names = "".join(load(folder).state_dict())
    assert not any(word in names for word in ("classifier", "pooler", "predictor", "head"))


@every_family
def test_pixel_statistics_are_those_of_the_models_own_processor(family: str, made: Any, own_folder: Path) -> None:
    pixels = random_pixels()
    if family in PROCESSORS:
        other = {"image_mean": [0.3, 0.4, 0.5], "image_std": [0.1, 0.2, 0.3]} if family == "videomae" else {}
        processor = getattr(transformers, PROCESSORS[family])(**other)
        processor.save_pretrained(own_folder)
        whole = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        theirs = processor(list(pixels), **whole)[made.main_input_name]
    else:
        theirs = pixels / 255
    expected = in_our_order(family, own_forward(made, theirs).last_hidden_state)
    torch.testing.assert_close(load(own_folder).tokens(normalised(pixels)), expected, **CLOSE)


@every_family
def test_a_change_in_one_patch_moves_the_token_of_that_patch_most(family: str, folder: Path) -> None:
    encoder = load(folder)
    frames_per_token = encoder.saved.frames_per_token
    clips = [random_pixels()[:1]]
    places = [(time, patch) for time in range(4 // frames_per_token) for patch in range(9)]
    for time, patch in places:
        changed = clips[0].clone()
        times = slice(time * frames_per_token, (time + 1) * frames_per_token)
        top, left = 16 * (patch // 3), 16 * (patch % 3)
        changed[:, times, :, top : top + 16, left : left + 16] ^= 255
        clips.append(changed)
    with torch.no_grad():
        tokens = encoder.tokens(normalised(torch.cat(clips)))[:, int(encoder.has_class_token) :]
    moved = (tokens[1:] - tokens[0]).norm(dim=-1).argmax(dim=-1)
    assert moved.tolist() == list(range(len(places)))


@every_family
def test_several_layers_follow_each_other_after_the_last_norm(family: str, made: Any, folder: Path) -> None:
    encoder, pixels = load(folder, layers=[1, 2]), random_pixels()
    assert encoder.embed_dim == WIDTH
    base = made.base_model
    answer = own_forward(made, own_pixels(family, pixels), output_hidden_states=True)
    if family == "videoprism_vision_model":
        first = rearrange(base.layernorm1(answer.last_spatial_hidden_state), "(b t) n d -> b (t n) d", t=4)
    else:
        norm = base.encoder.layernorm if family == "vjepa2" else base.layernorm
        state = answer.hidden_states[2]
        first = in_our_order(family, state if norm is None else norm(state))
    last = in_our_order(family, answer.last_hidden_state)
    if encoder.has_class_token:  # the last layer's comes first, and others have none
        first, last = torch.cat([last[:, :1], first[:, 1:]], dim=1), last[:, 1:]
    expected = torch.cat([first, last], dim=1)
    torch.testing.assert_close(encoder.tokens(normalised(pixels)), expected, **CLOSE)


@every_family
def test_going_on_from_frozen_tokens_gives_what_the_clips_give(family: str, folder: Path) -> None:
    loaded, clips = load(folder), normalised(random_pixels())
    for layers, num_frozen in product(([], [0, 2], [1]), range(DEPTH + 1)):
        cfg = config(folder, layers=layers, num_frozen_blocks=num_frozen)
        encoder = type(loaded)(loaded.saved, cfg, loaded.model, loaded.clip_format)
        kept = encoder.frozen_tokens(clips)
        assert kept.requires_grad == (num_frozen == 0)
        torch.testing.assert_close(encoder.tokens(kept), encoder.tokens(clips), rtol=0, atol=0)
        with pytest.raises(ValueError, match=r"frozen tokens must be \(batch, \d+, \d+\), got"):
            encoder.tokens(kept[:, 1:])


@every_family
def test_gradients_reach_what_is_not_frozen_and_nothing_else(family: str, folder: Path) -> None:
    encoder, clips = load(folder), normalised(random_pixels())
    for num_frozen in range(DEPTH + 1):
        encoder.freeze(num_frozen)
        encoder.zero_grad()
        tokens = encoder.train().tokens(clips)
        assert tokens.requires_grad == (num_frozen < DEPTH)
        if tokens.requires_grad:
            tokens.square().sum().backward()
        for number, layer in enumerate(encoder.layers()):  # the embeddings, three blocks and the last norm
            is_trained = num_frozen == 0 if number == 0 else num_frozen < min(number, DEPTH)
            assert all((parameter.grad is not None) == is_trained for parameter in layer), (num_frozen, number)
        for number, modules in enumerate(encoder.modules_by_layer()[: DEPTH + 1]):
            is_frozen = 0 < num_frozen >= number
            assert all(module.training != is_frozen for module in modules), (num_frozen, number)


@every_family
def test_checkpointed_blocks_give_the_same_gradients(family: str, folder: Path) -> None:
    gradients = []
    for num_checkpointed_blocks in (0, 2):
        encoder = load(folder, num_frozen_blocks=1, num_checkpointed_blocks=num_checkpointed_blocks).train()
        encoder.tokens(normalised(random_pixels())).square().sum().backward()
        gradients.append({name: x.grad for name, x in encoder.named_parameters() if x.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])


@every_family
def test_layer_decay_finds_every_parameter_in_one_layer(family: str, folder: Path) -> None:
    encoder = load(folder)
    scales = {id(parameter): scale for parameter, scale in layer_scales(encoder, 0.5)}
    assert len(scales) == len(list(encoder.parameters()))
    assert [{scales[id(p)] for p in layer} for layer in encoder.layers()][:-1] == [{0.5**n} for n in (4, 3, 2, 1)]


@every_family
def test_a_saved_classifier_loads_without_its_encoders_folder(family: str, own_folder: Path, tmp_path: Path) -> None:
    pooling = Pooling.CLASS_TOKEN if FAMILIES[family].name in ("TimeSformer", "ViViT") else Pooling.QUERIES
    cfg = ModelConfig(
        config(own_folder, layers=[0, 2]), ClipConfig(num_frames=4, image_size=48), HeadConfig(pooling=pooling)
    )
    encoder, clips = load(own_folder, layers=[0, 2]), normalised(random_pixels())
    model = DiveClassifier(encoder, build_head(cfg.head, encoder.embed_dim, DIVES), cfg).eval()
    model.save(tmp_path / "model")
    shutil.rmtree(own_folder)
    loaded = DiveClassifier.load(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(loaded.dive_log_probs(clips), model.dive_log_probs(clips), rtol=0, atol=0)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["encoder"]["config"]["model_type"] == family


@every_family
def test_a_copy_of_an_encoder_is_its_own(family: str, folder: Path) -> None:
    encoder, clips = load(folder), normalised(random_pixels())
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        before = encoder.tokens(clips)
        for parameter in other.parameters():
            parameter.add_(0.1)
        torch.testing.assert_close(encoder.tokens(clips), before, rtol=0, atol=0)
        assert not torch.equal(other.tokens(clips), before)


@pytest.mark.parametrize(
    ("family", "num_frames", "image_size"),
    [("timesformer", 8, 48), ("vjepa2", 8, 64), ("videoprism_vision_model", 8, 64)],
    ids=["timesformer", "vjepa2", "videoprism"],
)
def test_other_frame_counts_and_sizes_are_what_the_models_own_code_makes_of_them(
    family: str, num_frames: int, image_size: int, made: Any, folder: Path
) -> None:
    encoder, pixels = (
        load(folder, num_frames=num_frames, image_size=image_size),
        random_pixels(num_frames, image_size),
    )
    options = {}
    if family == "timesformer":
        made = copy.deepcopy(made)
        made.base_model.config.num_frames = num_frames
    elif family == "vjepa2":
        made = type(made).from_pretrained(folder, crop_size=image_size).eval()
    else:
        options["interpolate_pos_encoding"] = True
    expected = own_forward(made, own_pixels(family, pixels), **options).last_hidden_state
    torch.testing.assert_close(
        encoder.tokens(normalised(pixels)), in_our_order(family, expected, num_times=num_frames), **CLOSE
    )


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("timesformer", {"image_size": 64}, "clip.image_size must be 48 or left out for .*, since TimeSformer of"),
        ("videomae", {"num_frames": 8}, "clip.num_frames must be 4 or left out for .*, since VideoMAE of"),
        ("videomae", {"image_size": 64}, "clip.image_size must be 48 or left out for .*, since VideoMAE of"),
        ("vivit", {"num_frames": 8}, "clip.num_frames must be 4 or left out for .*, since ViViT of"),
        ("vivit", {"image_size": 64}, "clip.image_size must be 48 or left out for .*, since ViViT of"),
        ("vjepa2", {"num_frames": 5}, "clip.num_frames must be a multiple of 2 for .*, got 5"),
        ("vjepa2", {"image_size": 50}, "clip.image_size must be a multiple of 16 for .*, got 50"),
        ("vjepa2", {"layers": [1, 3]}, r"backbone.layers must be below the 3 of .*, got \[1, 3\]"),
        (
            "vjepa2",
            {"num_frozen_blocks": 4},
            "backbone.num_frozen_blocks must be between 0 and the 3 blocks of .*, got 4",
        ),
        (
            "vjepa2",
            {"num_frozen_blocks": 2, "num_checkpointed_blocks": 2},
            "backbone.num_checkpointed_blocks must be between 0 and the 1 blocks of .* that are trained, got 2",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_an_encoder_cannot_do_is_one_line(family: str, sizes: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(folder, **sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["vjepa2"])
def test_sizes_that_a_config_leaves_out_are_the_encoders_own(family: str, folder: Path) -> None:
    cfg = Config(name="n", arm="a", backbone=config(folder))
    assert with_own_sizes(cfg).clip == ClipConfig(num_frames=4, image_size=48)
    cfg = Config(name="n", arm="a", backbone=config(folder), clip=ClipConfig(num_frames=8))
    assert with_own_sizes(cfg).clip == ClipConfig(num_frames=8, image_size=48)


@every_family
def test_attention_is_fused_where_the_model_can_and_no_folder_asks_the_network(
    family: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    can = family in ("videomae", "vivit", "vjepa2")
    assert load(folder).model.config._attn_implementation == ("sdpa" if can else "eager")


@pytest.mark.parametrize("family", ["videomae"])
def test_damage_is_one_line_that_names_the_source(family: str, own_folder: Path) -> None:
    folder = own_folder
    weights = folder / "model.safetensors"
    whole, described = weights.read_bytes(), json.loads((folder / "config.json").read_text())

    def refused(message: str, content: dict[str, Any] | None = None) -> None:
        (folder / "config.json").write_text(json.dumps(content or described))
        with pytest.raises(ValueError, match=message) as error:
            load(folder)
        assert "\n" not in str(error.value)
        assert str(folder) in str(error.value)

    refused("model_type='vit' is no video encoder .*; expected one of timesformer", described | {"model_type": "vit"})
    refused("not the configuration of a video encoder", described | {"hidden_size": "wide"})
    refused("num_hidden_layers must be from 1 to 1024", described | {"num_hidden_layers": 10**9})
    refused("the number of tokens must be at most 65536", described | {"image_size": 16000})
    refused("quantised weights are not read", described | {"quantization_config": {"load_in_4bit": True}})
    refused("1[0-9]+ weights are missing: encoder.layer.3", described | {"num_hidden_layers": 4})
    refused("the weights cannot be read: ", described | {"intermediate_size": 32})
    weights.write_bytes(whole[:1000])
    refused("the weights cannot be read: ")
    weights.unlink()
    refused("holds no model.safetensors; pickled weights are not read")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"encoder: holds no config.json"):
        load(folder)
    with pytest.raises(ValueError, match=r"^kinematics: no such folder; backbone.kind=transformers takes"):
        read_encoder("kinematics")


@pytest.mark.parametrize("family", ["videomae"])
def test_a_saved_classifier_that_claims_another_encoder_is_refused(family: str, folder: Path, tmp_path: Path) -> None:
    cfg = ModelConfig(config(folder), ClipConfig(num_frames=4, image_size=48), HeadConfig(pooling=Pooling.MEAN))
    DiveClassifier(load(folder), build_head(cfg.head, WIDTH, DIVES), cfg).save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    content = json.loads(path.read_text())

    def refused(message: str, encoder: object) -> None:
        path.write_text(json.dumps(content | {"encoder": encoder}))
        with pytest.raises(ValueError, match=message) as error:
            DiveClassifier.load(tmp_path / "model")
        assert "\n" not in str(error.value)
        assert str(path.parent) in str(error.value)

    own = content["encoder"]
    refused("config.json: encoder: expected its own config and pixel statistics, got None", None)
    refused("but the encoder has", own | {"config": own["config"] | {"hidden_size": 1024}})
    refused("expected 3 means and positive standard deviations", own | {"pixel_std": [0.0, 1.0, 1.0]})
    refused("does not fit this DiveClassifier", own | {"config": own["config"] | {"num_hidden_layers": 4}})
