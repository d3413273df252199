"""The page of a comparison, its CSV files and its figures."""

from __future__ import annotations

from pathlib import Path

from diveparse.datasets.storage.atomic import write_text
from diveparse.datasets.storage.foreign import own_paths
from diveparse.engine.evaluation.metrics import GROUPS
from diveparse.engine.events import EVENT_FILES
from diveparse.engine.evidence.comparison import Report
from diveparse.engine.evidence.figures import figure_image, write_png
from diveparse.engine.evidence.report_figures import figures
from diveparse.engine.evidence.statistics import CONFIDENCE_LEVEL
from diveparse.engine.evidence.tables import page_tables
from diveparse.engine.evidence.tensorboard import log_comparison
from diveparse.engine.evidence.tidy import class_table, tidy_table
from diveparse.engine.evidence.trainings import (
    ALPHA,
    DECISIVE,
    MIN_RESAMPLED_TRAININGS,
    MIN_TRAININGS,
    POWER,
    THESE_WEIGHTS,
)
from diveparse.engine.evidence.verdicts import MARGIN_NAMES, NLL, TOP1, UNDECIDED

NOTES = (
    f"""\
**How to read the tables.** The unit is a training. A row "a - b" compares paired trainings of a and b: same seed, data
and order. Its interval ({100 * CONFIDENCE_LEVEL:g} %) is that of a t distribution whose error adds the spread over
trainings and that over test sources. *Higher in* counts the trainings in which a has more than b. *p (Holm)* is
two-sided, from the same distribution. Holm's correction covers all pairs compared on the same quantity and group of
dives.

The verdict is *higher* or *lower* where p (Holm) is below {ALPHA}. It is *equivalent*, with its margin, where two
one-sided tests at the same level find a difference below {" or ".join(MARGIN_NAMES[TOP1])}
({" or ".join(MARGIN_NAMES[NLL])} for the NLL). Otherwise it is *{UNDECIDED}*. *(9 more)* tells how many more trainings
of each arm would find a difference of {100 * DECISIVE:g} points ({DECISIVE:g} nats) with a power of {POWER}.

Fewer than {MIN_TRAININGS} trainings decide nothing about arms: *{THESE_WEIGHTS}*. Their interval takes the spread of
all pairs of the page. A table of that name shows what holds for these trained models alone. There, *clips won* are
those that only a names rightly. McNemar's test on them is exact and takes clips as independent. The p-value over
sources flips the signs of whole sources, and the interval resamples sources. A score of one arm has ± the standard
deviation over seeds, and an interval over sources that holds its models fixed.

*Resampled* intervals draw trainings and sources, from {MIN_RESAMPLED_TRAININGS} trainings on. Pairs that differ in the
same options are pooled over their settings, with settings and seeds as random effects. The CSV files hold the rest.

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
