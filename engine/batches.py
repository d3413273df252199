"""Batches for training and for evaluation, decoded by worker processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diveparse.configs import Config, DamagedClips, TrainConfig
from diveparse.datasets.cache import CacheKind, cache_folder, open_cache
from diveparse.datasets.clip_dataset import ClipDataset, EpochSampler
from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.datasets.data_set import open_data_set
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.storage.memory import require_memory
from diveparse.datasets.storage.workers import end_with_main_process, without_worker_traceback, worker_context
from diveparse.engine import distributed
from diveparse.engine.feature_cache import CachedFeatures, fill_feature_cache
from diveparse.models.classifier import DiveClassifier

# "inputs" of a model (clips, or their frozen tokens), "label" and "index", each with one entry a clip; "num_damaged" is
# the number of damaged clips that the batch lacks
Batch = dict[str, Tensor]
FeatureSource: TypeAlias = ClipDataset | CachedFeatures

logger = logging.getLogger(__name__)


class ClipLoader(DataLoader[Any]):
    """A DataLoader that raises a worker's error about a file as it was, and logs each skipped damaged clip once.

    The blank stand-ins of damaged clips in an evaluation are left out of the batches.
    """

    dataset: FeatureSource

    def __init__(self, clips: FeatureSource, **options: Any) -> None:
        super().__init__(clips, **options)
        self.problems: set[str] = set()

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises its own private iterator
        for batch in without_worker_traceback(super().__iter__()):
            problems = batch.pop("problem")
            batch["inputs"] = batch.pop("tokens" if "tokens" in batch else "clip")
            for problem in problems:
                if problem and problem not in self.problems:
                    self.problems.add(problem)
                    logger.warning("skipped a damaged clip: %s", problem)
            sound = torch.tensor([problem == "" for problem in problems])
            if not self.dataset.training:
                batch = {name: rows[sound] for name, rows in batch.items()}
            if len(batch["index"]):
                yield batch | {"num_damaged": (~sound).sum()}


class MicroBatches:
    """The sampler's batches, one an update, cut into the parts that one forward pass takes; of each part, the share of
    this process."""

    def __init__(self, updates: EpochSampler, batch_size: int) -> None:
        self.updates = updates
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for update in self.updates:
            for first in range(0, len(update), self.batch_size):
                yield list(distributed.share(update[first : first + self.batch_size]))


def build_clips(
    cfg: Config,
    records: Sequence[ClipRecord],
    *,
    training: bool,
    views: tuple[int, int] = (1, 1),
    from_cache: bool | None = None,
    processor: Callable[[Tensor], Tensor] | None = None,
) -> ClipDataset:
    """The clips of these records as the config reads them: from the data set's cache if it suits, else from the videos.

    from_cache: whether the run began with the cache, which it must go on with; None for a run that begins now.
    processor: of a published classifier; see `ClipDataset`.
    Raises: ValueError if the cache is damaged, the run began with one that is missing or no longer suits, or a batch is
    larger than the memory.
    """
    own_share = cfg.train.batch_size // distributed.world_size()
    num_clips = own_share if training else cfg.test.batch_size * views[0] * views[1]
    require_batch_memory(num_clips, cfg.clip.num_frames, cfg.clip.image_size, "train" if training else "test")
    kind = CacheKind.TRAINING if training else CacheKind.EVALUATION
    wanted = cfg.data.cache if from_cache is None else from_cache
    root = open_data_set(cfg.data).cache_root
    cache = open_cache(root, kind, records, cfg.clip, views[0]) if wanted else None
    if from_cache and cache is None:
        folder = cache_folder(root, kind)
        missing = "the run began with clips of this cache, which is missing or no longer suits"
        raise ValueError(f"{folder}: {missing}; make it again with diveparse prepare")
    skip_damaged = cfg.data.damaged is DamagedClips.SKIP
    return ClipDataset(
        records,
        cfg.clip,
        training=training,
        seed=cfg.seed,
        views=views,
        cache=cache,
        skip_damaged=skip_damaged,
        processor=processor,
    )


def require_batch_memory(num_clips: int, num_frames: int, image_size: int, section: str) -> None:
    """Raises: ValueError if the pixels of one batch are larger than the memory. section: of the config."""
    num_bytes = torch.float32.itemsize * num_clips * num_frames * NUM_CHANNELS * image_size**2
    sizes = f"{section}.batch_size, clip.num_frames={num_frames} and clip.image_size={image_size}"
    require_memory(num_bytes, f"batches of {num_clips} clips, from {sizes},")


def cached_or_read(clips: ClipDataset, model: DiveClassifier, cfg: Config) -> FeatureSource:
    """The feature cache of these clips, which is filled first, where the config asks for one; else the clips."""
    if not cfg.train.num_cached_views:
        return clips
    cache_root, num_views = open_data_set(cfg.data).cache_root, cfg.train.num_cached_views
    return fill_feature_cache(
        model.backbone,
        clips,
        cache_root,
        num_views=num_views,
        num_workers=cfg.data.num_workers,
        class_token_alone=model.pooling is None and model.backbone.has_frozen_class_token,
    )


def training_batches(
    clips: FeatureSource, cfg: TrainConfig, seed: int, *, first_update: int, num_workers: int
) -> Iterator[Batch]:
    """Every batch of the training after `first_update` updates, epoch after epoch without a pause in between.

    An epoch is a whole number of updates, each of `accumulation_steps` batches; what does not fill one is left out.
    """
    labels = [record.label for record in clips.records] if cfg.class_balanced else None
    updates = EpochSampler(len(clips), cfg.batch_size * cfg.accumulation_steps, seed, first_update, labels)
    parts = MicroBatches(updates, cfg.batch_size)
    return iter(ClipLoader(clips, batch_sampler=parts, **_loader_arguments(clips, num_workers)))


def evaluation_batches(clips: FeatureSource, *, batch_size: int, num_workers: int) -> ClipLoader:
    """Every clip of this process's share once, in order, as often as asked; the last batch may be short."""
    own = distributed.share(range(len(clips)))
    return ClipLoader(clips, batch_size=batch_size, sampler=own, **_loader_arguments(clips, num_workers))


def _loader_arguments(clips: FeatureSource, num_workers: int) -> dict[str, Any]:
    """What both loaders share. Their own generator keeps them from drawing on the one that the model's noise uses."""
    shared: dict[str, Any] = {"generator": torch.Generator(), "pin_memory": torch.cuda.is_available()}
    if isinstance(clips, CachedFeatures):
        shared["collate_fn"] = as_it_is
    if num_workers == 0 or (isinstance(clips, CachedFeatures) and clips.in_memory):
        return shared
    context = worker_context(__name__)
    options = {"num_workers": num_workers, "multiprocessing_context": context, "worker_init_fn": end_with_main_process}
    return shared | options


def as_it_is(batch: Batch) -> Batch:
    """In place of collating items: `CachedFeatures` gives whole batches."""
    return batch
