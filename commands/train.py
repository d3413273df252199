"""Train one arm of an experiment into runs/NAME/ARM/seed-K."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  %(prog)s demo
  %(prog)s demo arm=flat head.kind=flat seed=1
  %(prog)s my_config.yaml data.root=my_clips.csv
  %(prog)s demo --resume

Any option of configs/schema.py can be overridden as key=value. The run folder gets config.yaml, environment.json,
checkpoints/ (the newest), model/ (the best on validation) and TensorBoard events.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, or the name of a config such as demo")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options that override those of CONFIG")
    parser.add_argument(
        "--resume", action="store_true", help="continue a run exactly where it stopped; start it if it does not exist"
    )
    parser.set_defaults(if_stopped="the same command with --resume goes on from the last checkpoint")


def run(args: argparse.Namespace) -> int:
    from diveparse.configs import load_config

    cfg = load_config(args.config, args.overrides)  # before the slow import, so that a wrong option is refused at once

    from diveparse.engine.training.loop import train

    folder = train(cfg, resume=args.resume)
    print(f"trained: {folder}; now test it once: diveparse test {folder}")
    return 0
