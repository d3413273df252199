"""From run folders to what may be said about their arms: read, refuse what cannot be compared, pair, and test."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diveparse.configs import Config, load_config, options
from diveparse.datasets.dives import ATTRIBUTES
from diveparse.engine.evaluation.metrics import GROUPS, group_of
from diveparse.engine.evaluation.predictions import read_predictions
from diveparse.engine.evidence.statistics import (
    Comparison,
    Estimate,
    accuracy_over_sources,
    compare_arms,
    holm,
    mean_over_sources,
    sign_flip_p_value,
    verdict,
)
from diveparse.engine.run import RunFolder

SCORES = (
    "top1",
    "top5",
    "mean_class_accuracy",
    *ATTRIBUTES,
    "invalid_rate",
    "nll",
    "nll_calibrated",
    "brier",
    "ece",
    "ece_calibrated",
)
EVERY_CLIP, HELD_OUT = "all", "held out"  # beside the groups of dives
TESTED_ON = ("data_root", "rendered", "from_cache", "trained_from_cache")
INDIFFERENT = ("seed", "runs_dir", "data.num_workers")  # all that may differ in an arm; the last two change no weight


@dataclass(frozen=True)
class Run:
    """What one tested run left in its folder."""

    folder: Path
    config: Config
    split: str
    num_views: int
    data_root: str  # that it was tested on, which need not be the one that it was trained on
    rendered: bool  # whether that held rendered dives
    from_cache: bool  # whether the clips were read from the cache, not from their videos
    trained_from_cache: bool
    num_classes_scored: int
    scores: dict[str, float]  # one for each of SCORES
    num_train_clips: dict[str, int]  # by dive number, of the clips that it learnt from
    predictions: pd.DataFrame  # sorted by clip, so that runs pair row by row

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(num_clips,) whether the predicted number is the true one."""
        return (self.predictions["predicted_number"] == self.predictions["true_number"]).to_numpy(dtype=bool)

    @property
    def nll(self) -> npt.NDArray[np.float64]:
        """(num_clips,) -log p(true dive), in nats and uncalibrated."""
        return -self.predictions["log_prob_true"].to_numpy(dtype=np.float64)


@dataclass(frozen=True)
class Effect:
    """What one arm has more than another of some quantity, over some clips."""

    quantity: str  # "top-1" or "NLL"
    group: str  # EVERY_CLIP, HELD_OUT, or the name of one of GROUPS: dives with so many training clips
    num_clips: int
    num_classes: int
    difference: Estimate
    by_seed: tuple[float, ...]
    p_value: float  # over sources
    p_holm: float  # the same, for as many comparisons as the report makes of this quantity and group

    @property
    def verdict(self) -> str:
        """On an NLL "no difference that matters" is one of less than 0.02 nats.

        The interval and the p-values take the trained models as they are; where another seed may well turn the sign,
        the verdict says so.
        """
        said = verdict(self.difference, self.p_holm)
        agree = len({np.sign(difference) for difference in self.by_seed}) == 1
        return said if agree or said not in ("higher", "lower") else f"{said}, but not with every seed"


@dataclass(frozen=True)
class ArmPair:
    """Two arms on the same clips, over the seeds that both have."""

    first: str
    second: str
    seeds: tuple[int, ...]
    differing: list[str]  # the options, each with the second's value and the first's
    comparison: Comparison
    effects: list[Effect]
    classes: pd.DataFrame  # a row a dive: number, training_clips, test_clips, both arms' accuracy and the difference

    @property
    def name(self) -> str:
        return f"{self.second} - {self.first}"


@dataclass(frozen=True)
class Report:
    """All that a comparison says. Arms keep the order in which their runs were given."""

    split: str
    caption: str  # the split, its size, and whether its dives are rendered
    arms: dict[str, dict[int, Run]]  # arm -> seed -> run
    accuracies: dict[str, Estimate]  # top-1 of each arm over its seeds
    pairs: list[ArmPair]

    def scores_of(self, arm: str, score: str) -> list[float]:
        """One score of an arm, seed by seed. score: one of SCORES."""
        return [run.scores[score] for run in self.arms[arm].values()]


def compare_runs(runs: list[Run]) -> Report:
    """Group runs into arms and compare each arm with each earlier one.

    Raises: ValueError saying why the runs cannot be compared.
    """
    require_comparable(runs)  # before they are grouped, since it says more
    arms = group_by_arm(runs)
    return compare_groups(arms, list(combinations(arms, 2)))


def compare_groups(
    arms: dict[str, dict[int, Run]], pairs: Sequence[tuple[str, str]], held_out: Sequence[str] = ()
) -> Report:
    """Compare pairs of arms, (first, second). arms: arm -> seed -> run; held_out: numbers of dives that are a group of
    their own beside those of GROUPS.

    Raises: ValueError saying why the runs cannot be compared.
    """
    runs = [run for by_seed in arms.values() for run in by_seed.values()]
    require_comparable(runs)
    sources = runs[0].predictions["source"].tolist()
    return Report(
        split=runs[0].split,
        caption=_caption(runs[0]),
        arms=arms,
        accuracies={arm: accuracy_over_sources(_correct(by_seed), sources) for arm, by_seed in arms.items()},
        pairs=_corrected([_pair(arms, first, second, sources, held_out) for first, second in pairs]),
    )


