"""How a dive number moves a body: an articulated diver from the board, through the air, into the water.

World axes: x points away from the board over the water, y to the diver's left at a forward start, z up; metres, with
z = 0 on the water and x = 0 at the board's tip. Body axes: x front (chest), y left, z head. Time 0 is the takeoff.

Flight is ballistic; the somersault rate follows from conserved angular momentum, so a tuck turns faster than a pike
and a pike faster than a straight body; its constant is set so that the number's count of half turns is exactly met.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation

from diveparse.datasets.dives import Dive, Position, Takeoff

Array = NDArray[np.float64]

GRAVITY_M_S2 = 9.81
BODY_HEIGHT_M = 1.7  # of the segment lengths below; a diver's own height scales them
PHASES = ("approach", "flight", "water")
LEAN_S = 0.3  # over which the body leans toward its turn before the takeoff

JOINTS = (
    *("pelvis", "neck", "head", "crown"),
    *("left_shoulder", "left_elbow", "left_hand", "right_shoulder", "right_elbow", "right_hand"),
    *("left_hip", "left_knee", "left_ankle", "left_toe", "right_hip", "right_knee", "right_ankle", "right_toe"),
)
JOINT = {name: index for index, name in enumerate(JOINTS)}
TRUNK_M, HEAD_M, CROWN_M, UPPER_ARM_M, FOREARM_M, THIGH_M, SHANK_M, FOOT_M = (
    0.50,
    0.13,
    0.12,
    0.28,
    0.32,
    0.43,
    0.42,
    0.21,
)
SHOULDER_HALF_WIDTH_M, HIP_HALF_WIDTH_M = 0.19, 0.10
# share of the body's mass between two joints (rounded from Winter, Biomechanics and Motor Control of Human Movement)
SEGMENT_MASSES = (
    *(("pelvis", "neck", 0.50), ("neck", "crown", 0.08)),
    *((f"{side}_shoulder", f"{side}_elbow", 0.028) for side in ("left", "right")),
    *((f"{side}_elbow", f"{side}_hand", 0.022) for side in ("left", "right")),
    *((f"{side}_hip", f"{side}_knee", 0.10) for side in ("left", "right")),
    *((f"{side}_knee", f"{side}_toe", 0.06) for side in ("left", "right")),
)


@dataclass(frozen=True)
class Pose:
    """Joint angles in degrees; arms: 0 at the thighs, 90 to the front, 180 overhead, opened sideways by `spread`."""

    hip: float = 0.0
    knee: float = 0.0
    pointed: float = 1.0  # 0: soles flat as in standing, 1: toes pointed
    left_arm: float = 0.0
    right_arm: float = 0.0
    left_spread: float = 0.0
    right_spread: float = 0.0
    left_elbow: float = 0.0
    right_elbow: float = 0.0
    right_hip_more: float = 0.0  # the free leg of a walk or hurdle
    right_knee_more: float = 0.0

    def angles(self) -> Array:
        return np.array([*vars(self).values()])


STAND = Pose(pointed=0, left_arm=5, right_arm=5)
STAND_ARMS_UP = Pose(pointed=0.5, left_arm=165, right_arm=165, left_spread=12, right_spread=12)
PRESS = Pose(hip=75, knee=80, pointed=0, left_arm=-35, right_arm=-35)
STRIDE_RIGHT = Pose(pointed=0.1, left_arm=25, right_arm=-25, right_hip_more=32, right_knee_more=25)
STRIDE_LEFT = Pose(pointed=0.3, left_arm=-25, right_arm=25, right_hip_more=-28, right_knee_more=20)
HURDLE = Pose(pointed=0.9, left_arm=160, right_arm=160, right_hip_more=88, right_knee_more=90)
REACH = Pose(left_arm=172, right_arm=172, left_spread=6, right_spread=6)  # overhead: leaving the board, and head first
AT_SIDES = Pose(left_arm=4, right_arm=4)  # feet first
FLYING = Pose(left_arm=90, right_arm=90, left_spread=85, right_spread=85)
SHAPES = {
    Position.STRAIGHT: Pose(left_arm=15, right_arm=15, left_spread=6, right_spread=6),
    Position.PIKE: Pose(hip=138, left_arm=62, right_arm=62, left_elbow=25, right_elbow=25),
    Position.TUCK: Pose(hip=145, knee=145, left_arm=14, right_arm=14, left_elbow=76, right_elbow=76),
    Position.FREE: Pose(hip=48, left_arm=75, right_arm=75, left_spread=45, right_spread=45),
}
# one arm overhead and one across the chest tilt the body; the arm overhead is the one that the twist turns away from
TWIST = {
    1: Pose(left_arm=150, right_arm=60, left_elbow=60, right_elbow=100, right_spread=-15),
    -1: Pose(left_arm=60, right_arm=150, left_elbow=100, right_elbow=60, left_spread=-15),
}


@dataclass(frozen=True)
class Moments:
    """The motion of the body at `num_times` moments.

    joints_m: (num_times, num_joints, 3) world metres, in the order of JOINTS; rotations: (num_times, 3, 3), columns are
    the body's front, left and head axes in the world; phase: (num_times,), an index into PHASES; board_dip_m:
    (num_times,).
    """

    joints_m: Array
    rotations: Array
    phase: NDArray[np.int64]
    board_dip_m: Array


def body_joints(angles: Array) -> Array:
    """Joints about the pelvis, in body axes. angles: (num_times, 11) degrees. Returns: (num_times, joints, 3) m."""
    hip, knee, pointed, left_arm, right_arm, left_spread, right_spread, left_elbow, right_elbow, hip_more, knee_more = (
        np.radians(angles).T
    )
    pointed = np.degrees(pointed)
    # the long axis halves the bend between trunk and legs, so that a pike closes symmetrically about it
    trunk_lean, thigh_raise = hip / 2, hip / 2
    joints = np.zeros((len(angles), len(JOINTS), 3))

    def sagittal(angle_from_up: Array) -> Array:
        return np.stack([np.sin(angle_from_up), np.zeros_like(angle_from_up), np.cos(angle_from_up)], -1)

    trunk = sagittal(trunk_lean)
    left_axis = np.array([0.0, 1.0, 0.0])
    joints[:, JOINT["neck"]] = TRUNK_M * trunk
    joints[:, JOINT["head"]] = joints[:, JOINT["neck"]] + HEAD_M * sagittal(trunk_lean + 0.25 * hip / 2)
    joints[:, JOINT["crown"]] = joints[:, JOINT["head"]] + CROWN_M * sagittal(trunk_lean + 0.35 * hip / 2)

    def arm_direction(raised: Array, spread: Array, sign: int) -> Array:
        sideways = sign * np.sin(spread)[:, None] * left_axis
        return np.cos(spread)[:, None] * sagittal(trunk_lean + np.pi - raised) + sideways

    arms = {"left": (1, left_arm, left_spread, left_elbow), "right": (-1, right_arm, right_spread, right_elbow)}
    for side, (sign, raised, spread, elbow) in arms.items():
        shoulder = 0.94 * TRUNK_M * trunk + sign * SHOULDER_HALF_WIDTH_M * left_axis
        upper_arm, forearm = arm_direction(raised, spread, sign), arm_direction(raised + elbow, spread, sign)
        joints[:, JOINT[f"{side}_shoulder"]] = shoulder
        joints[:, JOINT[f"{side}_elbow"]] = shoulder + UPPER_ARM_M * upper_arm
        joints[:, JOINT[f"{side}_hand"]] = joints[:, JOINT[f"{side}_elbow"]] + FOREARM_M * forearm

    for side, sign, more_hip, more_knee in (("left", 1, 0.0, 0.0), ("right", -1, hip_more, knee_more)):
        thigh = np.pi - thigh_raise - more_hip
        shank = thigh + knee + more_knee
        foot = shank - (1 - pointed) * np.pi / 2
        at_hip = np.broadcast_to(sign * HIP_HALF_WIDTH_M * left_axis, (len(angles), 3))
        joints[:, JOINT[f"{side}_hip"]] = at_hip
        joints[:, JOINT[f"{side}_knee"]] = at_hip + THIGH_M * sagittal(thigh)
        joints[:, JOINT[f"{side}_ankle"]] = joints[:, JOINT[f"{side}_knee"]] + SHANK_M * sagittal(shank)
        joints[:, JOINT[f"{side}_toe"]] = joints[:, JOINT[f"{side}_ankle"]] + FOOT_M * sagittal(foot)
    return joints


def centre_of_mass(joints: Array) -> Array:
    """(..., num_joints, 3) -> (..., 3), the mean of the segments' middles weighted by their mass."""
    centre = np.zeros_like(joints[..., 0, :])
    for start, end, mass in SEGMENT_MASSES:
        centre += mass * (joints[..., JOINT[start], :] + joints[..., JOINT[end], :]) / 2
    return centre


