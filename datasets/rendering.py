"""Draws a moving diver: a venue painted once behind, and a body of shaded capsules in front, through one camera.

The camera stands still and turns and zooms after the diver, so every frame is a window into one fixed picture plane:
the venue is painted once on that plane and cut out per frame, the body is projected onto the same plane.
"""

from __future__ import annotations

from dataclasses import dataclass

import aggdraw
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from diveparse.datasets.kinematics import BODY_HEIGHT_M, JOINT, Array, Moments

Color = tuple[int, int, int]
Point = tuple[float, float, float]

SKINS: tuple[Color, ...] = ((241, 204, 177), (224, 172, 135), (198, 134, 96), (141, 85, 55), (92, 58, 42))
HAIRS: tuple[Color, ...] = ((35, 26, 22), (78, 52, 34), (156, 116, 66), (196, 182, 160), (20, 20, 24))
SUITS: tuple[Color, ...] = ((178, 24, 43), (20, 40, 120), (16, 16, 22), (10, 105, 80), (120, 30, 110), (228, 200, 40))
WALLS: tuple[Color, ...] = (
    (205, 205, 198),
    (150, 170, 190),
    (92, 104, 120),
    (176, 160, 138),
    (60, 70, 88),
    (120, 150, 140),
)
WATERS: tuple[Color, ...] = ((38, 120, 165), (30, 92, 140), (70, 160, 180), (24, 110, 120), (90, 150, 190))
DECKS: tuple[Color, ...] = ((190, 186, 176), (150, 140, 128), (120, 128, 136), (205, 196, 170))
BOARDS: tuple[Color, ...] = ((120, 190, 215), (220, 220, 215), (90, 110, 130), (200, 170, 120))
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

        return cls(pick(SKINS), pick(HAIRS), pick(SUITS), bool(rng.integers(2)), float(rng.uniform(0.9, 1.12)))


@dataclass(frozen=True)
class Camera:
    """A pinhole at `position`; plane coordinates are tangents: right and down of the axis, per metre of depth."""

    position: Array
    right: Array
    down: Array
    forward: Array

    @classmethod
    def looking_at(cls, position: Array, target: Array) -> Camera:
        forward = (target - position) / np.linalg.norm(target - position)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        return cls(position, right, np.cross(forward, right), forward)

    @property
    def axes(self) -> Array:
        """(3, 3): rows are right, down and forward in the world."""
        return np.stack([self.right, self.down, self.forward])

    def project(self, points: Array) -> tuple[Array, Array]:
        """(..., 3) world metres -> plane (..., 2) tangents and depth (...,) metres."""
        relative = points - self.position
        depth = np.maximum(relative @ self.forward, 0.1)
        return np.stack([relative @ self.right, relative @ self.down], -1) / depth[..., None], depth


@dataclass(frozen=True)
class Venue:
    """What one source's background looks like; `seed` fixes its crowd, lights and ripples."""

    seed: int
    wall: Color
    water: Color
    deck: Color
    board: Color
    wall_distance_m: float
    crowd: bool
    brightness: float

    @classmethod
    def draw(cls, rng: np.random.Generator, difficulty: float) -> Venue:

        def pick(colors: tuple[Color, ...]) -> Color:
            red, green, blue = np.clip(colors[rng.integers(len(colors))] + rng.normal(0, 10, 3), 0, 255).astype(int)
            return int(red), int(green), int(blue)

        brightness = float(1 + 0.25 * difficulty * rng.uniform(-1, 1))
        seed = int(rng.integers(2**31))
        crowd = bool(rng.random() < 0.5 * difficulty)
        return cls(
            seed, pick(WALLS), pick(WATERS), pick(DECKS), pick(BOARDS), float(rng.uniform(8, 20)), crowd, brightness
        )


def shade(color: Color, factor: float) -> Color:
    return tuple(int(min(max(c * factor, 0), 255)) for c in color)  # type: ignore[return-value]


