"""An editable install hides a forgotten sub-package or data file; a wheel then lacks it."""

from __future__ import annotations

import configparser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("configs", "datasets", "engine", "heads", "models")


def test_setup_cfg_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(setup["options"]["packages"].split())
    inits = [path for top in TOPS for path in (ROOT / top).rglob("__init__.py")]
    assert listed == {"diveparse." + ".".join(path.parent.relative_to(ROOT).parts) for path in inits}


def test_setup_cfg_ships_every_data_file() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = {name.removeprefix("diveparse."): glob for name, glob in setup["options.package_data"].items()}
    for top in TOPS:
        data = [p for p in (ROOT / top).iterdir() if p.is_file() and p.suffix != ".py"]
        assert all(path.match(patterns.get(top, "nothing")) for path in data), top


def test_imports_point_one_way() -> None:
    rank = {"configs": 0, "datasets": 1, "models": 2, "heads": 2, "engine": 3}
    for top in TOPS:
        for path in (ROOT / top).glob("*.py"):
            lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
            imported = {words[1].split(".")[1] for words in lines if words[:1] == ["from"] and "diveparse." in words[1]}
            assert all(rank[other] <= rank[top] for other in imported), path


def test_the_package_has_no_root_module() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not list((ROOT / "tools").rglob("__init__.py"))
