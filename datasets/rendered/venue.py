"""The background: pool, wall, crowd and board, painted once on the camera's picture plane."""

from __future__ import annotations

from dataclasses import dataclass

import aggdraw
import numpy as np
from PIL import Image, ImageFilter

from diveparse.datasets.rendered.camera import Camera, Windows
from diveparse.datasets.rendered.motion import Array

Color = tuple[int, int, int]
Point = tuple[float, float, float]

WALLS: tuple[Color, ...] = (
    (205, 205, 198),
    (150, 170, 190),
    (92, 104, 120),
    (176, 160, 138),
    (60, 70, 88),
    (120, 150, 140),
    (232, 230, 226),
    (40, 84, 128),
    (148, 96, 78),
    (34, 36, 42),
)
WATERS: tuple[Color, ...] = (
    *((38, 120, 165), (30, 92, 140), (70, 160, 180), (24, 110, 120), (90, 150, 190)),
    *((16, 60, 96), (64, 130, 110)),
)
DECKS: tuple[Color, ...] = ((190, 186, 176), (150, 140, 128), (120, 128, 136), (205, 196, 170), (88, 108, 130))
BOARDS: tuple[Color, ...] = ((120, 190, 215), (220, 220, 215), (90, 110, 130), (200, 170, 120), (60, 60, 66))
BANNERS: tuple[Color, ...] = ((200, 40, 50), (240, 200, 60), (30, 60, 150), (245, 245, 245), (20, 130, 90))
NEAREST_M = 0.5  # what is nearer to the camera's plane is not drawn


@dataclass(frozen=True)
class Venue:
    """The look of one source's background; `seed` fixes the crowd, the lights and the ripples."""

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

    def _pixels(self, points: Array, camera: Camera) -> Array:
        return np.clip((camera.project(points)[0] - self.origin) * self.scale, -20000, 20000)

    def _paint(
        self, venue: Venue, camera: Camera, size: tuple[int, int], board_height_m: float, springboard: bool
    ) -> Image.Image:
        image = Image.new("RGB", size, shade(venue.wall, venue.brightness))
        draw = aggdraw.Draw(image)
        quads = venue_quads(
            venue, np.random.default_rng(venue.seed), float(camera.position[1]), board_height_m, springboard
        )
        corners = np.array([corners for corners, _ in quads])  # (num, 4, 3)
        ahead = camera.project(corners)[1] > NEAREST_M
        pixels = self._pixels(corners, camera)
        on_picture = (pixels.max(1) > 0).all(-1) & (pixels.min(1) < size).all(-1)
        whole = np.asarray(ahead.all(1))
        for index in np.flatnonzero(on_picture & whole | ahead.any(1) & ~whole):
            outline = pixels[index] if whole[index] else self._pixels(in_front(corners[index], camera), camera)
            draw.polygon(outline.ravel().tolist(), aggdraw.Brush(shade(quads[index][1], venue.brightness)))
        draw.flush()
        return image.filter(ImageFilter.BoxBlur(0.6))


def in_front(corners: Array, camera: Camera) -> Array:
    """What of a polygon (num_corners, 3) is before the camera, cut at NEAREST_M: behind it, points have no picture."""
    ahead_m = (corners - camera.position) @ camera.forward - NEAREST_M
    cut = []
    for here, there, here_m, there_m in zip(
        corners, np.roll(corners, -1, 0), ahead_m, np.roll(ahead_m, -1), strict=True
    ):
        if here_m > 0:
            cut.append(here)
        if (here_m > 0) != (there_m > 0):
            cut.append(here + here_m / (here_m - there_m) * (there - here))
    return np.array(cut)


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
    for _ in range(int(rng.integers(0, 3))):  # banners along the wall
        color = BANNERS[rng.integers(len(BANNERS))]
        wall(rng.uniform(-30, 5), rng.uniform(0.8, 6), rng.uniform(4, 40), rng.uniform(0.3, 1.2), color)
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
