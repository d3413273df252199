"""Pretraining: a small backbone learns how bodies move, from rendered clips and what their renderer knows."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from diveparse.configs import PretrainConfig
from diveparse.datasets.atomic import written_atomically
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.kinematics import JOINTS, PHASES
from diveparse.datasets.motion_clips import MotionClips
from diveparse.engine.device import autocast, choose_device
from diveparse.engine.optim import build_optimizer, build_schedule
from diveparse.heads.kinematics import KinematicsHead, Motion, kinematics_loss
from diveparse.models.timesformer import TimeSformer
from diveparse.models.weights import load_backbone, save_backbone

MOMENTS_PER_FRAME = 3  # the axes half a step before a frame, at it and half a step after
MOMENTS_PER_CLIP_FRAME = 2  # the class token recalls the whole clip, twice as finely as it saw it

logger = logging.getLogger(__name__)


def pretrain(cfg: PretrainConfig, *, resume: bool) -> Path:
    """Train the backbone of `cfg` into `runs_dir/name/` and return the file of its weights.

    With `resume`, go on from the last checkpoint with the clips that follow. Under `torchrun`, `train.batch_size` is
    each process's share: on a CPU, one process a core uses the cores better than one process with a thread a core.
    """
    folder = Path(cfg.runs_dir) / cfg.name
    device = choose_device()
    if dist.is_torchelastic_launched():
        dist.init_process_group()
        torch.set_num_threads(1)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(cfg.seed)
    backbone = start_backbone(cfg)
    head = KinematicsHead(
        backbone.embed_dim,
        num_frames=backbone.num_frames,
        num_patches=backbone.num_patches,
        num_joints=len(JOINTS),
        num_phases=len(PHASES),
        moments_per_frame=MOMENTS_PER_FRAME,
        num_clip_moments=MOMENTS_PER_CLIP_FRAME * backbone.num_frames,
    )
    model = nn.ModuleDict({"backbone": backbone, "head": head}).to(device)
    optimizer = build_optimizer(model, head, cfg.train)
    clips_per_step = cfg.train.batch_size * world_size
    steps_per_epoch = cfg.clips_per_epoch // clips_per_step
    num_steps = steps_per_epoch * cfg.train.num_epochs
    schedule = build_schedule(optimizer, cfg.train, num_steps)
    start_step = load_checkpoint(folder, model, optimizer, schedule) if resume else 0
    writer = SummaryWriter(str(folder), purge_step=start_step) if rank == 0 else None
    indices = range(start_step * clips_per_step, num_steps * clips_per_step)
    batches = motion_batches(cfg, indices[rank::world_size], device)

    started = time.monotonic()
    for step in tqdm(
        range(start_step, num_steps), initial=start_step, total=num_steps, unit="step", mininterval=5, disable=rank > 0
    ):
        clips, truth = next(batches)
        with autocast(cfg.train.precision, device):
            answer = head(backbone.tokens(clips))
        loss, terms = kinematics_loss(in_float(answer), truth)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {step}; terms: {terms}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world_size > 1:
            average_gradients(model, world_size)
        nn.utils.clip_grad_norm_(model.parameters(), cfg.train.max_grad_norm)
        optimizer.step()
        schedule.step()
        if writer is None:
            continue
        if (step + 1) % cfg.train.log_every == 0:
            for name, term in terms.items():
                writer.add_scalar(f"pretrain/loss_{name}", term.item(), step + 1)
            clips_per_second = (step + 1 - start_step) * clips_per_step / (time.monotonic() - started)
            writer.add_scalar("pretrain/clips_per_second", clips_per_second, step + 1)
        if (step + 1) % steps_per_epoch == 0:
            summary = " ".join(f"{name} {term.item():.3f}" for name, term in terms.items())
            logger.info("step %d of %d: %s (%.0f clips/s)", step + 1, num_steps, summary, clips_per_second)
            save_checkpoint(folder, step + 1, model, optimizer, schedule)
    if writer is not None:
        writer.close()
    path = folder / "backbone.safetensors"
    if rank == 0:
        save_backbone(path, backbone, dtype=torch.float16)  # small enough to ship
    return path


def start_backbone(cfg: PretrainConfig) -> TimeSformer:
    """From the weights that the config names, or from nothing."""
    sizes = {"num_frames": cfg.clip.num_frames, "image_size": cfg.clip.image_size}
    if cfg.backbone.weights is not None:
        return load_backbone(cfg.backbone.weights, cfg.backbone, **sizes)
    backbone = TimeSformer(cfg.backbone, **sizes)
    # from nothing and in so few steps, the network must be told from the start where and when a patch is
    for places in (backbone.space_embed, backbone.time_embed):
        nn.init.trunc_normal_(places, std=0.3)
    return backbone


def average_gradients(model: nn.Module, world_size: int) -> None:
    """Replace each process's gradients with their mean over the processes."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = parameters_to_vector(gradients)
    dist.all_reduce(flat)
    vector_to_parameters(flat / world_size, gradients)


def motion_batches(cfg: PretrainConfig, indices: range, device: torch.device) -> Iterator[tuple[Tensor, Motion]]:
    """Normalised clips (batch, time, channel, height, width) of `indices` with random light, and the truth."""
    clips = MotionClips(
        num_frames=cfg.clip.num_frames,
        image_size=cfg.clip.image_size,
        seed=cfg.seed,
        num_easy=cfg.num_easy_clips,
        moments_per_frame=MOMENTS_PER_FRAME,
        moments_per_clip_frame=MOMENTS_PER_CLIP_FRAME,
    )
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        clips,
        batch_size=cfg.train.batch_size,
        sampler=indices,
        num_workers=cfg.num_workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if cfg.num_workers else None,
    )
    for number, batch in enumerate(loader):
        batch = {name: values.to(device, non_blocking=True) for name, values in batch.items()}
        generator = torch.Generator().manual_seed(cfg.seed + indices[number * cfg.train.batch_size])
        yield normalise(relight(batch.pop("clip"), cfg.clip.color_jitter, generator)), Motion(**batch)


def relight(clips: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Random gain and offset of each clip's channels. uint8 (batch, time, channel, …) -> float in about [0, 1]."""
    shape = (len(clips), 1, clips.shape[2], 1, 1)
    gain, offset = (1 + strength * (2 * torch.rand(2, *shape, generator=generator) - 1)).to(clips.device)
    return clips.float() / 255 * gain + (offset - 1) / 2


def normalise(clips: Tensor) -> Tensor:
    mean, std = (clips.new_tensor(values).view(-1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (clips - mean) / std


def in_float(answer: Motion) -> Motion:
    """Out of half precision, since the loss needs the whole range."""
    predicted = {field.name: getattr(answer, field.name) for field in fields(Motion) if field.name != "joint_seen"}
    return Motion(joint_seen=None, **{name: values.float() for name, values in predicted.items()})


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }
    with written_atomically(folder / "checkpoint.pt") as path:
        torch.save(state, path)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR
) -> int:
    """Put everything back and return the number of steps done. Raises: ValueError if there is no checkpoint."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise ValueError(f"{path}: no checkpoint to resume from")
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"])
