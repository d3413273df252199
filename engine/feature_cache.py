"""The feature cache: what the frozen blocks of a backbone make of each clip, computed once and kept beside the data.

Frozen blocks give the same tokens for the same view of a clip at every update. With a few augmented views of each clip
in the cache, an update starts at the first block that is trained, and many runs share the work. Where all blocks are
frozen and a head reads the class token, that token is all that is kept.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from diveparse.configs import ClipConfig, plain_values
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.records import ClipRecord, file_stem
from diveparse.datasets.storage.atomic import written_atomically
from diveparse.datasets.storage.disk import require_space
from diveparse.datasets.storage.lock import locked
from diveparse.datasets.storage.memory import machine_memory
from diveparse.datasets.storage.seeding import stream_seed
from diveparse.datasets.storage.workers import end_with_main_process, without_worker_traceback, worker_context
from diveparse.engine import distributed
from diveparse.models.backbone import Backbone

PAGE = 2**16  # bytes; a smaller file is read at once, a larger one as far as it is needed
FORMAT = 1  # of the files; a change of how they are made gives them another folder
FIRST_VIEW = 2  # what a random stream is for, beside those of clip_dataset.py
MEMORY_SHARE = 1 / 8  # of the machine's memory that the features of one split may take; several runs train side by side

logger = logging.getLogger(__name__)


class CachedFeatures(Dataset[dict[str, object]]):
    """Frozen tokens in place of clips; the other keys are those of `ClipDataset`.

    Training: "tokens" is (tokens, embed_dim), of one view: each epoch takes the next, from a first one that depends on
    (seed, index). Evaluation: (1, tokens, embed_dim), of the view that an evaluation looks at.
    A loader asks for whole batches, which `__getitems__` reads at once. in_memory: read all features at the first one
    and keep them, in half precision, instead of opening files for every batch; by default, where they take a small
    share of the memory. The values are the same.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        folder: Path,
        *,
        training: bool,
        num_views: int,
        seed: int,
        in_memory: bool | None = None,
    ):
        self.records, self.folder, self.training, self.num_views, self.seed = records, folder, training, num_views, seed
        self.labels = torch.tensor([record.label for record in records])
        seeds = [stream_seed(seed, FIRST_VIEW, index) if training else 0 for index in range(len(records))]
        self.first_views = np.array([first % num_views for first in seeds])
        self.in_memory = fits_in_memory(records, folder) if in_memory is None else in_memory
        self.features: npt.NDArray[np.float16] | None = None  # (num_clips, num_views, tokens, embed_dim)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, object]:
        batch = self.__getitems__([key])
        item = {name: batch[name][0] for name in ("tokens", "problem")}
        return item | {name: int(batch[name][0]) for name in ("label", "index")}

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, Any]:
        """A batch. keys: as for `ClipDataset`. Raises: ValueError naming a file that is damaged or was removed."""
        pairs = [key if isinstance(key, tuple) else (0, key) for key in keys]
        epochs, indices = (np.array(column) for column in zip(*pairs, strict=True))
        views = (self.first_views[indices] + epochs) % self.num_views
        if self.in_memory and self.features is None:
            self.features = np.stack([self._read(index) for index in range(len(self.records))])
        if self.features is None:
            halves = np.stack([self._read(index)[view] for index, view in zip(indices, views, strict=True)])
        else:
            halves = self.features[indices, views]
        tokens = torch.from_numpy(halves.astype(np.float32))
        return {
            "tokens": tokens if self.training else tokens.unsqueeze(1),
            "label": self.labels[indices],
            "index": torch.from_numpy(indices),
            "problem": [""] * len(keys),
        }

    def _read(self, index: int) -> npt.NDArray[np.float16]:
        """All views of a clip, (num_views, tokens, embed_dim), on the disk until they are used."""
        path = features_path(self.folder, self.records[index])
        try:
            views: npt.NDArray[np.float16] = np.load(path, mmap_mode="r" if path.stat().st_size > PAGE else None)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path}: damaged or removed in mid-run: {error}; delete it and resume") from error
        return views


def fits_in_memory(records: Sequence[ClipRecord], folder: Path) -> bool:
    """Whether the features of these clips, which all have the same size, take a small share of the memory."""
    memory = machine_memory()
    num_bytes = features_path(folder, records[0]).stat().st_size * len(records) if records else 0
    return memory is not None and num_bytes * distributed.local_world_size() <= MEMORY_SHARE * memory


