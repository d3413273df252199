"""Fill in the page of all results: every number in it comes from the tables that experiments wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  %(prog)s
  %(prog)s --template my_template.md --tables results --out my_results.md

In the template, {{ladder joint-flat points}} is the difference in top-1 between the arms joint and flat of ladder.csv.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template", type=Path, metavar="FILE", default=Path("docs/results/RESULTS.template.md"), help="(%(default)s)"
    )
    parser.add_argument("--tables", type=Path, metavar="DIR", default=Path("docs/results"), help="(%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", default=Path("docs/RESULTS.md"), help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    from diveparse.datasets.storage.atomic import write_text
    from diveparse.engine.evidence.results_page import results_page

    try:
        page = results_page(args.template.read_text(encoding="utf-8"), args.tables)
    except ValueError as error:
        raise ValueError(f"{args.template}: {error}") from error
    write_text(args.out, page)
    print(f"written to {args.out}")
    return 0