@dataclass(frozen=True)
class Capsules:
    """Primitives of every frame: sticks between two points, round at both ends, in metres."""

    start: Array  # (num_times, num, 3)
    end: Array  # (num_times, num, 3)
    start_radius: Array  # (num,)
    end_radius: Array  # (num,)
    colors: list[Color]  # (num,)
    visible: NDArray[np.bool_]  # (num_times, num)


def diver_capsules(moments: Moments, look: Look) -> Capsules:
    """The body. What tells front from back is drawn as its own primitives that the depth order hides or shows:
    face against hair, chest against back, toes against heels."""
    rows: list[tuple[Array, Array, float, float, Color]] = []

    def at(name: str) -> Array:
        return moments.joints_m[:, JOINT[name]]

    def add(start: Array, end: Array, start_radius: float, end_radius: float, color: Color) -> None:
        rows.append((start, end, start_radius, end_radius, color))

    left = moments.rotations[:, :, 1]
    trunk = at("neck") - at("pelvis")
    trunk_front = np.cross(left, trunk / np.linalg.norm(trunk, axis=-1, keepdims=True))
    head_axis = at("crown") - at("neck")
    head_front = np.cross(left, head_axis / np.linalg.norm(head_axis, axis=-1, keepdims=True))
    chest = look.suit if look.suit_on_chest else look.skin
    chest_lit, back_dark = shade(chest, 1.12), shade(look.suit if look.suit_on_chest else look.skin, 0.72)

    low, high = at("pelvis") + 0.10 * trunk, at("pelvis") + 0.82 * trunk
    add(low, high, 0.115, 0.135, shade(chest, 0.95))
    add(
        at("pelvis") + 0.35 * trunk + 0.07 * trunk_front,
        at("pelvis") + 0.8 * trunk + 0.06 * trunk_front,
        0.075,
        0.10,
        chest_lit,
    )
    add(
        at("pelvis") + 0.25 * trunk - 0.06 * trunk_front,
        at("pelvis") + 0.85 * trunk - 0.06 * trunk_front,
        0.08,
        0.10,
        back_dark,
    )
    add(at("left_hip"), at("right_hip"), 0.105, 0.105, look.suit)
    add(at("left_shoulder"), at("right_shoulder"), 0.065, 0.065, shade(look.skin, 0.95))
    add(at("neck") - 0.05 * trunk, at("head"), 0.06, 0.06, shade(look.skin, 0.9))
    add(at("head"), at("head") + 0.35 * (at("crown") - at("head")), 0.11, 0.105, look.hair)
    add(
        at("head") + 0.055 * head_front,
        at("head") + 0.055 * head_front + 0.1 * head_axis,
        0.078,
        0.07,
        shade(look.skin, 1.08),
    )
    for side, light in (("left", 1.0), ("right", 0.93)):
        limb = shade(look.skin, light)
        add(at(f"{side}_shoulder"), at(f"{side}_elbow"), 0.052, 0.043, limb)
        add(at(f"{side}_elbow"), at(f"{side}_hand"), 0.042, 0.032, limb)
        add(at(f"{side}_hip"), at(f"{side}_knee"), 0.092, 0.062, limb)
        add(at(f"{side}_hip"), 0.7 * at(f"{side}_hip") + 0.3 * at(f"{side}_knee"), 0.097, 0.088, look.suit)
        add(at(f"{side}_knee"), at(f"{side}_ankle"), 0.058, 0.038, limb)
        add(at(f"{side}_ankle"), at(f"{side}_toe"), 0.042, 0.025, shade(limb, 1.1))

    start, end = np.stack([r[0] for r in rows], 1), np.stack([r[1] for r in rows], 1)  # (num_times, num, 3)
    radii = look.build * np.array([r[2:4] for r in rows], dtype=float)
    return cut_at_water(
        Capsules(start, end, radii[:, 0], radii[:, 1], [r[4] for r in rows], np.ones(start.shape[:2], bool))
    )


def cut_at_water(capsules: Capsules) -> Capsules:
    """Hide what is under the surface z = 0 and shorten what crosses it: from outside, the water is opaque."""
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


