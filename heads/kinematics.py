"""The readout of pretraining: a body's motion from the tokens of a rendered clip.

Its targets are kinematics only: joints, body axes, phase. No dive number, attribute or count enters, so that a backbone
trained with it favours neither side of a comparison between heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

PATCH_CODE = 16  # numbers kept of each patch before a frame's patches are read together
NUM_AXIS_VALUES = 9  # three axes of three coordinates


@dataclass(frozen=True)
class Motion:
    """The truth about a batch, from the renderer; or the readout's answer, with phase as logits (batch, time, phases).

    joints: (batch, time, joints, 2) in picture heights from the middle; joint_seen: (batch, time, joints) bool, out of
    the water;
    pose: (batch, time, joints, 3), metres from the pelvis along the body's own front, left and head axes;
    camera_axes, world_axes: (batch, time, moments, 9), the body's front, left and head axes in either frame;
    clip_axes: (batch, moments of the clip, 9) in the world; clip_pose: (batch, moments, joints, 3), as `pose`;
    phase: (batch, time) long.
    """

    joints: Tensor
    joint_seen: Tensor | None
    pose: Tensor
    camera_axes: Tensor
    world_axes: Tensor
    clip_axes: Tensor
    clip_pose: Tensor
    phase: Tensor


class KinematicsHead(nn.Module):
    """Joints, pose, axes and phase of every frame from its patches; axes and pose over the clip from the class token.

    moments_per_frame: at how many moments around each frame the axes are asked for, so that motion counts beside pose;
    num_clip_moments: at how many, evenly over the clip.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        num_frames: int,
        num_patches: int,
        num_joints: int,
        num_phases: int,
        moments_per_frame: int,
        num_clip_moments: int,
    ):
        super().__init__()
        self.moments_per_frame = moments_per_frame
        self.num_frames = num_frames
        self.sizes = (num_joints * 2, num_joints * 3, *(moments_per_frame * NUM_AXIS_VALUES,) * 2, num_phases)
        self.patch_code = nn.Linear(embed_dim, PATCH_CODE)
        self.frame = nn.Linear(num_patches * PATCH_CODE, sum(self.sizes))
        self.clip_axes = nn.Linear(embed_dim, num_clip_moments * NUM_AXIS_VALUES)
        self.clip_pose = nn.Linear(embed_dim, num_clip_moments * num_joints * 3)
        self.num_clip_moments = num_clip_moments

    def forward(self, tokens: Tensor) -> Motion:
        """tokens: (batch, 1 + time * patches, embed_dim), as `TimeSformer.tokens` gives them."""
        class_token, patches = tokens[:, 0], tokens[:, 1:]
        codes = rearrange(self.patch_code(patches), "b (t n) c -> b t (n c)", t=self.num_frames)
        joints, pose, camera_axes, world_axes, phase = self.frame(F.gelu(codes)).split(self.sizes, dim=-1)
        return Motion(
            joints=rearrange(joints, "b t (j xy) -> b t j xy", xy=2),
            joint_seen=None,
            pose=rearrange(pose, "b t (j xyz) -> b t j xyz", xyz=3),
            camera_axes=rearrange(camera_axes, "b t (m a) -> b t m a", m=self.moments_per_frame),
            world_axes=rearrange(world_axes, "b t (m a) -> b t m a", m=self.moments_per_frame),
            clip_axes=rearrange(self.clip_axes(class_token), "b (m a) -> b m a", a=NUM_AXIS_VALUES),
            clip_pose=rearrange(
                self.clip_pose(class_token), "b (m j xyz) -> b m j xyz", m=self.num_clip_moments, xyz=3
            ),
            phase=phase,
        )


def kinematics_loss(answer: Motion, truth: Motion, num_seen: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the terms and the terms alone (detached). Weights bring the terms to a like size at the start.

    num_seen: the joints that the error of joints is divided by, by default those that this batch shows. Of several
    processes it is their mean, so that the mean of their losses is that of all clips.
    """
    assert truth.joint_seen is not None
    seen = truth.joint_seen.unsqueeze(-1)
    num_seen = seen.sum() if num_seen is None else num_seen
    joint_error = ((answer.joints - truth.joints).abs() * seen).sum() / (2 * num_seen).clamp(min=1)
    terms = {
        "joints": 8 * joint_error,
        "pose": 10 * F.mse_loss(answer.pose, truth.pose),
        "camera_axes": 3 * F.mse_loss(answer.camera_axes, truth.camera_axes),
        "world_axes": 3 * F.mse_loss(answer.world_axes, truth.world_axes),
        "clip_axes": 3 * F.mse_loss(answer.clip_axes, truth.clip_axes),
        "clip_pose": 10 * F.mse_loss(answer.clip_pose, truth.clip_pose),
        "phase": 0.3 * F.cross_entropy(answer.phase.flatten(0, 1), truth.phase.flatten()),
    }
    return sum(terms.values(), start=answer.joints.new_zeros(())), {name: term.detach() for name, term in terms.items()}
