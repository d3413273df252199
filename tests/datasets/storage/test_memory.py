from pathlib import Path

import pytest

from diveparse.datasets.storage import memory
from diveparse.datasets.storage.memory import machine_memory, require_memory


def test_what_cannot_fit_is_refused_with_both_sizes() -> None:
    require_memory(1, "numbers")
    with pytest.raises(ValueError, match=r"^numbers need 1000000 GB, this machine has \d+ GB; choose less$"):
        require_memory(10**15, "numbers")


@pytest.mark.parametrize(("limit", "expected"), [("1000", 1000), ("max\n", None), (None, None)])
def test_a_container_may_have_less_than_its_machine(
    limit: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = machine_memory()
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", tmp_path / "memory.max")
    found = machine_memory()
    assert found == expected if expected else found is not None and whole is not None and found >= whole