def somersault_inertia(joints: Array) -> Array:
    """Moment of inertia about the left axis through the centre of mass, of unit mass. (..., joints, 3) -> (...,)."""
    centre = centre_of_mass(joints)
    inertia = np.zeros(joints.shape[:-2])
    for start, end, mass in SEGMENT_MASSES:
        rod = joints[..., JOINT[end], :] - joints[..., JOINT[start], :]
        middle = (joints[..., JOINT[start], :] + joints[..., JOINT[end], :]) / 2 - centre
        inertia += mass * (np.square(middle[..., ::2]).sum(-1) + np.square(rod[..., ::2]).sum(-1) / 12)
    return inertia


def somersault_sense(dive: Dive) -> int:
    """+1 where the head of a standing diver moves away from the board (forward, back), -1 where toward it."""
    return 1 if dive.takeoff in (Takeoff.FORWARD, Takeoff.BACK) else -1


def faces_water(dive: Dive) -> bool:
    """Whether the chest points to the water at the start. It follows from the sense of rotation and the takeoff."""
    turns_forward = dive.takeoff in (Takeoff.FORWARD, Takeoff.INWARD)
    head_moves_to_water = (somersault_sense(dive) > 0) != dive.armstand  # upside down, the head goes the other way
    return head_moves_to_water == turns_forward