def fill_feature_cache(
    backbone: Backbone,
    clips: ClipDataset,
    cache_root: Path,
    *,
    num_views: int,
    num_workers: int,
    class_token_alone: bool = False,
) -> CachedFeatures:
    """Compute what is not in the cache yet, and open it.

    backbone: with frozen blocks; clips: for training, or for evaluation in one view; cache_root: the data
    set's folder of caches. class_token_alone: keep what `Backbone.frozen_class_token` makes of clips.
    The cache holds `num_views` random views of a training clip, drawn from the clip's name, so that every run gets the
    same ones, whatever its seed and its share of the clips.
    Raises: ValueError if there is more than one view for evaluation; VideoError naming a clip that cannot be read;
    DiskFullError, before a process's second clip, if the cache does not fit on the disk; InUseError while another run
    fills it. The processes of one run fill it together, each for its share of the clips.
    """
    if clips.views != (1, 1):
        raise ValueError(f"the feature cache holds one view of an evaluation clip, got test views {clips.views}")
    num_views = num_views if clips.training else 1
    folder = features_folder(backbone, clips, cache_root, num_views, class_token_alone=class_token_alone)
    compute = backbone.frozen_class_token if class_token_alone else backbone.frozen_tokens
    todo = [record for record in clips.records if not _is_cached(folder, record)]
    distributed.wait_for_all()  # else one might find what another has computed already, and take another share
    if distributed.is_true_anywhere(bool(todo)):
        logger.info("computing features of %d of %d clips into %s", len(todo), len(clips), folder)
        with locked(folder, "computing features") if distributed.is_first() else nullcontext():
            distributed.wait_for_all()  # for the lock
            own = list(distributed.share(todo))
            if own:
                _compute(backbone, compute, clips, own, folder, num_views, num_workers, num_anywhere=len(todo))
            distributed.wait_for_all()
        own_names = {record.name for record in own}
        others = [record for record in todo if record.name not in own_names]
        if missing := [record.name for record in others if not _is_cached(folder, record)]:
            listed = ", ".join(missing[:5])
            raise ValueError(
                f"{folder}: lacks the features of {len(missing)} clips that another process computed, such as "
                f"{listed}; all processes must see the same folder"
            )
    logger.info("features of %d clips are read from %s", len(clips), folder)
    return CachedFeatures(clips.records, folder, training=clips.training, num_views=num_views, seed=clips.seed)


def features_folder(
    backbone: Backbone, clips: ClipDataset, cache_root: Path, num_views: int, *, class_token_alone: bool = False
) -> Path:
    """Its name is a digest of everything that the tokens depend on, apart from the videos."""
    digest = sha256()
    about = {
        "format": FORMAT,
        "clip": plain_values(asdict(clips.clip_cfg)),
        "num_frozen_blocks": backbone.num_frozen_blocks,
        "backbone": type(backbone).__name__,
        "num_heads": backbone.num_heads,
        "num_views": num_views,
        "training": clips.training,
        "from_cache": clips.cache is not None,
        **backbone.about_frozen_tokens(),
    } | ({"class_token_alone": True} if class_token_alone else {})
    digest.update(json.dumps(about, sort_keys=True).encode())
    for name, parameter in sorted(backbone.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    for name, buffer in sorted(backbone.named_buffers()):
        digest.update(name.encode() + buffer.cpu().numpy().tobytes())
    return cache_root / f"frozen-{digest.hexdigest()[:16]}"


def features_path(folder: Path, record: ClipRecord) -> Path:
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


def _compute(
    backbone: Backbone,
    compute: Callable[[torch.Tensor], torch.Tensor],
    clips: ClipDataset,
    todo: list[ClipRecord],
    folder: Path,
    num_views: int,
    num_workers: int,
    *,
    num_anywhere: int,
) -> None:
    """todo: of this process; num_anywhere: clips of all processes, which write to one disk."""
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
    changed_ns = {record.name: record.path.stat().st_mtime_ns for record in todo}  # before any is read
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            bar = tqdm(without_worker_traceback(iter(views_of_each)), total=len(todo), desc="features", unit="clip")
            for number, (record, views) in enumerate(zip(todo, bar, strict=True)):
                tokens = compute(views.to(device)).to(torch.float16).cpu()
                if not torch.isfinite(tokens).all():
                    raise ValueError(f"{record.path}: the frozen blocks give numbers too large for fp16")
                if number == 0:  # all clips have as many features
                    num_bytes = tokens.nbytes * num_anywhere
                    logger.info("they take %.3g MB a clip, %.3g GB in all", tokens.nbytes / 1e6, num_bytes / 1e9)
                    require_space(folder, num_bytes, f"the feature cache of {num_anywhere} more clips")
                path = features_path(folder, record)
                with written_atomically(path, tokens.nbytes) as temporary:
                    with temporary.open("wb") as file:
                        np.save(file, tokens.numpy(), allow_pickle=False)
                    os.utime(temporary, ns=(changed_ns[record.name],) * 2)  # closing the file may set its time
    finally:
        backbone.train(was_training)


def _is_cached(folder: Path, record: ClipRecord) -> bool:
    """Whether the features are of the video as it is now: their time is that of the video, whatever the clock gave."""
    path = features_path(folder, record)
    if not path.is_file():
        return False
    stored_ns, video_ns = path.stat().st_mtime_ns, record.path.stat().st_mtime_ns
    return stored_ns in (video_ns, video_ns // 1000 * 1000, video_ns // 10**9 * 10**9)  # some disks keep less of it
