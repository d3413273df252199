"""An editable install hides a forgotten sub-package or data file; a wheel then lacks it. And imports point one way."""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("configs", "datasets", "heads", "models", "engine", "commands")
# a room may import itself and what stands before it; of a folder without an entry here, its own name counts
ROOMS = (
    "configs",
    "datasets.storage",
    "datasets.video",
    "datasets",
    "datasets.rendered",
    "heads",
    "models.weights",
    "models",
    "engine",
    "engine.evaluation",
    "engine.training",
    "engine.evidence",
    "engine.export",
    "engine.benchmark",
    "commands",
)
# rooms that stand before another and still must not be imported by it
FORBIDDEN = {("heads", "models"), ("engine.benchmark", "engine.evidence")}


def setup_cfg() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def modules() -> Iterator[Path]:
    for top in TOPS:
        yield from (ROOT / top).rglob("*.py")


def room_of(module: str) -> str:
    """The room that a module such as "engine.training.loop" stands in, by the longest name that fits."""
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len)


def imported_modules(path: Path) -> set[str]:
    """What a file imports of the package, wherever in the file: "models.weights.files" for each."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a thing stands"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("diveparse.") for name in names if name.startswith("diveparse.")}


def file_of(name: str) -> Path | None:
    """The file of an imported name: a module, the module that defines it, or a package."""
    for parts in (name.split("."), name.split(".")[:-1]):
        path = ROOT.joinpath(*parts)
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
    return None


def test_setup_cfg_lists_every_package() -> None:
    listed = set(setup_cfg()["options"]["packages"].split())
    inits = [path for path in modules() if path.name == "__init__.py"]
    assert listed == {"diveparse." + ".".join(path.parent.relative_to(ROOT).parts) for path in inits}


def test_every_folder_with_code_is_a_package() -> None:
    assert all((path.parent / "__init__.py").is_file() for path in modules())


def test_setup_cfg_ships_every_data_file() -> None:
    globs = {name: each.split() for name, each in setup_cfg()["options.package_data"].items()}
    for package in setup_cfg()["options"]["packages"].split():
        folder = ROOT.joinpath(*package.split(".")[1:])
        shipped = {path for glob in globs.get(package, []) for path in folder.glob(glob)}
        assert shipped >= set(data_files(folder)), package


def data_files(package: Path) -> Iterator[Path]:
    """All files but code of a package, with folders in it such as configs/experiments that are no packages."""
    for path in package.iterdir():
        if path.is_dir() and path.name != "__pycache__" and not (path / "__init__.py").exists():
            yield from data_files(path)
        elif path.is_file() and path.suffix != ".py":
            yield path


def test_imports_point_one_way() -> None:
    rank = {room: number for number, room in enumerate(ROOMS)}
    for path in modules():
        own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name in imported_modules(path):
            other = room_of(name)
            assert rank[other] <= rank[own], f"{path} imports diveparse.{name}, which stands above it"
            assert (own, other) not in FORBIDDEN, f"{path} imports diveparse.{name}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    files = {path: {file_of(name) for name in imported_modules(path)} - {None, path} for path in modules()}
    reached = {path: set(others) for path, others in files.items()}
    for _ in range(len(files)):
        grown = {
            path: others.union(*(reached.get(other, set()) for other in others)) for path, others in reached.items()
        }
        if grown == reached:
            break
        reached = grown
    circles = [str(path.relative_to(ROOT)) for path, others in reached.items() if path in others]
    assert not circles


def test_the_package_has_no_root_module() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not list((ROOT / "tools").rglob("__init__.py"))


def test_no_file_is_longer_than_400_lines() -> None:
    long = [path for path in modules() if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long
