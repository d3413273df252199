"""Draws a moving diver: a venue painted once behind, and a body of shaded capsules in front, through one camera.

The camera stands still and turns and zooms after the diver, so every frame is a window into one fixed picture plane:
the venue is painted once on that plane and cut out per frame, the body is projected onto the same plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import aggdraw
import numpy as np
from numpy.typing import NDArray

from diveparse.datasets.rendered.camera import Camera, Windows
from diveparse.datasets.rendered.motion import JOINT, Array, Moments
from diveparse.datasets.rendered.venue import Backdrop, Color, shade

SKINS: tuple[Color, ...] = (
    (241, 204, 177),
    (224, 172, 135),
    (198, 134, 96),
    (141, 85, 55),
    (92, 58, 42),
    (168, 112, 76),
)
HAIRS: tuple[Color, ...] = (
    *((35, 26, 22), (78, 52, 34), (156, 116, 66), (196, 182, 160), (20, 20, 24)),
    *((122, 58, 30), (70, 70, 74)),
)
SUITS: tuple[Color, ...] = (
    *((178, 24, 43), (20, 40, 120), (16, 16, 22), (10, 105, 80), (120, 30, 110), (228, 200, 40)),
    *((240, 240, 240), (30, 140, 190), (230, 110, 30)),
)
CAPSULE_ARC = np.linspace(-np.pi / 2, np.pi / 2, 5)


@dataclass(frozen=True)
class Look:
    """Colours and build of one diver."""

    skin: Color
    hair: Color
    suit: Color
    suit_on_chest: bool  # a one-piece suit or trunks
    build: float  # scales every thickness

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Look:
        def pick(colors: tuple[Color, ...]) -> Color:
            return colors[rng.integers(len(colors))]

        return cls(pick(SKINS), pick(HAIRS), pick(SUITS), bool(rng.integers(2)), float(rng.uniform(0.85, 1.2)))


@dataclass(frozen=True)
class Capsules:
    """Primitives of every frame: sticks between two points, round at both ends, in metres."""

    start: Array  # (num_times, num, 3)
    end: Array  # (num_times, num, 3)
    start_radius: Array  # (num,)
    end_radius: Array  # (num,)
    colors: list[Color]  # (num,)
    visible: NDArray[np.bool_]  # (num_times, num)


class Stick(NamedTuple):
    """One primitive of the body: its ends, (num_times, 3) world metres, and how it looks."""

    start: Array
    end: Array
    start_radius: float
    end_radius: float
    color: Color


def diver_capsules(moments: Moments, look: Look) -> Capsules:
    """The body. Separate primitives tell front from back, since the depth order hides or shows them: face and hair,
    chest and back, toes and heels."""
    sticks = [*_trunk_and_head(moments, look), *_limbs(moments, look)]
    start, end = np.stack([s.start for s in sticks], 1), np.stack([s.end for s in sticks], 1)  # (num_times, num, 3)
    radii = look.build * np.array([(s.start_radius, s.end_radius) for s in sticks], dtype=float)
    colors = [s.color for s in sticks]
    return cut_at_water(Capsules(start, end, radii[:, 0], radii[:, 1], colors, np.ones(start.shape[:2], bool)))


def _trunk_and_head(moments: Moments, look: Look) -> list[Stick]:
    at = {name: moments.joints_m[:, index] for name, index in JOINT.items()}
    left = moments.rotations[:, :, 1]
    trunk = at["neck"] - at["pelvis"]
    front = np.cross(left, trunk / np.linalg.norm(trunk, axis=-1, keepdims=True))
    head_axis = at["crown"] - at["neck"]
    face_front = np.cross(left, head_axis / np.linalg.norm(head_axis, axis=-1, keepdims=True))
    face, hair = at["head"] + 0.06 * face_front, at["head"] - 0.03 * face_front  # so from behind, hair covers the neck
    chest = look.suit if look.suit_on_chest else look.skin

    def along(share: float) -> Array:
        return at["pelvis"] + share * trunk

    return [
        Stick(along(0.10), along(0.82), 0.115, 0.135, shade(chest, 0.95)),
        Stick(along(0.35) + 0.07 * front, along(0.8) + 0.06 * front, 0.075, 0.10, shade(chest, 1.12)),
        Stick(along(0.25) - 0.06 * front, along(0.85) - 0.06 * front, 0.08, 0.10, shade(chest, 0.72)),
        Stick(at["left_hip"], at["right_hip"], 0.105, 0.105, look.suit),
        Stick(at["left_shoulder"], at["right_shoulder"], 0.065, 0.065, shade(look.skin, 0.95)),
        Stick(at["neck"] - 0.05 * trunk, at["neck"] + 0.4 * head_axis, 0.06, 0.055, shade(look.skin, 0.9)),
        Stick(hair - 0.1 * head_axis, hair + 0.17 * head_axis, 0.1, 0.105, look.hair),
        Stick(face, face + 0.1 * head_axis, 0.078, 0.07, shade(look.skin, 1.08)),
    ]


def _limbs(moments: Moments, look: Look) -> list[Stick]:
    sticks = []
    for side, light in (("left", 1.0), ("right", 0.93)):
        at = {
            name.removeprefix(f"{side}_"): moments.joints_m[:, index]
            for name, index in JOINT.items()
            if name.startswith(side)
        }
        limb = shade(look.skin, light)
        sticks += [
            Stick(at["shoulder"], at["elbow"], 0.052, 0.043, limb),
            Stick(at["elbow"], at["hand"], 0.042, 0.032, limb),
            Stick(at["hip"], at["knee"], 0.092, 0.062, limb),
            Stick(at["hip"], 0.7 * at["hip"] + 0.3 * at["knee"], 0.097, 0.088, look.suit),
            Stick(at["knee"], at["ankle"], 0.058, 0.038, limb),
            Stick(at["ankle"], at["toe"], 0.042, 0.025, shade(limb, 1.1)),
        ]
    return sticks


def cut_at_water(capsules: Capsules) -> Capsules:
    """Hide capsules under the surface z = 0 and shorten those that cross it: from outside, the water is opaque."""
    start, end = capsules.start, capsules.end
    share = start[..., 2] / np.where(start[..., 2] == end[..., 2], 1.0, start[..., 2] - end[..., 2])
    crossing = start + np.clip(share, 0, 1)[..., None] * (end - start)
    start_cut = np.where((start[..., 2] < 0)[..., None], crossing, start)
    end_cut = np.where((end[..., 2] < 0)[..., None], crossing, end)
    visible = capsules.visible & ((start[..., 2] > 0) | (end[..., 2] > 0))
    return Capsules(start_cut, end_cut, capsules.start_radius, capsules.end_radius, capsules.colors, visible)


def splash_capsules(since_entry_s: Array, entry_point: Array, size: float, rng: np.random.Generator) -> Capsules:
    """White drops thrown up from the point of entry, falling back; `since_entry_s` (num_times,), negative before it."""
    num_drops = 22
    angle, delay = rng.uniform(0, 2 * np.pi, num_drops), rng.uniform(0, 0.12, num_drops)
    speed_up, speed_out = rng.uniform(1.2, 3.8, num_drops) * size, rng.uniform(0.2, 1.5, num_drops) * size
    time = np.maximum(since_entry_s[:, None] - delay, 0)  # (num_times, num_drops)
    height = speed_up * time - 9.81 / 2 * time**2
    offsets = np.stack([np.cos(angle) * speed_out * time, np.sin(angle) * speed_out * time, height], -1)
    drops = np.array([entry_point[0], entry_point[1], 0.0]) + offsets
    radii = rng.uniform(0.02, 0.09, num_drops) * size
    white: list[Color] = [shade((235, 245, 250), float(f)) for f in rng.uniform(0.85, 1.05, num_drops)]
    visible = (time > 0) & (height > 0)
    return Capsules(drops, drops + np.array([0, 0, 0.06]), radii, radii, white, visible)


def outlines(capsules: Capsules, camera: Camera) -> tuple[Array, Array]:
    """Plane polygons around every capsule: (num_times, num, corners, 2) tangents, and its depth (num_times, num)."""
    start, start_depth = camera.project(capsules.start)
    end, end_depth = camera.project(capsules.end)
    axis = end - start
    heading = np.arctan2(axis[..., 1], axis[..., 0])
    cap = heading[..., None] + CAPSULE_ARC  # (num_times, num, arc)
    around_end = np.stack([np.cos(cap), np.sin(cap)], -1) * (capsules.end_radius / end_depth)[..., None, None]
    around_start = (
        np.stack([np.cos(cap + np.pi), np.sin(cap + np.pi)], -1)
        * (capsules.start_radius / start_depth)[..., None, None]
    )
    polygon = np.concatenate([end[..., None, :] + around_end, start[..., None, :] + around_start], -2)
    return polygon, (start_depth + end_depth) / 2


def draw_frames(
    backdrop: Backdrop,
    windows: Windows,
    layers: list[tuple[Array, Array, list[Color], NDArray[np.bool_]]],
    board: tuple[Array, Array, Color],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Paint every frame. layers: polygons (num_times, num, corners, 2) on the plane, depths, colours, visibility.
    Returns: (num_times, height, width, 3) uint8."""
    polygons = np.concatenate([windows.to_pixels(layer[0], size) for layer in layers], 1)
    depths = np.concatenate([layer[1] for layer in layers], 1)
    visible = np.concatenate([layer[3] for layer in layers], 1)
    brushes = [aggdraw.Brush(color) for layer in layers for color in layer[2]]
    order = np.argsort(-depths, axis=1)
    top, side = (windows.to_pixels(outline, size).reshape(len(depths), -1).tolist() for outline in board[:2])
    board_top, board_side = aggdraw.Brush(board[2]), aggdraw.Brush(shade(board[2], 0.6))
    flat = polygons.reshape(*polygons.shape[:2], -1).tolist()
    frames = np.empty((len(depths), *size, 3), np.uint8)
    for t in range(len(depths)):
        image = backdrop.cut(windows.center[t], float(windows.scale[t]), size)
        draw = aggdraw.Draw(image)
        draw.polygon(top[t], board_top)
        draw.polygon(side[t], board_side)
        for index in order[t]:
            if visible[t, index]:
                draw.polygon(flat[t][index], brushes[index])
        draw.flush()
        frames[t] = np.asarray(image)
    return frames