@dataclass(frozen=True)
class Windows:
    """Where each frame looks on the picture plane: centre (num_times, 2) tangents, pixels per tangent (num_times,)."""

    center: Array
    scale: Array

    def to_pixels(self, plane: Array, size: tuple[int, int]) -> Array:
        """plane: (num_times, ..., 2) tangents. Returns pixels (x, y) in a (height, width) frame."""
        extra = (1,) * (plane.ndim - 2)
        center, scale = self.center.reshape(-1, *extra, 2), self.scale.reshape(-1, *extra, 1)
        return (plane - center) * scale + np.array([size[1], size[0]]) / 2


def follow(
    moments: Moments,
    camera: Camera,
    times_s: Array,
    size: tuple[int, int],
    body_share: float,
    jitter: float,
    rng: np.random.Generator,
) -> Windows:
    """A camera operator: keeps the diver near the middle and at about `body_share` of the height, unsteadily."""
    plane, depth = camera.project(moments.joints_m[:, [JOINT["pelvis"], JOINT["neck"]]].mean(1))
    wobble = np.zeros((len(times_s), 2))
    for frequency_hz in (0.7, 1.9, 4.3):  # a hand's sway: slow and wide to fast and narrow
        phase = rng.uniform(0, 2 * np.pi, 2)
        wobble += rng.normal(0, 1, 2) * np.sin(2 * np.pi * frequency_hz * times_s[:, None] + phase) / (1 + frequency_hz)
    offset = rng.uniform(-0.08, 0.08, 2) * jitter
    body_tangent = BODY_HEIGHT_M / depth
    center = plane + (0.10 * jitter * wobble + offset) * (body_tangent / body_share)[:, None]
    zoom = 1 + 0.08 * jitter * np.sin(2 * np.pi * rng.uniform(0.15, 0.4) * times_s + rng.uniform(0, 2 * np.pi))
    return Windows(center, body_share * size[0] / body_tangent * zoom)


class Backdrop:
    """The venue painted on the picture plane, wide enough for every window."""

    def __init__(
        self,
        venue: Venue,
        camera: Camera,
        windows: Windows,
        size: tuple[int, int],
        board_height_m: float,
        springboard: bool,
    ):
        half = np.array([size[1], size[0]]) / 2 / windows.scale[:, None]
        margin = 0.02
        self.origin = (windows.center - half).min(0) - margin
        extent = (windows.center + half).max(0) + margin - self.origin
        self.scale = float(min(np.median(windows.scale), 2400 / extent.max()))
        width, height = (int(np.ceil(e * self.scale)) for e in extent)
        self.image = self._paint(venue, camera, (width, height), board_height_m, springboard)

    def cut(self, center: Array, scale: float, size: tuple[int, int]) -> Image.Image:
        ratio = self.scale / scale
        left, top = (center - self.origin) * self.scale - np.array([size[1], size[0]]) / 2 * ratio
        box = (
            max(left, 0),
            max(top, 0),
            min(left + size[1] * ratio, self.image.width),
            min(top + size[0] * ratio, self.image.height),
        )
        return self.image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)

    def _paint(
        self, venue: Venue, camera: Camera, size: tuple[int, int], board_height_m: float, springboard: bool
    ) -> Image.Image:
        image = Image.new("RGB", size, shade(venue.wall, venue.brightness))
        draw = aggdraw.Draw(image)
        quads = venue_quads(
            venue, np.random.default_rng(venue.seed), float(camera.position[1]), board_height_m, springboard
        )
        plane, _ = camera.project(np.array([corners for corners, _ in quads]))  # (num, 4, 2)
        pixels = np.clip((plane - self.origin) * self.scale, -20000, 20000)
        on_picture = (pixels.max(1) > 0).all(-1) & (pixels.min(1) < size).all(-1)
        for index in np.flatnonzero(on_picture):
            draw.polygon(pixels[index].ravel().tolist(), aggdraw.Brush(shade(quads[index][1], venue.brightness)))
        draw.flush()
        return image.filter(ImageFilter.BoxBlur(0.6))


