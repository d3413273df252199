import gc
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from matplotlib.figure import Figure
from torch.optim.optimizer import register_optimizer_step_pre_hook

from diveparse.configs import load_config
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.rendered.sets import ClassCounts, RenderSettings, render_data_set
from diveparse.datasets.video.writer import Picture, write_h264, x264_options
from diveparse.engine.benchmark import backbone, loading
from diveparse.engine.evaluation import tensorboard as evaluation_tensorboard
from diveparse.engine.evidence import experiment_page, report
from diveparse.engine.training import tensorboard as training_tensorboard
from diveparse.engine.training.loop import train

ROOT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the repository root first on sys.path, and `import datasets` inside transformers would then
# find our folder instead of its own optional dependency.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

# One thread a process: the tests' models are so small that threads wait for each other longer than they compute.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that the tests start

TINY_LABELS = (0, 5, 20, 41)  # four dives that differ in every attribute
TINY_COLORS = ((200, 20, 20), (20, 200, 20), (20, 20, 200), (150, 150, 150))
SMALL_SET = RenderSettings(num_train_clips=47, num_test_clips=47, height=48, test_counts=ClassCounts.BALANCED.value)
TINY_EXPERIMENT = """\
name: tiny
arm: joint
runs_dir: {runs}
data: {{root: {root}, num_workers: 0, val_fraction: 0.2}}
clip: {{num_frames: 4, image_size: 32}}
backbone: {{embed_dim: 16, depth: 2, num_heads: 2, drop_path_rate: 0.1}}
train: {{num_epochs: 2, batch_size: 4, accumulation_steps: 2, learning_rate: 3.0e-3, checkpoint_every: 2, log_every: 3}}
test: {{batch_size: 5}}
"""


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of 256 kB, or of the size that a test gives by `indirect`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={getattr(request, 'param', '256k')}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted: that takes Linux and its root user")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def pytest_collection_finish() -> None:
    """What was imported by now stays: looking through all of it for garbage takes 0.3 s, whenever a library asks."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _worker_server() -> None:
    """Start the server that every worker process of the tests is forked from with all that any of them imports.

    There is one for the whole test process, and what the first user preloads is all that it ever holds.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["diveparse.engine.training.loop"])
    forkserver.ensure_running()


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Diving48's layout: 40 training and 12 test clips, 64 x 48 pixels, whose colour tells the dive."""
    root = tmp_path_factory.mktemp("diving48")
    (root / "rgb").mkdir()
    (root / "Diving48_vocab.json").write_text(json.dumps([dive.vocab for dive in DIVING48]))
    for split, sources in (("train", range(5)), ("test", range(5, 8))):
        rows = []
        for source in sources:
            for number in range(8 if split == "train" else 4):
                name = f"tinysourc{source:02d}_{number:05d}"
                label = TINY_LABELS[number % 4]
                write_tiny_video(root / "rgb" / f"{name}.mp4", TINY_COLORS[number % 4], seed=100 * source + number)
                rows.append({"vid_name": name, "label": label, "start_frame": 0, "end_frame": 8})
        (root / f"Diving48_V2_{split}.json").write_text(json.dumps(rows))
    return root


def write_tiny_video(path: Path, color: tuple[int, int, int], *, seed: int, num_frames: int = 8) -> None:
    noise = np.random.default_rng(seed)
    pixels = [(np.array(color) + noise.integers(0, 40, size=(48, 64, 3))).astype(np.uint8) for _ in range(num_frames)]
    write_h264(path, map(Picture, pixels), rate_hz=Fraction(25), options=x264_options(23))


