"""Train one arm of an experiment into runs/NAME/ARM/seed-K."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

EPILOG = """\
examples:
  python tools/train.py configs/demo.yaml
  python tools/train.py configs/demo.yaml arm=flat head.kind=flat seed=1
  python tools/train.py configs/demo.yaml --resume

Any option of configs/schema.py can be overridden as key=value. The run folder gets config.yaml, environment.json,
checkpoints/ (the newest), model/ (the best on validation) and TensorBoard events.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options that override the file's")
    parser.add_argument("--resume", action="store_true", help="go on exactly where the run stopped, or begin it")
    args = parser.parse_intermixed_args(argv)

    # imported here, since data workers import this file again and need none of it; --help is quick, too
    from tqdm.contrib.logging import logging_redirect_tqdm

    from diveparse.configs import load_config
    from diveparse.datasets.clips import BadRowsError
    from diveparse.engine.training.loop import train

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("diveparse").setLevel(logging.INFO)
    try:
        cfg = load_config(args.config, args.overrides)
        with logging_redirect_tqdm():
            run = train(cfg, resume=args.resume)
    except KeyboardInterrupt:
        print("stopped: the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BadRowsError as error:
        print(f"error: {error}", file=sys.stderr)  # a line for each row
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"trained: {run}; now test it once: python tools/test.py {run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
