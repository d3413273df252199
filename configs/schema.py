"""The whole configuration as one dataclass tree: every option, its unit and its default."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from omegaconf import MISSING

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """Refuse an impossible value. Raises: ValueError naming the option, what was expected and what was got."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def refuse_unused(section: Any, prefix: str, name: str, is_used: bool, where: str) -> None:
    """Refuse an option that was changed from its default and has no effect. Raises: ValueError naming it."""
    value, default = getattr(section, name), next(each.default for each in fields(section) if each.name == name)
    if not is_used and value != default:
        raise ValueError(f"{prefix}.{name}={value!r} has no effect {where}; leave it out")


def require_folder_name(name: str, value: str) -> None:
    is_plain = value == MISSING or FOLDER_NAME.fullmatch(value) is not None
    require(is_plain, name, "a plain folder name, without / and spaces", value)


class FrameOrder(Enum):
    TIME = "time"
    SHUFFLED = "shuffled"  # the control experiment: the same frames with their order destroyed


class HeadKind(Enum):
    """The ladder: each rung is the one before it with one thing added; FLAT is the last addition alone."""

    INDEPENDENT = "independent"
    CONSTRAINED = "constrained"
    JOINT = "joint"
    PAIRWISE = "pairwise"
    RESIDUAL = "residual"
    FLAT = "flat"


class Pooling(Enum):
    """What of a clip's tokens a head reads."""

    CLASS_TOKEN = "class_token"  # where the backbone has one
    MEAN = "mean"  # over all patches
    QUERIES = "queries"  # one learned query an attribute attends to all tokens; a flat head has one


class StemKind(Enum):
    PATCH = "patch"  # the paper's: one linear map of each patch
    CONV = "conv"  # strided convolutions, for small networks that start from nothing


class OptimizerKind(Enum):
    ADAM = "adam"
    ADAMW = "adamw"


class Precision(Enum):
    FP32 = "fp32"
    BF16 = "bf16"


class Dives(Enum):
    DIVING48 = "diving48"
    WORLD_AQUATICS = "world-aquatics"


class DamagedClips(Enum):
    STOP = "stop"
    SKIP = "skip"  # report each once, and go on without it


@dataclass
class DataConfig:
    root: str = MISSING  # a folder in Diving48's layout, or a CSV of clips: see datasets/diving48.py and clips.py
    columns: dict[str, str] = field(default_factory=dict)  # of a CSV with other names: see datasets/clips.py
    dives: Dives | None = None  # that a CSV's labels count in; None takes those that it holds
    val_fraction: float = 0.15  # share of the training clips to hold out, as whole sources
    train_fraction: float = 1.0  # share of what is left that training uses; a smaller one is part of every larger one
    unseen_dives: list[str] = field(default_factory=list)  # numbers of which training and validation see no clip, but
    num_shots: int = 0  # up to this many training clips of each, of those that `train_fraction` leaves
    num_workers: int = 2
    cache: bool = True  # read clips from the cache that tools/prepare.py made, where it suits; else from the videos
    damaged: DamagedClips = DamagedClips.STOP  # what to do about a clip that cannot be read

    def __post_init__(self) -> None:
        require(0 < self.val_fraction < 1, "data.val_fraction", "between 0 and 1", self.val_fraction)
        require(0 < self.train_fraction <= 1, "data.train_fraction", "in (0, 1]", self.train_fraction)
        require(self.num_shots >= 0, "data.num_shots", ">= 0", self.num_shots)
        expected = "0 without data.unseen_dives"
        require(not self.num_shots or bool(self.unseen_dives), "data.num_shots", expected, self.num_shots)
        require(self.num_workers >= 0, "data.num_workers", ">= 0", self.num_workers)


@dataclass
class ClipConfig:
    num_frames: int = 24
    image_size: int = 224  # height and width of what the backbone sees, pixels
    order: FrameOrder = FrameOrder.TIME
    crop_scale_min: float = 0.7  # smallest share of the largest square that a random training crop keeps
    flip: bool = True
    color_jitter: float = 0.2
    rand_augment_magnitude: int = 0  # of two random operations on a training clip, 1 to 30; 0 for none
    erasing_probability: float = 0.0  # that a random box is erased from all frames of a training clip

    def __post_init__(self) -> None:
        require(self.num_frames > 0, "clip.num_frames", "> 0", self.num_frames)
        require(self.image_size > 0, "clip.image_size", "> 0 pixels", self.image_size)
        require(0 < self.crop_scale_min <= 1, "clip.crop_scale_min", "in (0, 1]", self.crop_scale_min)
        require(self.color_jitter >= 0, "clip.color_jitter", ">= 0", self.color_jitter)
        magnitude, probability = self.rand_augment_magnitude, self.erasing_probability
        require(0 <= magnitude <= 30, "clip.rand_augment_magnitude", "between 0 and 30", magnitude)
        require(0 <= probability <= 1, "clip.erasing_probability", "in [0, 1]", probability)


