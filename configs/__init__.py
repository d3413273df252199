"""The configuration: a YAML file that holds what differs from the defaults, plus overrides, becomes one `Config`."""

from __future__ import annotations

import logging
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diveparse.configs.backbone import BackboneConfig, BackboneKind, StemKind
from diveparse.configs.schema import (
    ClipConfig,
    Config,
    CurveConfig,
    DamagedClips,
    DataConfig,
    Dives,
    ExperimentConfig,
    FrameOrder,
    HeadConfig,
    HeadKind,
    LabelNoise,
    OptimConfig,
    OptimizerKind,
    Pooling,
    Precision,
    PretrainClipConfig,
    PretrainConfig,
    PretrainTrainConfig,
    Sharding,
    TestConfig,
    TrainConfig,
)

__all__ = [
    "BackboneConfig",
    "BackboneKind",
    "ClipConfig",
    "Config",
    "CurveConfig",
    "DamagedClips",
    "DataConfig",
    "Dives",
    "ExperimentConfig",
    "FrameOrder",
    "HeadConfig",
    "HeadKind",
    "LabelNoise",
    "OptimConfig",
    "OptimizerKind",
    "Pooling",
    "Precision",
    "PretrainClipConfig",
    "PretrainConfig",
    "PretrainTrainConfig",
    "Sharding",
    "StemKind",
    "TestConfig",
    "TrainConfig",
    "build_config",
    "convert_older_options",
    "differing_options",
    "find_config",
    "flat_options",
    "load_config",
    "plain_values",
    "run_folder",
    "save_config",
]


Schema = TypeVar("Schema", Config, PretrainConfig)
AnySchema = TypeVar("AnySchema", Config, PretrainConfig, ExperimentConfig)


logger = logging.getLogger(__name__)

# options of earlier versions -> what they are called now
RENAMED = {
    "head.learned_weights": "head.uncertainty_weighting",
    "backbone.num_recomputed_blocks": "backbone.num_checkpointed_blocks",
    "train.num_stored_views": "train.num_cached_views",
}
# options that earlier versions had -> the value that switched them off
REMOVED = {
    "head.cumulative_counts": False,
    "head.pair_rank": 0,
    "head.factor_dropout": 0.0,
    "head.value_adjustment": 0.0,
}


def load_config(
    path: Path,
    overrides: list[str],
    schema: type[AnySchema] = Config,  # type: ignore[assignment]
) -> AnySchema:
    """Read a YAML file over the defaults, and `key=value` overrides over both. path: as for `find_config`.

    Raises: ValueError, one line that names the file and the option: an unknown key, a wrong type, an impossible value,
    a missing one.
    """
    file = find_config(path, schema)
    try:
        written = OmegaConf.load(file)
        if not OmegaConf.is_dict(written):
            raise ValueError("must hold options as `name: value`")
        options = convert_older_options(cast(dict[str, Any], OmegaConf.to_container(written)), file)
    except yaml.YAMLError as error:
        raise ValueError(f"{_origin(path, overrides)}: not YAML: {' '.join(str(error).split())}") from error
    except (OmegaConfBaseException, ValueError, OSError) as error:  # of a file that is no text, for one
        raise ValueError(f"{_origin(path, overrides)}: {_first_line(error)}") from error
    return build_config(options, overrides, path, schema)


