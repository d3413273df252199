"""How far a run is, and the sums behind what it reports. All of it is saved, so that a resumed run reports the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
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

    def add_clips(self, num_clips: int, num_correct: int, num_damaged: int, losses: dict[str, float]) -> None:
        self.num_clips += num_clips
        self.num_correct += num_correct
        self.num_damaged += num_damaged
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss * num_clips

    def add_time(self, wait_s: float, total_s: float) -> None:
        self.wait_s += wait_s
        self.total_s += total_s

    def scalars(self) -> dict[str, float]:
        """By the names that TensorBoard shows: loss, loss_<term>, accuracy, clips_per_second and data_wait_share are
        means, damaged_clips is a count."""
        return {
            **{name: loss / self.num_clips for name, loss in self.losses.items()},
            "accuracy": self.num_correct / self.num_clips,
            "damaged_clips": self.num_damaged,
            "clips_per_second": self.num_clips / self.total_s,
            "data_wait_share": self.wait_s / self.total_s,
        }


@dataclass
class Progress:
    num_updates: int = 0  # done
    window: Totals = field(default_factory=Totals)  # since the last TensorBoard point
    epoch: Totals = field(default_factory=Totals)  # since the epoch began
    best_top1: float = -1.0  # on validation
    best_nll: float = float("inf")  # of that model

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
