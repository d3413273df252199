"""Speed of two processes beside one: forward and backward with the exchange, and loading with one and two workers."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diveparse.configs import BackboneConfig, ClipConfig, Config, DataConfig, Precision, StemKind, TrainConfig
from diveparse.datasets.cache import DEFAULTS, CacheKind, build_cache, cache_folder, open_cache
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.rendered.clip import RenderedClip, Source, Split
from diveparse.datasets.rendered.sets import write_clip
from diveparse.datasets.storage.workers import worker_pool
from diveparse.engine import distributed
from diveparse.engine.batches import Batch, training_batches
from diveparse.engine.training.update import LossOfBatch
from diveparse.models.classifier import build_classifier

NUM_PROCESSES = 2
NUM_WARMUPS = 2  # DistributedDataParallel arranges its buckets after the first pass
# (height, width) of the clips that loading is measured on, and how many of them there are
RENDERED_SIZE = (240, 320)
NUM_RENDERED = 4
LOADING_BATCH_SIZE = 2
NUM_LOADED = 24  # batches in one timing, a second or two


@dataclass(frozen=True)
class Work:
    """What a process computes: forward and backward of a structured classifier with random weights."""

    name: str
    num_frozen_blocks: int
    batch_size: int  # of all processes together
    num_passes: int  # in one timing
    backbone: BackboneConfig
    clip: ClipConfig

    def build(self) -> nn.Module:
        backbone = BackboneConfig(**{**vars(self.backbone), "num_frozen_blocks": self.num_frozen_blocks})
        cfg = Config(name="scaling", arm="joint", data=DataConfig(root="."), clip=self.clip, backbone=backbone)
        torch.manual_seed(0)
        return LossOfBatch(build_classifier(cfg, DIVING48))

    def batch(self, num_clips: int) -> Batch:
        """Random clips, or random numbers in place of what the frozen blocks make of them."""
        image_size, width = self.clip.image_size, self.backbone.embed_dim
        num_tokens = 1 + self.clip.num_frames * (image_size // self.backbone.patch_size) ** 2
        if self.num_frozen_blocks == 0:
            inputs = torch.randn(num_clips, self.clip.num_frames, NUM_CHANNELS, image_size, image_size)
        elif self.num_frozen_blocks == self.backbone.depth:
            inputs = torch.randn(num_clips, 1, width)
        else:
            inputs = torch.randn(num_clips, num_tokens, width)
        return {"inputs": inputs, "label": torch.randint(len(DIVING48), (num_clips,))}


def works(backbone: BackboneConfig, clip: ClipConfig, num_passes: tuple[int, int, int, int]) -> list[Work]:
    """The three ways to train a backbone, the head alone with few clips and with many. num_passes: of each, in one
    timing."""
    depth = backbone.depth
    return [
        Work("the head alone, on stored class tokens", depth, 32, num_passes[0], backbone, clip),
        Work("the head alone, on stored class tokens", depth, 8192, num_passes[1], backbone, clip),
        Work("the last block, on stored tokens", depth - 1, 32, num_passes[2], backbone, clip),
        Work("end to end, on clips in memory", 0, 8, num_passes[3], backbone, clip),
    ]


# the backbone and the clips of configs/study.yaml; passes of a second or two
WORKS = works(
    BackboneConfig(stem=StemKind.CONV, embed_dim=128, depth=4, num_heads=4),
    ClipConfig(num_frames=24, image_size=64),
    (200, 8, 4, 4),
)


@dataclass(frozen=True)
class Scaling:
    """Clips a second, one number a repeat, of one process or worker and of two."""

    name: str
    batch_size: int
    of_one: list[float]
    of_two: list[float]

    @property
    def ratios(self) -> list[float]:
        return [two / one for one, two in zip(self.of_one, self.of_two, strict=True)]


def measure_work(work: Work, num_repeats: int) -> Scaling:
    """One process of one thread takes whole batches, then two that exchange gradients by gloo take a half each; and so
    on in turns. While one computes, the other waits."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    with worker_pool(NUM_PROCESSES, __name__) as pool:
        # a process that waits for the other takes no second job, so that each gets one
        jobs = [pool.submit(_in_turns, work, num_repeats, rank, port) for rank in range(NUM_PROCESSES)]
        seconds, _ = (job.result() for job in jobs)
    num_clips = work.num_passes * work.batch_size
    return Scaling(work.name, work.batch_size, *(list(num_clips / column) for column in seconds.T))


