"""What tells dives apart must be in the picture, and what tells them nothing must vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from diveparse.datasets.dives import DIVING48, Dive, Position, Takeoff
from diveparse.datasets.rendered import clip as rendered_clip
from diveparse.datasets.rendered import drawing as rendering
from diveparse.datasets.rendered.camera import Camera, Windows
from diveparse.datasets.rendered.clip import PLATFORMS_M, SPRINGBOARDS_M, RenderedClip, Source, Split, trunk_turns
from diveparse.datasets.rendered.drawing import Capsules, Look
from diveparse.datasets.rendered.motion import (
    JOINT,
    JOINTS,
    SHAPES,
    STAND,
    Array,
    Moments,
    Performance,
    body_joints,
    centre_of_mass,
    somersault_inertia,
)
from diveparse.datasets.rendered.venue import Backdrop, Venue, board_outline

SIZE = (90, 120)
SKIN, HAIR, SUIT, BOARD = (230, 160, 120), (250, 0, 250), (20, 140, 60), (0, 0, 255)  # hair and board: unlike any venue
SWAPPED = {"left": "right", "right": "left"}
OTHER_SIDE = [JOINT["_".join(SWAPPED.get(part, part) for part in name.split("_"))] for name in JOINTS]
MIRROR = np.array([1.0, -1.0, 1.0])  # across the upright plane through the middle of the board


def clip_of(number: str, seed: int = 0, difficulty: float = 0.0) -> RenderedClip:
    dive = Dive.from_number(number)
    sources = (Source.draw(seed, Split.TRAIN, index, difficulty) for index in range(200))
    return RenderedClip(next(source for source in sources if source.has_board_for(dive)), dive, 0, difficulty)


def draw_at(clip: RenderedClip, seconds_from_takeoff: Array | Sequence[float]) -> tuple[NDArray[np.int64], Moments]:
    frames, _, moments = clip.draw(np.asarray(seconds_from_takeoff) - clip.start_s, SIZE)
    return frames.astype(int), moments


def perform(dive: Dive, rng: np.random.Generator | None = None) -> Performance:
    rng = rng or np.random.default_rng(0)
    return Performance(dive, board_height_m=10.0, diver_height_m=1.7, springboard=not dive.armstand, rng=rng)


def count_hair(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels of the hair's colour in each frame."""
    return (np.abs(frames - HAIR).sum(-1) < 60).sum((-2, -1))


