"""Which runs may stand side by side: the same question for all of them, and the same options within an arm."""

from __future__ import annotations

from pathlib import Path

from diveparse.configs import Config, flat_options
from diveparse.engine.evidence.runs import Run

INDIFFERENT = (
    "seed",
    "runs_dir",
    "pictures",
    "data.num_workers",
)  # all that may differ in an arm; only seeds change it


def group_by_arm(runs: list[Run]) -> dict[str, dict[int, Run]]:
    """Group runs as arm -> seed -> run, seeds ascending. Arms of several experiments are named experiment/arm.

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
    values, others = (flat_options(cfg) | {"data.root": str(Path(cfg.data.root).resolve())} for cfg in (one, other))
    names = [name for name in values if name not in INDIFFERENT and values[name] != others[name]]
    return [f"{name} ({values[name]}, {others[name]})" for name in names]


def require_comparable(runs: list[Run]) -> None:
    """Raises: ValueError naming two runs that were tested differently, or on different clips, and how they differ."""
    for other in runs[1:]:
        difference = _different_tests(runs[0], other) or _different_clips(runs[0], other)
        if difference:
            raise ValueError(f"{runs[0].folder} and {other.folder} cannot be compared: {difference}")


def _different_tests(first: Run, other: Run) -> str | None:
    of_tests = [
        ("tested on different splits", first.split, other.split),
        ("tested with different numbers of views", first.num_views, other.num_views),
        ("tested on different data", Path(first.data_root).resolve(), Path(other.data_root).resolve()),
        ("their metrics.json differ in `rendered`", first.rendered, other.rendered),
        ("only one was tested from the cache (data.cache=false reads videos)", first.from_cache, other.from_cache),
    ]
    of_trainings = [
        ("only one was trained from the cache", first.trained_from_cache, other.trained_from_cache),
        ("different data.val_fraction", first.config.data.val_fraction, other.config.data.val_fraction),
    ]
    are_trained_here = first.trained_from_cache is not None and other.trained_from_cache is not None
    for what, one, two in of_tests + (of_trainings if are_trained_here else []):
        if one != two:
            return f"{what}, {one} and {two}"
    return None


def _different_clips(first: Run, other: Run) -> str | None:
    clips, other_clips = set(first.predictions["clip"]), set(other.predictions["clip"])
    if clips != other_clips:
        odd = sorted(clips ^ other_clips)
        return f"{len(odd)} clips are in only one of them, such as {odd[0]}"
    for column, what in (("true_number", "truths"), ("source", "sources")):
        differs = first.predictions[column] != other.predictions[column]
        if differs.any():
            row = int(differs.argmax())
            one, two = first.predictions[column][row], other.predictions[column][row]
            clip = first.predictions["clip"][row]
            return f"{differs.sum()} clips have different {what}, such as {clip}: {one}, {two}"
    return None
