from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diveparse.datasets.dives import DIVING48, WORLD_AQUATICS, Dive
from diveparse.datasets.rendered.clip import trunk_turns
from diveparse.datasets.rendered.motion import JOINT, Moments, Performance, centre_of_mass, faces_water

EVERY_DIVE = sorted({*WORLD_AQUATICS, *DIVING48}, key=lambda dive: dive.number)


def perform(dive: Dive, seed: int = 0) -> Performance:
    rng = np.random.default_rng(seed)
    return Performance(dive, board_height_m=10.0, diver_height_m=1.7, springboard=not dive.armstand, rng=rng)


def flight(performance: Performance, num_times: int = 400) -> Moments:
    return performance.at(np.linspace(0, performance.flight_s, num_times))


def test_the_trunk_turns_as_often_as_in_the_number() -> None:
    for dive in EVERY_DIVE:
        turns = trunk_turns(perform(dive).at(np.linspace(-0.4, perform(dive).flight_s, 500)))
        assert abs(abs(turns) - dive.somersault_half_turns) < 0.3, dive.number


def test_the_body_twists_as_often_as_in_the_number() -> None:
    for dive in EVERY_DIVE:
        # the motion is a somersault of a tilt of a twist: the innermost of the three angles, followed over the flight
        angles = Rotation.from_matrix(flight(perform(dive), 600).rotations).as_euler("YXZ")
        twist = np.unwrap(angles[:, 2])
        assert abs(abs(twist[-1] - twist[0]) / np.pi - dive.twist_half_turns) < 1e-6, dive.number


def test_an_odd_count_from_a_stand_and_an_even_one_from_a_handstand_enter_head_first() -> None:
    for dive in EVERY_DIVE:
        performance = perform(dive)
        (entry,) = performance.at(np.array([performance.flight_s])).joints_m
        head_first = entry[JOINT["left_hand"], 2] < entry[JOINT["left_toe"], 2]
        assert head_first == ((dive.somersault_half_turns % 2 == 1) != dive.armstand), dive.number


@pytest.mark.parametrize(
    ("number", "chest_to_water", "head_to_water"),
    [
        *(("101B", True, True), ("201B", False, True), ("301B", True, False), ("401B", False, False)),
        *(("612B", False, False), ("622B", True, False), ("632B", False, True)),  # upside down, the feet fall first
    ],
)
def test_groups_start_and_turn_as_the_rules_define_them(number: str, chest_to_water: bool, head_to_water: bool) -> None:
    dive = Dive.from_number(number)
    performance = perform(dive)
    start = performance.at(np.array([-performance.approach_s])).rotations[0]
    early = performance.at(np.array([0.02 * performance.flight_s + 0.05])).joints_m[0]
    assert (start[0, 0] > 0) == chest_to_water == faces_water(dive)
    assert (early[JOINT["crown"], 0] > early[JOINT["left_ankle"], 0]) == head_to_water


def test_flight_is_ballistic() -> None:
    performance = perform(Dive.from_number("5253B"))
    times = np.linspace(0, performance.flight_s - 1e-6, 50)
    centre = centre_of_mass(performance.at(times).joints_m)
    acceleration = np.diff(centre, 2, axis=0) / np.diff(times)[0] ** 2
    np.testing.assert_allclose(acceleration, np.broadcast_to([0, 0, -9.81], acceleration.shape), atol=1e-3)


def test_a_tuck_turns_faster_than_a_pike_and_a_pike_faster_than_a_straight_body() -> None:
    peaks = []
    for letter in "ABC":
        moments = flight(perform(Dive.from_number(f"203{letter}")))
        head = moments.rotations[:, :, 2]
        share_of_flight = np.arccos(np.clip((head[1:] * head[:-1]).sum(-1), -1, 1)).max()
        peaks.append(share_of_flight)
    assert peaks[0] < peaks[1] < peaks[2]


def test_the_feet_stay_on_the_board_until_the_takeoff() -> None:
    performance = perform(Dive.from_number("405C"))
    standing = performance.at(np.linspace(-performance.approach_s, -0.01, 50)).joints_m[:, JOINT["left_toe"]]
    assert np.ptp(standing[:, 0]) < 1e-9
    assert abs(standing[0, 2] - 10.0) < 0.1


@pytest.mark.parametrize("number", ["113B", "312C"])
def test_a_flying_dive_opens_its_arms_before_its_shape(number: str) -> None:
    performance = perform(Dive.from_number(number))
    joints = performance.at(np.array([0.2, 0.62]) * performance.flight_s).joints_m
    span = np.linalg.norm(joints[:, JOINT["left_hand"]] - joints[:, JOINT["right_hand"]], axis=-1)
    assert span[0] > 1.2 > span[1]
