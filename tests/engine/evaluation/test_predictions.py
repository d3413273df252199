from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from diveparse.datasets.dives import ATTRIBUTES, DIVING48
from diveparse.engine.evaluation.predictions import (
    COLUMNS,
    Predictions,
    load_predictions,
    read_predictions,
    save_predictions,
    write_predictions,
)
from diveparse.heads.recombine import INVALID


def random_predictions(num_clips: int = 6, seed: int = 0) -> Predictions:
    generator = np.random.default_rng(seed)

    def log_probs(num_values: int) -> np.ndarray:
        scores = generator.normal(size=(num_clips, num_values))
        return (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)

    dive_log_probs = log_probs(len(DIVING48))
    return Predictions(
        clips=[f"source_{i % 2:04d}_{i:05d}" for i in range(num_clips)],
        sources=[f"source_{i % 2:04d}" for i in range(num_clips)],
        labels=generator.integers(len(DIVING48), size=num_clips),
        dive_log_probs=dive_log_probs,
        attribute_log_probs={name: log_probs(len(DIVING48.values[name])) for name in ATTRIBUTES},
        spelt_labels=np.array([INVALID, *range(1, num_clips)]),
        decoded_labels=np.array([INVALID, *dive_log_probs.argmax(axis=1)[1:]]),
    )


def written(folder: Path, predictions: Predictions) -> Path:
    write_predictions(folder / "predictions.csv", predictions, DIVING48)
    return folder / "predictions.csv"


def test_a_table_reads_back_as_what_was_predicted(tmp_path):
    predictions = random_predictions()
    table = read_predictions(written(tmp_path, predictions))
    assert list(table.columns) == list(COLUMNS)
    for row, clip in enumerate(predictions.clips):
        got = table.iloc[row].to_dict()
        label, log_probs = predictions.labels[row], predictions.dive_log_probs[row]
        best = sorted(range(len(DIVING48)), key=lambda dive: -log_probs[dive])
        assert got["clip"] == clip
        assert got["source"] == predictions.sources[row]
        assert got["true_number"] == DIVING48[label].number
        assert got["log_prob_true"] == pytest.approx(log_probs[label], rel=1e-6)
        assert got["top5"].split() == [DIVING48[dive].number for dive in best[:5]]
        for attribute in ATTRIBUTES:
            assert (
                got[attribute] == DIVING48.values[attribute][predictions.attribute_log_probs[attribute][row].argmax()]
            )
        if row:
            assert got["predicted_number"] == DIVING48[best[0]].number
            assert got["confidence"] == pytest.approx(np.exp(log_probs[best[0]]), rel=1e-6)
            assert got["spelt_number"] == DIVING48[row].number


def test_saved_predictions_come_back_whole_and_sorted_by_clip(tmp_path):
    predictions, path = random_predictions(), tmp_path / "predictions.safetensors"
    save_predictions(path, predictions, DIVING48)
    loaded, dive_set = load_predictions(path)
    assert dive_set == DIVING48
    order = np.argsort(predictions.clips)
    assert loaded.clips == sorted(predictions.clips)
    assert loaded.sources == [predictions.sources[row] for row in order]
    for name in ("labels", "dive_log_probs", "spelt_labels", "decoded_labels"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(predictions, name)[order])
    for name in ATTRIBUTES:
        np.testing.assert_array_equal(loaded.attribute_log_probs[name], predictions.attribute_log_probs[name][order])


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x02\0\0\0\0\0\0\0{}"])
def test_saved_predictions_that_are_damaged_are_named(tmp_path, content):
    path = tmp_path / "predictions.safetensors"
    with pytest.raises(ValueError, match=r"predictions.safetensors: no such file; `diveparse test` writes it"):
        load_predictions(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"predictions.safetensors: not the predictions of a test"):
        load_predictions(path)


def test_a_dive_that_cannot_be_named_has_no_probability_in_the_table(tmp_path):
    predictions = random_predictions()
    log_probs = predictions.dive_log_probs.copy()
    log_probs[0, predictions.labels[0]] = -np.inf
    table = read_predictions(written(tmp_path, replace(predictions, dive_log_probs=log_probs)))
    assert table["log_prob_true"][0] == -np.inf


def test_an_invalid_number_is_an_empty_cell_without_confidence(tmp_path):
    row = read_predictions(written(tmp_path, random_predictions())).iloc[0]
    assert (row.predicted_number, row.spelt_number, row.confidence) == ("", "", 0.0)


def test_numbers_and_sources_stay_text_and_half_turns_stay_integers(tmp_path):
    predictions = random_predictions()
    digits = replace(predictions, clips=[f"{i:011d}_00001" for i in range(6)], sources=["00000000007"] * 6)
    table = read_predictions(written(tmp_path, digits))
    assert table.source.tolist() == ["00000000007"] * 6
    assert table.somersault.dtype == table.twist.dtype == np.int64


def test_predictions_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="sources must have 6 entries, one a clip, got 5"):
        replace(random_predictions(), sources=["s"] * 5)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("true_number", "true", "lacks the columns true_number"),
        ("source_0001_00001", "source_0000_00000", "names the clip 'source_0000_00000' more than once"),
        ("source_0001_00001", "", "column clip is empty in row 3"),
        ("source_0000_00000,source_0000,", "source_0000_00000,,", "column source is empty in row 2"),
        ("log_prob_true", "log_prob", "lacks the columns log_prob_true"),
    ],
)
def test_a_damaged_table_is_refused_with_the_file_and_the_place(tmp_path, old, new, complaint):
    path = written(tmp_path, random_predictions())
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=complaint) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("column", "value"), [("confidence", "high"), ("log_prob_true", "nan"), ("twist", "1.5")])
def test_a_cell_that_is_no_such_number_is_refused(tmp_path, column, value):
    path = written(tmp_path, random_predictions())
    lines = path.read_text().splitlines()
    cells = lines[2].split(",")
    cells[COLUMNS.index(column)] = value
    path.write_text("\n".join([*lines[:2], ",".join(cells), *lines[3:]]))
    with pytest.raises(ValueError, match=f"column {column} must be .*'{value}' in row 3"):
        read_predictions(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"clip\n", b'clip,"source\n1,2,3'])
def test_a_file_that_is_no_such_table_is_refused_by_name(tmp_path, content):
    path = tmp_path / "predictions.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"predictions\.csv"):
        read_predictions(path)


def test_files_of_an_earlier_version_are_refused_in_one_line_with_how_to_replace_them(tmp_path):
    predictions = random_predictions()
    table = written(tmp_path, predictions)
    table.write_text(table.read_text().replace("spelt_number", "named_number"))
    with pytest.raises(
        ValueError, match=r"predictions\.csv: named_number .* earlier version; test .*--again"
    ) as refusal:
        read_predictions(table)
    assert "\n" not in str(refusal.value)
    path = tmp_path / "predictions.safetensors"
    save_predictions(path, predictions, DIVING48)
    with safe_open(path, framework="numpy") as file:
        tensors = {name.replace("spelt", "named"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, path, file.metadata())
    with pytest.raises(
        ValueError, match=r"predictions\.safetensors: .*named_labels .* earlier version; test .*--again"
    ):
        load_predictions(path)


def test_a_missing_table_is_refused_with_the_command_that_writes_it(tmp_path):
    with pytest.raises(ValueError, match=r"no such file; `diveparse test` writes it"):
        read_predictions(tmp_path / "predictions.csv")
