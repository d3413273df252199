"""Pretraining: a small backbone learns how bodies move, from rendered clips with the renderer's truth."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from diveparse.configs import PretrainConfig
from diveparse.datasets.constants import NUM_CHANNELS, PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.rendered.motion import JOINTS, PHASES
from diveparse.datasets.rendered.pretraining_clips import MotionClips
from diveparse.datasets.storage.atomic import written_atomically
from diveparse.datasets.storage.disk import require_space
from diveparse.datasets.storage.lock import locked
from diveparse.datasets.storage.seeding import stream_seed
from diveparse.datasets.storage.workers import end_with_main_process, worker_context
from diveparse.engine import distributed, termination
from diveparse.engine.batches import require_batch_memory
from diveparse.engine.device import choose_device
from diveparse.engine.events import flush
from diveparse.engine.run import RunFolder, open_run, record_environment
from diveparse.engine.training.checkpoint import UNREADABLE
from diveparse.engine.training.optim import build_optimizer, build_schedule, clipping_limit
from diveparse.engine.training.restored import fixed_options, require_sound
from diveparse.engine.training.tensorboard import log_scalars, open_writer
from diveparse.engine.training.update import NonFiniteError
from diveparse.heads.kinematics import KinematicsHead, Motion, kinematics_loss
from diveparse.models.build import build_backbone, load_backbone
from diveparse.models.timesformer import TimeSformer
from diveparse.models.weights.sources import save_backbone

MOMENTS_PER_FRAME = 3  # the axes half an interval before a frame, at it and half an interval after
LIGHT = 1  # what a random stream is for, beside those of the clips themselves
MOMENTS_PER_CLIP_FRAME = 2  # the class token predicts the whole clip at twice the frame rate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretraining:
    """Everything that an update changes."""

    backbone: TimeSformer
    head: KinematicsHead
    model: nn.ModuleDict  # both
    loss_of_clips: nn.Module  # the model, with a loss after it
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR


class LossOfClips(nn.Module):
    """The loss of a batch as a module, which DistributedDataParallel can go around."""

    def __init__(self, model: nn.ModuleDict) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor, truth: Motion) -> tuple[Tensor, dict[str, Tensor]]:
        assert truth.joint_seen is not None
        num_seen = distributed.gathered(truth.joint_seen.sum().float().cpu()).mean().to(clips.device)
        backbone = cast(TimeSformer, self.model["backbone"])
        return kinematics_loss(self.model["head"](backbone.tokens(clips)), truth, num_seen)


def pretrain(cfg: PretrainConfig, *, resume: bool) -> Path:
    """Train the backbone of `cfg` into `runs_dir/name/` and return the file of its weights.

    With `resume`, go on from the last checkpoint with the clips that follow. Under `torchrun` the processes share every
    batch: on a CPU, one process a core uses the cores better than one process with a thread a core.
    Raises: ValueError for what a user can get wrong; NonFiniteError, before the weights change, naming the clips.
    """
    device = choose_device()
    with ExitStack() as stack:
        if not distributed.is_first():
            stack.enter_context(distributed.joined(device))  # and not handle SIGTERM while it waits to join
        stack.enter_context(termination.handled())
        torch.manual_seed(cfg.seed)
        updates_per_epoch = count_updates(cfg)
        own_batch_size = distributed.require_even(cfg.train.batch_size, "train.batch_size")
        require_batch_memory(own_batch_size, cfg.clip.num_frames, cfg.clip.image_size, "train")
        state = build_pretraining(cfg, updates_per_epoch * cfg.train.num_epochs, device)
        run, writer, first_update = RunFolder.of(cfg), None, 0
        if distributed.is_first():
            require_space(run.path, num_run_bytes(state, run), "pretraining (two checkpoints and the backbone)")
            stack.enter_context(locked(run.path, "pretraining"))
            open_run(cfg, resume=resume)
            record_environment(run, cfg.seed)
            first_update = load_checkpoint(run.pretraining_checkpoint, state) if resume else 0
            writer = stack.enter_context(open_writer(run.path, first_update))
            stack.enter_context(distributed.joined(device))
        elif resume:
            first_update = load_checkpoint(run.pretraining_checkpoint, state)
        distributed.require_same(first_update, f"{run}: updates done", "all must see the same run folder")
        state = replace(state, loss_of_clips=distributed.data_parallel(state.loss_of_clips))
        run_updates(cfg, run, state, first_update, updates_per_epoch, device, writer)
        if distributed.is_first():
            save_backbone(run.backbone, state.backbone, dtype=torch.float16)  # small enough to ship
    return run.backbone


def num_run_bytes(state: Pretraining, run: RunFolder) -> int:
    """What the run still needs: two checkpoints of the weights and Adam's two moments, and half the weights."""
    weights = sum(each.nbytes for each in state.model.state_dict().values())
    checkpoint = run.pretraining_checkpoint
    return round(6.5 * weights) - (checkpoint.stat().st_size if checkpoint.is_file() else 0)


