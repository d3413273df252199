"""Pretrain a backbone on the kinematics of rendered dives: `pretrain.py CONFIG [key=value …] [--resume]`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from diveparse.configs import PretrainConfig, load_config
from diveparse.engine.pretrain import pretrain


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        path = pretrain(load_config(args.config, args.overrides, PretrainConfig), resume=args.resume)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"weights: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
