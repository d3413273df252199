"""Speed and memory of the backbone beside others of its kind, side by side in one run."""

from __future__ import annotations

import copy
import importlib
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from diveparse.configs import BackboneConfig, OptimConfig, Precision
from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.engine.benchmark.measure import (
    give_back_what_is_freed,
    in_a_fresh_process,
    is_installed,
    memory_kib,
    one_core,
    reset_peak,
)
from diveparse.engine.device import autocast
from diveparse.engine.training.optim import build_optimizer
from diveparse.models.linear import HAS_ONEDNN, product
from diveparse.models.timesformer import DividedBlock, TimeSformer
from diveparse.models.weights.huggingface import save_huggingface

OURS = "diveparse"
COMPILED = ", compiled"
PRECISIONS = {"cpu": Precision.FP32, "cuda": Precision.BF16}
# of the product whose speed stands for the machine's peak: its size, and what it multiplies
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
MATRIX_DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
GPU_BATCH_SIZE = 16
NUM_WARMUPS = 2
TOLERANCE = 1e-3  # how far features may differ from HuggingFace's


@dataclass(frozen=True)
class Setting:
    """Sizes of a backbone and of what it is given."""

    backbone: BackboneConfig
    num_frames: int
    image_size: int
    batch_size: int

    def __str__(self) -> str:
        cfg = self.backbone
        return (
            f"width {cfg.embed_dim}, depth {cfg.depth}, {cfg.num_heads} heads, {self.num_frames} frames of "
            f"{self.image_size} x {self.image_size}, patches of {cfg.patch_size}, batches of {self.batch_size}"
        )

    def clips(self) -> Tensor:
        size = (self.batch_size, self.num_frames, NUM_CHANNELS, self.image_size, self.image_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(0))


SETTINGS = {
    "small": Setting(BackboneConfig(patch_size=8, embed_dim=192, depth=6, num_heads=3), 16, 64, 8),
    "base": Setting(BackboneConfig(), 8, 224, 1),  # ViT-B/16
    "base-24": Setting(BackboneConfig(), 24, 224, 1),
}


@dataclass(frozen=True)
class Measurement:
    """One model doing one task. Times are in seconds, one a repeat; memory is in bytes."""

    model: str
    task: str
    times_s: list[float]
    ratios: list[float]  # to the time of this project's model in the same repeat
    num_flops: int
    share_of_peak: float
    memory: int | None  # None where it is not measured


