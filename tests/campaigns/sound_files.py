"""Small sound files of every kind that people hand in, to be damaged."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from video_kinds import encode, kind

from diveparse.configs import BackboneConfig, ClipConfig, Config, HeadConfig, TrainConfig
from diveparse.datasets import cache
from diveparse.datasets.clips import read_clips
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.video.writer import Picture, write_h264, x264_options
from diveparse.engine.run import RunFolder
from diveparse.engine.training.checkpoint import save_checkpoint
from diveparse.engine.training.loop import build_learner
from diveparse.models import TimeSformer, build_classifier, save_backbone, save_huggingface

BACKBONE = BackboneConfig(patch_size=8, embed_dim=64, depth=2, num_heads=1)
CONFIG = Config(name="n", arm="a", backbone=BACKBONE, clip=ClipConfig(4, 16), head=HeadConfig())
CLIPS = {"train": "3 clips, abc"}
NAMES = [f"source_{source:04d}_{clip:05d}" for source in range(2) for clip in range(3)]
VIDEO_KINDS = {
    "mp4": kind("libx264", "g=12 bf=2"),
    "mkv": kind("libx265", "g=12 x265-params=log-level=none:bframes=2:b-adapt=0"),
    "avi": kind("mpeg4", "g=12 bf=0"),
    "ts": kind("mpeg2video", "g=12 bf=2"),
    "webm": kind("libvpx-vp9", "g=12 cpu-used=8 deadline=realtime"),
    "mov": kind("libx264", "g=9", "yuv420p10le"),
}
FAIR_NAMES = {
    "space_norm": "norm1",
    "mlp_norm": "norm2",
    "space_attn": "attn",
    "time_norm": "temporal_norm1",
    "time_attn": "temporal_attn",
    "time_proj": "temporal_fc",
    "class_token": "cls_token",
    "space_embed": "pos_embed",
}


def write_sound_files(folder: Path) -> None:
    torch.manual_seed(0)
    (folder / "rgb").mkdir()
    video = folder / "rgb" / "whole.mp4"
    pixels = np.zeros((32, 32, 3), np.uint8)
    write_h264(video, [Picture(pixels)] * 30, rate_hz=Fraction(25), options=x264_options(30))
    rows = ["path,dive_number,start,end,split,source", "rgb/whole.mp4,5253B,,,,a"]
    rows += [f"rgb/whole.mp4,{number},0.{k},0.9,train,b" for k, number in enumerate(["107B", "626C", "101A"], start=1)]
    (folder / "clips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "Diving48_vocab.json").write_text(json.dumps([list(dive.vocab) for dive in DIVING48]))
    entries = [{"vid_name": name, "label": k, "start_frame": 0, "end_frame": 30} for k, name in enumerate(NAMES)]
    (folder / "Diving48_V2_train.json").write_text(json.dumps(entries))
    check = {"num_bytes": 3, "modified_ns": 4, "sha256": "ab", "problem": None, "num_frames": 30, "duration_s": 1.2}
    (folder / "inspection.jsonl").write_text("\n".join(json.dumps({"name": name} | check) for name in NAMES))
    (folder / "environment.json").write_text(
        json.dumps({"commit": "a", "from_cache": ["train"], "resumed": [], "clips": CLIPS})
    )
    with tarfile.open(folder / "videos.tar", "w") as tar:
        for name in NAMES:
            info = tarfile.TarInfo(f"rgb/{name}.mp4")
            info.size = video.stat().st_size
            tar.addfile(info, io.BytesIO(video.read_bytes()))
    tar_bytes = (folder / "videos.tar").read_bytes()
    (folder / "videos.tar.gz").write_bytes(gzip.compress(tar_bytes))
    (folder / "videos.tar.xz").write_bytes(lzma.compress(tar_bytes))
    write_models(folder)
    for suffix, how in VIDEO_KINDS.items():
        encode(folder / f"dive.{suffix}", how, num_frames=30)
    records = read_clips(folder / "clips.csv", {}, None).splits["train"]
    settings = cache.CacheSettings(cache.CacheKind.EVALUATION, num_frames=4, short_side=16)
    list(cache.build_cache(folder, settings, records, num_workers=1))


def write_models(folder: Path) -> None:
    backbone = TimeSformer(BACKBONE, num_frames=4, image_size=16)
    save_backbone(folder / "own.safetensors", backbone)
    save_huggingface(folder / "hub", backbone)
    fair = {f"model.{name}": tensor for name, tensor in backbone.state_dict().items()}
    for ours, theirs in FAIR_NAMES.items():
        fair = {name.replace(ours, theirs): tensor for name, tensor in fair.items()}
    torch.save({"epoch": 3, "model_state": fair}, folder / "fair.pyth")
    learner = new_learner()
    learner.model.save(folder / "model")
    for _ in range(3):
        sum(parameter.square().sum() for parameter in learner.model.parameters()).backward()
        learner.optimizer.step()
        learner.schedule.step()
    learner.progress.num_updates = 3
    save_checkpoint(RunFolder(folder), learner)


def new_learner() -> Any:
    return build_learner(build_classifier(CONFIG, DIVING48), TrainConfig(), num_updates=10)