def build_config(
    options: dict[str, Any],
    overrides: list[str],
    origin: Path,
    schema: type[AnySchema] = Config,  # type: ignore[assignment]
) -> AnySchema:
    """A tree of options over the defaults, and `key=value` overrides over both. origin: of the options, for messages.

    Raises: ValueError as `load_config` does.
    """
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise ValueError(f"an override must look like train.batch_size=2, got {override!r}")
        if (name := override.partition("=")[0]) in RENAMED:
            raise ValueError(f"{override}: the option is now called {RENAMED[name]}")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(schema), OmegaConf.create(options), OmegaConf.from_dotlist(overrides)
        )
        return cast(AnySchema, OmegaConf.to_object(merged))  # builds the dataclasses, so every __post_init__ runs
    except OmegaConfBaseException as error:
        raise ValueError(f"{_origin(origin, overrides)}: {_option(error)}{_first_line(error)}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{_origin(origin, overrides)}: not YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # of our own checks
        raise ValueError(f"{_origin(origin, overrides)}: {error}") from error


def convert_older_options(tree: dict[str, Any], origin: Path) -> dict[str, Any]:
    """The sections of a config under today's names, where an earlier version wrote them; logged.

    That version wrote every option, also weights that a kind of head does not use; these are left out, and so are
    options that are gone, where they were off. Raises: ValueError naming one that was on.
    """
    found = []
    for old, new in RENAMED.items():
        section, name = old.split(".")
        values = tree.get(section)
        if isinstance(values, dict) and name in values:
            values = {(new.split(".")[1] if key == name else key): value for key, value in values.items()}
            if section == "head" and values.get("kind") in ("independent", "constrained", "flat"):
                values.pop("auxiliary_weight", None)
            tree = tree | {section: values}
            found.append(f"{old} is now {new}")
    if found:
        logger.warning("%s is of an earlier version: %s", origin, "; ".join(found))
    for old, off in REMOVED.items():
        section, name = old.split(".")
        values = tree.get(section)
        if isinstance(values, dict) and name in values:
            if values[name] != off:
                raise ValueError(f"{old}={values[name]}: this version has no such option, an earlier one had")
            tree = tree | {section: {key: value for key, value in values.items() if key != name}}
    return tree


def find_config(path: Path, schema: type[AnySchema]) -> Path:
    """The file of a config. path: a file, or the name of one that ships with the package, such as "demo" or "ladder".

    A file of that path comes first. Raises: ValueError that lists the names if there is neither.
    """
    if path.is_file():
        return path
    folder = Path(__file__).parent / ("experiments" if schema is ExperimentConfig else "")
    # ours are identifiers; "._demo", "~$demo" or "demo - Copy" was left there by another program
    shipped = {each.stem: each for each in sorted(folder.glob("*.yaml")) if each.stem.isidentifier()}
    if str(path) not in shipped:
        raise ValueError(f"{path}: no such config file; expected the path of one, or a name: {', '.join(shipped)}")
    return shipped[str(path)]


def save_config(cfg: Config | PretrainConfig, path: Path) -> None:
    """Write every option, defaults included; `load_config` gives the same config back."""
    text = OmegaConf.to_yaml(OmegaConf.create(plain_values(asdict(cfg))))
    path.write_text(text, encoding="utf-8", newline="\n")  # the same bytes on every system


def run_folder(cfg: Config | PretrainConfig) -> Path:
    """`runs_dir/name/arm/seed-K`, so that TensorBoard lays the arms and seeds of one experiment over each other.

    Of a pretraining, which has no arms, `runs_dir/name`.
    """
    if isinstance(cfg, PretrainConfig):
        return Path(cfg.runs_dir) / cfg.name
    return Path(cfg.runs_dir) / cfg.name / cfg.arm / f"seed-{cfg.seed}"


def flat_options(cfg: Config | PretrainConfig) -> dict[str, Any]:
    """Every option by its dotted name, as plain values: {"train.batch_size": 2, "head.kind": "joint", …}."""
    flat: dict[str, Any] = {}
    for name, value in plain_values(asdict(cfg)).items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[name] = value
    return flat


def differing_options(before: Schema, now: Schema) -> list[str]:
    """One line an option that differs, such as "train.batch_size: 2 before, 4 now".

    A size that a config leaves to the encoder, by 0, does not differ from what the encoder said.
    """
    old, new = flat_options(before), flat_options(now)
    left = {name for name in ("clip.num_frames", "clip.image_size") if not new[name]}
    return [
        f"{name}: {old[name]!r} before, {new[name]!r} now"
        for name in new
        if old[name] != new[name] and name not in left
    ]


def plain_values(section: dict[str, Any]) -> dict[str, Any]:
    """The same tree with each enum replaced by the word that stands for it in a YAML file."""
    plain: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            plain[name] = plain_values(value)
        else:
            plain[name] = value.value if isinstance(value, Enum) else value
    return plain


def _origin(path: Path, overrides: list[str]) -> str:
    return f"{path} with {' '.join(overrides)}" if overrides else str(path)


def _option(error: OmegaConfBaseException) -> str:
    return f"{error.full_key}: " if error.full_key else ""


def _first_line(error: Exception) -> str:
    """The first line alone: OmegaConf appends lines about its own node types."""
    return str(error).splitlines()[0]
