"""Rendered clips for pretraining, each with the motion of the body as its target. They carry no dive label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diveparse.datasets.dives import DIVING48, WORLD_AQUATICS, Dive
from diveparse.datasets.held_out import HELD_OUT
from diveparse.datasets.rendered.clip import RenderedClip, Source, Split
from diveparse.datasets.rendered.motion import JOINT, Array, Moments
from diveparse.datasets.storage.seeding import stream

CHOICES = 2  # ends the seed key of the choices made here: the dive, the crop, the times
MARGIN = 1.17  # drawn larger than the clip by this much, and cropped at random


class MotionClips(Dataset[dict[str, Tensor]]):
    """Item `index` is always the same clip. Every item has another source, which no data set shares. None shows a
    dive of HELD_OUT.

    The rendering's difficulty rises from 0 to 1 over the first `num_easy` items: a randomly initialised network learns
    to find bodies sooner in plain views.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        image_size: int,
        seed: int,
        num_easy: int,
        moments_per_frame: int,
        moments_per_clip_frame: int,
    ):
        self.num_frames, self.image_size, self.seed, self.num_easy = num_frames, image_size, seed, num_easy
        self.moments_per_frame, self.moments_per_clip_frame = moments_per_frame, moments_per_clip_frame
        self.dives = sorted({*WORLD_AQUATICS, *DIVING48} - {*HELD_OUT}, key=lambda dive: dive.number)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Returns: clip uint8 (time, channel, height, width), and a row of each tensor of `heads.kinematics.Motion`."""
        source, dive, rng = self.draw(index)
        clip = RenderedClip(source, dive, 0, self.difficulty(index))
        step_s = clip.duration_s / self.num_frames
        times = (np.arange(self.num_frames, dtype=np.float64) + rng.uniform(0, 1)) * step_s  # evenly apart
        side = round(self.image_size * MARGIN)
        frames, joints_px, moments = clip.draw(times, (side, side))
        top, left = rng.integers(0, side - self.image_size + 1, 2)
        frames = frames[:, top : top + self.image_size, left : left + self.image_size]

        offsets = (np.arange(self.moments_per_frame) - (self.moments_per_frame - 1) / 2) / 2 * step_s
        around = clip.performance.at((times[:, None] + offsets).ravel() + clip.start_s)
        num_moments = self.moments_per_clip_frame * self.num_frames
        evenly = clip.performance.at((np.arange(num_moments) + 0.5) / num_moments * clip.duration_s + clip.start_s)
        to_camera = clip.camera.axes
        return {
            "clip": torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))),
            "joints": as_float((joints_px - [left, top]) / self.image_size - 0.5),
            "joint_seen": torch.from_numpy(moments.joints_m[..., 2] > 0),
            "pose": as_float(body_pose(moments)),
            "camera_axes": as_float(body_axes(around, to_camera).reshape(self.num_frames, self.moments_per_frame, -1)),
            "world_axes": as_float(body_axes(around, np.eye(3)).reshape(self.num_frames, self.moments_per_frame, -1)),
            "clip_axes": as_float(body_axes(evenly, np.eye(3))),
            "clip_pose": as_float(body_pose(evenly)),
            "phase": torch.from_numpy(moments.phase),
        }

    def difficulty(self, index: int) -> float:
        return min(1.0, index / max(self.num_easy, 1))

    def draw(self, index: int) -> tuple[Source, Dive, np.random.Generator]:
        """The source of an item, a dive that it has a board for, and the random numbers for what else is chosen."""
        rng = stream(self.seed, Split.PRETRAIN.value, index, 0, CHOICES)
        source = Source.draw(self.seed, Split.PRETRAIN, index, self.difficulty(index))
        source = replace(source, body_share=source.body_share * rng.uniform(0.8, 1.0))
        while True:
            dive = self.dives[rng.integers(len(self.dives))]
            if source.has_board_for(dive):
                return source, dive, rng


def body_axes(moments: Moments, frame: Array) -> Array:
    """The body's front, left and head axes along the rows of `frame` (3, 3). Returns: (num_times, 9), by axis."""
    return (frame @ moments.rotations).transpose(0, 2, 1).reshape(len(moments.rotations), -1)


def body_pose(moments: Moments) -> Array:
    """The joints in the body's own frame: (num_times, num_joints, 3), metres from the pelvis."""
    return (moments.joints_m - moments.joints_m[:, [JOINT["pelvis"]]]) @ moments.rotations


def as_float(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
