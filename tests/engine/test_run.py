import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from diveparse.configs import load_config, run_folder
from diveparse.datasets.records import ClipRecord, clips_in_a_line
from diveparse.engine.run import open_run, record_environment


@pytest.fixture
def cfg(tiny_experiment):
    return load_config(tiny_experiment, [])


def test_a_new_run_begins_with_its_config(cfg):
    run = open_run(cfg, resume=False)
    assert run.path == run_folder(cfg)
    assert load_config(run.config, []) == cfg


def test_a_config_that_a_kill_cut_short_does_not_keep_the_run_from_beginning(cfg):
    folder = run_folder(cfg)
    folder.mkdir(parents=True)
    (folder / "config.yaml.partial").write_text("name: ti")
    open_run(cfg, resume=False)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_checkpoints_of_an_earlier_version_are_refused_instead_of_training_anew(cfg):
    run = open_run(cfg, resume=False)
    (run.checkpoints / "step-00000004").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"step-00000004 is of an earlier version .*; remove .*seed-0 to train anew"):
        open_run(cfg, resume=True)


def test_a_damaged_config_is_refused_by_name(cfg):
    run = open_run(cfg, resume=False)
    run.config.write_text("name: [")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        open_run(cfg, resume=True)


def test_each_session_of_a_run_is_recorded(cfg, caplog):
    run = open_run(cfg, resume=False)
    record_environment(run, cfg.seed)
    first = json.loads(run.environment.read_text())
    record_environment(run, cfg.seed)
    assert "may not repeat to the bit" not in caplog.text
    assert json.loads(run.environment.read_text()) == {**first, "resumed": [first]}

    run.environment.write_text(json.dumps({**first, "python": "2.7", "resumed": [first]}))
    with caplog.at_level(logging.WARNING):
        record_environment(run, cfg.seed)
    assert "changed since the run began: python; it may not repeat to the bit" in caplog.text
    assert len(json.loads(run.environment.read_text())["resumed"]) == 2


FOREIGN = (".DS_Store", "Thumbs.db", "config.yaml~", ".config.yaml.swp")


def test_foreign_files_do_not_keep_a_run_from_beginning_and_are_left_alone(cfg):
    folder = run_folder(cfg)
    folder.mkdir(parents=True)
    for name in FOREIGN:
        (folder / name).touch()
    open_run(cfg, resume=False)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FOREIGN, "config.yaml"])


def test_a_folder_with_files_of_somebody_else_is_refused_naming_them(cfg):
    folder = run_folder(cfg)
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds files but no config\.yaml, so it is no run: thesis\.tex; "):
        open_run(cfg, resume=False)


def test_a_run_without_any_result_begins_anew_also_with_other_options(cfg, tiny_experiment):
    run = open_run(cfg, resume=False)
    record_environment(run, cfg.seed)
    (run.checkpoints / "update-00000002.partial").mkdir(parents=True)
    other = load_config(tiny_experiment, ["train.batch_size=2"])
    open_run(other, resume=False)
    assert load_config(run.config, []) == other
    assert not run.environment.exists()


@pytest.mark.parametrize("result", ["checkpoints/update-00000002/state.pt", "model/config.json", "trained.json"])
def test_a_run_with_a_result_does_not_begin_anew(cfg, result):
    run = open_run(cfg, resume=False)
    (run.path / result).parent.mkdir(parents=True, exist_ok=True)
    (run.path / result).touch()
    with pytest.raises(ValueError, match="already holds a run; add --resume to go on with it"):
        open_run(cfg, resume=False)


def test_a_run_does_not_go_on_with_other_clips_than_it_began_with(cfg):
    run = open_run(cfg, resume=False)
    records = [ClipRecord(Path(f"{k}.mp4"), f"clip{k}", "source", k) for k in range(3)]
    clips = {"train": clips_in_a_line(records)}
    record_environment(run, cfg.seed, clips=clips)
    record_environment(run, cfg.seed, clips=clips)
    for others in (records[:2], records[::-1], [replace(records[0], label=5), *records[1:]]):
        with pytest.raises(ValueError, match=r"began with other clips, labels or order \(train: 3 clips, .*restore"):
            record_environment(run, cfg.seed, clips={"train": clips_in_a_line(others)})


def test_a_run_of_a_version_that_recorded_no_clips_goes_on(cfg):
    run = open_run(cfg, resume=False)
    record_environment(run, cfg.seed)
    begun = json.loads(run.environment.read_text())
    del begun["clips"]
    run.environment.write_text(json.dumps(begun))
    record_environment(run, cfg.seed, clips={"train": "3 clips, abc"})
