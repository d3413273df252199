"""A model's answers about every clip of a split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diveparse.configs import Precision
from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.datasets.records import ClipRecord
from diveparse.engine import distributed
from diveparse.engine.device import autocast
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.heads.recombine import INVALID
from diveparse.heads.scores import DiveScores
from diveparse.models.classifier import DiveClassifier


@torch.no_grad()
def evaluate(
    model: DiveClassifier,
    batches: Iterable[dict[str, Tensor]],
    records: Sequence[ClipRecord],
    precision: Precision = Precision.FP32,
    dive_set: DiveSet | None = None,
    *,
    batch_size: int = 1,
    same_number_of_batches: bool = False,
) -> Predictions:
    """Collect a model's answers, with its penalty and without its temperature.

    Nothing is written, and the model returns to the mode it was in.

    batches: dicts of "inputs" (batch, views, ...), clips or their frozen tokens, and "index" (batch,), which points
    into `records`. The features of a clip's views are averaged before the head reads them. Each clip counts once, in
    the order of `batches`. Of several processes each gives batches of its own share of the clips; all get the answers
    of every clip, in the order of `records`.
    batch_size: every batch is filled up to it with clips that are not counted, so that the answer for a clip is the
    same to the bit however many others are left beside it: the number of processes decides that.
    same_number_of_batches: of a model that is sharded, every process runs as many, with blank clips where it has none.
    dive_set: what the labels count in and the answers range over, by default the model's own; a dive of it that the
    model cannot express has probability 0, and so has an attribute value that only such dives have.
    Raises: ValueError if there are no batches, or a clip's answer is not a number.
    """
    dive_set = dive_set or model.dive_set
    known = model.head.expressible(dive_set)
    was_training = model.training
    model.eval()
    indices: list[int] = []
    batch_answers: list[_Answers] = []
    try:
        for batch in batches:
            indices += batch["index"].tolist()
            inputs = _filled_up(batch["inputs"], batch_size)
            answers = _answers(model.penalised(_scores(model, inputs, precision)), known)
            batch_answers.append(answers.first(len(batch["index"])))
        if same_number_of_batches:
            for _ in range(len(batch_answers), num_batches_anywhere(len(records), batch_size)):
                _scores(model, blank_clips(model), precision)
    finally:
        model.train(was_training)
    answers = _Answers.of_batches(batch_answers, known)
    if distributed.world_size() > 1:
        indices, answers = answers.of_all_processes(indices, len(records))
    if not indices:
        raise ValueError("evaluation needs at least one clip, got none")
    clips_seen = [records[index] for index in indices]
    columns = np.array([dive_set.label_of(dive) for dive in known])
    dive_log_probs = np.full((len(indices), len(dive_set)), -np.inf, np.float32)
    dive_log_probs[:, columns] = answers.dive_log_probs.numpy()
    _require_finite(dive_log_probs, clips_seen)
    spelt, decoded = answers.spelt.numpy(), answers.decoded.numpy()
    return Predictions(
        clips=[record.name for record in clips_seen],
        sources=[record.source for record in clips_seen],
        labels=np.array([record.label for record in clips_seen]),
        dive_log_probs=dive_log_probs,
        attribute_log_probs={
            name: _over_values(answers.marginals[name].numpy(), known, dive_set, name) for name in ATTRIBUTES
        },
        spelt_labels=np.where(spelt == INVALID, INVALID, columns[spelt]),
        decoded_labels=np.where(decoded == INVALID, INVALID, columns[decoded]),
    )


@dataclass(frozen=True)
class _Answers:
    """The answers for some clips, over the dives that the model can express."""

    dive_log_probs: Tensor  # (clips, num_dives)
    marginals: dict[str, Tensor]  # attribute -> (clips, num_values)
    spelt: Tensor  # (clips,)
    decoded: Tensor  # (clips,)

    @classmethod
    def of_batches(cls, batches: Sequence[_Answers], known: DiveSet) -> _Answers:
        """The answers of all batches, on the CPU. There need not be any: a process may have no clip to look at."""
        return cls(
            _joined([each.dive_log_probs for each in batches], torch.empty(0, len(known))),
            {
                name: _joined([each.marginals[name] for each in batches], torch.empty(0, len(values)))
                for name, values in known.values.items()
            },
            *(
                _joined([getattr(each, name) for each in batches], torch.empty(0, dtype=torch.long))
                for name in ("spelt", "decoded")
            ),
        )

    def first(self, number: int) -> _Answers:
        marginals = {name: rows[:number] for name, rows in self.marginals.items()}
        return _Answers(self.dive_log_probs[:number], marginals, self.spelt[:number], self.decoded[:number])

    def of_all_processes(self, indices: Sequence[int], num_clips: int) -> tuple[list[int], _Answers]:
        """The answers of every process, in the order of the clips, and which clips they are of."""
        places = torch.tensor(indices, dtype=torch.long)
        is_seen = distributed.gathered_rows(torch.ones_like(places), places, num_clips).bool()

        def whole(rows: Tensor) -> Tensor:
            return distributed.gathered_rows(rows, places, num_clips)[is_seen]

        marginals = {name: whole(rows) for name, rows in self.marginals.items()}
        answers = _Answers(whole(self.dive_log_probs), marginals, whole(self.spelt), whole(self.decoded))
        return is_seen.nonzero().squeeze(1).tolist(), answers


def _answers(scores: DiveScores, known: DiveSet) -> _Answers:
    return _Answers(scores.log_probs(known), scores.marginals(known), scores.spelt(known), scores.argmax(known))


def _scores(model: DiveClassifier, inputs: Tensor, precision: Precision) -> DiveScores:
    """inputs: (batch, views, ...), on any device."""
    device = next(model.parameters()).device
    with autocast(precision, device):
        scores: DiveScores = model(inputs.flatten(0, 1).to(device, non_blocking=True), num_views=inputs.shape[1])
        return scores


def num_batches_anywhere(num_clips: int, batch_size: int) -> int:
    """Batches of an evaluation in the process that has the most."""
    return math.ceil(math.ceil(num_clips / distributed.world_size()) / batch_size)


def blank_clips(model: DiveClassifier) -> Tensor:
    """One view of one clip, (1, 1, time, channel, height, width)."""
    sizes = model.backbone.clip_format
    return torch.zeros(1, 1, sizes.num_frames, NUM_CHANNELS, sizes.image_size, sizes.image_size)


def _filled_up(inputs: Tensor, batch_size: int) -> Tensor:
    """inputs: (batch, ...). Returns: (at least batch_size, ...), with the last one as often as it takes."""
    missing = batch_size - len(inputs)
    return torch.cat([inputs, inputs[-1:].expand(missing, *inputs.shape[1:])]) if missing > 0 else inputs


def _joined(batches: Sequence[Tensor], none: Tensor) -> Tensor:
    """One tensor of a row a clip, on the CPU. none: what it is without a batch."""
    return torch.cat(list(batches)).cpu() if batches else none


def _over_values(
    marginals: npt.NDArray[np.float32], known: DiveSet, dive_set: DiveSet, attribute: str
) -> npt.NDArray[np.float32]:
    """Marginals over the values of the whole set; a value that no known dive has gets probability 0.

    marginals: (num_clips, values of `known`). Returns: (num_clips, values of `dive_set`).
    """
    values = dive_set.values[attribute]
    whole = np.full((len(marginals), len(values)), -np.inf, np.float32)
    whole[:, [values.index(value) for value in known.values[attribute]]] = marginals
    return whole


def _require_finite(dive_log_probs: npt.NDArray[np.float32], clips: list[ClipRecord]) -> None:
    unusable = np.isnan(dive_log_probs).any(axis=1)
    if unusable.any():
        names = [clips[row].name for row in np.flatnonzero(unusable)]
        raise ValueError(f"the model's answer is not a number for {len(names)} clips: {', '.join(names[:10])}")
