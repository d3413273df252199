"""Pretrain a backbone on the kinematics of rendered dives, into runs/NAME."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  %(prog)s kinematics
  %(prog)s kinematics clips_per_epoch=500 --resume
  torchrun --standalone --nproc-per-node 2 --no-python %(prog)s kinematics

Any option of PretrainConfig in configs/schema.py can be overridden as key=value. The run folder gets config.yaml,
environment.json, checkpoint.pt (the newest), backbone.safetensors (at the end) and TensorBoard events.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, metavar="CONFIG", help="a YAML file, or the name of a config such as kinematics"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options that override those of CONFIG")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.set_defaults(if_stopped="the same command with --resume goes on from the last checkpoint")


def run(args: argparse.Namespace) -> int:
    from diveparse.configs import PretrainConfig, load_config

    cfg = load_config(args.config, args.overrides, PretrainConfig)  # before the slow import, to refuse it at once

    from diveparse.engine.training.pretrain import pretrain

    weights = pretrain(cfg, resume=args.resume)
    print(f"weights: {weights}")
    return 0