def paint_standing(turn: Rotation, look: Look) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A standing diver seen from 10 m, and the pixel in the middle of the trunk. Unturned, the chest points right."""
    joints = body_joints(STAND.angles()[None]) @ turn.as_matrix().T + [0.0, 0.0, 3.0]
    moments = Moments(joints, turn.as_matrix()[None], np.zeros(1, int), np.zeros(1))
    camera = Camera.looking_at(np.array([0.0, -10.0, 3.0]), np.array([0.0, 0.0, 3.0]))
    windows = Windows(np.zeros((1, 2)), np.array([SIZE[0] / 0.25]))
    venue = Venue.draw(np.random.default_rng(0), 0.0)
    backdrop = Backdrop(venue, camera, windows, SIZE, 1.0, springboard=True)
    capsules = rendering.diver_capsules(moments, look)
    layer = (*rendering.outlines(capsules, camera), capsules.colors, capsules.visible)
    board = (*board_outline(camera, 1.0, np.zeros(1), True), venue.board)
    frame = rendering.draw_frames(backdrop, windows, [layer], board, SIZE)[0].astype(int)
    middle = 0.4 * joints[:, JOINT["pelvis"]] + 0.6 * joints[:, JOINT["neck"]]
    x, y = windows.to_pixels(camera.project(middle)[0], SIZE)[0].round().astype(int)
    return frame, frame[y, x]


@pytest.mark.parametrize("suit_on_chest", [True, False])
@pytest.mark.parametrize("roll", [0, 90, 180], ids=["upright", "lying", "upside down"])
def test_from_the_front_a_face_covers_hair_and_the_chest_is_lit_and_from_behind_the_back_is_dark(
    roll: int, suit_on_chest: bool
) -> None:
    look = Look(SKIN, HAIR, SUIT, suit_on_chest, build=1.0)
    (front, chest), (behind, back) = (
        paint_standing(Rotation.from_euler("zy", (turn, roll), degrees=True), look) for turn in (-90, 90)
    )
    assert 0 < 1.5 * count_hair(front) < count_hair(behind)
    assert chest.sum() > 1.3 * back.sum()


def test_from_behind_hair_covers_the_neck_up_to_the_middle_of_the_head() -> None:
    look = Look(SKIN, HAIR, SUIT, True, build=1.0)
    shown = []
    for turn in (-90, 90):
        frame, _ = paint_standing(Rotation.from_euler("z", turn, degrees=True), look)
        rows, columns = np.nonzero(np.abs(frame - HAIR).sum(-1) < 60)
        middle = round(columns.mean())
        shown.append(np.ptp(rows[columns == middle]) + 1 == (columns == middle).sum() > 5)  # unbroken
    assert shown == [False, True]


def test_a_tuck_is_more_compact_than_a_pike() -> None:
    tuck, pike = (body_joints(SHAPES[position].angles()[None])[0] for position in (Position.TUCK, Position.PIKE))
    longest_m = [np.linalg.norm(joints[:, None] - joints, axis=-1).max() for joints in (tuck, pike)]
    assert longest_m[0] < 0.97 * longest_m[1]
    assert (np.ptp(tuck, axis=0)[[0, 2]] < np.ptp(pike, axis=0)[[0, 2]]).all()
    assert somersault_inertia(tuck) < 0.8 * somersault_inertia(pike)


def test_water_fills_the_picture_below_the_far_edge_from_every_side() -> None:
    for number in range(40):
        source = Source.draw(4, Split.TRAIN, number, 1.0)
        source = replace(source, venue=replace(source.venue, water=BOARD, brightness=1.0))
        clip = RenderedClip(source, Dive.from_number("101B"), 0)
        frames, _ = draw_at(clip, [clip.performance.flight_s + 0.3])
        assert (np.abs(frames[0] - BOARD).max(-1) < 90).mean() > 0.15, number


@pytest.mark.parametrize("number", ["5337D", "5253B", "6243D"])
def test_a_twisting_diver_shows_more_hair_while_the_back_is_turned_to_the_camera(number: str) -> None:
    clip = clip_of(number)
    clip.look = Look(SKIN, HAIR, SUIT, True, 1.0)
    frames, moments = draw_at(clip, np.linspace(0, 0.95 * clip.performance.flight_s, 60))
    to_camera = clip.camera.position - moments.joints_m[:, JOINT["head"]]
    facing = (moments.rotations[:, :, 0] * to_camera).sum(-1) / np.linalg.norm(to_camera, axis=-1)
    front, back = count_hair(frames[facing > 0.5]), count_hair(frames[facing < -0.5])
    assert min(len(front), len(back)) >= 5
    assert back.mean() > 1.5 * front.mean()


@pytest.mark.parametrize("number", ["101B", "207C", "626C", "5231D"])
def test_the_splash_is_seen_after_the_entry_and_not_before(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clip_of(number, difficulty=1.0)
    since_entry_s = np.array([-0.8, -0.3, -0.01, 0.1, 0.2, 0.3])
    frames, _ = draw_at(clip, clip.performance.flight_s + since_entry_s)
    draw_splash = rendering.splash_capsules

    def draw_no_splash(since_entry_s: Array, entry: Array, size: float, rng: np.random.Generator) -> Capsules:
        splash = draw_splash(since_entry_s, entry, size, rng)
        return replace(splash, visible=np.zeros_like(splash.visible))

    monkeypatch.setattr(rendered_clip, "splash_capsules", draw_no_splash)
    dry, _ = draw_at(clip, clip.performance.flight_s + since_entry_s)
    changed = (frames != dry).any(-1).mean((1, 2))
    assert (changed[:3] == 0).all()
    assert (changed[3:] > 0.002).all()  # of the picture
    assert frames[3:].mean() > dry[3:].mean()  # it is white


@pytest.mark.parametrize("takeoff", Takeoff)
def test_forward_and_reverse_takeoffs_walk_and_hop_while_back_and_inward_ones_stand(takeoff: Takeoff) -> None:
    for dive in (dive for dive in DIVING48 if dive.takeoff is takeoff and not dive.armstand):
        performance = perform(dive)
        joints = performance.at(np.linspace(-performance.approach_s, -0.01, 80)).joints_m
        left, right = joints[:, JOINT["left_ankle"]], joints[:, JOINT["right_ankle"]]
        travel_m = joints[-1, JOINT["left_toe"], 0] - joints[0, JOINT["left_toe"], 0]
        stride_m, _, lift_m = np.abs(left - right).max(0)
        if takeoff in (Takeoff.FORWARD, Takeoff.REVERSE):
            assert travel_m > 1.5, dive.number
            assert min(stride_m, lift_m) > 0.3, dive.number
        else:
            assert max(abs(travel_m), stride_m, lift_m) < 0.01, dive.number


def test_a_bent_body_opens_before_the_entry() -> None:
    for dive in (dive for dive in DIVING48 if dive.position in (Position.PIKE, Position.TUCK)):
        performance = perform(dive)
        joints = performance.at(np.linspace(0, 0.98, 99) * performance.flight_s).joints_m
        trunk = joints[:, JOINT["neck"]] - joints[:, JOINT["pelvis"]]
        thighs = (joints[:, JOINT["left_knee"]] + joints[:, JOINT["right_knee"]]) / 2 - joints[:, JOINT["pelvis"]]
        cosine = (trunk * thighs).sum(-1) / np.linalg.norm(trunk, axis=-1) / np.linalg.norm(thighs, axis=-1)
        at_hip_deg = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        assert at_hip_deg.min() < 60, dive.number
        assert at_hip_deg[-1] > 165, dive.number


@pytest.mark.parametrize("group", ["105", "205", "305", "405"])
@pytest.mark.parametrize(("letter", "straight"), [("B", True), ("C", False)])
def test_legs_are_drawn_straight_in_a_pike_and_folded_in_a_tuck(group: str, letter: str, straight: bool) -> None:
    clip = clip_of(f"{group}{letter}")
    times_s = clip.performance.flight_s * np.array([0.4, 0.5, 0.6]) - clip.start_s
    pictures = []
    for gray in (0, 255):
        clip.look = Look((gray,) * 3, (gray,) * 3, (gray,) * 3, suit_on_chest=True, build=1.0)
        frames, joints, _ = clip.draw(times_s, SIZE)
        pictures.append(frames.astype(int))
    bodies = np.abs(pictures[0] - pictures[1]).max(-1) > 60  # what follows the diver's colour
    hip, knee = (joints[:, [JOINT[f"left_{name}"], JOINT[f"right_{name}"]]].mean(1) for name in ("hip", "knee"))
    for beyond_hip, expected in ((0.5, True), (1.0, True), (1.7, straight)):  # as shares of the thigh
        x, y = (hip + beyond_hip * (knee - hip)).round().astype(int).T
        assert (bodies[np.arange(3), y, x] == expected).all(), beyond_hip


def test_sources_differ_in_frame_rate_camera_and_board() -> None:
    sources = [Source.draw(0, Split.TRAIN, number, 1.0) for number in range(400)]
    azimuths_deg = np.degrees([source.camera_azimuth for source in sources])
    assert {source.frame_rate_hz for source in sources} == {25, 30, 60}
    assert {source.camera_side for source in sources} == {-1, 1}
    assert -35 <= azimuths_deg.min() < -33
    assert 33 < azimuths_deg.max() <= 35
    assert (np.histogram(azimuths_deg, bins=7, range=(-35, 35))[0] > 400 / 7 / 2).all()  # spread, not two heaps
    assert {source.board_height_m for source in sources if source.springboard} == set(SPRINGBOARDS_M)
    assert {source.board_height_m for source in sources if not source.springboard} == set(PLATFORMS_M)
    assert {source.venue.crowd for source in sources} == {False, True}


def test_clips_of_a_source_are_cut_closely_or_loosely_and_hold_the_takeoff_and_the_come_out() -> None:
    source = clip_of("5253B").source
    clips = [RenderedClip(source, Dive.from_number("5253B"), number) for number in range(300)]
    performances = [clip.performance for clip in clips]
    before_s = -np.array([clip.start_s for clip in clips])
    after_s = np.array([clip.end_s - clip.performance.flight_s for clip in clips])
    within_walk = before_s < [performance.approach_s for performance in performances]
    assert 0.2 <= before_s.min() < 0.4
    assert 1.9 < before_s.max() <= 2.2
    assert 0.8 < within_walk.mean() < 1
    assert -0.3 <= after_s.min() < -0.1
    assert 1.2 < after_s.max() <= 1.5


def test_no_difficulty_is_a_steady_plain_side_view_and_full_difficulty_is_not() -> None:
    wander_px = {}
    for difficulty in (0.0, 1.0):
        sources = [Source.draw(0, Split.TEST, number, difficulty) for number in range(40)]
        azimuths, brightness = (
            np.array(values)
            for values in zip(*((source.camera_azimuth, source.venue.brightness) for source in sources), strict=True)
        )
        crowds = [source.venue.crowd for source in sources]
        if difficulty == 0:
            assert not azimuths.any()
            assert (brightness == 1).all()
            assert not any(crowds)
        else:
            assert np.degrees(azimuths).std() > 10
            assert brightness.std() > 0.05
            assert 0 < sum(crowds) < len(crowds)
        clip = RenderedClip(sources[0], Dive.from_number("401B"), 0, difficulty)
        _, joints, _ = clip.draw(np.linspace(0, clip.duration_s, 12), SIZE)
        middle = joints[:, [JOINT["pelvis"], JOINT["neck"]]].mean(1)
        wander_px[difficulty] = np.abs(middle - np.array([SIZE[1], SIZE[0]]) / 2).max()
    assert wander_px[0.0] < 1.5  # perspective only: the middle of two points is not quite the picture of their middle
    assert wander_px[1.0] > 3


def test_the_board_is_drawn_behind_its_tip_as_seen_from_the_camera_s_side() -> None:
    sides = set()
    for number in range(10):
        source = Source.draw(2, Split.TRAIN, number, 1.0)
        source = replace(source, venue=replace(source.venue, board=BOARD, brightness=1.0))
        clip = RenderedClip(source, Dive.from_number("201B"), 0)
        clip.look = Look(SKIN, HAIR, SUIT, True, 1.0)
        frames, joints, _ = clip.draw(np.array([-0.1]) - clip.start_s, (180, 240))
        toes_x, toes_y = joints[0, JOINT["left_toe"]]
        if toes_y > 170:  # the camera does not show the board
            continue
        board_x = np.nonzero((frames[0].astype(int) @ [-1, -1, 1]) > 120)[1]  # of the board's blue pixels
        assert len(board_x) > 50
        assert np.sign(board_x.mean() - toes_x) == source.camera_side  # from the left of the diver, the water is left
        sides.add(source.camera_side)
    assert sides == {-1, 1}


class OppositeTwist(np.random.Generator):
    def choice(self, options: tuple[int, int]) -> int:  # type: ignore[override]
        return -int(super().choice(options))


@pytest.mark.parametrize("number", ["5132D", "5253B", "5371D", "6243D"])
def test_a_twist_to_the_other_side_is_the_mirror_image(number: str) -> None:
    dive = Dive.from_number(number)
    performances = [perform(dive, kind(np.random.PCG64(3))) for kind in (np.random.Generator, OppositeTwist)]
    assert performances[0].twist_sign == -performances[1].twist_sign
    times = np.linspace(0, performances[0].flight_s, 50)
    one, other = (performance.at(times).joints_m for performance in performances)
    one, other = (joints - centre_of_mass(joints)[:, None] for joints in (one, other))
    np.testing.assert_allclose(one[:, OTHER_SIDE] * MIRROR, other, atol=1e-9)


class Mirrored:
    """The same performance across the middle of the board: what was left is right, and a twist turns the other way."""

    def __init__(self, performance: Performance):
        self.performance, self.flight_s = performance, performance.flight_s

    def at(self, times_s: Array) -> Moments:
        moments = self.performance.at(times_s)
        rotations = MIRROR[:, None] * moments.rotations * MIRROR
        return replace(moments, joints_m=moments.joints_m[:, OTHER_SIDE] * MIRROR, rotations=rotations)


def signed_twist(moments: Moments) -> float:
    """Half turns about the body's long axis, to the left positive."""
    angle = np.unwrap(Rotation.from_matrix(moments.rotations).as_euler("YXZ")[:, 2])
    return float(angle[-1] - angle[0]) / np.pi


