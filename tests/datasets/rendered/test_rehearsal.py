from collections import Counter

import numpy as np
import pytest

from diveparse.datasets.dives import DIVING48, DIVING48_TEST_COUNTS, DIVING48_TRAIN_COUNTS
from diveparse.datasets.diving48 import NAME_PATTERN
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.rendered.clip import Split
from diveparse.datasets.rendered.rehearsal import assign, real_sources
from diveparse.datasets.rendered.sets import RenderSettings, Sources, plan_clips
from diveparse.datasets.splits import split_by_source

REAL = RenderSettings(sum(DIVING48_TRAIN_COUNTS), sum(DIVING48_TEST_COUNTS), sources=Sources.DIVING48.value)


def test_there_are_the_84_real_sources_of_18404_clips_and_none_is_in_both_splits() -> None:
    train, test = (real_sources(0, split, 1.0) for split in (Split.TRAIN, Split.TEST))
    assert len({source.name for source, _ in train + test}) == 84
    assert sum(num_clips for _, num_clips in train + test) == 18_404
    assert {source.frame_rate_hz for source, _ in train} == {25, 30, 60}
    assert {source.frame_rate_hz for source, _ in test} == {25, 30}
    share = sum(num_clips for _, num_clips in test) / 18_404
    assert share == pytest.approx(sum(DIVING48_TEST_COUNTS) / (REAL.num_train_clips + REAL.num_test_clips), abs=1e-3)


def test_a_rehearsal_has_the_real_long_tail_and_sources_of_the_real_sizes() -> None:
    plan = plan_clips(REAL, Split.TRAIN)
    assert np.bincount([label for _, label, _ in plan], minlength=48).tolist() == list(DIVING48_TRAIN_COUNTS)
    sizes = Counter(source.name for source, _, _ in plan)
    real = {source.name: num_clips for source, num_clips in real_sources(0, Split.TRAIN, 1.0)}
    assert sizes.keys() == real.keys()
    shares = [sizes[name] / len(plan) - real[name] / sum(real.values()) for name in real]
    assert np.abs(shares).sum() / 2 < 0.1  # boards leave some of them no choice
    assert all(source.has_board_for(DIVING48[label]) for source, label, _ in plan)


def test_clips_of_a_rehearsal_are_named_as_the_real_ones() -> None:
    plan = plan_clips(RenderSettings(300, 60, sources=Sources.DIVING48.value), Split.TEST)
    names = [f"{source.name}_{number:05d}" for source, _, number in plan]
    assert len(set(names)) == len(names) == 60
    assert all(NAME_PATTERN.fullmatch(name) for name in names)


def test_validation_by_source_comes_near_every_class_of_the_real_shape(tmp_path) -> None:
    records = [
        ClipRecord(tmp_path, str(i), source.name, label)
        for i, (source, label, _) in enumerate(plan_clips(REAL, Split.TRAIN))
    ]
    train, val = split_by_source(records, 0.15, seed=0)
    assert {record.source for record in train}.isdisjoint(record.source for record in val)
    counts = np.bincount([record.label for record in val], minlength=48)
    off = np.abs(counts - 0.15 * np.array(DIVING48_TRAIN_COUNTS))
    assert off.sum() / len(records) < 0.02  # 0.009 was measured
    assert (counts[np.array(DIVING48_TRAIN_COUNTS) > 0] > 0).all()


def test_a_dive_without_a_board_is_named() -> None:
    springboards = [(source, 10) for source, _ in real_sources(0, Split.TRAIN, 1.0) if source.board_height_m == 1.0]
    label = next(label for label in range(48) if not springboards[0][0].has_board_for(DIVING48[label]))
    with pytest.raises(ValueError, match=rf"none of the {len(springboards)} sources has a board for"):
        assign([label], springboards)