def build_pretraining(cfg: PretrainConfig, num_updates: int, device: torch.device) -> Pretraining:
    backbone = start_backbone(cfg)
    head = build_readout(backbone)
    model = nn.ModuleDict({"backbone": backbone, "head": head}).to(device)
    optimizer = build_optimizer(backbone, head, cfg.train)
    schedule = build_schedule(optimizer, cfg.train, num_updates)
    return Pretraining(backbone, head, model, LossOfClips(model), optimizer, schedule)


def run_updates(
    cfg: PretrainConfig,
    run: RunFolder,
    state: Pretraining,
    first_update: int,
    updates_per_epoch: int,
    device: torch.device,
    writer: SummaryWriter | None,
) -> None:
    """From `first_update` to the last: batch, loss, check, update, log, save. writer: of the first process alone.

    Raises: SystemExit after a checkpoint, where SIGTERM asked for the end.
    """
    num_updates = updates_per_epoch * cfg.train.num_epochs
    items = range(first_update * cfg.train.batch_size, num_updates * cfg.train.batch_size)
    batches = termination.endless_batches(motion_batches(cfg, distributed.share(items), device))
    bar = tqdm(range(first_update, num_updates), initial=first_update, total=num_updates, unit="update", mininterval=5)
    started = time.monotonic()
    with termination.deferred():
        for number in bar:
            try:
                batch = next(batches)
            except termination.TerminationError:
                save(run, state, number, writer)
                distributed.wait_for_all()  # `torchrun` ends the others as soon as one has ended
                raise SystemExit(termination.TERMINATED) from None
            terms = update(state, batch, clipping_limit(cfg.train), number, cfg.train.batch_size)
            if writer is None:
                continue
            clips_per_second = (number + 1 - first_update) * cfg.train.batch_size / (time.monotonic() - started)
            if (number + 1) % cfg.train.log_every == 0:
                losses = {f"loss_{name}": term for name, term in terms.items()}
                log_scalars(writer, "pretrain", losses | {"clips_per_second": clips_per_second}, number + 1)
            if (number + 1) % updates_per_epoch == 0:
                summary = " ".join(f"{name} {term:.3f}" for name, term in terms.items())
                logger.info("update %d of %d: %s (%.0f clips/s)", number + 1, num_updates, summary, clips_per_second)
                save(run, state, number + 1, writer)


def save(run: RunFolder, state: Pretraining, num_updates: int, writer: SummaryWriter | None) -> None:
    """Write a checkpoint, and before it every point up to it; of the first process alone."""
    if writer:
        flush(writer)
        save_checkpoint(run.pretraining_checkpoint, num_updates, state)


def update(
    state: Pretraining, batch: tuple[Tensor, Motion], max_grad_norm: float, number: int, clips_per_update: int
) -> dict[str, float]:
    """One update of the weights from the clips of all processes. Returns: the terms of the loss, of all of them.

    Raises: NonFiniteError, in the first process alone and before the weights change; the others end with it.
    """
    loss, terms = state.loss_of_clips(*batch)
    items = range(number * clips_per_update, (number + 1) * clips_per_update)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    means = require_finite({"loss": loss.detach(), **terms}, number, items)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), max_grad_norm)
    if not torch.isfinite(grad_norm):
        fail(f"the gradient's norm is {grad_norm.item()}", number, items)
    state.optimizer.step()
    state.schedule.step()
    return {name: mean for name, mean in means.items() if name != "loss"}


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


def count_updates(cfg: PretrainConfig) -> int:
    """Updates in an epoch, one or more."""
    return cfg.clips_per_epoch // cfg.train.batch_size


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