def turn_on_screen(joints_px: Array) -> float:
    """Half turns of the trunk in the picture, clockwise positive."""
    trunk = joints_px[:, JOINT["neck"]] - joints_px[:, JOINT["pelvis"]]
    angle = np.unwrap(np.arctan2(trunk[:, 0], -trunk[:, 1]))
    return float(angle[-1] - angle[0]) / np.pi


@pytest.mark.parametrize("number", ["107B", "305C", "5253B", "5231D"])
def test_a_flipped_clip_is_the_same_number_by_a_mirrored_diver_seen_from_the_other_side(number: str) -> None:
    clip, opposite = clip_of(number), clip_of(number)
    opposite.source = replace(clip.source, camera_side=-clip.source.camera_side)
    opposite.performance = Mirrored(clip.performance)  # type: ignore[assignment]
    times = np.linspace(0, clip.performance.flight_s, 200) - clip.start_s
    frames, joints, moments = clip.draw(times[::20], SIZE)
    frames_opposite, joints_opposite, _ = opposite.draw(times[::20], SIZE)

    flipped_joints = joints[:, OTHER_SIDE] * [-1, 1] + [SIZE[1], 0]
    np.testing.assert_allclose(joints_opposite, flipped_joints, atol=1e-6)
    flipped = frames[:, :, ::-1].astype(int)
    assert np.abs(flipped - frames_opposite).mean() < 0.25 * np.abs(frames.astype(int) - frames_opposite).mean()

    mirrored = opposite.performance.at(times + clip.start_s)
    moments = clip.performance.at(times + clip.start_s)
    assert trunk_turns(mirrored) == pytest.approx(trunk_turns(moments))  # toward or away from the board, as before
    assert signed_twist(mirrored) == pytest.approx(-signed_twist(moments), abs=1e-9)
    assert abs(signed_twist(mirrored)) == pytest.approx(clip.dive.twist_half_turns, abs=1e-6)

    seen, seen_opposite = (
        turn_on_screen(view.camera.project(motion.joints_m)[0])
        for view, motion in ((clip, moments), (opposite, mirrored))
    )
    assert seen_opposite == pytest.approx(-seen)
    assert round(abs(seen)) == clip.dive.somersault_half_turns
    assert seen_opposite * opposite.source.camera_side == pytest.approx(seen * clip.source.camera_side)
