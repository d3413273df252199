"""Pretrain a backbone on the kinematics of rendered dives, into runs/NAME."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

EPILOG = """\
examples:
  python tools/pretrain.py configs/kinematics.yaml
  torchrun --standalone --nproc-per-node 2 tools/pretrain.py configs/kinematics.yaml
  torchrun --standalone --nproc-per-node 2 tools/pretrain.py configs/kinematics.yaml --resume

Any option of PretrainConfig in configs/schema.py can be overridden as key=value. The run folder gets config.yaml,
environment.json, checkpoint.pt (the newest), backbone.safetensors (at the end) and TensorBoard events.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, such as configs/kinematics.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options that override the file's")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    args = parser.parse_intermixed_args(argv)

    # imported here, so that --help is quick
    from tqdm.contrib.logging import logging_redirect_tqdm

    from diveparse.configs import PretrainConfig, load_config
    from diveparse.engine.training.pretrain import pretrain

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("diveparse").setLevel(logging.INFO)
    try:
        cfg = load_config(args.config, args.overrides, PretrainConfig)
        with logging_redirect_tqdm():
            path = pretrain(cfg, resume=args.resume)
    except KeyboardInterrupt:
        print("stopped: the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"weights: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