def require_finite(terms: dict[str, Tensor], update: int, items: range) -> dict[str, float]:
    """The means of the terms over all processes. Raises: NonFiniteError if one is not finite in any of them.

    items: the clips of the update; process k takes every world_size-th from the k-th on.
    """
    values = distributed.gathered(torch.stack(list(terms.values())).cpu())  # (process, term)
    broken = ~values.isfinite()
    if broken.any():
        columns = zip(terms, values.T, broken.T, strict=True)
        what = ", ".join(f"{name} is {column[wrong][0].item()}" for name, column, wrong in columns if wrong.any())
        suspects = [item for item in items if broken[(item - items.start) % len(values)].any()]
        fail(what, update, suspects)
    return dict(zip(terms, values.mean(0).tolist(), strict=True))


def fail(what: str, update: int, items: Sequence[int]) -> NoReturn:
    """End every process. Raises: NonFiniteError, in the first process alone."""
    if not distributed.is_first():
        raise SystemExit(1)
    raise NonFiniteError(
        f"{what} in update {update + 1}; the weights are as the update before left them. "
        f"Clips: items {', '.join(map(str, items))} of MotionClips. A lower train.learning_rate may help"
    )


def motion_batches(cfg: PretrainConfig, items: Sequence[int], device: torch.device) -> Iterator[tuple[Tensor, Motion]]:
    """Normalised clips (batch, time, channel, height, width) with random light, and the truth.

    items: of this process; each batch takes its share of `train.batch_size`.
    """
    clips = MotionClips(
        num_frames=cfg.clip.num_frames,
        image_size=cfg.clip.image_size,
        seed=cfg.seed,
        num_easy=cfg.num_easy_clips,
        moments_per_frame=MOMENTS_PER_FRAME,
        moments_per_clip_frame=MOMENTS_PER_CLIP_FRAME,
    )
    batch_size = cfg.train.batch_size // distributed.world_size()
    options: dict[str, Any] = {
        "prefetch_factor": 4,
        "multiprocessing_context": worker_context(__name__),
        "worker_init_fn": end_with_main_process,
    }
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        clips,
        batch_size=batch_size,
        sampler=items,
        num_workers=cfg.num_workers,
        pin_memory=device.type == "cuda",
        **(options if cfg.num_workers else {}),
    )
    for number, batch in enumerate(loader):
        batch = {name: values.to(device, non_blocking=True) for name, values in batch.items()}
        of_batch = items[number * batch_size : (number + 1) * batch_size]
        light = torch.stack([light_of(cfg.seed, item) for item in of_batch]).to(device)
        yield normalise(relight(batch.pop("clip"), cfg.clip.color_jitter, light)), Motion(**batch)


def light_of(seed: int, item: int) -> Tensor:
    """Two random numbers in [0, 1) for each colour of a clip. Returns: (2, channel)."""
    generator = torch.Generator().manual_seed(stream_seed(seed, LIGHT, item))
    return torch.rand(2, NUM_CHANNELS, generator=generator)


def relight(clips: Tensor, strength: float, light: Tensor) -> Tensor:
    """Gain and offset of each clip's colours. uint8 (batch, time, channel, height, width) -> float in about [0, 1].

    light: (batch, 2, channel) in [0, 1); 0.5 changes nothing.
    """
    gain, offset = (1 + strength * (2 * light[:, :, None, :, None, None] - 1)).unbind(dim=1)
    return clips.float() / 255 * gain + (offset - 1) / 2


def normalise(clips: Tensor) -> Tensor:
    mean, std = (clips.new_tensor(values).view(-1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (clips - mean) / std


def save_checkpoint(path: Path, num_updates: int, state: Pretraining) -> None:
    content = {
        "num_updates": num_updates,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
    }
    with written_atomically(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path, state: Pretraining) -> int:
    """Put everything back. Returns: the number of updates done, 0 where there is no checkpoint yet.

    Raises: ValueError if the file is damaged or of another model.
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
        num_updates = int(content["num_updates"])
        require_sound(state.model, state.optimizer, state.schedule, num_updates, options)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path}: not a checkpoint that this run can go on from: {reason}; remove it to pretrain from the start"
        ) from error
    return num_updates