@dataclass
class BackboneConfig:
    """Sizes of a TimeSformer. The frame count and picture size come from `clip`, so that they cannot disagree."""

    stem: StemKind = StemKind.PATCH
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    weights: str | None = None  # "kinematics" (ships with the package), or what `read_source` reads; None: from nothing
    num_frozen_blocks: int = 0  # the embeddings and this many blocks keep the weights they start from
    num_checkpointed_blocks: int = 0  # activation checkpointing of this many blocks after those: less memory, more time

    def __post_init__(self) -> None:
        require(self.patch_size > 0, "backbone.patch_size", "> 0 pixels", self.patch_size)
        require(self.depth > 0, "backbone.depth", "> 0", self.depth)
        if self.stem is StemKind.CONV:
            is_power = self.patch_size >= 4 and self.patch_size & (self.patch_size - 1) == 0
            require(is_power, "backbone.patch_size", "4, 8, 16, ... for backbone.stem=conv", self.patch_size)
            divisor = self.patch_size // 4
            expected = f"a multiple of {divisor} for backbone.stem=conv of {self.patch_size}-pixel patches"
            require(self.embed_dim % divisor == 0, "backbone.embed_dim", expected, self.embed_dim)
        require(
            self.num_heads > 0 and self.embed_dim % self.num_heads == 0,
            "backbone.num_heads",
            f"a divisor of backbone.embed_dim={self.embed_dim}",
            self.num_heads,
        )
        require(0 <= self.drop_path_rate < 1, "backbone.drop_path_rate", "in [0, 1)", self.drop_path_rate)
        require(
            0 <= self.num_frozen_blocks <= self.depth,
            "backbone.num_frozen_blocks",
            f"between 0 and backbone.depth={self.depth}",
            self.num_frozen_blocks,
        )
        num_trained = self.depth - self.num_frozen_blocks
        require(
            0 <= self.num_checkpointed_blocks <= num_trained,
            "backbone.num_checkpointed_blocks",
            f"between 0 and the {num_trained} blocks that are trained",
            self.num_checkpointed_blocks,
        )

    def require_whole_patches(self, image_size: int) -> None:
        require(
            image_size % self.patch_size == 0,
            "clip.image_size",
            f"a multiple of backbone.patch_size={self.patch_size}",
            image_size,
        )


@dataclass
class HeadConfig:
    kind: HeadKind = HeadKind.JOINT
    pooling: Pooling = Pooling.CLASS_TOKEN
    auxiliary_weight: float = 0.0  # of four cross-entropies beside the likelihood of JOINT, PAIRWISE and RESIDUAL
    correction_penalty: float = 0.01  # on the mean square of what PAIRWISE and RESIDUAL add to the scores
    uncertainty_weighting: bool = False  # of the four cross-entropies; else they are summed
    ordinal_weight: float = 0.0  # of the earth mover's distance of the two counts beside the cross-entropies
    label_smoothing: float = 0.0  # of every cross-entropy
    logit_adjustment: float = 0.0  # power of the training clips' class prior that logits are adjusted by in training

    def __post_init__(self) -> None:
        for name in ("auxiliary_weight", "correction_penalty", "ordinal_weight", "logit_adjustment"):
            require(getattr(self, name) >= 0, f"head.{name}", ">= 0", getattr(self, name))
        require(0 <= self.label_smoothing < 1, "head.label_smoothing", "in [0, 1)", self.label_smoothing)
        has_likelihood = self.kind in (HeadKind.JOINT, HeadKind.PAIRWISE, HeadKind.RESIDUAL)
        has_cross_entropies = self.kind in (HeadKind.INDEPENDENT, HeadKind.CONSTRAINED) or (
            has_likelihood and self.auxiliary_weight > 0
        )
        has_corrections = self.kind in (HeadKind.PAIRWISE, HeadKind.RESIDUAL)
        where = f"head.kind={self.kind.value}"
        refuse_unused(self, "head", "auxiliary_weight", has_likelihood, f"with {where}")
        refuse_unused(self, "head", "correction_penalty", has_corrections, f"with {where}")
        where += " and head.auxiliary_weight=0" if has_likelihood else ""
        refuse_unused(self, "head", "uncertainty_weighting", has_cross_entropies, f"with {where}")
        refuse_unused(self, "head", "ordinal_weight", has_cross_entropies, f"with {where}")


