"""A trained model as a graph of plain operations, for any number of clips at once: ONNX, or torch.export."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.datasets.storage.atomic import written_atomically
from diveparse.models.classifier import DiveClassifier
from diveparse.models.onnx_classifier import CLIPS, DIVES, FORMAT, METADATA

OPSET = 20  # of ONNX: the first with GELU as one operation
MAX_ONNX_BYTES = 2**31 - 2**20  # of a file: what protobuf can hold, less the graph
DYNAMIC_SHAPES = {CLIPS: {0: Dim("batch")}}
TOLERANCE = 1e-4  # nats, between this model and what ONNX Runtime computes


class ClassifierGraph(nn.Module):
    """What is exported: clips in, calibrated log-probabilities out, of dives and of each attribute's values."""

    def __init__(self, model: DiveClassifier, dive_set: DiveSet) -> None:
        super().__init__()
        self.model = model
        self.dive_set = dive_set

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        """clips: (batch, time, channel, height, width), normalised.

        Returns: (batch, num_dives), and for each of ATTRIBUTES (batch, num_values).
        """
        scores = self.model.penalised(self.model(clips)).tempered(self.model.temperature)
        marginals = scores.marginals(self.dive_set)
        return (scores.log_probs(self.dive_set), *(marginals[attribute] for attribute in ATTRIBUTES))


def write_onnx(model: DiveClassifier, dive_set: DiveSet, path: Path) -> None:
    """Write an ONNX file, and compare what ONNX Runtime makes of it with the model.

    Raises: ValueError if the packages of the extra `onnx` are missing, or the weights are more than such a file holds.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx imports it, after all else was done
    except ImportError as error:
        raise ValueError(f"{path}: exporting needs the package {error.name}: pip install 'diveparse[onnx]'") from error
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if num_bytes > MAX_ONNX_BYTES:
        raise ValueError(f"{path}: an ONNX file holds at most 2.1 GB, and the weights have {num_bytes / 1e9:.1f} GB")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # else it warns of every operation that it leaves alone
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports its steps
        program = torch.onnx.export(
            exported_program(model, dive_set),
            opset_version=OPSET,
            input_names=[CLIPS],
            output_names=[DIVES, *ATTRIBUTES],
            dynamic_shapes=DYNAMIC_SHAPES,  # again, for the name of the batch
            dynamo=True,
            external_data=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, about(model, dive_set))
    onnx.checker.check_model(proto)
    with written_atomically(path, num_bytes) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        require_same(ClassifierGraph(model, dive_set), onnxruntime.InferenceSession(str(temporary)))


def write_torch_export(model: DiveClassifier, dive_set: DiveSet, path: Path) -> None:
    """Write a file that `torch.export.load` reads, with the metadata of the ONNX file as the extra file METADATA."""
    program = exported_program(model, dive_set)
    with written_atomically(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(about(model, dive_set), indent=2)})


@torch.no_grad()
def exported_program(model: DiveClassifier, dive_set: DiveSet) -> ExportedProgram:
    """The graph of a model on a CPU. Its one input, CLIPS, has a batch of any size."""
    graph = ClassifierGraph(model.eval().cpu(), dive_set).requires_grad_(False)
    return torch.export.export(graph, (random_clips(model, 2),), dynamic_shapes=DYNAMIC_SHAPES, strict=False)


def about(model: DiveClassifier, dive_set: DiveSet) -> dict[str, str]:
    """The metadata: what the outputs mean and how the input is made, each as JSON."""
    clip, backbone = model.clip_config, model.backbone
    content: dict[str, Any] = {
        "format": FORMAT,
        "opset": OPSET,
        "dives": {"name": dive_set.name, "numbers": dive_set.numbers},
        "attributes": dive_set.value_names,
        "outputs": "natural logarithms of probabilities, calibrated",
        "head": model.config.head.kind.value,
        "temperature": model.temperature,  # the outputs have it already
        "preprocessing": {
            "num_frames": clip.num_frames,
            "image_size": clip.image_size,
            "pixel_mean": backbone.clip_format.pixel_mean,
            "pixel_std": backbone.clip_format.pixel_std,
            "frames": "from the middle of each of num_frames equal parts of the dive",
            "pictures": "short side resized to image_size, square in the middle, RGB / 255, less mean, over std",
            "layout": "batch, time, channel, height, width",
        },
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in content.items()}


def random_clips(model: DiveClassifier, num_clips: int) -> Tensor:
    size = model.clip_config.image_size
    shape = (num_clips, model.clip_config.num_frames, NUM_CHANNELS, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def require_same(graph: ClassifierGraph, session: Any) -> None:
    """Raises: RuntimeError if an ONNX Runtime session gives other answers than the model, for one clip or for three."""
    for num_clips in (1, 3):
        clips = random_clips(graph.model, num_clips)
        for name, expected, found in zip(
            (DIVES, *ATTRIBUTES), graph(clips), session.run(None, {CLIPS: clips.numpy()}), strict=True
        ):
            difference = float((torch.from_numpy(found) - expected).abs().max())
            if not difference <= TOLERANCE:
                raise RuntimeError(f"ONNX Runtime gives other {name} than the model: they differ by {difference:.1e}")
