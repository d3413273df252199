"""Heads on the frozen features of encoders of `transformers`, against the same minimum found by scipy.

The encoders are small and random, so nothing here is about accuracy: what is checked is that a flat head is a
multinomial logistic regression, and a joint head the same with tied rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from diveparse.configs import (
    BackboneConfig,
    BackboneKind,
    ClipConfig,
    Config,
    DataConfig,
    HeadConfig,
    HeadKind,
    OptimConfig,
    Pooling,
)
from diveparse.datasets.dives import DiveSet
from diveparse.engine.training.optim import build_optimizer
from diveparse.models.classifier import DiveClassifier, build_classifier

DIVES = DiveSet.from_numbers(["101B", "103B", "105B", "203B", "205B", "5132D", "5134D", "403C"], "small")
NUM_CLIPS = 96
PENALTY = 0.03  # half of it times the sum of squared weights, biases apart, is added to the mean loss
CLOSE = 1e-3  # nats


def labelled_clips() -> tuple[Tensor, Tensor]:
    """Noise over a coarse pattern for each dive. Returns: (96, 4, 3, 48, 48), (96,)."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, len(DIVES), (NUM_CLIPS,), generator=generator)
    labels[: len(DIVES)] = torch.arange(len(DIVES))
    patterns = 0.7 * functional.interpolate(torch.randn(len(DIVES), 12, 6, 6, generator=generator), scale_factor=8)
    clips = patterns[labels].view(NUM_CLIPS, 4, 3, 48, 48)
    return clips + torch.randn(clips.shape, generator=generator), labels


def build_probe(encoder: Path, kind: HeadKind) -> DiveClassifier:
    cfg = Config(
        name="probe",
        arm="x",
        data=DataConfig(root="."),
        clip=ClipConfig(num_frames=4, image_size=48),
        backbone=BackboneConfig(kind=BackboneKind.TRANSFORMERS, weights=str(encoder), num_frozen_blocks=3),
        head=HeadConfig(kind=kind, pooling=Pooling.MEAN),
    )
    torch.manual_seed(0)
    return build_classifier(cfg, DIVES)


def train_to_convergence(model: DiveClassifier, features: Tensor, labels: Tensor) -> None:
    """Descend the head's own loss, with the weight decay of training as a penalty on what training decays."""
    optimizer = build_optimizer(model.backbone, model.head, OptimConfig(weight_decay=PENALTY))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    model.head.set_class_counts(torch.bincount(labels, minlength=len(DIVES)))
    head, features = model.head.double(), features.double()
    assert decays.keys() == {id(parameter) for parameter in head.parameters()}  # the encoder is frozen
    lbfgs = torch.optim.LBFGS(
        head.parameters(), max_iter=2000, tolerance_grad=1e-8, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss_of_all() -> float:
        lbfgs.zero_grad()
        loss, _ = head.loss(head(features), labels)
        loss = loss + sum(decays[id(parameter)] / 2 * parameter.square().sum() for parameter in head.parameters())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    lbfgs.step(loss_of_all)  # type: ignore[no-untyped-call, arg-type]
    head.float()


def best_log_probs(rows: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-probabilities at the minimum of the penalised likelihood, by scipy and without anything of this project.

    rows: (num_dives, num_shared), which of the shared rows of weights add up to the row of each dive.
    """
    clips, size = np.arange(len(labels)), (rows.shape[1], features.shape[1] + 1)

    def log_probs(parameters: np.ndarray) -> np.ndarray:
        shared = parameters.reshape(size)
        scores = (features @ shared[:, :-1].T + shared[:, -1]) @ rows.T
        scores = scores - scores.max(1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(1, keepdims=True))

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        found, weights = log_probs(parameters), parameters.reshape(size)[:, :-1]
        errors = np.exp(found)
        errors[clips, labels] -= 1
        errors = errors @ rows / len(labels)  # (clips, num_shared)
        gradient = np.concatenate([errors.T @ features + PENALTY * weights, errors.sum(0)[:, None]], axis=1)
        return float(PENALTY / 2 * (weights**2).sum() - found[clips, labels].mean()), gradient.ravel()

    found = minimize(
        loss_and_gradient,
        np.zeros(size[0] * size[1]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 20_000, "maxfun": 20_000, "ftol": 0, "gtol": 1e-8},
    )
    assert np.abs(found.jac).max() < 1e-6
    return log_probs(found.x)


def tied_rows() -> np.ndarray:
    """For each dive a one for each of its four values, in Diving48's words."""
    parts = [set(enumerate(dive.vocab)) for dive in DIVES]
    values = sorted(set[tuple[int, str]]().union(*parts))
    return np.array([[float(value in own) for value in values] for own in parts])


@pytest.mark.parametrize("family", ["videomae", "vjepa2"])
def test_flat_and_joint_heads_find_the_minimum_that_scipy_finds(
    family: str, tiny_encoders: dict[str, tuple[Path, Any]]
) -> None:
    clips, labels = labelled_clips()
    answers, all_features = [], []
    for kind, rows in ((HeadKind.FLAT, np.eye(len(DIVES))), (HeadKind.JOINT, tied_rows())):
        model = build_probe(tiny_encoders[family][0], kind)
        with torch.no_grad():
            features = model.features(model.backbone.frozen_tokens(clips))
        train_to_convergence(model, features, labels)
        with torch.no_grad():
            found = model.eval().dive_log_probs(clips)
        expected = torch.from_numpy(best_log_probs(rows, features.double().numpy(), labels.numpy()))
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=CLOSE)
        answers.append(found)
        all_features.append(features)
    assert torch.equal(*all_features)  # both arms saw the same
    assert (answers[0] - answers[1]).abs().max() > 100 * CLOSE  # and tied rows are another model
