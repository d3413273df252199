"""The whole configuration as one dataclass tree: every option, its unit and its default."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from diveparse.configs.backbone import BackboneConfig, BackboneKind
from diveparse.configs.bounds import check_numbers, non_negative, positive, refuse_unused, require, within

MAX_SEED = 2**32 - 1  # of NumPy's own generator
NUM_FRAMES, IMAGE_SIZE = 24, 224  # of the clips that a TimeSformer sees, unless a config says otherwise
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


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


class OptimizerKind(Enum):
    ADAM = "adam"
    ADAMW = "adamw"


class Precision(Enum):
    FP32 = "fp32"
    BF16 = "bf16"


class Sharding(Enum):
    NONE = "none"  # every process holds the whole model
    FULL = "full"  # weights, gradients and optimiser states lie in parts on all of them


class Dives(Enum):
    DIVING48 = "diving48"
    WORLD_AQUATICS = "world-aquatics"
    FINEDIVING = "finediving"


class DamagedClips(Enum):
    STOP = "stop"
    SKIP = "skip"  # report each once, and go on without it


class LabelNoise(Enum):
    """Which dive takes the place of the right one."""

    NEIGHBOUR = "neighbour"  # one that has the most attribute values in common with it
    ANY = "any"


@dataclass
class DataConfig:
    root: str = MISSING  # a folder in Diving48's layout, or a CSV of clips: see datasets/diving48.py and clips.py
    columns: dict[str, str] = field(default_factory=dict)  # of a CSV with other names: see datasets/clips.py
    dives: Dives | None = None  # that a CSV's labels count in; None takes those that it holds
    val_fraction: float = within(0.15, "(0, 1)")  # share of the training clips to hold out, as whole sources
    train_fraction: float = within(
        1.0, "(0, 1]"
    )  # share of what is left that training uses; a smaller one is part of every larger one
    unseen_dives: list[str] = field(default_factory=list)  # numbers of which training and validation see no clip, but
    num_shots: int = non_negative(
        0, 10**6
    )  # up to this many training clips of each, of those that `train_fraction` leaves
    label_noise: float = within(0.0, "[0, 1)")  # share of the training clips that get a wrong label, chosen by the seed
    label_noise_kind: LabelNoise = LabelNoise.NEIGHBOUR
    num_workers: int = non_negative(2, 1024)
    cache: bool = True  # read clips from the cache that `diveparse prepare` made, where it suits; else from the videos
    damaged: DamagedClips = DamagedClips.STOP  # what to do about a clip that cannot be read

    def __post_init__(self) -> None:
        check_numbers(self, "data.")
        expected = "0 without data.unseen_dives"
        require(not self.num_shots or bool(self.unseen_dives), "data.num_shots", expected, self.num_shots)
        refuse_unused(self, "data", "label_noise_kind", self.label_noise > 0, "without data.label_noise")


@dataclass
class ClipConfig:
    # 0: those of the encoder in backbone.weights; of a TimeSformer NUM_FRAMES and IMAGE_SIZE
    num_frames: int = non_negative(0, 4096)
    image_size: int = non_negative(0, 8192)  # height and width of what the backbone sees, pixels
    order: FrameOrder = FrameOrder.TIME
    only_frame: int | None = None  # a control experiment: this one, from 0, in the place of every frame
    crop_scale_min: float = within(
        0.7, "[0.01, 1]"
    )  # smallest share of the largest square that a random training crop keeps; less enlarges pictures without end
    flip: bool = True
    color_jitter: float = non_negative(0.2, 100)
    rand_augment_magnitude: int = within(
        0, "[0, 30]"
    )  # of two random operations on a training clip, 1 to 30; 0 for none
    erasing_probability: float = within(0.0, "[0, 1]")  # that a random box is erased from all frames of a training clip

    def __post_init__(self) -> None:
        check_numbers(self, "clip.")


@dataclass
class HeadConfig:
    kind: HeadKind = HeadKind.JOINT
    pooling: Pooling = Pooling.CLASS_TOKEN
    auxiliary_weight: float = non_negative(
        0.0, 1e6
    )  # of four cross-entropies beside the likelihood of JOINT, PAIRWISE and RESIDUAL
    correction_penalty: float = non_negative(
        0.01, 1e6
    )  # on the mean square of what PAIRWISE and RESIDUAL add to the scores
    uncertainty_weighting: bool = False  # of the four cross-entropies; else they are summed
    ordinal_weight: float = non_negative(
        0.0, 1e6
    )  # of the earth mover's distance of the two counts beside the cross-entropies
    label_smoothing: float = within(0.0, "[0, 1)")  # of every cross-entropy
    logit_adjustment: float = non_negative(
        0.0, 100
    )  # power of the training clips' class prior that logits are adjusted by in training

    def __post_init__(self) -> None:
        check_numbers(self, "head.")
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

    num_epochs: int = positive(3, 10**6)
    batch_size: int = positive(2, 10**5)  # clips in one forward pass, of all processes together
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: float = positive(1e-4, 100)  # at the peak, after the warm-up
    head_learning_rate_factor: float = positive(1.0, 1e6)  # the head's learning rate over the backbone's
    layer_decay: float = within(
        1.0, "(0, 1]"
    )  # a block's learning rate over that of the layer above it; 1 trains all layers alike
    weight_decay: float = non_negative(0.05, 100)
    warmup_fraction: float = within(0.05, "[0, 1)")  # share of all updates
    max_grad_norm: float | None = positive(1.0, 1e9)  # that a longer gradient is clipped to; null: none is clipped
    log_every: int = positive(10, 10**9)  # updates between TensorBoard points

    def __post_init__(self) -> None:
        check_numbers(self, "train.")


@dataclass
class TrainConfig(OptimConfig):
    accumulation_steps: int = positive(1, 10**5)  # forward passes to one update
    class_balanced: bool = False  # draw each dive's clips as often as any other's; else every clip once an epoch
    num_cached_views: int = non_negative(
        0, 1024
    )  # of each clip in the feature cache of the frozen blocks; 0: no feature cache
    mixup_alpha: float = non_negative(
        0.0, 1e3
    )  # blend each clip with another, by a share drawn from Beta(alpha, alpha); 0: never
    cutmix_alpha: float = non_negative(
        0.0, 1e3
    )  # instead cut a box out of another clip; with both, either is as likely for a batch
    # of the moving average of the weights that is evaluated and kept, reached gradually; 0: the weights themselves
    ema_decay: float = within(0.0, "[0, 1)")
    precision: Precision = Precision.FP32
    compile: bool = False  # the backbone, on a GPU
    shard: Sharding = Sharding.NONE  # how processes that `torchrun` started hold the model
    checkpoint_every: int = positive(100, 10**9)  # updates between checkpoints; every epoch ends with one too

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mixup_alpha", "cutmix_alpha"):
            alpha = getattr(self, name)
            require(not alpha or self.batch_size > 1, f"train.{name}", "0 with train.batch_size=1", alpha)
            require(not alpha or not self.num_cached_views, f"train.{name}", "0 with train.num_cached_views", alpha)
        if self.shard is Sharding.FULL:
            require(
                not self.num_cached_views, "train.num_cached_views", "0 with train.shard=full", self.num_cached_views
            )
            require(not self.compile, "train.compile", "false with train.shard=full", self.compile)


@dataclass
class TestConfig:
    batch_size: int = positive(8, 10**5)
    num_temporal_views: int = positive(1, 1024)  # clips of evenly shifted frame times, averaged
    num_spatial_views: int = 1  # 1: the centre; 3: left, centre, right

    def __post_init__(self) -> None:
        check_numbers(self, "test.")
        require(self.num_spatial_views in (1, 3), "test.num_spatial_views", "1 or 3", self.num_spatial_views)


@dataclass
class Config:
    """One arm of one experiment; it trains into `runs_dir/name/arm/seed-<seed>/`."""

    name: str = MISSING
    arm: str = MISSING
    seed: int = non_negative(0, MAX_SEED)
    runs_dir: str = "runs"
    pictures: bool = True  # clips, class counts and confusions in TensorBoard, beside its curves
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)

    def __post_init__(self) -> None:
        require_folder_name("name", self.name)
        require_folder_name("arm", self.arm)
        check_numbers(self)
        if self.backbone.kind is BackboneKind.TIMESFORMER:
            self.clip.num_frames, self.clip.image_size = (
                self.clip.num_frames or NUM_FRAMES,
                self.clip.image_size or IMAGE_SIZE,
            )
            self.backbone.require_whole_patches(self.clip.image_size)
        if self.train.shard is Sharding.FULL:
            weights = self.head.uncertainty_weighting
            require(not weights, "head.uncertainty_weighting", "false with train.shard=full", weights)
        num_frames, only_frame = self.clip.num_frames or math.inf, self.clip.only_frame  # 0: the encoder's own number
        is_one = only_frame is None or 0 <= only_frame < num_frames
        require(is_one, "clip.only_frame", f"0 or more, and below clip.num_frames={num_frames}", only_frame)
        if num_cached := self.train.num_cached_views:
            for suits, expected in (
                (self.backbone.num_frozen_blocks > 0, "0 without backbone.num_frozen_blocks"),
                (self.backbone.weights is not None, "0 without backbone.weights"),
                (self.backbone.drop_path_rate == 0, "0 with backbone.drop_path_rate"),
                (self.data.damaged is DamagedClips.STOP, "0 with data.damaged=skip"),
                (
                    self.test.num_temporal_views * self.test.num_spatial_views == 1,
                    "0 with more than one test view (the feature cache holds one)",
                ),
            ):
                require(suits, "train.num_cached_views", expected, num_cached)


@dataclass
class PretrainClipConfig:
    """What pretraining shows; all else about a clip follows from its item number and the seed."""

    num_frames: int = positive(24, 4096)
    image_size: int = positive(64, 8192)  # height and width of what the backbone sees, pixels
    color_jitter: float = within(
        0.2, "[0, 1]"
    )  # each colour's gain differs from 1, and its offset from 0, by up to this and half this

    def __post_init__(self) -> None:
        check_numbers(self, "clip.")


@dataclass
class PretrainTrainConfig(OptimConfig):
    num_epochs: int = positive(20, 10**6)
    batch_size: int = positive(8, 10**5)
    learning_rate: float = positive(1.5e-3, 100)
    warmup_fraction: float = within(0.03, "[0, 1)")
    log_every: int = positive(20, 10**9)


@dataclass
class PretrainConfig:
    """Pretraining of a backbone on the kinematics of freshly rendered clips, into `runs_dir/name/`."""

    name: str = MISSING
    seed: int = non_negative(0, MAX_SEED)
    runs_dir: str = "runs"
    clips_per_epoch: int = positive(2000, 10**9)  # an epoch is only a report and a checkpoint: no clip comes twice
    num_easy_clips: int = non_negative(
        0, 10**12
    )  # over these first clips, the rendering's difficulty rises from 0 to 1
    num_workers: int = non_negative(1, 1024)  # of each process
    clip: PretrainClipConfig = field(default_factory=PretrainClipConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    train: PretrainTrainConfig = field(default_factory=PretrainTrainConfig)

    def __post_init__(self) -> None:
        require_folder_name("name", self.name)
        check_numbers(self)
        enough = f"at least train.batch_size={self.train.batch_size}"
        kind = self.backbone.kind
        require(kind is BackboneKind.TIMESFORMER, "backbone.kind", "timesformer for pretraining", kind.value)
        require(self.clips_per_epoch >= self.train.batch_size, "clips_per_epoch", enough, self.clips_per_epoch)
        self.backbone.require_whole_patches(self.clip.image_size)


@dataclass
class CurveConfig:
    """Arms along an axis: `series` names one arm for each of `values`."""

    axis: str = MISSING  # what the values are, such as "training clips, %"
    values: list[float] = MISSING
    series: dict[str, list[str]] = MISSING
    unseen_alone: bool = False  # draw the accuracy on clips of `data.unseen_dives` instead of on all

    def __post_init__(self) -> None:
        for value in self.values:
            require(math.isfinite(value), "curve.values", "finite", value)
        for name, arms in self.series.items():
            require(len(arms) == len(self.values), f"curve.series.{name}", f"{len(self.values)} arms", arms)


@dataclass
class ExperimentConfig:
    """Several arms, each trained and tested with several seeds, and which of them are compared."""

    question: str = MISSING
    config: str = MISSING  # the file of options that all arms share
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    # arm -> the options that differ, `key=value` separated by spaces, or EXPERIMENT/ARM for one that is trained there;
    # options behind EXPERIMENT/ARM are those of a test, such as data.root: its models are then tested on other data
    arms: dict[str, str] = MISSING
    pairs: list[list[str]] = field(default_factory=list)  # [first, second], whose difference is second - first
    common: str = ""  # options that all arms have beside those of `config`
    # arm that did not see some dives -> other arms, which did not see others: their validation clips of those choose
    # how much of the seen dives to give up, see engine/evidence/unseen_table.py
    stacking: dict[str, list[str]] = field(default_factory=dict)
    curve: CurveConfig | None = None
    # option -> values, of which every arm tries all combinations on validation: see engine/evidence/tuning.py
    grid: dict[str, list[float | None]] = field(default_factory=dict)
    split: str = "test"  # that the arms are scored on; val to choose a setting

    def __post_init__(self) -> None:
        require(len(self.seeds) > 0, "seeds", "one or more", self.seeds)
        for seed in self.seeds:
            require(0 <= seed <= MAX_SEED, "seeds", f"from 0 to {MAX_SEED}", seed)
        require(self.split in ("val", "test"), "split", "val or test", self.split)
        if self.grid:
            require(self.split == "val", "split", "val with a grid", self.split)
            is_alone = not (self.pairs or self.stacking or self.curve)
            require(is_alone, "grid", "without pairs, stacking and curve", list(self.grid))
            for name, values in self.grid.items():
                require(len(values) > 1, f"grid.{name}", "two values or more", values)
        for arm in self.arms:
            require_folder_name("arms", arm)
        for pair in self.pairs:
            require(len(pair) == 2 and set(pair) <= set(self.arms), "pairs", "two names of arms each", pair)
        require(set(self.stacking) <= set(self.arms), "stacking", "names of arms", list(self.stacking))
        for arm, others in self.stacking.items():
            are_others = others and len(set(others)) == len(others) and set(others) <= set(self.arms) - {arm}
            require(bool(are_others), f"stacking.{arm}", "one or more other arms, each once", others)
        for name, arms in (self.curve.series if self.curve else {}).items():
            require(set(arms) <= set(self.arms), f"curve.series.{name}", "names of arms", arms)