def _in_turns(work: Work, num_repeats: int, rank: int, port: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Returns: (num_repeats, 2) seconds that one process and two took, as this one saw them."""
    number = {"WORLD_SIZE": str(NUM_PROCESSES), "LOCAL_WORLD_SIZE": str(NUM_PROCESSES)}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "benchmark"}
    os.environ.update({**number, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    alone, together = work.build(), work.build()
    whole, half = work.batch(work.batch_size), work.batch(work.batch_size // NUM_PROCESSES)
    seconds = np.zeros((num_repeats, 2))
    with distributed.joined(torch.device("cpu")):
        together = distributed.data_parallel(together)
        assert isinstance(together, DistributedDataParallel)
        for module, batch in ((alone, whole), (together, half)):
            _pass(module, batch, NUM_WARMUPS)
        for repeat in range(num_repeats):
            distributed.wait_for_all()
            seconds[repeat, 0] = _timed(lambda: _pass(alone, whole, work.num_passes)) if rank == 0 else 0
            distributed.wait_for_all()
            seconds[repeat, 1] = _timed(lambda: _pass(together, half, work.num_passes))
    return seconds


def _pass(module: nn.Module, batch: Batch, times: int) -> None:
    """Forward and backward; the update after them is left out, which every process makes for itself."""
    for _ in range(times):
        module.zero_grad(set_to_none=True)
        loss, _, _ = module(batch, Precision.FP32, None)
        loss.backward()


def _timed(act: Callable[[], object]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def measure_workers(
    scratch: Path, num_repeats: int, clip: ClipConfig, num_batches: int, size: tuple[int, int] = RENDERED_SIZE
) -> Scaling:
    """Rendered clips, read from a training cache and augmented by one loader worker and by two, in turns.

    scratch: an empty folder. num_batches: in one timing, which begins when the first batch has come. size: (height,
    width) of the videos, pixels.
    """
    clips = _rendered_clips(scratch, clip, size)
    clips_per_s: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(num_repeats):
        for num_workers, speeds in clips_per_s.items():
            batches = _batches(clips, num_workers)
            next(batches)
            seconds = _timed(partial(deque, islice(batches, num_batches), maxlen=0))
            speeds.append(num_batches * LOADING_BATCH_SIZE / seconds)
            del batches  # and its workers
    return Scaling("loading, from the training cache", LOADING_BATCH_SIZE, clips_per_s[1], clips_per_s[2])


def _batches(clips: ClipDataset, num_workers: int) -> Iterator[Batch]:
    cfg = TrainConfig(batch_size=LOADING_BATCH_SIZE)
    return training_batches(clips, cfg, seed=0, first_update=0, num_workers=num_workers)


def _rendered_clips(scratch: Path, clip: ClipConfig, size: tuple[int, int]) -> ClipDataset:
    """Clips of different dives and sources, in a training cache."""
    records = []
    for number in range(NUM_RENDERED):
        dive = DIVING48[number]
        rendered = RenderedClip(Source.draw(0, Split.TRAIN, number, difficulty=1.0), dive, number)
        path = scratch / f"{rendered.name}.mp4"
        write_clip(rendered, size, path)
        records.append(ClipRecord(path, rendered.name, source=rendered.source.name, label=number))
    list(build_cache(scratch, DEFAULTS[CacheKind.TRAINING], records, num_workers=1))
    cache = open_cache(scratch, CacheKind.TRAINING, records, clip, num_temporal_views=1)
    assert cache is not None, f"{cache_folder(scratch, CacheKind.TRAINING)} does not suit {clip}"
    return ClipDataset(records, clip, training=True, seed=0, cache=cache)
