"""How far a run is, and the sums behind what it reports. All of it is saved, so that a resumed run reports the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from diveparse.datasets.storage.plain import from_plain


@dataclass
class Totals:
    """Sums over the updates since the last report."""

    num_clips: int = 0
    num_correct: int = 0
    num_damaged: int = 0  # clips that could not be read, and that others stood in for
    wait_s: float = 0.0  # spent waiting for data
    total_s: float = 0.0  # spent altogether
    losses: dict[str, float] = field(default_factory=dict)  # each summed over clips
    num_clipped: int = 0  # updates whose gradient was clipped
    grad_norms: list[float] = field(default_factory=list)  # of each update, before clipping

    def add_clips(self, num_clips: int, num_correct: int, num_damaged: int, losses: dict[str, float]) -> None:
        self.num_clips += num_clips
        self.num_correct += num_correct
        self.num_damaged += num_damaged
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss * num_clips

    def add(self, other: Totals) -> None:
        self.num_clips += other.num_clips
        self.num_correct += other.num_correct
        self.num_damaged += other.num_damaged
        self.wait_s += other.wait_s
        self.total_s += other.total_s
        for name, loss in other.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss
        self.num_clipped += other.num_clipped
        self.grad_norms += other.grad_norms

    def add_gradient(self, norm: float, limit: float) -> None:
        """norm: before clipping at `limit`."""
        self.num_clipped += norm > limit
        self.grad_norms.append(norm)

    @property
    def clipped_share(self) -> float:
        return self.num_clipped / len(self.grad_norms)

    @property
    def median_grad_norm(self) -> float:
        return median(self.grad_norms)

    def scalars(self) -> dict[str, float]:
        """By the names that TensorBoard shows: loss, loss_<term>, accuracy, clips_per_second, data_wait_share and
        clipped_share are means, median_grad_norm is of updates, damaged_clips is a count."""
        return {
            **{name: loss / self.num_clips for name, loss in self.losses.items()},
            "accuracy": self.num_correct / self.num_clips,
            "damaged_clips": self.num_damaged,
            "clips_per_second": self.num_clips / self.total_s,
            "data_wait_share": self.wait_s / self.total_s,
            "clipped_share": self.clipped_share,
            "median_grad_norm": self.median_grad_norm,
        }


@dataclass
class Progress:
    num_updates: int = 0  # done
    window: Totals = field(default_factory=Totals)  # since the last TensorBoard point
    epoch: Totals = field(default_factory=Totals)  # since the epoch began
    best_top1: float = -1.0  # on validation
    best_nll: float = float("inf")  # of that model
    clipped_share: list[float] = field(default_factory=list)  # of the updates of each epoch
    median_grad_norm: list[float] = field(default_factory=list)  # likewise

    @property
    def num_epochs(self) -> int:
        """Epochs that have ended, with their validation."""
        return len(self.clipped_share)

    def has_to_validate(self, updates_per_epoch: int) -> bool:
        """Whether the updates of an epoch are done, and its validation is not."""
        return self.num_updates == updates_per_epoch * (self.num_epochs + 1)

    def end_epoch(self) -> None:
        """Keep what is reported of the epoch's gradients, and begin the next one."""
        self.clipped_share.append(self.epoch.clipped_share)
        self.median_grad_norm.append(self.epoch.median_grad_norm)
        self.epoch = Totals()

    def is_best(self, metrics: dict[str, Any]) -> bool:
        """Whether this model beats the best so far, by validation top-1 and then by nll; if so, store its scores."""
        better = (metrics["top1"], -metrics["nll"]) > (self.best_top1, -self.best_nll)
        if better:
            self.best_top1, self.best_nll = metrics["top1"], metrics["nll"]
        return better

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Progress:
        """Raises: ValueError for a state that is not what `state_dict` gave."""
        return from_plain(cls, state)
