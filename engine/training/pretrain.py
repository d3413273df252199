"""Pretraining: a small backbone learns how bodies move, from rendered clips with the renderer's truth."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from diveparse.configs import PretrainConfig
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.rendered.motion import JOINTS, PHASES
from diveparse.datasets.rendered.pretraining_clips import MotionClips
from diveparse.datasets.storage.atomic import written_atomically
from diveparse.datasets.storage.disk import require_space
from diveparse.datasets.storage.lock import locked
from diveparse.engine.batches import require_batch_memory
from diveparse.engine.device import choose_device
from diveparse.engine.events import flush
from diveparse.engine.run import RunFolder, open_run, record_environment
from diveparse.engine.training.checkpoint import UNREADABLE
from diveparse.engine.training.loop import NonFiniteError
from diveparse.engine.training.optim import build_optimizer, build_schedule, clipping_limit
from diveparse.engine.training.restored import fixed_options, require_sound
from diveparse.engine.training.tensorboard import log_scalars, open_writer
from diveparse.heads.kinematics import KinematicsHead, Motion, kinematics_loss
from diveparse.models.build import build_backbone, load_backbone
from diveparse.models.timesformer import TimeSformer
from diveparse.models.weights.sources import save_backbone

MOMENTS_PER_FRAME = 3  # the axes half an interval before a frame, at it and half an interval after
MOMENTS_PER_CLIP_FRAME = 2  # the class token predicts the whole clip at twice the frame rate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretraining:
    """Everything that an update changes, and this process's place among all."""

    backbone: TimeSformer
    head: KinematicsHead
    model: nn.ModuleDict  # both
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    rank: int
    world_size: int


def pretrain(cfg: PretrainConfig, *, resume: bool) -> Path:
    """Train the backbone of `cfg` into `runs_dir/name/` and return the file of its weights.

    With `resume`, go on from the last checkpoint with the clips that follow. Under `torchrun`, `train.batch_size` is
    each process's share: on a CPU, one process a core uses the cores better than one process with a thread a core.
    Raises: ValueError for what a user can get wrong; NonFiniteError, before the weights change, naming the clips.
    """
    device = choose_device()
    rank, world_size = 0, 1
    if dist.is_torchelastic_launched():
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        torch.set_num_threads(1)
    if rank > 0:
        dist.init_process_group()  # waits for the first process, which alone reports what all would find wrong
    torch.manual_seed(cfg.seed)
    updates_per_epoch = count_updates(cfg, world_size)
    require_batch_memory(cfg.train.batch_size, cfg.clip.num_frames, cfg.clip.image_size, "train")
    state = build_pretraining(cfg, updates_per_epoch * cfg.train.num_epochs, device, rank, world_size)
    run = RunFolder.of(cfg)
    if rank == 0:
        require_space(run.path, num_run_bytes(state, run), "pretraining (two checkpoints and the backbone)")
    with locked(run.path, "pretraining") if rank == 0 else nullcontext():
        if rank == 0:
            open_run(cfg, resume=resume)
        first_update = load_checkpoint(run.pretraining_checkpoint, state) if resume else 0
        if rank == 0:
            record_environment(run, cfg.seed)
            if dist.is_torchelastic_launched():
                dist.init_process_group()
        with open_writer(run.path, first_update) if rank == 0 else nullcontext() as writer:
            run_updates(cfg, run, state, first_update, updates_per_epoch, device, writer)
        if rank == 0:
            save_backbone(run.backbone, state.backbone, dtype=torch.float16)  # small enough to ship
    return run.backbone


def num_run_bytes(state: Pretraining, run: RunFolder) -> int:
    """What the run still needs: two checkpoints of the weights and Adam's two moments, and half the weights."""
    weights = sum(each.nbytes for each in state.model.state_dict().values())
    checkpoint = run.pretraining_checkpoint
    return round(6.5 * weights) - (checkpoint.stat().st_size if checkpoint.is_file() else 0)


def build_pretraining(
    cfg: PretrainConfig, num_updates: int, device: torch.device, rank: int, world_size: int
) -> Pretraining:
    backbone = start_backbone(cfg)
    head = build_readout(backbone)
    model = nn.ModuleDict({"backbone": backbone, "head": head}).to(device)
    optimizer = build_optimizer(backbone, head, cfg.train)
    schedule = build_schedule(optimizer, cfg.train, num_updates)
    return Pretraining(backbone, head, model, optimizer, schedule, rank, world_size)


def run_updates(
    cfg: PretrainConfig,
    run: RunFolder,
    state: Pretraining,
    first_update: int,
    updates_per_epoch: int,
    device: torch.device,
    writer: SummaryWriter | None,
) -> None:
    """From `first_update` to the last: batch, loss, check, update, log, save. writer: of the first process alone."""
    clips_per_update = cfg.train.batch_size * state.world_size
    num_updates = updates_per_epoch * cfg.train.num_epochs
    indices = range(first_update * clips_per_update, num_updates * clips_per_update)
    batches = motion_batches(cfg, indices[state.rank :: state.world_size], device)
    bar = tqdm(
        range(first_update, num_updates),
        initial=first_update,
        total=num_updates,
        unit="update",
        mininterval=5,
        disable=state.rank > 0,
    )
    started = time.monotonic()
    for number in bar:
        terms = update(state, next(batches), clipping_limit(cfg.train), number, clips_per_update)
        if writer is None:
            continue
        clips_per_second = (number + 1 - first_update) * clips_per_update / (time.monotonic() - started)
        if (number + 1) % cfg.train.log_every == 0:
            losses = {f"loss_{name}": term.item() for name, term in terms.items()}
            log_scalars(writer, "pretrain", losses | {"clips_per_second": clips_per_second}, number + 1)
        if (number + 1) % updates_per_epoch == 0:
            summary = " ".join(f"{name} {term.item():.3f}" for name, term in terms.items())
            logger.info("update %d of %d: %s (%.0f clips/s)", number + 1, num_updates, summary, clips_per_second)
            flush(writer)
            save_checkpoint(run.pretraining_checkpoint, number + 1, state)


