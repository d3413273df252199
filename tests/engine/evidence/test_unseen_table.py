import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diveparse.configs import DataConfig, ExperimentConfig, HeadConfig, HeadKind
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.engine.evaluation.predictions import Predictions, load_predictions, save_predictions
from diveparse.engine.evaluation.stacking import penalty_that_keeps
from diveparse.engine.evidence.runs import Run
from diveparse.engine.evidence.unseen import area_under_curve, choose_kept_share, generalised
from diveparse.engine.evidence.unseen_table import families, stack_arms, unseen_rows, unseen_table
from diveparse.engine.run import RunFolder

DIVES = DiveSet.from_numbers(["101B", "103B", "105B", "201B", "203B", "205B"])
DRAWS = {"joint-a": ["103B", "205B"], "joint-b": ["205B", "201B"], "joint-c": ["105B", "103B"]}
SEEDS = (0, 1)


def save_some_predictions(run: Run, split: str, seed: int, own_penalty: float = 0.0) -> None:
    """Predictions of a model that favours the dives that it saw, and takes a penalty from them by itself."""
    rng = np.random.default_rng(seed)
    labels = np.arange(120) % len(DIVES)
    favoured = np.array([number not in run.config.data.unseen_dives for number in DIVES.numbers])
    scores = rng.normal(size=(120, len(DIVES))) + 4 * np.eye(len(DIVES))[labels] + (3 - own_penalty) * favoured
    predictions = Predictions(
        clips=[f"clip{k:03d}" for k in range(120)],
        sources=[f"source{k % 9}" for k in range(120)],
        labels=labels,
        dive_log_probs=(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32),
        attribute_log_probs={name: np.zeros((120, len(DIVES.values[name])), np.float32) for name in ATTRIBUTES},
        spelt_labels=scores.argmax(axis=1),
        decoded_labels=scores.argmax(axis=1),
    )
    path = run.folder.evaluation(split).probabilities
    path.parent.mkdir(parents=True, exist_ok=True)
    save_predictions(path, predictions, DIVES)
    counts = {number: int(saw) for number, saw in zip(DIVES.numbers, favoured.tolist(), strict=True)}
    metrics = {"num_train_clips": counts, "unseen_penalty": own_penalty}
    run.folder.evaluation(split).metrics.write_text(json.dumps(metrics))


def save_all_predictions(arms: dict[str, dict[int, Run]], own_penalty: float = 0.0) -> None:
    for number, runs in enumerate(arms.values()):
        for seed, run in runs.items():
            for place, split in enumerate(("test", "val")):
                save_some_predictions(run, split, 100 * number + 10 * seed + place, own_penalty)


@pytest.fixture
def arms(a_run, tmp_path):
    found = {}
    for arm, unseen in DRAWS.items():
        found[arm] = {}
        for seed in SEEDS:
            run = a_run(arm, seed, trained={"data": DataConfig(root="data", unseen_dives=unseen)})
            found[arm][seed] = replace(run, folder=RunFolder(tmp_path / arm / f"seed-{seed}"))
    save_all_predictions(found)
    return found


def experiment_of(stacking: dict[str, list[str]]) -> ExperimentConfig:
    return ExperimentConfig(question="?", config="base.yaml", arms=dict.fromkeys(DRAWS, ""), stacking=stacking)


def rows_of(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]


def table_of(experiment: ExperimentConfig, arms: Any) -> str:
    return unseen_table(stack_arms(experiment, arms), arms)


def answers(run: Run, split: str) -> Predictions:
    return load_predictions(run.folder.evaluation(split).probabilities)[0]