ENCODER_SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
TINY_ENCODERS: dict[str, dict[str, Any]] = {  # 4 frames of 48 pixels, 9 patches each; three blocks
    "timesformer": {**ENCODER_SIZES, "num_hidden_layers": 3, "patch_size": 16},
    "videomae": {**ENCODER_SIZES, "num_hidden_layers": 3, "patch_size": 16},
    "vivit": {**ENCODER_SIZES, "num_hidden_layers": 3, "tubelet_size": [2, 16, 16]},
    "vjepa2": {"hidden_size": 32, "num_attention_heads": 2, "mlp_ratio": 2.0, "num_hidden_layers": 3, "patch_size": 16}
    | {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "num_pooler_layers": 1},
    "videoprism_vision_model": {
        **ENCODER_SIZES,
        "num_spatial_layers": 2,
        "num_temporal_layers": 1,
        "tubelet_size": [1, 16, 16],
    },
}


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A small random video classifier of `transformers` of each family: its folder and itself; not to be changed."""
    root = tmp_path_factory.mktemp("encoders")
    return {family: (root / family, write_tiny_encoder(family, root / family)) for family in TINY_ENCODERS}


@pytest.fixture(scope="session")
def make_tiny_encoder() -> Callable[..., Any]:
    """Writes a small random video classifier of a family into a folder, with options of its configuration."""
    return write_tiny_encoder


def write_tiny_encoder(family: str, folder: Path, labels: Sequence[str] = ("a", "b", "c"), **more: Any) -> Any:
    sizes = ("frames_per_clip", "crop_size") if family == "vjepa2" else ("num_frames", "image_size")
    options = {**dict(zip(sizes, (4, 48), strict=True)), **TINY_ENCODERS[family]}
    config = transformers.AutoConfig.for_model(family, id2label=dict(enumerate(labels)), **options | more)
    torch.manual_seed(0)
    model = transformers.AutoModelForVideoClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from a start at which places count for nothing
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


PROCESSORS = {  # as old models have them, of pictures, and as new ones have them, of videos
    "timesformer": transformers.TimesformerVideoProcessor,
    "videomae": transformers.VideoMAEImageProcessor,
    "vivit": transformers.VivitImageProcessor,
    "vjepa2": transformers.VJEPA2VideoProcessor,
    "videoprism_vision_model": transformers.LlavaOnevisionVideoProcessor,
}


def write_tiny_published(family: str, folder: Path, labels: Sequence[str], **more: Any) -> Any:
    """A small random classifier with labels, and its processor: 54 pixels for the short side, of which it cuts 48."""
    model = write_tiny_encoder(family, folder, labels, **more)
    sizes: dict[str, Any] = {"size": {"shortest_edge": 54}, "crop_size": {"height": 48, "width": 48}}
    if family == "videoprism_vision_model":
        sizes |= {"do_center_crop": True, "do_normalize": False}
    PROCESSORS[family](**sizes).save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def tiny_published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A published classifier of Diving48 of each family, with labels in another order; not to be changed."""
    root, labels = tmp_path_factory.mktemp("published"), [str(dive.vocab) for dive in reversed(DIVING48)]
    return {family: (root / family, write_tiny_published(family, root / family, labels)) for family in TINY_ENCODERS}


@pytest.fixture
def tiny_experiment(tmp_path: Path, tiny_root: Path) -> Path:
    """A config file that trains a tiny model on `tiny_root` into `tmp_path/runs`: two epochs of four updates."""
    return write_tiny_experiment(tmp_path, tiny_root)


def write_tiny_experiment(folder: Path, root: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(TINY_EXPERIMENT.format(runs=folder / "runs", root=root))
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """A run of the tiny experiment, one epoch long, that has ended; to be copied, not changed."""
    return train_tiny(tmp_path_factory.mktemp("tiny"), tiny_root, ["train.num_epochs=1"])


@pytest.fixture(scope="session")
def whole_tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """The tiny experiment's run of two epochs, never stopped; to be copied, not changed."""
    return train_tiny(tmp_path_factory.mktemp("whole"), tiny_root, [])


@pytest.fixture(scope="session")
def noiseless_run(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """The same without dropped paths, so that any number of processes comes to it; to be copied, not changed."""
    noiseless = ["backbone.drop_path_rate=0", "pictures=false"]
    return train_tiny(tmp_path_factory.mktemp("noiseless"), tiny_root, noiseless)


def train_tiny(folder: Path, root: Path, overrides: list[str]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        draw_quickly(patch)
        return train(load_config(write_tiny_experiment(folder, root), overrides))


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of rendered dives, a clip of each live dive for training and one for testing: `SMALL_SET`."""
    root = tmp_path_factory.mktemp("rendered")
    for _ in render_data_set(root, SMALL_SET, num_workers=2):
        pass
    return root


@pytest.fixture
def interrupted_in_update() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which a training is interrupted, as by Ctrl-C, in its n-th update there, counted from 1."""
    return interrupt_in_update


@contextmanager
def interrupt_in_update(number: int) -> Iterator[None]:
    num_begun = 0

    def interrupt(*_: object) -> None:
        nonlocal num_begun
        num_begun += 1
        if num_begun == number:
            raise KeyboardInterrupt

    hook = register_optimizer_step_pre_hook(interrupt)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture
def quick_training_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing 48 x 48 cells takes longer than training the tiny model; what is drawn has its own tests."""
    draw_quickly(monkeypatch)


@pytest.fixture
def quick_report_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank figures of a comparison: drawing them takes longer than all else, and what is drawn has its own tests."""
    names = ("top1", "reliability")
    for module, function in ((report, "figures"), (experiment_page, "page_figures")):
        monkeypatch.setattr(module, function, lambda _: ((name, Figure(figsize=(1, 1))) for name in names))


@pytest.fixture
def measured_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks that start no process for each measurement of memory: that takes seconds, mostly of imports."""
    for module in (backbone, loading):
        monkeypatch.setattr(module, "in_a_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(backbone, "give_back_what_is_freed", lambda: None)  # it would stay so in this process
    monkeypatch.setitem(backbone.MATRIX_SIZE, "cpu", 64)


def draw_quickly(patch: pytest.MonkeyPatch) -> None:
    for module, name in ((evaluation_tensorboard, "confusion_figure"), (training_tensorboard, "class_count_figure")):
        patch.setattr(module, name, lambda *_, **__: Figure(figsize=(1, 1)))