def load_run(folder: Path, split: str = "test") -> Run:
    """Read a run that has been tested on a split, "test" or "val".

    Raises: ValueError naming the file that is missing or wrong, and what would make it right.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such run folder")
    run_folder = RunFolder(folder)
    files = run_folder.evaluation(split)
    for path in (run_folder.config, files.metrics, files.predictions):
        if not path.is_file():
            how = (
                "is it a run folder?" if path == run_folder.config else f"test it first: python tools/test.py {folder}"
            )
            raise ValueError(f"{folder} has no {path.name}; {how}")
    metrics = _read_metrics(files.metrics)
    run = Run(
        folder=folder,
        config=load_config(run_folder.config, []),
        split=str(metrics["split"]),
        num_views=int(metrics["num_views"]),
        data_root=str(metrics["data_root"]),
        rendered=bool(metrics["rendered"]),
        from_cache=bool(metrics["from_cache"]),
        trained_from_cache=bool(metrics["trained_from_cache"]),
        num_classes_scored=int(metrics["num_classes_scored"]),
        scores={name: _number((metrics | metrics["attribute_accuracy"])[name]) for name in SCORES},
        num_train_clips=metrics["num_train_clips"],
        predictions=read_predictions(files.predictions).sort_values("clip", ignore_index=True),
    )
    accuracy = float(run.correct.mean())
    if abs(accuracy - run.scores["top1"]) > 1e-6:
        raise ValueError(
            f"{folder}: {files.predictions.name} has a top-1 of {accuracy:.6f} and {files.metrics.name} "
            f"{run.scores['top1']:.6f}; "
            f"they are of different tests, so test again: python tools/test.py {folder} --again"
        )
    return run


def require_comparable(runs: list[Run]) -> None:
    """Refuse runs that did not answer the same question. Raises: ValueError naming two runs and how they differ."""
    first = runs[0]
    for other in runs[1:]:
        both = f"{first.folder} and {other.folder} cannot be compared"
        for what, one, two in (
            ("tested on different splits", first.split, other.split),
            ("tested with different numbers of views", first.num_views, other.num_views),
            ("tested on different data", Path(first.data_root).resolve(), Path(other.data_root).resolve()),
            ("their metrics.json differ in `rendered`", first.rendered, other.rendered),
            ("only one was tested from the cache (data.cache=false reads videos)", first.from_cache, other.from_cache),
            ("only one was trained from the cache", first.trained_from_cache, other.trained_from_cache),
            ("different data.val_fraction", first.config.data.val_fraction, other.config.data.val_fraction),
        ):
            if one != two:
                raise ValueError(f"{both}: {what}, {one} and {two}")
        clips, other_clips = set(first.predictions["clip"]), set(other.predictions["clip"])
        if clips != other_clips:
            odd = sorted(clips ^ other_clips)
            raise ValueError(f"{both}: {len(odd)} clips are in only one of them, such as {odd[0]}")
        for column, what in (("true_number", "truths"), ("source", "sources")):
            differs = first.predictions[column] != other.predictions[column]
            if differs.any():
                row = int(differs.argmax())
                clip = first.predictions["clip"][row]
                one, two = first.predictions[column][row], other.predictions[column][row]
                raise ValueError(f"{both}: {differs.sum()} clips have different {what}, such as {clip}: {one}, {two}")


def group_by_arm(runs: list[Run]) -> dict[str, dict[int, Run]]:
    """Group runs as arm -> seed -> run, seeds ascending. Runs of several experiments call their arms experiment/arm.

    Raises: ValueError if two runs have the same arm and seed, or the same arm and other options.
    """
    several_experiments = len({run.config.name for run in runs}) > 1
    arms: dict[str, dict[int, Run]] = {}
    for run in runs:
        arm = f"{run.config.name}/{run.config.arm}" if several_experiments else run.config.arm
        by_seed = arms.setdefault(arm, {})
        if run.config.seed in by_seed:
            earlier = by_seed[run.config.seed].folder
            raise ValueError(f"{earlier} and {run.folder} are both arm {arm} with seed {run.config.seed}; give one")
        first = next(iter(by_seed.values()), run)
        differing = differing_values(first.config, run.config)
        if differing:
            raise ValueError(
                f"{first.folder} and {run.folder} are both arm {arm}, whose runs may differ in nothing but the seed, "
                f"but were trained with different {', '.join(differing)}"
            )
        by_seed[run.config.seed] = run
    return {arm: dict(sorted(by_seed.items())) for arm, by_seed in arms.items()}


def differing_values(one: Config, other: Config) -> list[str]:
    """The options that differ, apart from those of INDIFFERENT, such as "head.kind (joint, flat)"."""
    values, others = (options(cfg) | {"data.root": str(Path(cfg.data.root).resolve())} for cfg in (one, other))
    names = [name for name in values if name not in INDIFFERENT and values[name] != others[name]]
    return [f"{name} ({values[name]}, {others[name]})" for name in names]


def _pair(
    arms: dict[str, dict[int, Run]], first: str, second: str, sources: list[str], held_out: Sequence[str]
) -> ArmPair:
    seeds = tuple(sorted(arms[first].keys() & arms[second].keys()))
    if not seeds:
        raise ValueError(
            f"arms {first} (seeds {sorted(arms[first])}) and {second} (seeds {sorted(arms[second])}) share no seed; "
            "arms are compared seed by seed"
        )
    paired = [[arms[arm][seed] for seed in seeds] for arm in (first, second)]
    corrects = [np.stack([run.correct for run in runs]) for runs in paired]  # each (num_seeds, num_clips)
    one, other = paired[0][0], paired[1][0]
    numbers = one.predictions["true_number"].to_numpy(dtype=str)
    # by the clips that the first seed learnt from; where the arms differ in that, by the arm that had more
    counts = max((one.num_train_clips, other.num_train_clips), key=lambda clips: sum(clips.values()))
    groups = group_of(np.array([counts.get(number, 0) for number in numbers]))  # (num_clips,)
    gains = {"top-1": corrects[1].astype(np.float64) - corrects[0]}  # each (num_seeds, num_clips)
    nlls = [np.stack([run.nll for run in runs]) for runs in paired]
    if np.isfinite(nlls).all():  # else an arm cannot name a dive that there is
        gains["NLL"] = nlls[1] - nlls[0]
    members = {EVERY_CLIP: np.ones(len(numbers), bool), **{group: groups == group for group in GROUPS}}
    members[HELD_OUT] = np.isin(numbers, held_out)
    effects = [
        _effect(quantity, group, values, rows, numbers, np.array(sources))
        for quantity, values in gains.items()
        for group, rows in members.items()
        if len(set(np.array(sources)[rows])) > 1
    ]
    by_clip = pd.DataFrame(
        {"number": numbers, "first": corrects[0].mean(axis=0), "second": corrects[1].mean(axis=0), "test_clips": 1}
    )
    classes = by_clip.groupby("number").agg({"test_clips": "sum", "first": "mean", "second": "mean"}).reset_index()
    classes.insert(1, "training_clips", [counts.get(number, 0) for number in classes["number"]])
    classes["difference"] = classes["second"] - classes["first"]
    comparison = compare_arms(corrects[0], corrects[1], sources)
    return ArmPair(first, second, seeds, differing_values(other.config, one.config), comparison, effects, classes)


def _effect(
    quantity: str,
    group: str,
    values: npt.NDArray[np.float64],
    rows: npt.NDArray[np.bool_],
    numbers: npt.NDArray[np.str_],
    sources: npt.NDArray[np.str_],
) -> Effect:
    mean, of = values[:, rows].mean(axis=0), sources[rows].tolist()
    p_value = sign_flip_p_value(mean, of)
    return Effect(
        quantity,
        group,
        num_clips=int(rows.sum()),
        num_classes=len(set(numbers[rows])),
        difference=mean_over_sources(mean, of),
        by_seed=tuple(values[:, rows].mean(axis=1).tolist()),
        p_value=p_value,
        p_holm=p_value,
    )


def _corrected(pairs: list[ArmPair]) -> list[ArmPair]:
    """The same with Holm's correction: all pairs together, each quantity and group by itself."""
    members: dict[tuple[str, str], list[Effect]] = {}
    for pair in pairs:
        for effect in pair.effects:
            members.setdefault((effect.quantity, effect.group), []).append(effect)
    p_holm = {
        id(effect): p_value
        for effects in members.values()
        for effect, p_value in zip(effects, holm([effect.p_value for effect in effects]), strict=True)
    }
    return [
        replace(pair, effects=[replace(effect, p_holm=p_holm[id(effect)]) for effect in pair.effects]) for pair in pairs
    ]


