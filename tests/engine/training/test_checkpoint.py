import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diveparse.configs import TrainConfig
from diveparse.datasets.storage.disk import DiskFullError
from diveparse.engine.run import RunFolder
from diveparse.engine.training import checkpoint
from diveparse.engine.training.checkpoint import (
    Learner,
    num_checkpoint_bytes,
    random_state,
    require_space_for_run,
    restore_random_state,
    resume_from_checkpoint,
    save_checkpoint,
)
from diveparse.engine.training.optim import build_schedule
from diveparse.engine.training.progress import Progress


def toy_learner(seed: int = 0, width: int = 3) -> Learner:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(), nn.Linear(width, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = build_schedule(optimizer, TrainConfig(warmup_fraction=0.3), num_updates=10)
    return Learner(model, optimizer, schedule, Progress(), model)


def update(learner: Learner) -> None:
    loss = learner.model(torch.randn(5, 4)).square().mean() * random.random() * np.random.rand()
    loss.backward()
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    learner.schedule.step()
    learner.progress.num_updates += 1
    learner.progress.epoch.add_clips(5, 1, 0, {"loss": loss.item()})


def everything(learner: Learner) -> dict[str, object]:
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "rates": learner.schedule.get_last_lr(),
        "progress": learner.progress.state_dict(),
        "torch": torch.get_rng_state(),
    }


def test_a_new_process_goes_on_as_the_old_one_would_have(tmp_path):
    learner = toy_learner()
    for _ in range(3):
        update(learner)
    save_checkpoint(RunFolder(tmp_path), learner)
    for _ in range(4):
        update(learner)
    other = toy_learner(seed=1)
    resume_from_checkpoint(RunFolder(tmp_path), other)
    assert other.progress.num_updates == 3
    for _ in range(4):
        update(other)
    torch.testing.assert_close(everything(other), everything(learner), rtol=0, atol=0)


def test_nothing_changes_where_there_is_no_checkpoint(tmp_path):
    learner = toy_learner()
    before = everything(learner)
    resume_from_checkpoint(RunFolder(tmp_path), learner)
    torch.testing.assert_close(everything(learner), before, rtol=0, atol=0)
    assert RunFolder(tmp_path).newest_checkpoint() is None
    assert RunFolder(tmp_path).num_updates_done() == 0


def test_only_the_newest_checkpoint_is_kept(tmp_path):
    learner = toy_learner()
    for number in (2, 9, 10, 100):
        learner.progress.num_updates = number
        save_checkpoint(RunFolder(tmp_path), learner)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update-00000100"]
    assert RunFolder(tmp_path).num_updates_done() == 100


def test_a_half_written_checkpoint_is_passed_over_and_later_cleared(tmp_path):
    learner = toy_learner()
    learner.progress.num_updates = 5
    save_checkpoint(RunFolder(tmp_path), learner)
    for number in (6, 7):
        (tmp_path / "checkpoints" / f"update-{number:08d}.partial").mkdir()
    assert RunFolder(tmp_path).num_updates_done() == 5
    learner.progress.num_updates = 6
    save_checkpoint(RunFolder(tmp_path), learner)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update-00000006"]


def test_an_error_while_writing_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    learner = toy_learner()
    for _ in range(5):
        update(learner)
    save_checkpoint(RunFolder(tmp_path), learner)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    learner.progress.num_updates = 6
    with pytest.raises(DiskFullError, match=r"update-00000006: no space left on the disk .\d+ bytes needed, "):
        save_checkpoint(RunFolder(tmp_path), learner)
    monkeypatch.undo()
    resumed = toy_learner(seed=1)
    resume_from_checkpoint(RunFolder(tmp_path), resumed)
    assert resumed.progress.num_updates == 5


def saved(run: Path) -> Path:
    learner = toy_learner()
    update(learner)
    save_checkpoint(RunFolder(run), learner)
    folder = RunFolder(run).newest_checkpoint()
    assert folder is not None
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "noise"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, name, damage):
    path = saved(tmp_path) / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "noise": bytes(range(256)) * 9}[damage])
    with pytest.raises(ValueError, match=f"{path.parent}: not a checkpoint that this run can go on from") as caught:
        resume_from_checkpoint(RunFolder(tmp_path), toy_learner())
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="size mismatch"):
        resume_from_checkpoint(RunFolder(tmp_path), toy_learner(width=5))


