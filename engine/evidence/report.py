"""The page of a comparison, its CSV files and its figures."""

from __future__ import annotations

from pathlib import Path

from diveparse.datasets.storage.atomic import write_text
from diveparse.datasets.storage.foreign import own_paths
from diveparse.engine.evaluation.metrics import GROUPS
from diveparse.engine.events import EVENT_FILES
from diveparse.engine.evidence.comparison import Report
from diveparse.engine.evidence.figures import figure_image, write_png
from diveparse.engine.evidence.pairs import MARGINS, NLL, TOP1
from diveparse.engine.evidence.report_figures import figures
from diveparse.engine.evidence.statistics import ALPHA, CONFIDENCE_LEVEL
from diveparse.engine.evidence.tables import page_tables
from diveparse.engine.evidence.tensorboard import log_comparison
from diveparse.engine.evidence.tidy import class_table, tidy_table

NOTES = (
    f"""\
**How to read the tables.** Intervals are {100 * CONFIDENCE_LEVEL:g} % percentile bootstrap intervals. They resample
whole sources and hold the trained models fixed. ± is the standard deviation over seeds. In a row "a - b", *clips won*
are those that only a names rightly, and *clips lost* those that only b names rightly. McNemar's test on them is exact
and two-sided and takes clips as independent, which the intervals do not. Over several seeds its p-value is twice the
mean of theirs.

*p (Holm)* is a two-sided p-value over sources: it flips the signs of whole sources, all seeds together. Holm's
correction covers all pairs that are compared on the same quantity and group of dives. The verdict is *higher* or
*lower* where p (Holm) is below {ALPHA}. Otherwise it is *equivalent* where the interval lies within
{MARGINS[TOP1]} ({MARGINS[NLL]} for the NLL), and *inconclusive* where it does not. Verdicts are about the models as
they were trained. "Not with every seed" marks a difference whose sign another seed may well turn. The CSV files hold
the rest: each group of dives by seed, p-values before correction, and each dive.

Dives are grouped by their training clips: """
    + ", ".join(f"{name} (at least {least})" if least else f"{name} (none)" for name, least in GROUPS.items())
    + "."
)


def report_text(report: Report) -> str:
    """What a terminal shows: the caption, the tables, and the options that differ."""
    parts = [report.caption, *page_tables(tidy_table(report))]
    if report.pairs:
        parts.append(option_lines(report))
    return "\n\n".join(parts) + "\n"


def option_lines(report: Report) -> str:
    """One line a pair of arms, so that a reader sees what may cause a difference."""
    return "\n".join(
        f"- options that differ between {pair.second} and {pair.first}: {', '.join(pair.differing)}"
        for pair in report.pairs
    )


def write_report(out: Path, report: Report, text: str) -> None:
    """Write comparison.md, comparison.csv and classes.csv, and into comparison/ the figures, also for TensorBoard."""
    folder = out / "comparison"
    images = {name: figure_image(figure) for name, figure in figures(report)}
    earlier = [*folder.rglob(EVENT_FILES), *own_paths(folder, "*.png")]
    for name, pixels in images.items():
        write_png(folder / f"{name}.png", pixels)
    log_comparison(folder, report, text, images)
    for path in earlier:
        if path.stem not in images:
            path.unlink()  # figures of an earlier comparison would show beside these
    links = [f"![{name}](comparison/{name}.png)" for name in images]
    folders = "\n".join(f"- `{run.folder}`" for _, _, run in report.runs)
    page = [f"# Comparison of {', '.join(report.arms)}", text, NOTES, *links, "Runs:", folders]
    write_text(out / "comparison.md", "\n\n".join(page) + "\n")
    write_text(out / "comparison.csv", tidy_table(report).to_csv(index=False, lineterminator="\n"))
    if report.pairs:
        write_text(out / "classes.csv", class_table(report).to_csv(index=False, lineterminator="\n"))
