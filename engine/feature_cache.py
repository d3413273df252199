"""What the frozen part of a backbone makes of each clip, computed once and kept beside the data.

Where the lower blocks are frozen, all that they do for a clip is the same at every step but for the augmentation. With
a few augmented views of each clip stored, a step begins where training does, and many runs share the work.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from diveparse.configs import ClipConfig, plain_values
from diveparse.datasets.cache import CacheKind, cache_folder
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.records import ClipRecord, file_stem
from diveparse.datasets.storage.atomic import written_atomically
from diveparse.datasets.storage.seeding import stream_seed
from diveparse.datasets.storage.workers import end_with_main_process, without_worker_traceback, worker_context
from diveparse.models.timesformer import TimeSformer

FORMAT = 1  # of the files; a change of how they are made gives them another folder
FIRST_VIEW = 2  # what a random stream is for, beside those of clip_dataset.py

logger = logging.getLogger(__name__)


class StoredClips(Dataset[dict[str, object]]):
    """Stored tokens in place of clips; the keys are those of `ClipDataset`.

    Training: "tokens" is (1 + time * patches, embed_dim), of one view: each epoch takes the next, from a first one that
    depends on (seed, index). Evaluation: (1, 1 + time * patches, embed_dim), of the view that an evaluation looks at.
    """

    def __init__(self, records: Sequence[ClipRecord], folder: Path, *, training: bool, num_views: int, seed: int):
        self.records, self.folder, self.training, self.num_views, self.seed = records, folder, training, num_views, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, object]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        views = np.load(stored_path(self.folder, record), mmap_mode="r")  # (num_views, tokens, embed_dim)
        first = stream_seed(self.seed, FIRST_VIEW, index) if self.training else 0
        tokens = torch.from_numpy(views[(first + epoch) % self.num_views].astype(np.float32))
        tokens = tokens if self.training else tokens.unsqueeze(0)
        return {"tokens": tokens, "label": record.label, "index": index, "problem": ""}


def store_clips(
    backbone: TimeSformer, clips: ClipDataset, root: Path, *, num_views: int, num_workers: int
) -> StoredClips:
    """Compute what is not there yet, and open it all.

    backbone: with frozen blocks; clips: what is to be stored, for training or for evaluation in one view; root: the
    data's. Training clips are stored in `num_views` random views, drawn from each clip's name, so that every run of
    whichever seed and share of the clips meets the same ones.
    Raises: ValueError if there is more than one view for evaluation; VideoError naming a clip that cannot be read.
    """
    if clips.views != (1, 1):
        raise ValueError(f"stored clips have one view for evaluation, got test views {clips.views}")
    num_views = num_views if clips.training else 1
    folder = stored_folder(backbone, clips, root, num_views)
    todo = [record for record in clips.records if not _is_stored(folder, record)]
    if todo:
        logger.info("storing %d of %d clips in %s", len(todo), len(clips), folder)
        _store(backbone, clips, todo, folder, num_views, num_workers)
    logger.info("%d clips are read from %s", len(clips), folder)
    return StoredClips(clips.records, folder, training=clips.training, num_views=num_views, seed=clips.seed)


def stored_folder(backbone: TimeSformer, clips: ClipDataset, root: Path, num_views: int) -> Path:
    """Its name is a digest of all that the stored tokens depend on, apart from the videos."""
    digest = sha256()
    about = {
        "format": FORMAT,
        "clip": plain_values(asdict(clips.clip_cfg)),
        "num_frozen_blocks": backbone.num_frozen_blocks,
        "num_heads": backbone.config.num_heads,
        "num_views": num_views,
        "training": clips.training,
        "from_cache": clips.cache is not None,
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    for name, parameter in sorted(backbone.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    return cache_folder(root, CacheKind.TRAINING).parent / f"frozen-{digest.hexdigest()[:16]}"


def stored_path(folder: Path, record: ClipRecord) -> Path:
    return folder / f"{file_stem(record.name)}.npy"


class _Views(Dataset[torch.Tensor]):
    """All views of a clip at once. Returns: (num_views, time, 3, height, width)."""

    def __init__(self, records: Sequence[ClipRecord], like: ClipDataset, num_views: int) -> None:
        self.records, self.like, self.num_views = records, like, num_views

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> torch.Tensor:
        record, like = self.records[index], self.like
        seed = crc32(record.name.encode())
        clip_cfg: ClipConfig = like.clip_cfg
        clips = ClipDataset([record], clip_cfg, training=like.training, seed=seed, cache=like.cache)
        if not like.training:
            return clips[0]["clip"]
        return torch.stack([clips[view, 0]["clip"] for view in range(self.num_views)])


def _store(
    backbone: TimeSformer, clips: ClipDataset, todo: list[ClipRecord], folder: Path, num_views: int, num_workers: int
) -> None:
    device = next(backbone.parameters()).device
    options: dict[str, Any] = {
        "multiprocessing_context": worker_context(__name__),
        "worker_init_fn": end_with_main_process,
    }
    views_of_each = DataLoader(
        _Views(todo, clips, num_views),
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),
        **(options if num_workers else {}),
    )
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            for record, views in zip(
                todo,
                tqdm(without_worker_traceback(iter(views_of_each)), total=len(todo), desc="storing", unit="clip"),
                strict=True,
            ):
                tokens = backbone.frozen_tokens(views.to(device)).to(torch.float16).cpu()
                if not torch.isfinite(tokens).all():
                    raise ValueError(f"{record.path}: the frozen blocks give numbers too large to store")
                with written_atomically(stored_path(folder, record)) as temporary, temporary.open("wb") as file:
                    np.save(file, tokens.numpy(), allow_pickle=False)
    finally:
        backbone.train(was_training)


def _is_stored(folder: Path, record: ClipRecord) -> bool:
    path = stored_path(folder, record)
    return path.is_file() and path.stat().st_mtime_ns > record.path.stat().st_mtime_ns  # a video may be replaced