def venue_quads(
    venue: Venue, rng: np.random.Generator, camera_y_m: float, board_height_m: float, springboard: bool
) -> list[tuple[list[Point], Color]]:
    """Everything behind the diver as coloured quads in world metres, from far to near."""
    quads: list[tuple[list[Point], Color]] = []
    far = -np.sign(camera_y_m) * venue.wall_distance_m  # the wall is across the pool from the camera
    edge, near = 0.75 * far, 0.92 * camera_y_m

    def wall(x: float, z: float, width: float, height: float, color: Color) -> None:
        quads.append(([(x, far, z), (x + width, far, z), (x + width, far, z + height), (x, far, z + height)], color))

    def floor(x0: float, x1: float, y0: float, y1: float, z: float, color: Color) -> None:
        quads.append(([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], color))

    for x in np.arange(-40, 40, rng.uniform(2, 5)):
        wall(x, rng.uniform(0, 3), rng.uniform(0.5, 3), rng.uniform(1, 9), shade(venue.wall, rng.uniform(0.8, 1.15)))
    if venue.crowd:
        num_people = 350
        xs, zs = rng.uniform(-22, 22, num_people).tolist(), rng.uniform(0.8, 6, num_people).tolist()
        tone, shirt = rng.uniform(0.4, 1.4, (num_people, 1)), rng.uniform(0.4, 1.4, (num_people, 3))
        clothes = np.clip(0.5 * np.array(venue.wall) * tone + 70 * shirt, 0, 255).astype(int).tolist()
        for x, z, color in zip(xs, zs, clothes, strict=True):
            wall(x, z, 0.35, 0.5, tuple(color))
    for _ in range(int(rng.integers(0, 6))):  # lamps or windows
        wall(rng.uniform(-25, 25), rng.uniform(5, 13), rng.uniform(0.5, 3), rng.uniform(0.5, 1.5), (250, 250, 240))
    floor(-60, 60, far, edge, 0.3, venue.deck)
    floor(-60, 60, edge, near, 0, venue.water)
    for x, depth, length, light in zip(
        rng.uniform(-14, 16, 70),
        rng.uniform(0, 1, 70),
        rng.uniform(0.3, 2.5, 70),
        rng.uniform(0.85, 1.3, 70),
        strict=True,
    ):
        y = edge + depth * (near - edge)
        floor(x, x + length, y, y + 0.1, 0, shade(venue.water, light))
    floor(-60, -1.2, edge, near, 0.3, venue.deck)
    quads.append(([(-1.2, edge, 0), (-1.2, edge, 0.3), (-1.2, near, 0.3), (-1.2, near, 0)], shade(venue.deck, 0.7)))
    width, thickness = (0.25, 0.1) if springboard else (0.6, 0.35)
    for x in (-4.4, -2.4) if springboard else (-5.0, -2.0):  # the board's legs
        top = board_height_m - thickness
        quads.append(([(x, 0, 0.3), (x + width, 0, 0.3), (x + width, 0, top), (x, 0, top)], shade(venue.deck, 0.85)))
    return quads


def board_outline(camera: Camera, board_height_m: float, dip_m: Array, springboard: bool) -> tuple[Array, Array]:
    """Top and visible side of the board per frame: two plane polygons (num_times, corners, 2); its tip dips."""
    half_width, length, thickness = (0.25, 4.8, 0.06) if springboard else (1.0, 5.5, 0.3)
    along = np.array([0.0, -0.33, -0.67, -1.0])
    bend = -dip_m[:, None] * (1 + along) ** 2  # (num_times, 4)
    near = np.sign(camera.position[1]) * half_width

    def edge(y: float, lower_m: float) -> Array:
        z = board_height_m + bend - lower_m
        return np.stack([np.broadcast_to(along * length, z.shape), np.full_like(z, y), z], -1)

    top = np.concatenate([edge(near, 0), edge(-near, 0)[:, ::-1]], 1)
    side = np.concatenate([edge(near, 0), edge(near, thickness)[:, ::-1]], 1)
    return camera.project(top)[0], camera.project(side)[0]


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
