"""The README and the pages of docs/: what they link to and name exists, and they stay readable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from omegaconf import OmegaConf

from diveparse.configs import Config, PretrainConfig
from diveparse.engine.evidence.results_page import results_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_LINES = {"README.md": 130, "RESULTS.md": 200}
MAX_COLUMNS = 6
MAX_NUMBERS = 3  # of one sentence; more belong into a table

FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w/.-])(data|clip|backbone|head|train|test)\.([a-z][a-z_0-9]*)(?:=([\w.-]+))?(?![\w.(*])")
FILE_ENDINGS = ("py", "md", "json", "yaml")  # as in train.py
FOLDERS = "configs|datasets|heads|models|engine|commands|tools|tests|docs"
PATH = re.compile(rf"(?<![\w/.])(?:{FOLDERS})/[\w/.*-]+\.(?:py|yaml|csv|md|png|safetensors)\b")
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?[½²]?")
NO_NUMBERS = re.compile(
    r"""\b\d{3,4}[A-D]\b  # dive numbers
    | \b(?:19|20)\d\d\b  # years
    | \b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{7}\b  # commits
    | \b(?:Python|torch|transformers|timesformer-pytorch|FFmpeg|Zen)\ \d[\d.]*\d?  # versions
    | \b[A-Za-z][\w./-]*\d[\w./-]*  # names such as Diving48, H.264, bf16, ViT-B/16, AVX-512, top-1
    | \b\d+-[a-z]+  # 48-way
    | \b95\ %\ (?:intervals?|over)  # the usual level of an interval
    """,
    re.VERBOSE,
)
RESULT = re.compile(r"[+−]?\d+\.\d+|\d+ of \d+")  # such as 0.571, +2.1 and 18 of 20
SIZE = re.compile(r"(\d+) ?[×x] ?\d+")  # 640 × 480 is one quantity


every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def section_of(schema: type, section: str) -> Any:
    """The dataclass of a section, or None where a schema has no such section."""
    return get_type_hints(schema).get(section)


def code_in(text: str) -> list[str]:
    """Fenced blocks and code spans."""
    return [*FENCE.findall(text), *CODE_SPAN.findall(FENCE.sub("", text))]


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sentences_of(text: str) -> Iterator[str]:
    """Sentences of paragraphs and list items, without code, mathematics, tables, headings and pictures."""
    text = re.sub(r"\$[^$]+\$", "", CODE_SPAN.sub("", FENCE.sub("\n\n", text)))
    text = LINK.sub(lambda link: "" if link[0].startswith("!") else link[1], text)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#"))]
    text = re.sub(r"^ *(?:-|\d+\.) ", "\n\n", "\n".join(lines), flags=re.MULTILINE)
    for block in re.split(r"\n\s*\n", text):
        yield from filter(None, re.split(r"(?<=[.!?])[)*_]* +(?=[A-Z(*\d])", " ".join(block.split())))


def numbers_in(sentence: str) -> list[str]:
    return NUMBER.findall(SIZE.sub(r"\1", NO_NUMBERS.sub("", sentence)))


def test_a_number_is_told_from_a_name() -> None:
    sentence = (
        "By 2021 Diving48's 5253B had 48-way heads on ViT-B/16 with Python 3.10 at 90f5ffb, top-1 0.7 on 1,970 clips"
    )
    assert numbers_in(sentence) == ["0.7", "1,970"]
    assert numbers_in("640 × 480, 2.0 points (0.7 to 3.3), p = 2e-06") == ["640", "2.0", "0.7", "3.3", "2e-06"]
    assert list(sentences_of("One `4` is 5. Two.\n\n| 6 |\n\n- three\n- four\n\n```\n7\n```\n")) == [
        "One is 5.",
        "Two.",
        "three",
        "four",
    ]


@every_page
def test_every_relative_link_and_picture_exists(page: Path) -> None:
    for _, target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name}: no {target}"
        assert not anchor or anchor in anchors_of(path), f"{page.name}: no heading for {target}"


@every_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    for code in code_in(page.read_text(encoding="utf-8")):
        for name in PATH.findall(code):
            if "NAME" not in name:
                assert list(ROOT.glob(name)), f"{page.name}: no {name}"


@every_page
def test_every_command_that_is_named_exists(page: Path) -> None:
    for code in code_in(page.read_text(encoding="utf-8")):
        for command in re.findall(r"(?<!cd )\bdiveparse ([a-z]+)", code):
            assert (ROOT / "tools" / f"{command}.py").is_file(), f"{page.name}: no diveparse {command}"


@every_page
def test_every_option_that_is_named_is_in_the_schema_and_takes_the_value(page: Path) -> None:
    for code in code_in(page.read_text(encoding="utf-8")):
        for section, name, value in OPTION.findall(code):
            if name in FILE_ENDINGS:
                continue
            holders = [section_of(schema, section) for schema in (Config, PretrainConfig)]
            holders = [holder for holder in holders if holder and name in {field.name for field in fields(holder)}]
            assert holders, f"{page.name}: no option {section}.{name}"
            if value:
                OmegaConf.merge(OmegaConf.structured(holders[0]), OmegaConf.from_dotlist([f"{name}={value}"]))


def test_the_training_page_lists_every_option() -> None:
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("training.md", "method.md"))
    for section in ("data", "clip", "backbone", "head", "train", "test"):
        for field in fields(section_of(Config, section)):
            assert f"`{section}.{field.name}" in text, f"docs/training.md lacks {section}.{field.name}"


def test_the_readme_draws_the_folders_as_they_are() -> None:
    layout = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Layout")[2]
    drawn = [line.split(maxsplit=1) for line in FENCE.findall(layout)[0].splitlines()[1:-1]]
    for folder, about in drawn:
        assert (ROOT / folder).is_dir(), f"README.md draws {folder}"
        for name in re.findall(r"\b\w+\.(?:py|md)\b", about):
            assert (ROOT / folder / name).is_file(), f"README.md draws {folder}{name}"
    tops = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert tops <= {folder.strip("/") for folder, _ in drawn}


def test_the_page_of_results_is_its_template_filled_in_from_the_tables() -> None:
    tables = ROOT / "docs" / "results"
    template = (tables / "RESULTS.template.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8") == results_page(template, tables)


def test_every_result_in_the_readme_is_in_a_row_of_the_page_of_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Results")[2].partition("\n## ")[0]
    rows = [line for line in readme.splitlines() if line.startswith("|") and "](docs/results/" in line]
    assert len(rows) >= 4
    page = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    known = [set(RESULT.findall(line)) for line in page.splitlines() if line.startswith("|")]
    for row in rows:
        found = set(RESULT.findall(row))
        assert found, row
        assert any(found <= each for each in known), f"no row of RESULTS.md has {found}"


@every_page
def test_pages_that_people_read_first_are_short(page: Path) -> None:
    num_lines = len(page.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES.get(page.name, num_lines)


@every_page
def test_no_table_has_more_columns_than_fit_a_page(page: Path) -> None:
    for line in FENCE.sub("", page.read_text(encoding="utf-8")).splitlines():
        if line.startswith("|"):
            assert len(line.replace(r"\|", "").strip("|").split("|")) <= MAX_COLUMNS, f"{page.name}: {line[:80]}"


@every_page
def test_no_sentence_has_more_numbers_than_one_can_read(page: Path) -> None:
    crowded = [
        f"{numbers}: {sentence}"
        for sentence in sentences_of(page.read_text(encoding="utf-8"))
        if len(numbers := numbers_in(sentence)) > MAX_NUMBERS
    ]
    assert not crowded, "\n".join([page.name, *crowded])
