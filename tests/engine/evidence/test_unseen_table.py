import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from diveparse.configs import DataConfig, ExperimentConfig, load_config
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.engine.evaluation.predictions import Predictions, save_predictions
from diveparse.engine.evidence.unseen import choose_kept_share, generalised, penalty_that_keeps
from diveparse.engine.evidence.unseen_table import unseen_table
from diveparse.engine.run import RunFolder

DIVES = DiveSet.from_numbers(["101B", "103B", "105B", "201B", "203B", "205B"])
HELD_OUT, BEYOND = ["103B"], ["205B"]


def save_some_predictions(path: Path, seed: int) -> Predictions:
    """Predictions of a model that favours the other dives over those of HELD_OUT and BEYOND."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(DIVES), size=120)
    favoured = np.array([number not in HELD_OUT + BEYOND for number in DIVES.numbers])
    scores = rng.normal(size=(120, len(DIVES))) + 4 * np.eye(len(DIVES))[labels] + 3 * favoured
    predictions = Predictions(
        clips=[f"clip{k:03d}" for k in range(120)],
        sources=[f"source{k % 9}" for k in range(120)],
        labels=labels,
        dive_log_probs=(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32),
        attribute_log_probs={name: np.zeros((120, len(DIVES.values[name])), np.float32) for name in ATTRIBUTES},
        spelt_labels=scores.argmax(axis=1),
        decoded_labels=scores.argmax(axis=1),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_predictions(path, predictions, DIVES)
    return predictions


def test_each_arm_is_shown_without_a_penalty_and_with_the_one_that_keeps_the_share_of_development(
    a_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("{name: base, arm: base, data: {root: data}}")
    development = {"question": "?", "config": "base.yaml", "seeds": [0], "arms": {"joint": ""}}
    development |= {"common": f"data.unseen_dives=[{','.join(HELD_OUT + BEYOND)}]"}
    Path("development.yaml").write_text(json.dumps(development))  # which is YAML too
    Path("x.yaml").write_text(json.dumps(development | {"stacking": {"joint": "development/joint"}}))
    run = a_run("joint", trained={"data": DataConfig(root="data", unseen_dives=HELD_OUT)})
    run = replace(run, folder=RunFolder(tmp_path / "run"))
    test, own, other = (
        save_some_predictions(folder.evaluation(split).probabilities, seed)
        for seed, (folder, split) in enumerate(
            [(run.folder, "test"), (run.folder, "val"), (RunFolder(Path("runs/development/joint/seed-0")), "val")]
        )
    )
    experiment = load_config(Path("x.yaml"), [], ExperimentConfig)
    page = unseen_table(Path("x.yaml"), experiment, {"joint": {0: run}})

    share = choose_kept_share(other, DIVES, BEYOND, ignored=HELD_OUT)
    penalty = penalty_that_keeps(share, own, DIVES, HELD_OUT)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert [row[:2] for row in rows[2:]] == [
        ["joint", "0.00"],
        [f"joint + stacking, to keep {share:.2f}", f"{penalty:.2f}"],
    ]
    for row, value in zip(rows[2:], (0.0, penalty), strict=True):
        scores = generalised([test], DIVES, HELD_OUT, [value])
        expected = [scores.seen.value, scores.unseen.value, scores.harmonic.value]
        assert [cell.split()[0] for cell in row[2:5]] == [f"{each:.3f}" for each in expected]
    assert penalty > 0
    assert "by arms that did not see 205B either" in page
