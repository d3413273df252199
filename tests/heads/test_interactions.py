from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, WORLD_AQUATICS, DiveSet
from diveparse.heads import FlatHead, Head, JointHeads, PairwiseHeads, ResidualHeads, build_head
from diveparse.heads.recombine import score, slot_table

EMBED_DIM = 12
CORRECTED = [HeadKind.PAIRWISE, HeadKind.RESIDUAL]
PAIRS = [(a, b) for a in range(4) for b in range(a + 1, 4)]  # of places in ATTRIBUTES
SUBSET = DiveSet.from_numbers([DIVING48[label].number for label in (40, 3, 17)], "three of them")
# no classes of Diving48, but made of values that occur in it
UNSEEN = DiveSet.from_numbers(["5251B", "104C", "105A"], "unseen")
EXPRESSIBLE = WORLD_AQUATICS.expressible(DIVING48.values)


def make_head(kind: HeadKind, **options: float) -> PairwiseHeads:
    """A head in double precision, with weights large enough that its answers differ from clip to clip."""
    head = build_head(HeadConfig(kind=kind, **options), EMBED_DIM, DIVING48).double()
    assert isinstance(head, PairwiseHeads)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def joint_beside(head: PairwiseHeads) -> JointHeads:
    """Joint heads with the same attribute layers."""
    joint = build_head(HeadConfig(kind=HeadKind.JOINT), EMBED_DIM, head.dive_set).double()
    assert isinstance(joint, JointHeads)
    joint.linears.load_state_dict(head.linears.state_dict())
    return joint


def zero(*modules: torch.nn.Module) -> None:
    for module in modules:
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)


def scores_by_hand(head: PairwiseHeads, features: Tensor, dive_set: DiveSet) -> list[list[float]]:
    """What each clip gives each dive: four log-probabilities, six pairs, and the dive's own score if it has one."""
    attributes = {name: log_probs.tolist() for name, log_probs in head(features).own_log_probs().items()}
    pairs = [linear(features).tolist() for linear in head.pairs]
    residuals = head.residual(features).tolist() if isinstance(head, ResidualHeads) else None
    values = [head.dive_set.values[name] for name in ATTRIBUTES]
    rows = []
    for clip in range(len(features)):
        row = []
        for dive in dive_set:
            slots = [values[k].index(dive.attribute_values()[name]) for k, name in enumerate(ATTRIBUTES)]
            total = sum(attributes[name][clip][slot] for name, slot in zip(ATTRIBUTES, slots, strict=True))
            for (a, b), pair in zip(PAIRS, pairs, strict=True):
                total += pair[clip][slots[a] * len(values[b]) + slots[b]]
            if residuals is not None and dive in head.dive_set:
                total += residuals[clip][head.dive_set.label_of(dive)]
            row.append(total)
        rows.append(row)
    return rows


