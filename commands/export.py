"""Write a trained model for others: a folder for `transformers`, with a model card, or one file for ONNX Runtime or
torch.export. Probabilities are calibrated, with the temperature that was fitted on validation clips.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diveparse.configs import Dives

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}  # of a format that is one file
EXAMPLES = """\
examples:
  %(prog)s runs/mine/structured/seed-0 published/ --format huggingface
  %(prog)s runs/mine/structured/seed-0 published/ --format huggingface --dives world-aquatics
  %(prog)s runs/mine/structured/seed-0 published/ --format huggingface --push me/dives
  %(prog)s runs/mine/structured/seed-0 dives.onnx --format onnx
  %(prog)s runs/mine/structured/seed-0 dives.pt2 --format torch-export
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a trained run, or a folder with a saved model")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, or a new file that ends in .onnx or .pt2")
    parser.add_argument("--format", choices=["huggingface", *SUFFIXES], required=True, help="what OUT is for")
    parser.add_argument(
        "--dives",
        choices=[dives.value for dives in Dives],
        help="export a structured model over these dives instead of those that it was trained on",
    )
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the folder to the HuggingFace hub, after `hf auth login`"
    )


def run(args: argparse.Namespace) -> int:
    require_free(args.out, args.format)
    if args.push and args.format in SUFFIXES:
        raise ValueError(f"--push uploads a folder with a model card; it needs --format huggingface, not {args.format}")
    from diveparse.engine.export.push import push, require_account

    if args.push:
        require_account(args.push)  # before the slow imports, so that no internet is known within seconds
    from diveparse.engine.evaluation.predict import dives_to_answer_with
    from diveparse.engine.export.graph import write_onnx, write_torch_export
    from diveparse.engine.export.huggingface import export_huggingface
    from diveparse.models.classifier import DiveClassifier

    model = DiveClassifier.load(args.run)
    dive_set = dives_to_answer_with(model, Dives(args.dives)) if args.dives else model.dive_set
    if args.format == "onnx":
        write_onnx(model, dive_set, args.out)
    elif args.format == "torch-export":
        write_torch_export(model, dive_set, args.out)
    else:
        is_folded = export_huggingface(model, dive_set, args.out, args.run)
        print(f"{args.out}: {'a model for transformers' if is_folded else 'a model folder of diveparse'}")
    print(f"{args.out}: answers with {len(dive_set)} dives, {dive_set.name}")
    if args.push:
        print(f"uploaded to {push(args.out, args.push)}")
    return 0


def require_free(out: Path, chosen: str) -> None:
    """Raises: ValueError if the output exists, or its name is not that of the format."""
    suffix = SUFFIXES.get(chosen)
    if suffix is not None and out.suffix != suffix:
        raise ValueError(f"{out}: expected the name of a file that ends in {suffix} for --format {chosen}")
    if out.exists() and not (suffix is None and out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} already exists; remove it, or choose another name")
