"""The card of an exported model: what it is, on what it was trained and tested, and what it is not for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from diveparse.configs import Config, HeadKind, load_config
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.datasets.records import is_rendered
from diveparse.engine.evidence.runs import Run, load_run
from diveparse.engine.evidence.statistics import accuracy_over_sources
from diveparse.engine.run import RunFolder
from diveparse.models.classifier import DiveClassifier

LICENCE = "apache-2.0"
RENDERED = (
    "**The dives are rendered**: the project draws them itself. They are not Diving48, no number here is a Diving48 "
    "number, and nothing is known about real videos."
)
TABLE: dict[str, Any] = {"tablefmt": "github", "disable_numparse": True}
USE_IN_TRANSFORMERS = """\
```python
from transformers import pipeline  # needs av and torchcodec

pipeline("video-classification", model="this folder, or its id on the hub")("dive.mp4", top_k=5)
```

No code of diveparse is needed. The labels are dive numbers, and the softmax of the logits is calibrated. A video must
show one dive and nothing else. `transformers` takes the first frame of each of {num_frames} equal parts of the video,
diveparse the middle one, and each resizes in its own way, so that their answers about a file differ a little. For the
same clip they are the same. `diveparse predict` reads this folder too."""
USE_IN_DIVEPARSE = """\
```
$ diveparse predict FOLDER dive.mp4
```