class Performance:
    """One execution of one dive by one diver from one board: a continuous motion, which `at` evaluates at any time.

    Whatever differs between two executions of the same number is drawn from `rng` here.
    """

    def __init__(
        self, dive: Dive, *, board_height_m: float, diver_height_m: float, springboard: bool, rng: np.random.Generator
    ):
        self.dive = dive
        self.scale = diver_height_m / BODY_HEIGHT_M
        self.board_height_m = board_height_m
        self.springboard = springboard
        self.twist_sign = int(rng.choice((-1, 1)))
        self.velocity = np.array([rng.uniform(0.8, 1.3), rng.normal(0, 0.05), self._launch_speed(rng)])
        self.entry_error = np.radians(rng.normal(0, 5))  # over- or under-rotation that is left at the water
        self.lean = np.radians(rng.uniform(6, 16)) * (dive.somersault_half_turns > 0)
        self.tilt = np.radians(rng.uniform(12, 22)) * (dive.twist_half_turns > 0)
        self.dip_m = rng.uniform(0.25, 0.45) if springboard and not dive.armstand else 0.0
        self.drag_s = rng.uniform(0.15, 0.3)
        self.stance = Rotation.from_euler("x", 180 * dive.armstand, degrees=True)
        self.facing = 0.0 if faces_water(dive) else np.pi

        approach_times, approach_poses = self._approach(rng)
        self.approach_s = -approach_times[0]
        takeoff_joints = self._place(
            body_joints(approach_poses[-1].angles()[None]), self._rotations(np.array([self.lean]), *np.zeros((2, 1)))
        )
        self.takeoff_com = centre_of_mass(self._stand_on(takeoff_joints, np.zeros(1), np.zeros(1)))[0]
        head_first = (dive.somersault_half_turns % 2 == 1) != dive.armstand
        # drawn alike for hands and feet first, so that the time in the air does not tell them apart
        self.flight_s = self._flight_time(entry_com_m=rng.uniform(0.92, 1.14) * self.scale)

        flight_fractions, flight_poses = self._flight(rng, REACH if head_first else AT_SIDES)
        times = np.concatenate([approach_times, self.flight_s * np.array(flight_fractions)])
        self._angles = PchipInterpolator(
            times, np.stack([p.angles() for p in (*approach_poses, *flight_poses)]), axis=0
        )
        self._solve_rotation()

    def at(self, times_s: Array) -> Moments:
        """The body at `times_s`, (num_times,) seconds from the takeoff; it holds still before the approach begins and
        long after the entry."""
        times = np.clip(times_s, -self.approach_s, self.flight_s + 3.0)
        rotations = self._rotations(
            np.interp(times, self._grid, self._somersault),
            np.interp(times, self._grid, self._twist),
            np.interp(times, self._grid, self._tilt),
        )
        joints = self._place(body_joints(self._angles(np.clip(times, -self.approach_s, self.flight_s))), rotations)
        dip = self._board_dip(times)
        on_board = self._stand_on(joints, times, dip)
        in_air = joints + (self._com_path(times) - centre_of_mass(joints))[:, None]
        phase = np.where(times < 0, 0, np.where(times < self.flight_s, 1, 2))
        return Moments(np.where((phase == 0)[:, None, None], on_board, in_air), rotations.as_matrix(), phase, dip)

    def _launch_speed(self, rng: np.random.Generator) -> float:
        return rng.uniform(4.2, 5.8) if self.springboard else rng.uniform(2.2, 3.6)

    def _flight_time(self, entry_com_m: float) -> float:
        drop = max(self.takeoff_com[2] - entry_com_m, 0.0)
        speed = self.velocity[2] if not self.dive.armstand else 0.8
        self.velocity[2] = speed
        return float((speed + np.sqrt(speed**2 + 2 * GRAVITY_M_S2 * drop)) / GRAVITY_M_S2)

    def _approach(self, rng: np.random.Generator) -> tuple[Array, list[Pose]]:
        """Key times (seconds, ending at the takeoff, 0) and poses on the board."""
        pace = rng.uniform(0.8, 1.2)
        if self.dive.armstand:
            return np.array([-2.0, -0.3, 0.0]) * pace, [REACH, REACH, REACH]
        if self.dive.takeoff in (Takeoff.FORWARD, Takeoff.REVERSE):  # walk, hurdle on one leg, press, go
            poses = [STRIDE_RIGHT, STRIDE_LEFT, STRIDE_RIGHT, STRIDE_LEFT, HURDLE, STAND_ARMS_UP, PRESS, REACH]
            return np.array([-2.0, -1.72, -1.44, -1.16, -0.78, -0.46, -0.2, 0.0]) * pace, poses
        poses = [
            STAND,
            STAND,
            STAND_ARMS_UP,
            STAND_ARMS_UP,
            PRESS,
            REACH,
        ]  # stand with the back to the water, press, go
        return np.array([-2.0, -1.35, -0.85, -0.5, -0.22, 0.0]) * pace, poses

    def _flight(self, rng: np.random.Generator, entry: Pose) -> tuple[list[float], list[Pose]]:
        """Key times as fractions of the flight, after the takeoff, and their poses.

        Nothing here looks at how often the body turns: a time that followed the count would tell it without the turns.
        """
        shape = SHAPES[self.dive.position]
        self.twist_window = (0.0, 0.0)
        if self.dive.twist_half_turns:
            return self._twisting_flight(rng, shape, entry)
        if self.dive.flying:
            held = rng.uniform(0.32, 0.42)
            closed = held + rng.uniform(0.10, 0.14)
            come_out = closed + rng.uniform(0.10, 0.30)
            return [0.10, held, closed, come_out, 0.97, 1.0], [FLYING, FLYING, shape, shape, entry, entry]
        closed = rng.uniform(0.13, 0.26)
        come_out = closed + rng.uniform(0.46, 0.62)
        opened = min(come_out + rng.uniform(0.10, 0.16), 0.99)
        return [closed, come_out, opened, 1.0], [shape, shape, entry, entry]

    def _twisting_flight(self, rng: np.random.Generator, shape: Pose, entry: Pose) -> tuple[list[float], list[Pose]]:
        free = self.dive.position in (Position.FREE, Position.STRAIGHT)
        start = rng.uniform(0.06, 0.12)
        end = start + (rng.uniform(0.54, 0.70) if free else rng.uniform(0.42, 0.56))
        self.twist_window = (start, end)
        rest = 1 - end
        closed, come_out = end + rest * rng.uniform(0.30, 0.40), end + rest * rng.uniform(0.50, 0.70)
        opened = end + rest * rng.uniform(0.90, 0.98)
        twist = TWIST[self.twist_sign]
        times = [start, end - 0.05, closed, come_out, opened, 1.0]
        return times, [twist, twist, shape, shape, entry, entry]

    def _solve_rotation(self) -> None:
        """Integrate the somersault at constant angular momentum, and lay the twist into its window."""
        self._grid = np.linspace(-LEAN_S, self.flight_s, 500)  # before it and after it the body does not turn
        joints = body_joints(self._angles(self._grid))
        turned = np.cumsum((self._grid >= 0) / somersault_inertia(joints))
        turned /= turned[-1]
        lean = self.lean * smooth_step((self._grid + LEAN_S) / LEAN_S)
        total = np.pi * self.dive.somersault_half_turns + self.entry_error
        self._somersault = somersault_sense(self.dive) * (lean + (total - self.lean) * turned)
        start, end = (self.flight_s * fraction for fraction in self.twist_window)
        progress = (self._grid - start) / max(end - start, 1e-9)
        self._twist = self.twist_sign * np.pi * self.dive.twist_half_turns * ramp(progress)
        self._tilt = self.twist_sign * self.tilt * np.sin(np.pi * np.clip(progress, 0, 1)) ** 0.5

    def _rotations(self, somersault: Array, twist: Array, tilt: Array) -> Rotation:
        """Somersault about the board's lateral axis, of the tilt, of the stance, of the twist about the body."""
        return (
            Rotation.from_euler("y", somersault[:, None])
            * Rotation.from_euler("x", tilt[:, None])
            * self.stance
            * Rotation.from_euler("z", twist[:, None] + self.facing)
        )

    def _place(self, joints: Array, rotations: Rotation) -> Array:
        return self.scale * np.einsum("tij,tkj->tki", rotations.as_matrix(), joints)

    def _stand_on(self, joints: Array, times: Array, dip: Array) -> Array:
        """Move the body so that its support (the left toes, or the hands) is on the board."""
        if self.dive.armstand:
            support = (joints[:, JOINT["left_hand"]] + joints[:, JOINT["right_hand"]]) / 2
        else:
            support = joints[:, JOINT["left_toe"]]
        walks = self.dive.takeoff in (Takeoff.FORWARD, Takeoff.REVERSE) and not self.dive.armstand
        back_m = 1.9 * np.clip((-times - 0.46) / 1.5, 0, 1) if walks else np.zeros_like(times)
        hop_m = 0.38 * np.sin(np.pi * np.clip((times + 1.1) / 0.64, 0, 1)) if walks else np.zeros_like(times)
        target = np.stack([-0.05 - back_m, np.zeros_like(times), self.board_height_m + 0.03 + hop_m - dip], -1)
        return joints + (target - support)[:, None]

    def _board_dip(self, times: Array) -> Array:
        """How far the tip is below rest: pressed before the takeoff, swinging after it."""
        press = np.exp(-np.square((times + 0.2) / 0.12))
        swing = np.where(times > 0, np.exp(-np.maximum(times, 0) / 0.4) * np.sin(-2 * np.pi * 3.5 * times), 0.0)
        return self.dip_m * (press + 0.4 * swing)

    def _com_path(self, times: Array) -> Array:
        flight = np.clip(times, 0, self.flight_s)[:, None]
        path = self.takeoff_com + self.velocity * flight + np.array([0, 0, -GRAVITY_M_S2 / 2]) * flight**2
        entry_velocity = self.velocity - np.array([0, 0, GRAVITY_M_S2 * self.flight_s])
        sunk = self.drag_s * (1 - np.exp(-np.maximum(times - self.flight_s, 0) / self.drag_s))
        return path + entry_velocity * sunk[:, None]


def smooth_step(progress: Array) -> Array:
    progress = np.clip(progress, 0, 1)
    return progress * progress * (3 - 2 * progress)


def ramp(progress: Array, ease: float = 0.15) -> Array:
    """0 to 1 at a constant rate, eased in and out over `ease` of the way: how a twist starts and is stopped."""
    progress = np.clip(progress, 0, 1)
    rate = 1 / (1 - ease)
    start = rate * progress**2 / (2 * ease)
    middle = rate * (progress - ease / 2)
    end = 1 - rate * (1 - progress) ** 2 / (2 * ease)
    return np.where(progress < ease, start, np.where(progress > 1 - ease, end, middle))