def test_the_share_is_chosen_by_other_arms_on_dives_that_the_arm_saw(arms):
    page = table_of(experiment_of({"joint-a": ["joint-b", "joint-c"]}), arms)
    beyond = {"joint-b": ["201B"], "joint-c": ["105B"]}
    share = np.mean(
        [
            choose_kept_share(answers(arms[other][seed], "val"), DIVES, numbers, ignored=DRAWS["joint-a"])
            for other, numbers in beyond.items()
            for seed in SEEDS
        ]
    )
    runs = arms["joint-a"].values()
    penalties = [penalty_that_keeps(share, answers(run, "val"), DIVES, DRAWS["joint-a"]) for run in runs]
    without, with_penalty = (
        generalised([answers(run, "test") for run in runs], DIVES, DRAWS["joint-a"], each)
        for each in ([0.0, 0.0], penalties)
    )
    _, _, *rows = rows_of(page)
    assert [row[0] for row in rows] == ["joint-a", "joint-a", "arm", rows[3][0], "joint-a"]  # two tables, no family
    assert rows[0][1] == "0.00"
    assert rows[1][1] == f"{np.mean(penalties):.2f} ± {np.std(penalties, ddof=1):.2f}"
    for row, scores in zip(rows, (without, with_penalty), strict=False):
        expected = [scores.seen.value, scores.unseen.value, scores.harmonic.value]
        assert [cell.split()[0] for cell in row[2:]] == [f"{each:.3f}" for each in expected]
    areas = [area_under_curve(answers(run, "test"), DIVES, DRAWS["joint-a"]) for run in runs]
    assert rows[4][1:4] == ["103B, 205B", f"{share:.3f}", f"{without.unseen_alone:.3f}"]
    assert rows[4][4] == f"{np.mean(areas):.3f} ± {np.std(areas, ddof=1):.3f}"
    assert with_penalty.harmonic.value > without.harmonic.value
    assert min(penalties) > 0


def test_clips_of_an_arms_unseen_dives_take_no_part_in_its_share(arms):
    experiment = experiment_of({"joint-a": ["joint-b", "joint-c"]})
    before = table_of(experiment, arms)
    unseen = np.array([number in DRAWS["joint-a"] for number in DIVES.numbers])
    for other in ("joint-b", "joint-c"):
        for run in arms[other].values():
            found = answers(run, "val")
            log_probs = np.where(unseen, np.float32(9), found.dive_log_probs)  # as answers, and as clips
            log_probs[unseen[found.labels]] = -50
            path = run.folder.evaluation("val").probabilities
            save_predictions(path, replace(found, dive_log_probs=log_probs), DIVES)
    assert table_of(experiment, arms) == before


def test_the_penalty_that_models_take_by_themselves_is_added_back(arms):
    experiment = experiment_of({arm: [other for other in DRAWS if other != arm] for arm in DRAWS})
    before = table_of(experiment, arms)
    save_all_predictions(arms, own_penalty=1.25)
    assert table_of(experiment, arms) == before


def test_a_family_has_the_mean_and_deviation_over_its_draws(arms):
    others = {arm: [other for other in DRAWS if other != arm] for arm in DRAWS}
    rows = rows_of(table_of(experiment_of(others), arms))
    family = [row for row in rows if row[0] == "**joint**, 3 draws"]
    assert len(family) == 3
    of_arms = [row for row in rows if row[0] in DRAWS]
    with_penalty = [float(row[4].split()[0]) for row in of_arms[1:6:2]]  # harmonic means
    mean, deviation = (float(each) for each in family[1][4].split(" ± "))
    assert mean == pytest.approx(np.mean(with_penalty), abs=1e-3)
    assert deviation == pytest.approx(np.std(with_penalty, ddof=1), abs=1e-3)
    found = [
        row for row in unseen_rows(stack_arms(experiment_of(others), arms), arms) if row["quantity"] == "harmonic_mean"
    ]
    assert [(row["arm"], row["seed"]) for row in found] == [("joint", arm) for arm in DRAWS]
    assert [row["value"] for row in found] == pytest.approx(with_penalty, abs=1e-3)


def test_arms_that_differ_in_more_than_their_draw_are_no_family(arms, a_run):
    data = DataConfig(root="data", unseen_dives=DRAWS["joint-a"])
    other = a_run("constrained-a", trained={"data": data, "head": HeadConfig(kind=HeadKind.CONSTRAINED)})
    assert families({**arms, "constrained-a": {0: other}}) == {"joint": list(DRAWS)}


def test_a_run_whose_clips_choose_nothing_is_named(arms):
    run = arms["joint-b"][1]
    found = answers(run, "val")
    seen = found.at(np.isin(found.labels, [DIVES.label_of(number) for number in ("101B", "203B")]))
    save_predictions(run.folder.evaluation("val").probabilities, seen, DIVES)
    with pytest.raises(ValueError, match=r"joint-b/seed-1: a share to keep is chosen on clips of both"):
        table_of(experiment_of({"joint-a": ["joint-b"]}), arms)
