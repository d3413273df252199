"""Checkpoints that a kill cannot break.

A checkpoint is a folder `checkpoints/update-00000100/`, or `update-00000100-to-validate/` where SIGTERM came before the
end of an epoch's validation. It holds `model.safetensors`, `state.pt` and, where the weights are averaged,
`average.safetensors`; of a sharded model `shards/` and `state.pt`. It is written under another name and renamed once it
is on the disk, so a folder with that name is always whole. Only the newest is kept.
"""

from __future__ import annotations

import pickle
import random
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diveparse.datasets.storage.atomic import TEMPORARY_SUFFIX, make_folder, sync
from diveparse.datasets.storage.disk import naming_full_disk, require_space
from diveparse.engine import distributed
from diveparse.engine.run import CHECKPOINT_NAME, RunFolder
from diveparse.engine.training import sharding
from diveparse.engine.training.progress import Progress
from diveparse.engine.training.restored import fixed_options, require_sound
from diveparse.models.classifier import DiveClassifier
from diveparse.models.weights.files import MODEL_FILE

WEIGHTS, AVERAGE, STATE = MODEL_FILE, "average.safetensors", "state.pt"
SHARDS = "shards"  # a folder in place of the first two, of a model that is sharded; it holds the optimiser's states too
# what safetensors, torch.load and the load_state_dict of each part raise about files that they cannot use
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    TypeError,
    ValueError,
)


@dataclass
class Learner:
    """Everything that an update changes, apart from the random generators."""

    model: DiveClassifier
    optimizer: Optimizer
    schedule: LRScheduler
    progress: Progress
    loss_of_batch: nn.Module  # the model above, with a loss after it
    average: ModelEmaV3 | None = None  # of the weights, where the config asks for it

    @property
    def kept_model(self) -> DiveClassifier:
        """The model that is validated and saved: the average of the weights, where there is one."""
        return self.model if self.average is None else cast(DiveClassifier, self.average.module)


def save_checkpoint(run: RunFolder, learner: Learner, *, has_to_validate: bool = False) -> None:
    """Write the whole state after `learner.progress.num_updates` updates, then drop what is older.

    All processes come here, and the first one writes. has_to_validate: an epoch's updates are done and its validation
    is not, so that another checkpoint of as many updates will follow.
    Raises: DiskFullError if there is no space; the older checkpoint is then still there.
    """
    random_states = gathered_random_states()
    is_sharded = sharding.is_sharded(learner.model)
    if not distributed.is_first() and not is_sharded:
        return
    folder = run.checkpoint(learner.progress.num_updates, has_to_validate=has_to_validate)
    if folder.is_dir():  # SIGTERM came right after it was written
        return
    partial = folder.with_name(folder.name + TEMPORARY_SUFFIX)
    if distributed.is_first():
        shutil.rmtree(partial, ignore_errors=True)  # of an earlier kill
        make_folder(partial)
    with naming_full_disk(folder, num_checkpoint_bytes(learner)):
        try:
            if is_sharded:
                distributed.wait_for_all()  # for the folder
                sharding.save_shards(partial / SHARDS, _sharded_tensors(learner))
            if distributed.is_first():
                _write_state(partial, learner, random_states)
                partial.rename(folder)
                sync(run.checkpoints)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # frees the space that it took
            raise
    if distributed.is_first():
        _remove_others(run, folder)


def _remove_others(run: RunFolder, folder: Path) -> None:
    for other in run.checkpoints.iterdir():
        # whatever else lies there is not ours
        if other != folder and CHECKPOINT_NAME.fullmatch(other.name.removesuffix(TEMPORARY_SUFFIX)) and other.is_dir():
            if other.is_symlink():  # somebody moved it to another disk, and keeps it there
                other.unlink()
            else:
                shutil.rmtree(other)


def _write_state(folder: Path, learner: Learner, random_states: list[dict[str, Any]]) -> None:
    is_sharded = sharding.is_sharded(learner.model)
    weights = {} if is_sharded else {WEIGHTS: learner.model}
    if learner.average is not None and not is_sharded:
        weights[AVERAGE] = learner.average.module
    for name, model in weights.items():
        save_model(model, str(folder / name))
    optimizer = sharding.options_of(learner.optimizer) if is_sharded else learner.optimizer.state_dict()
    torch.save(
        {
            "optimizer": optimizer,
            "schedule": learner.schedule.state_dict(),
            "progress": learner.progress.state_dict(),
            "random": random_states,
        },
        folder / STATE,
    )
    for path in (*(folder / name for name in weights), folder / STATE, folder):
        sync(path)


