from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from diveparse.datasets.dives import DIVING48, HEIGHTS_M, WORLD_AQUATICS, Dive
from diveparse.datasets.held_out import HELD_OUT
from diveparse.datasets.rendered.clip import RenderedClip, Source, Split
from diveparse.datasets.rendered.motion import JOINT
from diveparse.datasets.rendered.pretraining_clips import MotionClips

SIZE = (90, 120)
EVERY_DIVE = sorted({*WORLD_AQUATICS, *DIVING48}, key=lambda dive: dive.number)


def clip_of(number: str, seed: int = 0) -> RenderedClip:
    dive = Dive.from_number(number)
    sources = (Source.draw(seed, Split.TRAIN, index, 1.0) for index in range(200))
    return RenderedClip(next(source for source in sources if source.has_board_for(dive)), dive, 3)


@pytest.fixture(scope="module")
def boards() -> list[Source]:
    """Of the first 1000 sources, one with each kind of board."""
    sources = (Source.draw(0, Split.TRAIN, number, 1.0) for number in range(1000))
    return list({(source.springboard, source.board_height_m): source for source in sources}.values())


def test_the_same_seeds_draw_the_same_pixels() -> None:
    times = np.linspace(0, 1, 4)
    first, joints, _ = clip_of("5253B").draw(times, SIZE)
    again, joints_again, _ = clip_of("5253B").draw(times, SIZE)
    assert (first == again).all()
    assert (joints == joints_again).all()


def test_splits_and_numbers_give_sources_of_their_own() -> None:
    names = [Source.draw(0, split, number, 1.0).name for split in Split for number in range(50)]
    assert len(set(names)) == len(names)
    assert {len(name) for name in names} == {11}


def test_every_clip_of_a_source_is_another() -> None:
    source = Source.draw(0, Split.TRAIN, 5, 1.0)
    clips = [RenderedClip(source, Dive.from_number("101B"), number) for number in range(4)]
    for one, other in combinations(clips, 2):
        assert one.duration_s != other.duration_s
        assert (one.draw(np.zeros(1), SIZE)[0] != other.draw(np.zeros(1), SIZE)[0]).any()


def test_every_dive_has_a_board_among_the_first_sources(boards: list[Source]) -> None:
    without = [dive.number for dive in EVERY_DIVE if not any(source.has_board_for(dive) for source in boards)]
    assert not without


def test_a_dive_is_done_from_where_it_has_a_difficulty_and_never_a_handstand_from_a_springboard(
    boards: list[Source],
) -> None:
    assert len(boards) == 5
    for dive, source in product(EVERY_DIVE, boards):
        if source.has_board_for(dive):
            listed = [height_m for height_m in HEIGHTS_M if dive.difficulty(height_m) is not None]
            assert source.board_height_m in (listed or HEIGHTS_M), dive.number
            assert not (dive.armstand and source.springboard), dive.number


@pytest.mark.parametrize("number", ["101A", "109C", "1011C", "113B", "5337D", "626C", "6243D", "600A", "305A"])
def test_any_number_of_the_grammar_can_be_drawn(number: str) -> None:
    clip = clip_of(number)
    frames, joints, moments = clip.draw(np.linspace(0, clip.duration_s, 5), SIZE)
    assert frames.shape == (5, *SIZE, 3)
    assert frames.std() > 5
    in_air = moments.joints_m[..., 2] > 0
    inside = ((joints > -0.2 * SIZE[1]) & (joints < 1.2 * SIZE[1])).all(-1)
    assert inside[in_air].mean() > 0.9


@pytest.mark.parametrize("number", ["107B", "205C", "305B", "407C", "5152B"])
def test_the_rotation_seen_in_the_picture_is_the_number_s(number: str) -> None:
    clip = clip_of(number)
    _, joints, moments = clip.draw(np.arange(0, clip.duration_s, 1 / 60), SIZE)
    trunk = (joints[:, JOINT["neck"]] - joints[:, JOINT["pelvis"]])[moments.phase == 1]
    angle = np.unwrap(np.arctan2(trunk[:, 0], -trunk[:, 1]))
    assert abs(abs(angle[-1] - angle[0]) / np.pi - clip.dive.somersault_half_turns) < 0.5


def test_the_board_is_on_the_camera_s_side_of_the_picture() -> None:
    for index in range(6):
        source = Source.draw(1, Split.TEST, index, 1.0)
        camera = RenderedClip(source, Dive.from_number("203B"), 0).camera
        on_board, over_water = camera.project(
            np.array([[-2.0, 0, source.board_height_m], [2, 0, source.board_height_m]])
        )[0]
        assert (over_water[0] > on_board[0]) == (source.camera_side < 0)


def test_the_diver_covers_the_joints() -> None:
    """The picture changes where the joints are, against the same moment with the diver's colours inverted."""
    clip = clip_of("201B")
    times = np.array([0.3 * clip.duration_s])
    frames, joints, _ = clip.draw(times, SIZE)
    look = clip.look
    clip.look = type(look)(skin=(0, 255, 0), hair=(0, 255, 0), suit=(0, 255, 0), suit_on_chest=True, build=look.build)
    repainted, _, _ = clip.draw(times, SIZE)
    changed = (frames[0].astype(int) - repainted[0]).any(-1)
    for name in ("pelvis", "left_knee", "head"):
        x, y = joints[0, JOINT[name]].round().astype(int)
        assert changed[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any(), name
    assert changed.mean() < 0.25


def test_motion_clips_carry_kinematics_and_no_label() -> None:
    clips = MotionClips(num_frames=4, image_size=32, seed=0, num_easy=0, moments_per_frame=3, moments_per_clip_frame=2)
    item = clips[5]
    per_frame = {"clip", "joints", "joint_seen", "pose", "camera_axes", "world_axes", "phase"}
    assert set(item) == per_frame | {"clip_axes", "clip_pose"}
    assert item["clip"].shape == (4, 3, 32, 32)
    axes = item["world_axes"].reshape(-1, 3, 3)
    np.testing.assert_allclose(axes @ axes.transpose(1, 2), np.broadcast_to(np.eye(3), axes.shape), atol=1e-5)
    trunk_m = item["pose"][:, JOINT["neck"]] - item["pose"][:, JOINT["pelvis"]]
    np.testing.assert_allclose(trunk_m.norm(dim=-1), trunk_m[0].norm().expand(4), atol=1e-5)
    assert item["pose"][:, JOINT["pelvis"]].abs().max() < 1e-6
    assert (clips[5]["clip"] == item["clip"]).all()
    assert (clips[6]["clip"] != item["clip"]).any()


def test_motion_clips_show_no_dive_that_is_held_out() -> None:
    clips = MotionClips(num_frames=4, image_size=32, seed=0, num_easy=0, moments_per_frame=3, moments_per_clip_frame=2)
    drawn = {clips.draw(index)[1] for index in range(2000)}
    assert len(drawn) > 0.9 * len(EVERY_DIVE)
    assert drawn.isdisjoint(HELD_OUT)
