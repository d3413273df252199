"""The camera: a pinhole that stands still, and turns and zooms after the diver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diveparse.datasets.rendered.motion import BODY_HEIGHT_M, JOINT, Array, Moments


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