class ClassToken(nn.Module):
    """A model of `transformers` that gives what `TimeSformer` does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        token: Tensor = self.model(clips).last_hidden_state[:, 0]
        return token


def build_ours(setting: Setting) -> TimeSformer:
    torch.manual_seed(0)
    backbone = TimeSformer(setting.backbone, num_frames=setting.num_frames, image_size=setting.image_size)
    for block in backbone.blocks:
        assert isinstance(block, DividedBlock)
        nn.init.trunc_normal_(block.time_proj.weight, std=0.02)  # as after training; at zero it would do nothing
    return backbone


def build_huggingface(setting: Setting) -> nn.Module:
    """Theirs with the weights of ours, moved by way of a file."""
    transformers = importlib.import_module("transformers")
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(folder, build_ours(setting))
        return ClassToken(transformers.TimesformerModel.from_pretrained(folder))


def build_timesformer_pytorch(setting: Setting) -> nn.Module:
    """Of the same sizes; it shares keys over all frames with the class token, and its MLP is gated and wider."""
    cfg = setting.backbone
    torch.manual_seed(0)
    model: nn.Module = importlib.import_module("timesformer_pytorch").TimeSformer(
        dim=cfg.embed_dim,
        num_frames=setting.num_frames,
        num_classes=1,
        image_size=setting.image_size,
        patch_size=cfg.patch_size,
        depth=cfg.depth,
        heads=cfg.num_heads,
        dim_head=cfg.embed_dim // cfg.num_heads,
    )
    model.to_out = nn.LayerNorm(cfg.embed_dim)
    return model


BUILDERS: dict[str, tuple[Callable[[Setting], nn.Module], str]] = {  # each with the package that it needs
    OURS: (build_ours, "torch"),
    "HuggingFace": (build_huggingface, "transformers"),
    "timesformer-pytorch": (build_timesformer_pytorch, "timesformer-pytorch"),
}


def forward(model: nn.Module, clips: Tensor) -> None:
    with torch.no_grad(), autocast(PRECISIONS[clips.device.type], clips.device):
        model(clips)


def train(model: nn.Module, clips: Tensor) -> None:
    """Forward and backward; the update after them is the same for every model of a size, and is left out."""
    model.zero_grad(set_to_none=True)
    with autocast(PRECISIONS[clips.device.type], clips.device):
        features = model(clips)
    features.float().square().mean().backward()


TASKS = {"forward": forward, "train": train}


def measure_backbone(setting: Setting, num_repeats: int, device: torch.device) -> tuple[list[Measurement], float]:
    """Every installed model doing every task: on one core in fp32, or on a GPU in bf16 and compiled too.

    A repeat lets each model do each task once, beginning with another model each time, and multiplies two matrices.
    Returns: the measurements, and the highest speed of the matrix product, in FLOP/s.
    Raises: ValueError if HuggingFace's model gives other features.
    """
    if device.type == "cuda":
        torch.compiler.reset()  # of what was compiled for other sizes
    clips = setting.clips().to(device)
    models = {name: build(setting).to(device) for name, (build, package) in BUILDERS.items() if is_installed(package)}
    require_same_features(models, clips)
    num_flops = {
        (name, task): count_flops(act, model, clips) for name, model in models.items() for task, act in TASKS.items()
    }
    if device.type == "cuda":
        models |= {name + COMPILED: compiled(model) for name, model in models.items()}
    jobs = [(name, task) for task in TASKS for name in models]
    peak, seconds = 0.0, np.zeros((num_repeats, len(jobs)))
    with one_core() if device.type == "cpu" else torch.cuda.device(device):
        for name, task in jobs:
            for _ in range(NUM_WARMUPS):
                TASKS[task](models[name], clips)
        for repeat in tqdm(range(num_repeats), desc="measuring", unit="repeat"):
            for k in range(len(jobs)):
                column = (repeat + k) % len(jobs)
                name, task = jobs[column]
                seconds[repeat, column] = timed(device, TASKS[task], models[name], clips)
            peak = max(peak, matrix_speed(device))
    measurements = []
    for column, (name, task) in enumerate(jobs):
        own = seconds[:, jobs.index((OURS, task))]
        flops = num_flops[name.removesuffix(COMPILED), task]
        measurements.append(
            Measurement(
                model=name,
                task=task,
                times_s=seconds[:, column].tolist(),
                ratios=(seconds[:, column] / own).tolist(),
                num_flops=flops,
                share_of_peak=flops / float(np.median(seconds[:, column])) / peak,
                memory=peak_memory(name, task, setting, device),
            )
        )
    return measurements, peak


def require_same_features(models: dict[str, nn.Module], clips: Tensor) -> None:
    """Raises: ValueError if two models that are to compute the same do not."""
    if "HuggingFace" in models:
        with torch.no_grad():
            difference = float((models["HuggingFace"](clips) - models[OURS](clips)).abs().max())
        if not difference <= TOLERANCE:  # nor is it where either is no number
            raise ValueError(f"features of the same weights differ from HuggingFace's by {difference}")


def compiled(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    model.compile(dynamic=False)
    return model


def count_flops(act: Callable[..., object], *arguments: object) -> int:
    known = {torch.ops.mkldnn._linear_pointwise: flops_of_linear} if HAS_ONEDNN else {}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        act(*arguments)
    return counter.get_total_flops()


def flops_of_linear(x_shape: Sequence[int], weight_shape: Sequence[int], *_: object, **__: object) -> int:
    return 2 * math.prod(x_shape) * weight_shape[0]


def timed(device: torch.device, act: Callable[..., object], *arguments: object) -> float:
    """Seconds."""
    synchronise(device)
    begun = time.perf_counter()
    act(*arguments)
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_speed(device: torch.device) -> float:
    """FLOP/s of one large matrix product, by the faster of the libraries that layers use."""
    size = MATRIX_SIZE[device.type]
    first, second = torch.randn(2, size, size, device=device, dtype=MATRIX_DTYPE[device.type])
    seconds = []
    for multiply in (torch.matmul, product):
        multiply(first, second)
        seconds.append(timed(device, multiply, first, second))
    return 2 * size**3 / min(seconds)


def peak_memory(name: str, task: str, setting: Setting, device: torch.device) -> int | None:
    """Bytes of a model and of what it does, at their peak; on a CPU in a process of its own."""
    if device.type == "cuda":
        return None if name.endswith(COMPILED) else _peak_on_gpu(name, task, setting, device)
    return in_a_fresh_process(_peak_on_cpu, name, task, setting)


def _peak_on_gpu(name: str, task: str, setting: Setting, device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    TASKS[task](BUILDERS[name][0](setting).to(device), setting.clips().to(device))
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(name: str, task: str, setting: Setting) -> int:
    torch.set_num_threads(1)
    give_back_what_is_freed()
    tiny = Setting(BackboneConfig(patch_size=8, embed_dim=8, depth=1, num_heads=1), 1, 8, 1)
    TASKS[task](BUILDERS[name][0](tiny), tiny.clips())  # what is loaded on first use is no model's own
    before = memory_kib("VmRSS")
    model, clips = BUILDERS[name][0](setting), setting.clips()
    reset_peak()  # how a model is built is not its own either
    TASKS[task](model, clips)
    return 1024 * (memory_kib("VmHWM") - before)


def peak_of_training(setting: Setting, device: torch.device) -> int:
    """Bytes that this project's model takes for an update by AdamW, all of it: in a process of its own.

    On a CPU these are all that the process takes, also what its allocator keeps; on a GPU those of live tensors.
    """
    return in_a_fresh_process(_peak_of_update, setting, device)


def _peak_of_update(setting: Setting, device: torch.device) -> int:
    before = memory_kib("VmRSS")
    model, clips = build_ours(setting).to(device), setting.clips().to(device)
    optimizer = build_optimizer(model, nn.ModuleList(), OptimConfig())
    reset_peak()
    for _ in range(2):  # the second has the optimiser's state beside it
        train(model, clips)
        optimizer.step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * (memory_kib("VmHWM") - before)
