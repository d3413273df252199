from __future__ import annotations

from dataclasses import replace

import torch

from diveparse.heads.kinematics import KinematicsHead, Motion, kinematics_loss

BATCH, FRAMES, PATCHES, JOINTS, MOMENTS, CLIP_MOMENTS, PHASES = 2, 4, 9, 18, 3, 8, 3


def truth() -> Motion:
    return Motion(
        joints=torch.randn(BATCH, FRAMES, JOINTS, 2),
        joint_seen=torch.rand(BATCH, FRAMES, JOINTS) > 0.3,
        pose=torch.randn(BATCH, FRAMES, JOINTS, 3),
        camera_axes=torch.randn(BATCH, FRAMES, MOMENTS, 9),
        world_axes=torch.randn(BATCH, FRAMES, MOMENTS, 9),
        clip_axes=torch.randn(BATCH, CLIP_MOMENTS, 9),
        clip_pose=torch.randn(BATCH, CLIP_MOMENTS, JOINTS, 3),
        phase=torch.randint(PHASES, (BATCH, FRAMES)),
    )


def head() -> KinematicsHead:
    return KinematicsHead(
        16,
        num_frames=FRAMES,
        num_patches=PATCHES,
        num_joints=JOINTS,
        num_phases=PHASES,
        moments_per_frame=MOMENTS,
        num_clip_moments=CLIP_MOMENTS,
    )


def test_the_answer_has_the_shape_of_the_truth() -> None:
    torch.manual_seed(0)
    answer, expected = head()(torch.randn(BATCH, 1 + FRAMES * PATCHES, 16)), truth()
    for name in ("joints", "pose", "camera_axes", "world_axes", "clip_axes", "clip_pose"):
        assert getattr(answer, name).shape == getattr(expected, name).shape
    assert answer.phase.shape == (BATCH, FRAMES, PHASES)


def test_a_perfect_answer_costs_nothing() -> None:
    torch.manual_seed(0)
    expected = truth()
    sure = 50 * torch.nn.functional.one_hot(expected.phase, PHASES).float()
    loss, _ = kinematics_loss(replace(expected, phase=sure), expected)
    assert loss < 1e-6


def test_joints_under_water_do_not_count() -> None:
    torch.manual_seed(0)
    expected = truth()
    assert expected.joint_seen is not None
    hidden_moved = expected.joints + 9 * (~expected.joint_seen).unsqueeze(-1)
    sure = 50 * torch.nn.functional.one_hot(expected.phase, PHASES).float()
    loss, _ = kinematics_loss(replace(expected, joints=hidden_moved, phase=sure), expected)
    assert loss < 1e-6


def test_every_parameter_and_token_gets_a_gradient() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(BATCH, 1 + FRAMES * PATCHES, 16, requires_grad=True)
    readout = head()
    kinematics_loss(readout(tokens), truth())[0].backward()
    assert tokens.grad is not None
    assert (tokens.grad.abs().sum(-1) > 0).all()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in readout.parameters())