class Trap:
    def __reduce__(self) -> tuple:
        return Path.write_text, (Path("sprung"), "by unpickling")


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path)
    torch.save({"optimizer": Trap()}, folder / "state.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        resume_from_checkpoint(RunFolder(tmp_path), toy_learner())
    (folder / "state.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="not a checkpoint"):
        resume_from_checkpoint(RunFolder(tmp_path), toy_learner())
    assert not (tmp_path / "sprung").exists()


def test_every_generator_goes_on_where_it_was():
    def draw() -> tuple[float, float, float, float]:
        return random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(()))

    draw()
    state = random_state()
    expected = [draw() for _ in range(3)]
    restore_random_state(state)
    assert [draw() for _ in range(3)] == expected


@pytest.mark.parametrize("part", ["optimizer", "schedule", "progress", "random"])
@pytest.mark.parametrize("value", [None, 3, "text", [], {}, torch.zeros(2)], ids=repr)
def test_a_state_with_a_part_of_another_kind_is_refused_in_one_line(part, value, tmp_path):
    learner = toy_learner()
    update(learner)
    save_checkpoint(RunFolder(tmp_path), learner)
    folder = RunFolder(tmp_path).newest_checkpoint()
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save(state | {part: value}, folder / "state.pt")
    with pytest.raises(
        ValueError, match=r"update-00000001: not a checkpoint .*; remove it to train from the start$"
    ) as error:
        resume_from_checkpoint(RunFolder(tmp_path), toy_learner())
    assert "\n" not in str(error.value)


def test_files_of_others_beside_checkpoints_are_left_alone(tmp_path):
    folder = tmp_path / "checkpoints"
    others = [".DS_Store", "note.txt", "update-00000099", "update-00000003.partial", "update-00000001 copy/state.pt"]
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    learner = toy_learner()
    for step in (5, 6):
        learner.progress.num_updates = learner.schedule.last_epoch = step
        save_checkpoint(RunFolder(tmp_path), learner)
        resume_from_checkpoint(RunFolder(tmp_path), toy_learner())
    assert RunFolder(tmp_path).num_updates_done() == 6
    assert all((folder / name).read_text() == "mine" for name in others)
    assert not (folder / "update-00000005").exists()


def test_an_older_checkpoint_that_a_kill_left_behind_is_removed_on_resuming(tmp_path):
    learner, run = toy_learner(), RunFolder(tmp_path)
    learner.progress.num_updates = learner.schedule.last_epoch = 6
    save_checkpoint(run, learner)
    run.checkpoint(4).mkdir()
    resume_from_checkpoint(run, toy_learner())
    assert [path.name for path in run.checkpoints.iterdir()] == ["update-00000006"]


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_of_the_new_one(small_disk):
    learner, run = toy_learner(width=4000), RunFolder(small_disk)
    assert num_checkpoint_bytes(learner) > 100_000
    save_checkpoint(run, learner)
    learner.progress.num_updates = 1
    (small_disk / "filling").write_bytes(bytes(50_000))
    with pytest.raises(DiskFullError, match=r"update-00000001: no space left on the disk \(\S+ kB needed, "):
        save_checkpoint(run, learner)
    assert [path.name for path in run.checkpoints.iterdir()] == ["update-00000000"]
    resume_from_checkpoint(run, toy_learner(width=4000))
    with pytest.raises(DiskFullError, match=r"training \(two checkpoints and the model\) needs about \S+ kB and "):
        require_space_for_run(run, learner)


def test_a_checkpoint_is_about_as_large_as_estimated(tmp_path):
    learner = toy_learner(width=4000)
    update(learner)
    save_checkpoint(RunFolder(tmp_path), learner)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size == pytest.approx(num_checkpoint_bytes(learner), rel=0.2)


def changed(state: dict, path: str, value: object) -> None:
    *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    for key in parents:
        state = state[key]
    assert last in state or isinstance(last, int)
    state[last] = value


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("progress/num_updates", 3, "state.pt is of update 3"),
        ("progress/num_updates", "1", "num_updates of Progress must be .* got '1'"),
        ("progress/epoch/losses", {"loss": None}, "losses of Totals must be"),
        ("progress/window", None, "expected the fields of Totals, got NoneType"),
        ("schedule/last_epoch", 7, "the schedule stands at update 7 instead of 1"),
        ("optimizer/param_groups/0/lr", float("nan"), "the learning rate is nan"),
        ("optimizer/param_groups/0/betas", (0.0, 0.5), "the optimiser has other options than the config"),
        ("optimizer/state/0/exp_avg", torch.zeros(1), r"exp_avg of 0.weight is \(1,\) instead of \(3, 4\)"),
        ("optimizer/state/0/exp_avg_sq", torch.full((3, 4), torch.inf), "exp_avg_sq of 0.weight is infinite or not"),
    ],
)
def test_a_state_that_no_run_can_have_written_is_refused_by_its_part(tmp_path, path, value, complaint):
    folder = saved(tmp_path)
    state = torch.load(folder / "state.pt", weights_only=True)
    changed(state, path, value)
    torch.save(state, folder / "state.pt")
    with pytest.raises(ValueError, match=f"not a checkpoint that this run can go on from: .*{complaint}") as caught:
        resume_from_checkpoint(RunFolder(tmp_path), toy_learner())
    assert "\n" not in str(caught.value)


def test_weights_of_a_checkpoint_that_are_not_numbers_are_refused_by_name(tmp_path):
    learner = toy_learner()
    with torch.no_grad():
        learner.model[0].bias[1] = torch.nan
    save_checkpoint(RunFolder(tmp_path), learner)
    with pytest.raises(ValueError, match=r"0\.bias is infinite or not a number; remove it to train from the start"):
        resume_from_checkpoint(RunFolder(tmp_path), toy_learner())


def test_an_older_checkpoint_that_was_moved_to_another_disk_stays_there(tmp_path):
    run, moved = RunFolder(tmp_path / "run"), tmp_path / "moved"
    learner = toy_learner()
    update(learner)
    save_checkpoint(run, learner)
    run.checkpoint(1).rename(moved)
    run.checkpoint(1).symlink_to(moved)
    resume_from_checkpoint(run, learner)
    update(learner)
    save_checkpoint(run, learner)
    assert list(run.checkpoints.iterdir()) == [run.checkpoint(2)]
    assert len(list(moved.iterdir())) == 2


def test_checkpoints_may_lie_on_another_disk_behind_a_link(tmp_path, small_disk):
    run, learner = RunFolder(tmp_path / "run"), toy_learner()
    run.path.mkdir()
    run.checkpoints.symlink_to(small_disk)
    for _ in range(2):
        update(learner)
        save_checkpoint(run, learner)
    assert [path.name for path in small_disk.iterdir()] == ["update-00000002"]
    resumed = toy_learner(seed=1)
    resume_from_checkpoint(run, resumed)
    assert resumed.progress.num_updates == 2
