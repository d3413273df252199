"""What TensorBoard shows of an evaluation. Every arm uses the same tags, `split/quantity`."""

from __future__ import annotations

from typing import Any

from torch.utils.tensorboard import SummaryWriter

from diveparse.configs import Config, flat_options
from diveparse.datasets.dives import DiveSet
from diveparse.engine.evaluation.metrics import confusion_matrix
from diveparse.engine.evaluation.pictures import confusion_figure
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.engine.events import open_events
from diveparse.engine.run import RunFolder


def log_confusion(
    writer: SummaryWriter, split: str, predictions: Predictions, dive_set: DiveSet, num_updates: int
) -> None:
    """Show which dives the model confuses."""
    matrix = confusion_matrix(predictions.labels, predictions.decoded_labels, len(dive_set))
    figure = confusion_figure(matrix, dive_set.numbers, title=f"{split}, after {num_updates} updates")
    writer.add_figure(f"{split}/confusion", figure, num_updates)


def log_test(
    run: RunFolder,
    cfg: Config,
    metrics: dict[str, Any],
    predictions: Predictions,
    dive_set: DiveSet,
    num_updates: int,
) -> None:
    """Show the confusions and metrics of the test split, the latter also on the HPARAMS page beside the options."""
    with open_events(run.path) as writer:
        if cfg.pictures:
            log_confusion(writer, "test", predictions, dive_set, num_updates)
        scores = {f"test/{name}": value for name, value in flat_metrics(metrics).items()}
        # a run name of "." keeps this record in the run's own folder; the default adds a run named after the time
        hparams = {
            name: str(value) if isinstance(value, dict | list) else value for name, value in flat_options(cfg).items()
        }
        writer.add_hparams(hparams, scores, run_name=".", global_step=num_updates)


def flat_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers of metrics.json by tag. Attributes and groups become accuracy_twist, accuracy_few and so on."""
    attributes = {f"accuracy_{name}": value for name, value in metrics["attribute_accuracy"].items()}
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    members = metrics["groups"] | metrics["by_training"]
    groups = {f"accuracy_{name}": group["accuracy"] for name, group in members.items() if group["num_clips"]}
    return numbers | attributes | groups