@dataclass
class OptimConfig:
    """How weights are updated: the part of `train` that training and pretraining share."""

    num_epochs: int = 3
    batch_size: int = 2  # clips in one forward pass
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: float = 1e-4  # at the peak, after the warm-up
    head_learning_rate_factor: float = 1.0  # the head's learning rate over the backbone's
    layer_decay: float = 1.0  # a block's learning rate over that of the layer above it; 1 trains all layers alike
    weight_decay: float = 0.05
    warmup_fraction: float = 0.05  # share of all updates
    max_grad_norm: float = 1.0
    log_every: int = 10  # updates between TensorBoard points

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "log_every"):
            require(getattr(self, name) > 0, f"train.{name}", "> 0", getattr(self, name))
        require(self.learning_rate > 0, "train.learning_rate", "> 0", self.learning_rate)
        require(
            self.head_learning_rate_factor > 0, "train.head_learning_rate_factor", "> 0", self.head_learning_rate_factor
        )
        require(0 < self.layer_decay <= 1, "train.layer_decay", "in (0, 1]", self.layer_decay)
        require(self.weight_decay >= 0, "train.weight_decay", ">= 0", self.weight_decay)
        require(0 <= self.warmup_fraction < 1, "train.warmup_fraction", "in [0, 1)", self.warmup_fraction)
        require(self.max_grad_norm > 0, "train.max_grad_norm", "> 0", self.max_grad_norm)


@dataclass
class TrainConfig(OptimConfig):
    accumulation_steps: int = 1  # forward passes to one update
    class_balanced: bool = False  # draw each dive's clips as often as any other's; else every clip once an epoch
    num_cached_views: int = 0  # of each clip in the feature cache of the frozen blocks; 0: no feature cache
    mixup_alpha: float = 0.0  # blend each clip with another, by a share drawn from Beta(alpha, alpha); 0: never
    cutmix_alpha: float = 0.0  # instead cut a box out of another clip; with both, either is as likely for a batch
    # of the moving average of the weights that is evaluated and kept, reached gradually; 0: the weights themselves
    ema_decay: float = 0.0
    precision: Precision = Precision.FP32
    compile: bool = False  # the backbone, on a GPU
    checkpoint_every: int = 100  # updates between checkpoints; every epoch ends with one too

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("accumulation_steps", "checkpoint_every"):
            require(getattr(self, name) > 0, f"train.{name}", "> 0", getattr(self, name))
        require(self.num_cached_views >= 0, "train.num_cached_views", ">= 0", self.num_cached_views)
        for name in ("mixup_alpha", "cutmix_alpha"):
            alpha = getattr(self, name)
            require(alpha >= 0, f"train.{name}", ">= 0", alpha)
            require(not alpha or self.batch_size > 1, f"train.{name}", "0 with train.batch_size=1", alpha)
            require(not alpha or not self.num_cached_views, f"train.{name}", "0 with train.num_cached_views", alpha)
        require(0 <= self.ema_decay < 1, "train.ema_decay", "in [0, 1)", self.ema_decay)


@dataclass
class TestConfig:
    batch_size: int = 8
    num_temporal_views: int = 1  # clips of evenly shifted frame times, averaged
    num_spatial_views: int = 1  # 1: the centre; 3: left, centre, right

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "test.batch_size", "> 0", self.batch_size)
        require(self.num_temporal_views > 0, "test.num_temporal_views", "> 0", self.num_temporal_views)
        require(self.num_spatial_views in (1, 3), "test.num_spatial_views", "1 or 3", self.num_spatial_views)


@dataclass
class Config:
    """One arm of one experiment; it trains into `runs_dir/name/arm/seed-<seed>/`."""

    name: str = MISSING
    arm: str = MISSING
    seed: int = 0
    runs_dir: str = "runs"
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)

    def __post_init__(self) -> None:
        require_folder_name("name", self.name)
        require_folder_name("arm", self.arm)
        require(self.seed >= 0, "seed", ">= 0", self.seed)
        self.backbone.require_whole_patches(self.clip.image_size)
        if num_cached := self.train.num_cached_views:
            for suits, expected in (
                (self.backbone.num_frozen_blocks > 0, "0 without backbone.num_frozen_blocks"),
                (self.backbone.weights is not None, "0 without backbone.weights"),
                (self.backbone.drop_path_rate == 0, "0 with backbone.drop_path_rate"),
                (self.data.damaged is DamagedClips.STOP, "0 with data.damaged=skip"),
                (self.test.num_temporal_views * self.test.num_spatial_views == 1, "0 with more than one test view"),
            ):
                require(suits, "train.num_cached_views", expected, num_cached)


