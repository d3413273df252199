"""How a campaign reports: a table of how many of each kind had each outcome, and how to see each failure again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from tabulate import tabulate

Counts: TypeAlias = "Counter[tuple[str, str]]"  # of (kind, outcome)
NUM_SHOWN = 50


def report(what: str, names: Sequence[str], outcomes: Sequence[str], counts: Counts, found: Sequence[str]) -> int:
    """Print the table and the failures. Returns: the exit code, 1 if anything failed."""
    rows = [[name, *(counts[name, outcome] for outcome in outcomes)] for name in names]
    rows.append(["all", *(sum(counts[name, outcome] for name in names) for outcome in outcomes)])
    print(tabulate(rows, headers=[what, *outcomes], tablefmt="plain"))
    print("\n".join(found[:NUM_SHOWN]))
    return 1 if found else 0