def update(
    state: Pretraining, batch: tuple[Tensor, Motion], max_grad_norm: float, number: int, clips_per_update: int
) -> dict[str, Tensor]:
    """One update of the weights. Returns: the terms of the loss. Raises: NonFiniteError before the weights change."""
    clips, truth = batch
    loss, terms = kinematics_loss(state.head(state.backbone.tokens(clips)), truth)
    items = range(number * clips_per_update, (number + 1) * clips_per_update)
    require_finite({"loss": loss.detach(), **terms}, number, items, state.world_size)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if state.world_size > 1:
        average_gradients(state.model, state.world_size)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), max_grad_norm)
    if not torch.isfinite(grad_norm):
        raise NonFiniteError(non_finite(f"the gradient's norm is {grad_norm.item()}", number, items))
    state.optimizer.step()
    state.schedule.step()
    return terms


def build_readout(backbone: TimeSformer) -> KinematicsHead:
    return KinematicsHead(
        backbone.embed_dim,
        num_frames=backbone.num_frames,
        num_patches=backbone.num_patches,
        num_joints=len(JOINTS),
        num_phases=len(PHASES),
        moments_per_frame=MOMENTS_PER_FRAME,
        num_clip_moments=MOMENTS_PER_CLIP_FRAME * backbone.num_frames,
    )


def count_updates(cfg: PretrainConfig, world_size: int) -> int:
    """Updates in an epoch. Raises: ValueError if the clips do not fill one."""
    clips_per_update = cfg.train.batch_size * world_size
    if cfg.clips_per_epoch < clips_per_update:
        raise ValueError(
            f"clips_per_epoch must be at least train.batch_size x processes = {clips_per_update}, "
            f"got {cfg.clips_per_epoch}"
        )
    return cfg.clips_per_epoch // clips_per_update


def start_backbone(cfg: PretrainConfig) -> TimeSformer:
    """From the weights that the config names, or from nothing."""
    sizes = {"num_frames": cfg.clip.num_frames, "image_size": cfg.clip.image_size}
    if cfg.backbone.weights is not None:
        return load_backbone(cfg.backbone.weights, cfg.backbone, **sizes)
    backbone = build_backbone(cfg.backbone, **sizes)
    # from nothing and in so few updates, places in space and time must differ from the start
    for places in (backbone.space_embed, backbone.time_embed):
        nn.init.trunc_normal_(places, std=0.3)
    return backbone


def require_finite(terms: dict[str, Tensor], update: int, items: range, world_size: int) -> None:
    """Stop all processes together. Raises: NonFiniteError if a term is not finite in any of them.

    items: the clips of the update; process k takes every world_size-th from the k-th on.
    """
    own = torch.stack(list(terms.values()))
    of_process = [own]
    if world_size > 1:
        of_process = [torch.empty_like(own) for _ in range(world_size)]
        dist.all_gather(of_process, own)
    values = torch.stack(of_process)  # (process, term)
    broken = ~values.isfinite()
    if broken.any():
        columns = zip(terms, values.T, broken.T, strict=True)
        what = ", ".join(f"{name} is {column[wrong][0].item()}" for name, column, wrong in columns if wrong.any())
        suspects = [item for item in items if broken[(item - items.start) % world_size].any()]
        raise NonFiniteError(non_finite(what, update, suspects))


def non_finite(what: str, update: int, items: Sequence[int]) -> str:
    return (
        f"{what} in update {update + 1}; the weights are as the update before left them. "
        f"Clips: items {', '.join(map(str, items))} of MotionClips. A lower train.learning_rate may help"
    )


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


def save_checkpoint(path: Path, num_updates: int, state: Pretraining) -> None:
    content = {
        "num_updates": num_updates,
        "world_size": state.world_size,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
    }
    with written_atomically(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path, state: Pretraining) -> int:
    """Put everything back. Returns: the number of updates done, 0 where there is no checkpoint yet.

    Raises: ValueError if the file is damaged, of another model or of another number of processes.
    """
    if not path.is_file():
        return 0
    options = fixed_options(state.optimizer)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict) and "step" in content:
            raise ValueError("of an earlier version")
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.schedule.load_state_dict(content["schedule"])
        num_updates, processes = int(content["num_updates"]), int(content["world_size"])
        require_sound(state.model, state.optimizer, state.schedule, num_updates, options)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path}: not a checkpoint that this run can go on from: {reason}; remove it to pretrain from the start"
        ) from error
    if processes != state.world_size:
        raise ValueError(
            f"{path}: written by {processes} process(es) and needs as many to go on, got {state.world_size}; "
            "an update takes train.batch_size clips from each"
        )
    return num_updates
