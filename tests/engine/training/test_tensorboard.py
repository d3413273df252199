import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diveparse.configs import load_config
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.diving48 import read_split
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.engine.evaluation.tensorboard import flat_metrics, log_confusion
from diveparse.engine.events import flush
from diveparse.engine.training.tensorboard import log_scalars, log_start, open_writer
from diveparse.heads.recombine import INVALID


def read(run):
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def points(run, tag="train/loss"):
    return [(point.step, point.value) for point in read(run).Scalars(tag)]


def test_points_after_the_checkpoint_make_way_for_those_of_the_resumed_run(tmp_path):
    with open_writer(tmp_path, 0) as writer:
        for number in range(1, 9):
            log_scalars(writer, "train", {"loss": number}, number)
    with open_writer(tmp_path, 5) as writer:
        for number in (6, 7):
            log_scalars(writer, "train", {"loss": 10 * number}, number)
    assert points(tmp_path) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 60), (7, 70)]


def test_a_run_that_starts_again_shows_nothing_of_the_first_attempt(tmp_path):
    for value in (1, 2):
        with open_writer(tmp_path, 0) as writer:
            writer.add_text("config", str(value), 0)
            log_scalars(writer, "train", {"loss": value}, 1)
    assert points(tmp_path) == [(1, 2)]
    # what TensorBoard itself reads with; the other reader does not take texts back
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    (text,) = events.Tensors("config/text_summary")
    assert text.tensor_proto.string_val == [b"2"]


def test_a_log_that_a_kill_cut_short_still_shows_what_came_before_and_after(tmp_path):
    with open_writer(tmp_path, 0) as writer:
        for number in range(1, 5):
            log_scalars(writer, "train", {"loss": number}, number)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])  # in the middle of the last point
    with open_writer(tmp_path, 3) as writer:
        log_scalars(writer, "train", {"loss": 40}, 4)
    assert points(tmp_path) == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_after_a_flush_every_point_is_in_the_file(tmp_path):
    with open_writer(tmp_path, 0) as writer:
        log_scalars(writer, "train", {"loss": 1}, 1)
        flush(writer)
        assert points(tmp_path) == [(1, 1)]


def test_the_start_shows_config_class_counts_and_clips(tmp_path, tiny_experiment, tiny_root):
    cfg = load_config(tiny_experiment, [])
    records = read_split(tiny_root, "train")
    clips = ClipDataset(records, cfg.clip, training=True, seed=0)
    state = torch.get_rng_state()
    with open_writer(tmp_path / "log", 0) as writer:
        log_start(writer, cfg, DIVING48, {"train": records, "val": records[:4]}, clips)
    assert torch.equal(torch.get_rng_state(), state)
    events = read(tmp_path / "log")
    (text,) = events.Tensors("config/text_summary")
    assert "train.batch_size: 4" in text.tensor_proto.string_val[0].decode()
    images = set(events.Tags()["images"])
    assert images == {"train/class_counts", "val/class_counts", *(f"train/clip_{number}" for number in range(4))}
    strip = events.Images("train/clip_0")[0]
    assert (strip.height, strip.width) == (32, 4 * 32)  # four frames side by side


def test_confusions_are_a_picture(tmp_path):
    log_probs = np.full((3, len(DIVING48)), -np.log(len(DIVING48)), np.float32)
    answers = np.array([1, INVALID, 2])
    predictions = Predictions(["a", "b", "c"], ["s"] * 3, np.array([1, 2, 2]), log_probs, {}, answers, answers)
    with open_writer(tmp_path, 0) as writer:
        log_confusion(writer, "val", predictions, DIVING48, 7)
    (picture,) = read(tmp_path).Images("val/confusion")
    assert picture.step == 7
    assert min(picture.width, picture.height) > 300


def test_metrics_become_one_number_a_tag():
    groups = {"few": {"accuracy": 0.25, "num_clips": 3}, "many": {"accuracy": None, "num_clips": 0}}
    metrics = {"split": "test", "num_clips": 3, "top1": 0.5, "attribute_accuracy": {"twist": 1.0}, "groups": groups}
    metrics |= {"by_training": {"trained": {"accuracy": 0.75, "num_clips": 2}}}
    accuracies = {"accuracy_twist": 1.0, "accuracy_few": 0.25, "accuracy_trained": 0.75}
    assert flat_metrics(metrics) == {"num_clips": 3, "top1": 0.5} | accuracies


@pytest.mark.parametrize("num_updates", [0, 4])
def test_a_log_never_shares_its_second_with_an_older_one(tmp_path, num_updates):
    for _ in range(2):
        with open_writer(tmp_path, num_updates):
            pass
    seconds = [path.name.split(".")[3] for path in tmp_path.iterdir()]
    assert len(set(seconds)) == 2


def test_a_clock_that_was_set_back_does_not_mix_up_the_points_of_a_resumed_run(tmp_path, monkeypatch):
    now = time.time()
    for start, (clock, first) in enumerate([(now + 7200, 1), (now + 7200, 3), (now, 5)]):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        with open_writer(tmp_path, first - 1) as writer:
            for step in range(first, first + 4):  # two more than the next attempt goes on after
                log_scalars(writer, "train", {"loss": 10 * start + step}, step)
    assert points(tmp_path) == [(1, 1), (2, 2), (3, 13), (4, 14), (5, 25), (6, 26), (7, 27), (8, 28)]
    assert len(list(tmp_path.iterdir())) == 3


def test_event_files_that_others_named_are_left_alone(tmp_path):
    names = ("events.out.tfevents.notes", "events.out.tfevents.99999999999x.host")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with open_writer(tmp_path, 0):
        pass
    assert {"events.out.tfevents.notes", "events.out.tfevents.99999999999x.host"} <= {
        p.name for p in tmp_path.iterdir()
    }