def _number(score: float | None) -> float:
    return math.inf if score is None else float(score)  # JSON has no infinity


def _correct(by_seed: dict[int, Run]) -> npt.NDArray[np.bool_]:
    return np.stack([run.correct for run in by_seed.values()])  # (num_seeds, num_clips)


def _caption(run: Run) -> str:
    """What was tested, and on what, so that no number on rendered dives passes for one on real ones."""
    num_sources = run.predictions["source"].nunique()
    size = f"{len(run.predictions):,} clips of {num_sources} sources, {run.num_classes_scored} dives"
    origin = "rendered dives, not Diving48" if run.rendered else f"clips of {run.data_root}"
    return f"{run.split} split: {size}; {origin}"


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    attributes = metrics.get("attribute_accuracy") if isinstance(metrics, dict) else None
    if not isinstance(attributes, dict):
        raise ValueError(f"{path}: has no attribute_accuracy; tools/test.py writes it")
    expected = ("split", "num_views", *TESTED_ON, "num_classes_scored", "num_train_clips", *SCORES)
    missing = [key for key in expected if key not in metrics | attributes]
    if missing:
        again = f"python tools/test.py {path.parent} --again"
        raise ValueError(f"{path}: lacks {', '.join(missing)}; test again: {again}")
    return metrics
