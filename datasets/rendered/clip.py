"""Rendered dives: sources, and clips of any dive number in them.

They stand in for video that cannot be shipped. Everything follows from seeds: a source (venue, camera, light, divers,
frame rate, board) from (seed, split, number), a clip from its source's seed and its own number. Splits never share a
source.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from diveparse.datasets.dives import HEIGHTS_M, Dive
from diveparse.datasets.rendered.camera import Camera, Windows, follow
from diveparse.datasets.rendered.drawing import Look, diver_capsules, draw_frames, outlines, splash_capsules
from diveparse.datasets.rendered.motion import JOINT, Array, Moments, Performance
from diveparse.datasets.rendered.venue import Backdrop, Venue, board_outline, shade
from diveparse.datasets.storage.seeding import stream

NAME_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
FRAME_RATES_HZ = (25, 30, 60)
SPRINGBOARDS_M, PLATFORMS_M = (1.0, 3.0), (5.0, 7.5, 10.0)
PICTURE = 1  # ends the seed key of the random numbers of a clip's picture, as opposed to its motion


class Split(Enum):
    """Each split draws other sources; the value is part of the seed."""

    TRAIN = 0
    TEST = 1
    PRETRAIN = 2


@dataclass(frozen=True)
class Source:
    """One broadcast or club video: everything that the clips cut from it share."""

    name: str  # 11 characters, like a source of Diving48
    seed_key: tuple[int, ...]  # of the source's random stream; the keys of the clips start with it
    venue: Venue
    looks: tuple[Look, ...]
    frame_rate_hz: int
    springboard: bool
    board_height_m: float
    camera_azimuth: float  # radians from the y axis, to either side
    camera_side: int
    camera_distance_m: float
    camera_height_m: float
    body_share: float  # of the picture's height

    @classmethod
    def draw(cls, seed: int, split: Split, number: int, difficulty: float) -> Source:
        seed_key = (seed, split.value, number)
        rng = stream(*seed_key)
        name = "".join(NAME_ALPHABET[i] for i in rng.integers(0, len(NAME_ALPHABET), 11))
        springboard = bool(rng.random() < 0.6)
        board = float(
            rng.choice(SPRINGBOARDS_M, p=(0.1, 0.9)) if springboard else rng.choice(PLATFORMS_M, p=(0.05, 0.05, 0.9))
        )
        return cls(
            name=name,
            seed_key=seed_key,
            venue=Venue.draw(rng, difficulty),
            looks=tuple(Look.draw(rng) for _ in range(4)),
            frame_rate_hz=int(rng.choice(FRAME_RATES_HZ, p=(0.4, 0.4, 0.2))),
            springboard=springboard,
            board_height_m=board,
            camera_azimuth=float(np.radians(35) * difficulty * rng.uniform(-1, 1)),
            camera_side=int(rng.choice((-1, 1))),
            camera_distance_m=float(rng.uniform(9, 18)),
            camera_height_m=float(board * rng.uniform(0.3, 1.1) + rng.uniform(0.8, 2.5)),
            body_share=float(rng.uniform(0.42, 0.58)),
        )

    def clip_name(self, number: int) -> str:
        return f"{self.name}_{number:05d}"

    def has_board_for(self, dive: Dive) -> bool:
        """Whether the dive has a difficulty at this board's height. A dive without any difficulty fits every board."""
        if dive.armstand and self.springboard:
            return False
        heights = [height_m for height_m in HEIGHTS_M if dive.difficulty(height_m) is not None]
        return not heights or self.board_height_m in heights


class RenderedClip:
    """One dive of one source, which can be drawn at any times and in any size."""

    def __init__(self, source: Source, dive: Dive, number: int, difficulty: float = 1.0):
        self.source, self.dive, self.difficulty = source, dive, difficulty
        self.name = source.clip_name(number)
        self.seed_key = (*source.seed_key, number)
        rng = stream(*self.seed_key)
        self.look = source.looks[rng.integers(len(source.looks))]
        self.performance = Performance(
            dive,
            board_height_m=source.board_height_m,
            diver_height_m=float(rng.uniform(1.5, 1.85)),
            springboard=source.springboard,
            rng=rng,
        )
        # seconds from the takeoff: cut closely or loosely, from before the walk or within it to the entry or long after
        self.start_s = -float(rng.triangular(0.2, 0.7, 2.2))
        self.end_s = self.performance.flight_s + float(rng.triangular(-0.3, 0.2, 1.5))

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def frame_times_s(self) -> Array:
        """The times of all frames of the file, in seconds from the clip's start."""
        return np.arange(int(self.duration_s * self.source.frame_rate_hz)) / self.source.frame_rate_hz

    def draw(self, times_s: Array, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Array, Moments]:
        """times_s: (num_times,) seconds from the clip's start; size: (height, width).
        Returns: frames (num_times, height, width, 3), joints on the picture (num_times, num_joints, 2) as x, y pixels,
        and the motion of the body."""
        source, rng = self.source, stream(*self.seed_key, PICTURE)
        moments = self.performance.at(times_s + self.start_s)
        camera = self.camera
        windows = follow(moments, camera, times_s, size, source.body_share, self.difficulty, rng)
        backdrop = Backdrop(source.venue, camera, windows, size, source.board_height_m, source.springboard)
        frames = self._paint(moments, camera, windows, backdrop, times_s, size, rng)
        return frames, windows.to_pixels(camera.project(moments.joints_m)[0], size), moments

    @property
    def camera(self) -> Camera:
        source = self.source
        bearing = np.array([np.sin(source.camera_azimuth), source.camera_side * np.cos(source.camera_azimuth)])
        ground = np.array([1.0, 0.0]) + source.camera_distance_m * bearing
        target = np.array([1.0, 0.0, source.board_height_m * 0.6])
        return Camera.looking_at(np.array([*ground, source.camera_height_m]), target)

    def _paint(
        self,
        moments: Moments,
        camera: Camera,
        windows: Windows,
        backdrop: Backdrop,
        times_s: Array,
        size: tuple[int, int],
        rng: np.random.Generator,
    ) -> NDArray[np.uint8]:
        brightness = self.source.venue.brightness
        entry = self.performance.at(np.array([self.performance.flight_s])).joints_m[0].mean(0)
        since_entry = times_s + self.start_s - self.performance.flight_s
        splash = splash_capsules(since_entry, entry, float(rng.uniform(0.5, 1.3)), rng)
        layers = []
        for capsules in (diver_capsules(moments, self.look), splash):
            polygons, depth = outlines(capsules, camera)
            colors = [shade(color, brightness) for color in capsules.colors]
            layers.append((polygons, depth, colors, capsules.visible))
        top, side = board_outline(camera, self.source.board_height_m, moments.board_dip_m, self.source.springboard)
        board = (top, side, shade(self.source.venue.board, brightness))
        return draw_frames(backdrop, windows, layers, board, size)


def trunk_turns(moments: Moments) -> float:
    """Signed half turns of the trunk about the lateral axis over the moments, measured from the joints alone."""
    trunk = moments.joints_m[:, JOINT["neck"]] - moments.joints_m[:, JOINT["pelvis"]]
    angle = np.unwrap(np.arctan2(trunk[:, 0], trunk[:, 2]))
    return float(angle[-1] - angle[0]) / np.pi
