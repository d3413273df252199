from pathlib import Path

import pytest

from diveparse.datasets.storage.foreign import is_foreign, own_paths

FOREIGN = [".DS_Store", "._clip.mp4", "Thumbs.db", "desktop.ini", "Desktop.ini", "x~", ".x.swp", "#x#", "~$table.xlsx"]
OWN = ["clip.mp4", "_8Vy3dlHg2w_00000.mp4", "-a~b.mp4", "config.yaml", "update-00000001", "model.safetensors.partial"]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_other_programs_leave_behind_is_foreign(name: str) -> None:
    assert is_foreign(Path("folder") / name)


@pytest.mark.parametrize("name", OWN)
def test_files_of_people_and_of_this_project_are_not_foreign(name: str) -> None:
    assert not is_foreign(Path(".hidden") / name)


def test_a_folder_is_listed_in_order_and_without_foreign_files(tmp_path: Path) -> None:
    for name in (*FOREIGN, *OWN):
        (tmp_path / name).touch()
    assert [path.name for path in own_paths(tmp_path)] == sorted(OWN)
    assert [path.name for path in own_paths(tmp_path, "*.mp4")] == sorted(name for name in OWN if name.endswith(".mp4"))
    assert own_paths(tmp_path / "missing") == []