The format is that of diveparse: `transformers` has none for this model ({reasons}). `DiveClassifier.load` reads it, and
its temperature calibrates the probabilities."""
LIMITS = """\
- It names the dive of every clip with one of its {num_dives} numbers, also where the clip shows another dive or none.
- It neither scores an execution nor decides a result, and must not be used for either.
- It reads how a body moves, not who it is. It was not tested for differences between groups of divers.
- Another camera, venue, height or frame rate than in training can cost accuracy and calibration."""


def model_card(model: DiveClassifier, dive_set: DiveSet, run: Path, *, reasons: Sequence[str]) -> str:
    """The card as Markdown, with the header that the HuggingFace hub reads.

    dive_set: the dives that the exported model answers with. run: a run folder, whose config and test are described, or
    a model folder, of which nothing else is known. reasons: why `transformers` cannot load it; none where it can.
    """
    folder = RunFolder(run)
    config = load_config(folder.config, []) if folder.config.is_file() else None
    tested = load_run(run) if config and folder.evaluation().metrics.is_file() else None
    sections = {
        "Use": _use(model, reasons),
        "Model": _model(model, dive_set),
        "Data and protocol": "\n\n".join(_data(config, tested)),
        "Accuracy": _accuracy(model, dive_set, tested),
        "Calibration": _calibration(model, tested),
        "Intended use and limits": _limits(dive_set),
        "Licence": _licence(config),
    }
    opening = [
        f"# A dive reader for {len(dive_set)} dives",
        "It reads the number of a dive, such as 5253B, off a video of it. Trained with diveparse.",
        *([RENDERED] if _is_rendered(config, tested) else []),
    ]
    parts = [_header(reasons), *opening, *(f"## {name}\n\n{text}" for name, text in sections.items())]
    return "\n\n".join(parts) + "\n"


def _header(reasons: Sequence[str]) -> str:
    about = {
        "license": LICENCE,
        "library_name": "diveparse" if reasons else "transformers",
        "pipeline_tag": "video-classification",
        "tags": ["video-classification", "diving"],
    }
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---"


def _use(model: DiveClassifier, reasons: Sequence[str]) -> str:
    if reasons:
        return USE_IN_DIVEPARSE.format(reasons="; ".join(reasons))
    return USE_IN_TRANSFORMERS.format(num_frames=model.clip_config.num_frames)


def _model(model: DiveClassifier, dive_set: DiveSet) -> str:
    clip, kind = model.clip_config, model.config.head.kind
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    text = (
        f"{type(model.backbone).__name__} with {num_parameters:,} parameters; "
        f"{clip.num_frames} frames of {clip.image_size} × {clip.image_size} pixels; head `{kind.value}`."
    )
    if dive_set != model.dive_set:
        text += (
            f" It was trained with {len(model.dive_set)} dive numbers, and answers here with "
            f"{len(dive_set)}, of which {sum(dive not in model.dive_set for dive in dive_set)} are not among those: it "
            "composes them of attributes that it learnt from others."
        )
    if kind is HeadKind.INDEPENDENT:
        text += (
            " Where its four answers spell no dive that exists, the exported model names the most probable that does."
        )
    return text


def _data(config: Config | None, tested: Run | None) -> Iterator[str]:
    if config is None:
        yield "Not recorded beside the model that was exported."
        return
    root = Path(config.data.root)
    yield (
        f"Trained on `{root.name}` with seed {config.seed}, by the config `{config.name}`, arm `{config.arm}`; "
        "backbone started from "
        + (f"`{config.backbone.weights}`." if config.backbone.weights else "nothing.")
        + " Validation holds out whole source videos; the best model and its temperature are chosen on it."
    )
    if not root.exists() and (tested is None or tested.data_root != config.data.root):
        yield "That data set was not there when this card was written, so that its dives may be rendered ones."
    if tested is not None:
        num_clips = list(filter(None, tested.num_train_clips.values()))
        yield (
            f"{sum(num_clips)} training clips of {len(num_clips)} dives. Tested on the {len(tested.predictions)} test "
            f"clips of `{Path(tested.data_root).name}`, from {tested.predictions['source'].nunique()} source videos; "
            f"{tested.num_views} view(s) of each clip."
        )


def _is_rendered(config: Config | None, tested: Run | None) -> bool:
    if tested is not None and tested.rendered:
        return True
    return config is not None and is_rendered([Path(config.data.root) / "rgb" / "clip", Path(config.data.root)])


def _accuracy(model: DiveClassifier, dive_set: DiveSet, tested: Run | None) -> str:
    if tested is None:
        return "Not tested: no metrics lay beside the model that was exported."
    rows = [["top-1", f"{tested.scores['top1']:.3f}", _interval(tested)]]
    rows += [[name.replace("_", " "), f"{tested.scores[name]:.3f}"] for name in ("top5", "mean_class_accuracy")]
    rows += [[f"attribute: {name}", f"{tested.scores[name]:.3f}"] for name in ATTRIBUTES]
    text = tabulate(rows, headers=["share of clips", "", "95 % over source videos"], **TABLE)
    text += (
        f"\n\n{tested.num_classes_scored} dives have test clips. This is one training; another seed gives other values."
    )
    if tested.rendered:
        text += " Rendered dives, not Diving48."
    if tested.num_views > 1:
        text += f" The test averages {tested.num_views} views; a model that is given one view may do worse."
    if dive_set != model.dive_set:
        text += f" Measured with the {len(model.dive_set)} dives of the training, not with those of this export."
    return text


def _interval(tested: Run) -> str:
    try:
        top1 = accuracy_over_sources(tested.correct[None], tested.predictions["source"].tolist())
    except ValueError:  # one source says nothing about others
        return "none: all clips are of one video"
    return f"{top1.low:.3f} to {top1.high:.3f}"


def _calibration(model: DiveClassifier, tested: Run | None) -> str:
    text = f"Temperature {model.temperature:.4g}, fitted on validation (1 changes nothing)."
    if model.unseen_penalty:
        text += (
            f" A penalty of {model.unseen_penalty:.3g} nats on the dives that had training clips, chosen there too, "
            "lets the model name those that had none."
        )
    if tested is None:
        return text
    before, after = (tested.scores[name] for name in ("ece", "ece_calibrated"))
    return f"{text} On the test split the expected calibration error is {after:.3f} with it and {before:.3f} without."


def _limits(dive_set: DiveSet) -> str:
    purpose = "For research, and for sorting and searching videos of dives, with a person who checks the answers."
    return f"{purpose}\n\n{LIMITS.format(num_dives=len(dive_set))}"


def _licence(config: Config | None) -> str:
    text = "Apache-2.0, as diveparse itself. The data that it was trained on have their own terms"
    weights = config.backbone.weights if config else None
    return text + (f", and so have the weights that it started from, `{weights}`." if weights else ".")