@dataclass
class PretrainClipConfig:
    """What pretraining shows; all else about a clip follows from its item number and the seed."""

    num_frames: int = 24
    image_size: int = 64  # height and width of what the backbone sees, pixels
    color_jitter: float = 0.2  # each colour's gain differs from 1, and its offset from 0, by up to this and half this

    def __post_init__(self) -> None:
        require(self.num_frames > 0, "clip.num_frames", "> 0", self.num_frames)
        require(self.image_size > 0, "clip.image_size", "> 0 pixels", self.image_size)
        require(0 <= self.color_jitter <= 1, "clip.color_jitter", "in [0, 1]", self.color_jitter)


@dataclass
class PretrainTrainConfig(OptimConfig):
    num_epochs: int = 20
    batch_size: int = 4  # of each process
    learning_rate: float = 1.5e-3
    warmup_fraction: float = 0.03
    log_every: int = 20


@dataclass
class PretrainConfig:
    """Pretraining of a backbone on the kinematics of freshly rendered clips, into `runs_dir/name/`."""

    name: str = MISSING
    seed: int = 0
    runs_dir: str = "runs"
    clips_per_epoch: int = 2000  # an epoch is only a report and a checkpoint: no clip comes twice
    num_easy_clips: int = 0  # over these first clips, the rendering's difficulty rises from 0 to 1
    num_workers: int = 1  # of each process
    clip: PretrainClipConfig = field(default_factory=PretrainClipConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    train: PretrainTrainConfig = field(default_factory=PretrainTrainConfig)

    def __post_init__(self) -> None:
        require_folder_name("name", self.name)
        require(self.seed >= 0, "seed", ">= 0", self.seed)
        enough = f"at least train.batch_size={self.train.batch_size}"
        require(self.clips_per_epoch >= self.train.batch_size, "clips_per_epoch", enough, self.clips_per_epoch)
        require(self.num_easy_clips >= 0, "num_easy_clips", ">= 0", self.num_easy_clips)
        require(self.num_workers >= 0, "num_workers", ">= 0", self.num_workers)
        self.backbone.require_whole_patches(self.clip.image_size)


@dataclass
class CurveConfig:
    """Arms along an axis: `series` names one arm for each of `values`."""

    axis: str = MISSING  # what the values are, such as "training clips, %"
    values: list[float] = MISSING
    series: dict[str, list[str]] = MISSING
    unseen_alone: bool = False  # draw the accuracy on clips of `data.unseen_dives` instead of on all

    def __post_init__(self) -> None:
        for name, arms in self.series.items():
            require(len(arms) == len(self.values), f"curve.series.{name}", f"{len(self.values)} arms", arms)


@dataclass
class ExperimentConfig:
    """Several arms, each trained and tested with several seeds, and which of them are compared."""

    question: str = MISSING
    config: str = MISSING  # the file of options that all arms share
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    # arm -> the options that differ, `key=value` separated by spaces, or EXPERIMENT/ARM for one that is trained there
    arms: dict[str, str] = MISSING
    pairs: list[list[str]] = field(default_factory=list)  # [first, second], whose difference is second - first
    common: str = ""  # options that all arms have beside those of `config`
    # arm that did not see some dives -> EXPERIMENT/ARM that did not see more, whose validation clips of those beyond
    # choose how much of the seen dives to give up: see engine/evidence/unseen.py
    stacking: dict[str, str] = field(default_factory=dict)
    curve: CurveConfig | None = None
    split: str = "test"  # that the arms are scored on; val to choose a setting

    def __post_init__(self) -> None:
        require(len(self.seeds) > 0, "seeds", "one or more", self.seeds)
        require(self.split in ("val", "test"), "split", "val or test", self.split)
        for arm in self.arms:
            require_folder_name("arms", arm)
        for pair in self.pairs:
            require(len(pair) == 2 and set(pair) <= set(self.arms), "pairs", "two names of arms each", pair)
        require(set(self.stacking) <= set(self.arms), "stacking", "names of arms", list(self.stacking))
        for name, arms in (self.curve.series if self.curve else {}).items():
            require(set(arms) <= set(self.arms), f"curve.series.{name}", "names of arms", arms)