def _sharded_tensors(learner: Learner) -> dict[str, Tensor]:
    average = None if learner.average is None else learner.average.module
    return sharding.sharded_tensors(learner.model, learner.optimizer, average)


def num_checkpoint_bytes(learner: Learner) -> int:
    """About the size of a checkpoint: the weights, their average, and the two moments of Adam for each trained one."""
    trained = sum(each.nbytes for each in learner.model.parameters() if each.requires_grad)
    return num_model_bytes(learner) * (1 if learner.average is None else 2) + 2 * trained


def num_model_bytes(learner: Learner) -> int:
    return sum(each.nbytes for each in learner.model.state_dict().values())


def require_space_for_run(run: RunFolder, learner: Learner) -> None:
    """Refuse a training that would fill the disk: it holds two checkpoints while it replaces one, and the best model.

    Raises: DiskFullError.
    """
    num_bytes = 2 * num_checkpoint_bytes(learner) + num_model_bytes(learner)
    present = [path for folder in (run.checkpoints, run.model) for path in folder.rglob("*") if path.is_file()]
    require_space(
        run.path, num_bytes - sum(path.stat().st_size for path in present), "training (two checkpoints and the model)"
    )


def resume_from_checkpoint(run: RunFolder, learner: Learner) -> None:
    """Put every part of `learner`, and the random generators, to where the newest checkpoint, if any, left them.

    A process that the checkpoint does not know, since fewer were at work then, keeps the state that it has.
    Raises: ValueError naming the folder if a file of it is missing, damaged or of another model.
    """
    folder = run.newest_checkpoint()
    if folder is None:
        return
    device = next(learner.model.parameters()).device
    options = fixed_options(learner.optimizer)
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        if sharding.is_sharded(learner.model):
            sharding.load_shards(folder / SHARDS, _sharded_tensors(learner))
            sharding.restore_options(learner.optimizer, state["optimizer"])
        else:
            load_model(learner.model, folder / WEIGHTS, device=str(device))
            if learner.average is not None:
                load_model(learner.average.module, folder / AVERAGE, device=str(device))
            learner.optimizer.load_state_dict(state["optimizer"])
        learner.schedule.load_state_dict(state["schedule"])
        learner.progress = Progress.from_state_dict(state["progress"])
        if learner.progress.num_updates != run.num_updates_done():
            raise ValueError(f"{STATE} is of update {learner.progress.num_updates}")
        require_sound(learner.model, learner.optimizer, learner.schedule, learner.progress.num_updates, options)
        restore_own_random_state(state["random"])
    except UNREADABLE as error:
        distributed.raise_if_others_ended(error)
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{folder}: not a checkpoint that this run can go on from: {reason}; remove it to train from the start"
        ) from error
    if distributed.is_first():
        _remove_others(run, folder)  # a kill may have left an older one


def gathered_random_states() -> list[dict[str, Any]]:
    """`random_state` of every process."""
    if distributed.world_size() == 1:
        return [random_state()]
    torch.save(random_state(), buffer := BytesIO())
    states = distributed.gathered_bytes(buffer.getvalue())
    return [torch.load(BytesIO(state), map_location="cpu", weights_only=True) for state in states]


def restore_own_random_state(states: list[dict[str, Any]]) -> None:
    """Raises: ValueError for what is no list of `random_state`, one a process."""
    if not isinstance(states, list) or not states:
        raise ValueError(f"random must be a list of states, one a process, got {str(states)[:60]}")
    if distributed.rank() < len(states):
        restore_random_state(states[distributed.rank()])


def random_state() -> dict[str, Any]:
    """The state of every generator that model code may draw from, in types that load without unpickling code."""
    algorithm, keys, *position = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(np.asarray(keys).astype(np.int64)), *position),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of this process's own
    }


def restore_random_state(state: dict[str, Any]) -> None:
    algorithm, keys, *position = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *position))
    torch.set_rng_state(state["torch"])
    for own in state["cuda"] if torch.cuda.is_available() else []:
        torch.cuda.set_rng_state(own)