def loss_of(head: Head, features: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return head.loss(head(features), targets)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(6, EMBED_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(len(DIVING48), (6,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", CORRECTED)
@pytest.mark.parametrize("dive_set", [DIVING48, SUBSET, UNSEEN], ids=lambda dive_set: dive_set.name)
def test_a_new_head_is_exactly_the_joint_one(kind: HeadKind, dive_set: DiveSet, features: Tensor) -> None:
    head = build_head(HeadConfig(kind=kind), EMBED_DIM, DIVING48).double()
    assert isinstance(head, PairwiseHeads)
    answers = head(features).log_probs(dive_set)
    assert torch.equal(answers, joint_beside(head)(features).log_probs(dive_set))
    assert answers.std() > 0
    assert not head(features).corrections().any()


@pytest.mark.parametrize("kind", CORRECTED)
@pytest.mark.parametrize("dive_set", [DIVING48, SUBSET, UNSEEN, EXPRESSIBLE], ids=lambda dive_set: dive_set.name)
def test_scores_equal_adding_up_every_dive_by_hand(kind: HeadKind, dive_set: DiveSet, features: Tensor) -> None:
    head = make_head(kind)
    scores, dive_log_probs = head(features).scores(dive_set), head(features).log_probs(dive_set)
    for clip, expected in enumerate(scores_by_hand(head, features, dive_set)):
        assert scores[clip].tolist() == pytest.approx(expected, abs=1e-9)
        log_normaliser = math.log(sum(map(math.exp, expected)))
        assert dive_log_probs[clip].tolist() == pytest.approx([s - log_normaliser for s in expected], abs=1e-9)
        best = max(range(len(dive_set)), key=expected.__getitem__)
        assert head(features).argmax(dive_set)[clip] == best


@pytest.mark.parametrize("kind", CORRECTED)
def test_asking_for_the_own_set_by_name_changes_nothing(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind)
    assert torch.equal(head(features).scores(DiveSet(DIVING48.dives, "again")), head(features).scores())


def test_without_pairs_a_residual_head_is_the_joint_one_plus_a_score_for_each_dive(features: Tensor) -> None:
    head = make_head(HeadKind.RESIDUAL)
    assert isinstance(head, ResidualHeads)
    zero(head.pairs)
    expected = joint_beside(head)(features).scores() + head.residual(features)
    torch.testing.assert_close(head(features).scores(), expected)
    torch.testing.assert_close(head(features).log_probs(), expected.log_softmax(-1))


@pytest.mark.parametrize("dive_set", [DIVING48, SUBSET], ids=lambda dive_set: dive_set.name)
def test_with_nothing_but_its_residuals_a_head_is_the_flat_one(dive_set: DiveSet, features: Tensor) -> None:
    head = make_head(HeadKind.RESIDUAL)
    assert isinstance(head, ResidualHeads)
    zero(head.linears, head.pairs)
    flat = build_head(HeadConfig(kind=HeadKind.FLAT), EMBED_DIM, DIVING48).double()
    assert isinstance(flat, FlatHead)
    flat.linear.load_state_dict(head.residual.state_dict())
    torch.testing.assert_close(head(features).log_probs(dive_set), flat(features).log_probs(dive_set))
    assert torch.equal(head(features).argmax(dive_set), flat(features).argmax(dive_set))


def test_a_dive_outside_the_set_has_no_residual(features: Tensor) -> None:
    head = make_head(HeadKind.RESIDUAL)
    assert isinstance(head, ResidualHeads)
    mixed = DiveSet((UNSEEN[0], DIVING48[7], UNSEEN[1], DIVING48[47], UNSEEN[2]), "mixed")
    with_residual = head(features).scores(mixed)
    own = head.residual(features)
    zero(head.residual)
    added = with_residual - head(features).scores(mixed)
    torch.testing.assert_close(added[:, [1, 3]], own[:, [7, 47]])
    assert not added[:, [0, 2, 4]].any()


@pytest.mark.parametrize("kind", CORRECTED)
@pytest.mark.parametrize("penalty", [0.0, 0.5])
@pytest.mark.parametrize("auxiliary_weight", [0.0, 0.7])
def test_the_loss_is_the_joint_one_plus_the_penalty_on_what_is_added(
    kind: HeadKind, penalty: float, auxiliary_weight: float, features: Tensor, labels: Tensor
) -> None:
    head = make_head(kind, correction_penalty=penalty, auxiliary_weight=auxiliary_weight)
    loss, terms = loss_of(head, features, labels)
    joint = F.nll_loss(head(features).log_probs(), labels)
    # the score of the label under independent attributes is the sum of its four log-probabilities
    auxiliary = F.nll_loss(score(head(features).own_log_probs(), slot_table(DIVING48)), labels)
    square = (head(features).scores() - joint_beside(head)(features).scores()).square().mean()
    torch.testing.assert_close(loss, joint + auxiliary_weight * auxiliary + penalty * square)
    assert set(terms) == {"joint", "correction"} | (set(ATTRIBUTES) if auxiliary_weight else set())
    assert not any(term.requires_grad for term in terms.values())
    torch.testing.assert_close(terms["joint"], joint.detach())
    torch.testing.assert_close(terms["correction"], square.detach())


@pytest.mark.parametrize("kind", CORRECTED)
def test_the_answers_about_attributes_are_not_corrected(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind)
    joint = joint_beside(head)
    assert torch.equal(head(features).spelt(), joint(features).spelt())
    for name, log_probs in joint(features).own_log_probs().items():
        assert torch.equal(head(features).own_log_probs()[name], log_probs)
    assert not torch.equal(head(features).argmax(), joint(features).argmax())


@pytest.mark.parametrize("kind", CORRECTED)
def test_pairs_and_residuals_read_the_mean_of_four_features(kind: HeadKind) -> None:
    head = make_head(kind)
    own = torch.randn(6, 4, EMBED_DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = head((own[:, 0] + own[:, 1] + own[:, 2] + own[:, 3]) / 4).corrections()
    torch.testing.assert_close(head(own).corrections(), expected)
    torch.testing.assert_close(head(own).scores(), joint_beside(head)(own).scores() + expected)
